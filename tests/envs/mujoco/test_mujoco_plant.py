"""The MuJoCo plant on the C library: a function of state, action, parameters and disturbance, whatever computes it."""

import copy
import pickle

import mujoco
import numpy as np
import pytest
import torch

from robust_policies.envs import load_plant
from robust_policies.envs.mujoco.c_backend import CBackend
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError

NAMES = (
    "inverted_pendulum", "inverted_double_pendulum", "reacher", "hopper", "hopper_no_velocity", "half_cheetah",
    "walker2d",
)  # fmt: skip


@pytest.fixture(params=["hopper", "reacher", "half_cheetah"])
def plant(request):
    return load_plant(request.param)


def states_and_actions(plant, count, seed=0):
    """Return states some steps into episodes, where bodies touch the ground, and random actions."""
    generator = torch.Generator().manual_seed(seed)
    params = plant.prepare(plant.nominal())
    state = plant.initial(torch.rand((count, plant.reset_size), dtype=torch.float64, generator=generator), params)
    for _ in range(20):
        action = 2.0 * torch.rand((count, plant.action_size), dtype=torch.float64, generator=generator) - 1.0
        state = plant.advance(state, action, params)
    return state, action, params


def by_hand(plant, model, state, action, push=None):
    """Return positions and velocities (n, nq + nv) after one step of the plant, by mj_step on a model."""
    data, rows = mujoco.MjData(model), []
    for i, row in enumerate(state):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = row[: model.nq], row[model.nq : model.nq + model.nv]
        data.ctrl[:] = action[i]
        if push is not None:
            data.xfrc_applied[plant.body] = push[i]
        mujoco.mj_step(model, data, plant.frame_skip)
        rows.append(np.concatenate((data.qpos, data.qvel)))
    return torch.as_tensor(np.array(rows))


def test_a_batch_does_what_each_row_does_alone(plant):
    state, action, params = states_and_actions(plant, 24)
    together = plant.advance(state, action, params)
    alone = torch.cat([plant.advance(state[i : i + 1], action[i : i + 1], params) for i in range(24)])
    assert torch.equal(together, alone)
    assert torch.equal(plant.advance(state.view(4, 6, -1), action.view(4, 6, -1), params).view(24, -1), together)


def test_any_number_of_threads_gives_the_same_numbers(plant):
    state, action, params = states_and_actions(plant, 100)
    results = []
    for threads in (1, 2, 3, 7):
        plant.threads = threads
        plant.use("c", torch.device("cpu"), 100)
        results += [plant.advance(state, action, params) for _ in range(2)]
    assert all(torch.equal(results[0], result) for result in results[1:])
    plant.close()
    assert torch.equal(plant.advance(state, action, params), results[0])


def test_the_step_is_mujocos_own(plant):
    state, action, params = states_and_actions(plant, 5)
    expected = by_hand(plant, plant.model, state, action)
    torch.testing.assert_close(
        plant.advance(state, action, params)[:, : plant.layout.physics], expected, rtol=1e-9, atol=1e-9
    )


def test_actions_beyond_the_limits_are_clipped(plant):
    state, action, params = states_and_actions(plant, 3)
    high = torch.as_tensor(plant.action_high).expand_as(action)
    assert torch.equal(plant.advance(state, 5.0 * high, params), plant.advance(state, high, params))
    following = plant.advance(state, high, params)
    assert torch.equal(plant.reward(state, 5.0 * high, following, params), plant.reward(state, high, following, params))


def test_each_environments_mass_is_that_of_a_model_edited_by_hand(plant):
    state, action, nominal = states_and_actions(plant, 4)
    factors = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    physical = dict(plant.nominal())
    physical["body_mass"] = factors[:, None] * physical["body_mass"]
    following = plant.advance(state, action, plant.prepare(physical))
    unchanged = plant.advance(state, action, nominal)
    for i, factor in enumerate(factors.tolist()):
        model = copy.copy(plant.model)
        model.body_mass[:] *= factor
        mujoco.mj_setConst(model, mujoco.MjData(model))
        expected = by_hand(plant, model, state[i : i + 1], action[i : i + 1])
        torch.testing.assert_close(following[i : i + 1, : plant.layout.physics], expected, rtol=1e-9, atol=1e-9)
        moved = (following[i] - unchanged[i]).abs().max().item()
        assert moved == 0.0 if factor == 1.0 else moved > 1e-6


@pytest.mark.parametrize(
    ("name", "factor"),
    [("gravity", 0.3), ("dof_damping", 20.0), ("dof_armature", 3.0), ("actuator_gear", 0.5), ("body_inertia", 4.0)],
)
def test_every_parameter_really_changes_the_motion(name, factor):
    plant = load_plant("hopper")
    state, action, nominal = states_and_actions(plant, 3)
    physical = plant.nominal() | {name: factor * plant.nominal()[name]}
    difference = plant.advance(state, action, plant.prepare(physical)) - plant.advance(state, action, nominal)
    assert (difference.abs().amax(-1) > 1e-6).all()


def test_parameters_can_be_taken_and_put_by_rows():
    plant = load_plant("hopper")
    state, action, _ = states_and_actions(plant, 5)
    physical = plant.nominal()
    physical["body_mass"] = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)[:, None] * physical["body_mass"]
    params = plant.prepare(physical)
    rows = torch.tensor([4, 1])
    part = plant.take(params, rows)
    whole = plant.advance(state, action, params)
    assert torch.equal(plant.advance(state[rows], action[rows], part), whole[rows])
    assert torch.equal(part["body_mass"], physical["body_mass"][rows])
    plant.put(params, torch.tensor([0, 2]), part)
    changed = plant.advance(state, action, params)
    order = torch.tensor([4, 1, 1, 3, 4])
    again = plant.advance(state, action, plant.prepare(physical | {"body_mass": physical["body_mass"][order]}))
    assert torch.equal(changed, again)
    assert not torch.equal(changed[0], whole[0])


def test_shared_parameters_need_no_copies():
    plant = load_plant("hopper")
    params = plant.prepare(plant.nominal())
    assert params.models == [plant.model]
    assert plant.take(params, torch.tensor([3, 4])) is params
    assert set(params) == set(plant.parameter_units) == set(plant.nominal())


def test_the_disturbance_is_a_force_and_torque_on_the_named_body(plant):
    state, action, params = states_and_actions(plant, 4)
    push = torch.tensor([[5.0, 0, -3.0, 0, 0.2, 0.1]], dtype=torch.float64) * torch.arange(4).view(4, 1)
    following = plant.advance(state, action, params, disturbance=push)
    expected = by_hand(plant, plant.model, state, action, push)
    torch.testing.assert_close(following[:, : plant.layout.physics], expected, rtol=1e-9, atol=1e-9)
    calm = plant.advance(state, action, params)
    torch.testing.assert_close(following[0], calm[0], rtol=0, atol=1e-12)
    assert ((following[1:] - calm[1:]).abs().amax(-1) > 1e-6).all()
    assert torch.equal(plant.advance(state, action, params), calm)
    assert len(plant.disturbance_names) == 6


def test_a_simulation_that_fails_ends_its_episode_without_a_nan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file there.
    plant = load_plant("half_cheetah")
    state, action, params = states_and_actions(plant, 4)
    neighbours = plant.advance(state, action, params)
    wild = state.clone()
    wild[1, plant.model.nq + 3] = 1e12
    wild[2, 4] = 1e11
    following = plant.advance(wild, action, params)
    assert torch.isfinite(following).all()
    assert plant.terminated(following, params).tolist() == [False, True, True, False]
    assert torch.equal(following[1, : plant.layout.physics], wild[1, : plant.layout.physics])
    assert torch.equal(following[[0, 3]], neighbours[[0, 3]])
    assert torch.isfinite(plant.reward(wild, action, following, params)).all()
    assert not plant.terminated(neighbours, params).any()


@pytest.mark.parametrize("name", NAMES)
def test_random_steps_from_the_start_stay_finite_and_within_the_names(name):
    plant = load_plant(name)
    state, _, params = states_and_actions(plant, 32, seed=3)
    observation = plant.observe(state, params)
    assert observation.shape == (32, plant.observation_size) == (32, len(plant.output_names))
    assert len(plant.state_names) == plant.state_size
    assert all(plant.state_names)
    assert torch.isfinite(observation).all()
    high = torch.as_tensor(plant.observation_high)
    assert (observation.abs() <= high).all()
    assert all(low > 0 and high > low for low, high in plant.task.randomize.values())


def test_single_precision_states_are_stepped_in_double():
    plant = load_plant("hopper")
    state, action, params = states_and_actions(plant, 3)
    single = plant.advance(state.float(), action.float(), params)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), plant.advance(state, action, params), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda plant: pickle.loads(pickle.dumps(plant))])
def test_a_copied_or_pickled_plant_does_the_same(plant, copied):
    state, action, params = states_and_actions(plant, 9)
    expected = plant.advance(state, action, params)
    twin = copied(plant)
    assert torch.equal(twin.advance(state, action, twin.prepare(twin.nominal())), expected)
    assert torch.equal(twin.advance(state, action, copied(params)), expected)


def test_the_readings_of_a_state_are_those_of_the_state(own_task):
    plant = load_plant(own_task("reacher", lambda content: content.update(readings="after")))
    state, action, params = states_and_actions(plant, 6)
    following = plant.advance(state, action, params)
    q = following[:, :4]
    reach = torch.stack(
        [0.1 * torch.cos(q[:, 0]) + 0.11 * torch.cos(q[:, 0] + q[:, 1]),
         0.1 * torch.sin(q[:, 0]) + 0.11 * torch.sin(q[:, 0] + q[:, 1])], dim=-1
    )  # fmt: skip
    torch.testing.assert_close(plant.observe(following, params)[:, -2:], reach - q[:, 2:], rtol=0, atol=1e-12)
    torch.testing.assert_close(plant.settle(following, params), following, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"body_mas": torch.ones(5)}, UnknownNameError, "Did you mean 'body_mass'"),
        ({"body_mass": torch.ones(7)}, ShapeError, r"body_mass has shape \(7,\); expected \(5,\)"),
        ({"body_mass": -torch.ones(5)}, InvalidValueError, "at least 0"),
        ({"body_mass": torch.full((5,), torch.nan)}, NonFiniteError, "body_mass holds NaN"),
        ({"body_mass": torch.ones(2, 5), "gravity": torch.ones(3, 3)}, ShapeError, "for 2 and 3 environments"),
    ],
)
def test_wrong_parameters_are_answered(change, error, message):
    plant = load_plant("hopper")
    with pytest.raises(error, match=message):
        plant.prepare(plant.nominal() | change)


def test_parameters_of_another_number_of_environments_are_refused():
    plant = load_plant("hopper")
    state, action, _ = states_and_actions(plant, 3)
    params = plant.prepare(plant.nominal() | {"body_mass": plant.nominal()["body_mass"].repeat(4, 1)})
    with pytest.raises(ShapeError, match="4 environments"):
        plant.advance(state, action, params)


def test_an_unknown_backend_is_refused_and_the_c_library_is_the_choice_on_a_cpu():
    plant = load_plant("hopper")
    with pytest.raises(InvalidValueError, match="auto, c, warp"):
        plant.use("cuda", torch.device("cpu"), 1)
    plant.use("auto", torch.device("cpu"), 1)
    assert isinstance(plant.backend, CBackend)
    assert not plant.differentiable


def test_without_velocities_it_is_the_same_hopper_seen_through_five_numbers():
    full, partial = load_plant("hopper"), load_plant("hopper_no_velocity")
    state, action, params = states_and_actions(full, 8)
    following = full.advance(state, action, params)
    assert torch.equal(partial.advance(state, action, partial.prepare(partial.nominal())), following)
    assert torch.equal(
        partial.initial(state[:, : full.reset_size], params), full.initial(state[:, : full.reset_size], params)
    )
    for judged in ("reward", "terminated"):
        given = (state, action, following, params) if judged == "reward" else (following, params)
        assert torch.equal(getattr(partial, judged)(*given), getattr(full, judged)(*given))
    assert torch.equal(partial.observe(following, params), full.observe(following, params)[:, :5])
    assert partial.observation_size == len(partial.output_names) == 5
