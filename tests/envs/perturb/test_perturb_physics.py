"""Forces and changed parameters, against the plant's own equations."""

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs import load_plant
from robust_policies.envs import perturb as single
from robust_policies.envs.perturb import perturb, vector
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

ID = "robust_policies/Pendulum-v0"
H = 0.05
"""The pendulum's time step [s]."""
COUNT = 3


def forces(*args, steps=12, seed=0, **kwargs):
    """Return the sizes that a ForceDisturbance on the pendulum reports, after checking the plant's motion by them."""
    env = vector.ForceDisturbance(gymnasium.make_vec(ID, num_envs=COUNT), *args, **kwargs)
    env.reset(seed=seed)
    plant, state = load_plant("pendulum"), env.unwrapped.state
    params, action = plant.prepare(plant.nominal()), torch.full((COUNT, 1), 0.5)
    sizes = []
    for _ in range(steps):
        *_, info = env.step(action)
        sizes.append(info["force_disturbance_size"])
        # The sign is the test's to know; the pendulum has one channel.
        tried = [plant.advance(state, action, params, None, sign * sizes[-1].unsqueeze(-1)) for sign in (1.0, -1.0)]
        following = env.unwrapped.state
        assert min((one - following).abs().max() for one in tried) < 1e-12
        state = following
        assert env.unwrapped.disturbance is None
    return torch.stack(sizes)


def test_a_step_of_force_acts_from_its_start_for_its_duration():
    sizes = forces(0.7, start=0.2, duration=0.15)
    expected = torch.tensor([0.0] * 4 + [0.7] * 3 + [0.0] * 5, dtype=torch.float64)
    assert torch.equal(sizes, expected.unsqueeze(-1).expand(-1, COUNT))


def test_an_impulse_has_its_area_whatever_its_duration():
    for duration, steps in ((None, 1), (0.1, 2), (0.12, 3)):
        sizes = forces(0.05, "impulse", 0.1, duration)
        assert torch.equal((sizes[:, 0] > 0).nonzero().squeeze(-1), torch.arange(2, 2 + steps))
        assert torch.allclose(sizes.sum(0) * H, torch.tensor(0.05, dtype=torch.float64))


def test_a_sine_swings_at_its_frequency_from_its_start():
    env = vector.ForceDisturbance(gymnasium.make_vec(ID, num_envs=1), 2.0, "sine", 0.1, frequency=1.5)
    env.reset(seed=0, options={"state": torch.zeros(1, 2)})
    pushed = []
    for _ in range(20):
        state = env.unwrapped.state
        env.step(torch.zeros(1, 1))
        # theta'' = 3 g / (2 l) sin(theta) + 3 u / (m l^2), solved for u, with the published g = 10, m = l = 1.
        acceleration = (env.unwrapped.state[0, 1] - state[0, 1]) / H
        pushed.append(float((acceleration - 15.0 * state[0, 0].sin()) / 3.0))
    t = np.arange(20) * H
    expected = np.where(t >= 0.1 - 1e-9, 2.0 * np.sin(2 * np.pi * 1.5 * (t - 0.1)), 0.0)
    assert np.allclose(pushed, expected, atol=1e-9)


def test_a_random_start_differs_between_environments_and_lies_in_its_range():
    env = vector.ForceDisturbance(gymnasium.make_vec(ID, num_envs=200), 1.0, start=[0.1, 0.4])
    env.reset(seed=0)
    sizes = torch.stack([env.step(torch.zeros(200, 1))[4]["force_disturbance_size"] for _ in range(10)])
    begins = (sizes > 0).int().argmax(0)
    # From the first step that is not before the start on: a start after 0.1 s means step 3.
    assert begins.unique().tolist() == [3, 4, 5, 6, 7, 8]


def test_every_environment_has_its_own_clock():
    plain = gymnasium.make_vec(ID, num_envs=2, autoreset_mode="DISABLED")
    env = vector.ForceDisturbance(plain, 1.0, "impulse", 0.1)
    env.reset(seed=0)
    action = torch.zeros(2, 1)
    env.step(action)
    env.reset(options={"reset_mask": np.array([False, True])})
    sizes = torch.stack([env.step(action)[4]["force_disturbance_size"] for _ in range(3)])
    assert (sizes > 0).tolist() == [[False, False], [True, False], [False, True]]


def test_forces_add_to_one_another_and_to_the_one_already_set():
    env = perturb(gymnasium.make(ID), [{"ForceDisturbance": 0.5}, {"ForceDisturbance": -0.2}])
    env.reset(seed=0)
    env.unwrapped.disturbance = np.array([0.1])
    plant, state = load_plant("pendulum"), torch.tensor(env.unwrapped.state)
    *_, info = env.step(np.array([0.3], np.float32))
    disturbance = torch.tensor([0.4], dtype=torch.float64)
    expected = plant.advance(state, torch.tensor([0.3]), plant.prepare(plant.nominal()), None, disturbance)
    assert np.allclose(env.unwrapped.state, expected, atol=1e-12)
    assert (info["force_disturbance_size"], info["force_disturbance_2_size"]) == (0.5, pytest.approx(0.2))
    assert env.unwrapped.disturbance.tolist() == [0.1]


@pytest.mark.parametrize(("size", "pushed"), [(2.0, [2.0, 0.0, 0.0]), ([0.5, -1.0], [0.5, -1.0, 0.0])])
def test_numbers_push_the_first_channels_in_order(size, pushed):
    env = single.ForceDisturbance(gymnasium.make("robust_policies/QuadrotorPlanar-v0"), size)
    twin = gymnasium.make("robust_policies/QuadrotorPlanar-v0")
    env.reset(seed=0)
    twin.reset(seed=0)
    twin.unwrapped.disturbance = np.array(pushed)
    action = env.action_space.high
    for _ in range(5):
        assert np.array_equal(env.step(action)[0], twin.step(action)[0])


def test_a_refused_action_leaves_no_force_behind():
    env = single.ForceDisturbance(gymnasium.make(ID), 1.0)
    env.reset(seed=0)
    state = env.unwrapped.state
    with pytest.raises(ValueError):
        env.step(np.array([np.nan], np.float32))
    assert env.unwrapped.disturbance is None and np.array_equal(env.unwrapped.state, state)


def test_forces_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"size has 2 numbers; expected at most 1: torque \[N m\]"):
        single.ForceDisturbance(gymnasium.make(ID), [1.0, 2.0])
    with pytest.raises(InvalidValueError, match="leave body out"):
        single.ForceDisturbance(gymnasium.make(ID), body="pole")
    with pytest.raises(InvalidValueError, match="physics cannot be reached"):
        single.ForceDisturbance(gymnasium.make("CartPole-v1"))
    with pytest.raises(InvalidValueError, match="body is missing; expected one of cart, pole"):
        single.ForceDisturbance(gymnasium.make("InvertedPendulum-v5"))
    with pytest.raises(UnknownNameError, match="Did you mean 'pole'"):
        single.ForceDisturbance(gymnasium.make("InvertedPendulum-v5"), body="pol")


@pytest.mark.parametrize("several", [False, True], ids=["single", "SyncVectorEnv"])
def test_a_force_pushes_a_body_of_gymnasiums_mujoco_environments(several):
    def make():
        if several:
            return gymnasium.make_vec("InvertedPendulum-v5", num_envs=2, vectorization_mode="sync")
        return gymnasium.make("InvertedPendulum-v5")

    module = vector if several else single
    env, plain = module.ForceDisturbance(make(), 5.0, "step", 0.04, 0.04, body="cart"), make()
    worlds = [one.unwrapped for one in (plain.envs if several else [plain])]
    first = [one.unwrapped for one in (env.unwrapped.envs if several else [env])]
    env.reset(seed=3)
    plain.reset(seed=3)
    action = np.zeros((2, 1) if several else 1, np.float32)
    for t in range(3):
        for world in worlds:
            world.data.xfrc_applied[world.model.body("cart").id, 0] = 5.0 * (t == 1)
        pushed, *_, info = env.step(action)
        expected, *_ = plain.step(action)
        assert np.array_equal(pushed, expected)
        assert np.all(info["force_disturbance_size"] == 5.0 * (t == 1))
        assert all((world.data.xfrc_applied == 0).all() for world in first)


@pytest.mark.parametrize("several", [False, True], ids=["single", "vector"])
def test_a_shifted_mass_moves_as_a_task_with_that_mass(own_task, several):
    heavy = own_task("pendulum", lambda content: content["parameters"].update(mass=1.7))
    if several:
        shifted = vector.DynamicsShift(gymnasium.make_vec(ID, num_envs=COUNT), "mass", 1.5, 0.2)
        plain, expected = gymnasium.make_vec(ID, num_envs=COUNT), gymnasium.make_vec(ID, num_envs=COUNT, task=heavy)
        action = torch.ones(COUNT, 1)
    else:
        shifted = single.DynamicsShift(gymnasium.make(ID), "mass", 1.5, 0.2)
        plain, expected = gymnasium.make(ID), gymnasium.make(ID, task=heavy)
        action = np.ones(1, np.float32)
    for env in (shifted, plain, expected):
        env.reset(seed=1)
    for _ in range(20):
        state, *_, info = shifted.step(action)
        same, other = expected.step(action)[0], plain.step(action)[0]
    assert torch.equal(torch.as_tensor(state), torch.as_tensor(same))
    assert np.abs(np.asarray(state) - np.asarray(other)).max() > 1e-2
    assert np.allclose(info["dynamics_shift_size"], 0.7) and np.allclose(info["dynamics_shift_value"], 1.7)
    base = shifted.unwrapped
    shifted.close()
    assert base.params["mass"] == 1.0


def test_a_drawn_shift_is_each_environments_own_and_new_in_every_episode():
    env = vector.DynamicsShift(gymnasium.make_vec(ID, num_envs=200, max_episode_steps=3), "length", [0.5, 2.0])
    env.reset(seed=0)
    first = env.unwrapped.params["length"].clone()
    assert first.min() >= 0.5 and first.max() <= 2.0 and first.std() > 0.3
    for _ in range(3):
        assert torch.equal(env.unwrapped.params["length"], first)
        *_, info = env.step(torch.zeros(200, 1))
    second = env.unwrapped.params["length"]
    assert (second != first).all() and torch.equal(info["dynamics_shift_value"], second)
    assert torch.equal(info["final_info"]["dynamics_shift_value"], first)
    env.reset(seed=0)
    assert torch.equal(env.unwrapped.params["length"], first)


def test_two_shifts_of_one_parameter_act_in_the_order_of_the_stack():
    env = perturb(gymnasium.make(ID), "[{DynamicsShift: {parameter: mass, factor: [2, 3]}}, "
                                      "{DynamicsShift: {parameter: mass, offset: 1.0}}]")  # fmt: skip
    for seed in range(3):
        *_, info = env.reset(seed=seed)
        mass = float(env.unwrapped.params["mass"])
        assert 3.0 <= mass <= 4.0
        assert info["dynamics_shift_size"] == pytest.approx(mass - 2.0) and info["dynamics_shift_2_size"] == 1.0
    env.env.perturbation.release()
    assert float(env.unwrapped.params["mass"]) == 2.0
    env.perturbation.release()
    assert float(env.unwrapped.params["mass"]) == 1.0


def test_a_shift_acts_on_top_of_what_the_user_or_domain_randomization_sets():
    env = single.DynamicsShift(gymnasium.make(ID), "mass", 2.0)
    env.reset(seed=0)
    env.unwrapped.params["mass"] = 3.0
    env.reset()
    env.reset()
    assert float(env.unwrapped.params["mass"]) == 6.0
    randomize = {"mass": [0.8, 1.2]}
    plain = gymnasium.make_vec(ID, num_envs=50, max_episode_steps=2, randomize=randomize)
    shifted = vector.DynamicsShift(
        gymnasium.make_vec(ID, num_envs=50, max_episode_steps=2, randomize=randomize), "mass", 2.0
    )
    plain.reset(seed=0)
    shifted.reset(seed=0)
    for _ in range(5):
        assert torch.allclose(shifted.unwrapped.params["mass"], 2.0 * plain.params["mass"], rtol=1e-12)
        plain.step(torch.zeros(50, 1))
        shifted.step(torch.zeros(50, 1))


def test_a_matrix_can_be_shifted():
    env = vector.DynamicsShift(gymnasium.make_vec("robust_policies/Linear-v0", num_envs=2), "A", 0.9)
    nominal = env.unwrapped.plant.nominal()["A"]
    *_, info = env.reset(seed=0)
    assert torch.allclose(env.unwrapped.params["A"], 0.9 * nominal)
    assert torch.allclose(info["dynamics_shift_size"], (0.1 * nominal).norm().expand(2))
    assert "dynamics_shift_value" not in info


@pytest.mark.parametrize(
    ("field", "arguments"),
    [("body_mass", (3.0,)), ("opt.gravity", (0.5,)), ("dof_damping", (1.0, 2.0)), ("opt.density", (1.0, 50.0))],
)
def test_a_field_of_a_mujoco_model_changes_the_motion_and_is_restored(field, arguments):
    env, plain = (gymnasium.make("InvertedPendulum-v5") for _ in range(2))
    model = env.unwrapped.model
    holder, name = (model.opt, field[4:]) if field.startswith("opt.") else (model, field)
    before = np.array(getattr(holder, name))
    shifted = single.DynamicsShift(env, field, *arguments)
    factor, offset = (*arguments, 0.0)[:2]
    assert np.allclose(getattr(holder, name), before * factor + offset)
    starts = shifted.reset(seed=0)[0], plain.reset(seed=0)[0]
    assert np.array_equal(*starts)
    action = np.ones(1, np.float32)
    pairs = [(shifted.step(action)[0], plain.step(action)[0]) for _ in range(5)]
    assert np.abs(pairs[-1][0] - pairs[-1][1]).max() > 1e-6
    shifted.perturbation.release()
    assert np.array_equal(getattr(holder, name), before)


def test_derived_quantities_of_a_mujoco_model_follow_its_masses():
    env = single.DynamicsShift(gymnasium.make("InvertedPendulum-v5"), "body_mass", 2.0)
    model = env.unwrapped.model
    assert np.allclose(model.body_subtreemass[1], 2.0 * gymnasium.make("InvertedPendulum-v5").unwrapped.model.
                       body_subtreemass[1])  # fmt: skip


def test_a_shift_in_the_middle_of_an_episode_leaves_a_mujoco_state_where_it_is():
    env = gymnasium.make("InvertedPendulum-v5")
    env.reset(seed=0)
    env.step(np.ones(1, np.float32))
    data = env.unwrapped.data
    before = np.concatenate((data.qpos, data.qvel, [data.time]))
    single.DynamicsShift(env, "body_mass", 2.0)
    assert np.array_equal(np.concatenate((data.qpos, data.qvel, [data.time])), before)


@pytest.mark.parametrize(
    ("env_id", "arguments", "error", "words"),
    [
        (ID, ("mas", 2.0), UnknownNameError, r"Did you mean 'mass'\? Known: gravity \[m/s\^2\], mass \[kg\]"),
        (ID, ("mass", -1.0), InvalidValueError, r"mass would become -1.0 \[kg\]"),
        (ID, ("mass", [0.5, 1.0], [-0.6, 0.0]), InvalidValueError, "mass would become -0.09"),
        ("InvertedPendulum-v5", ("body_mas", 2.0), UnknownNameError, "Did you mean 'body_mass'"),
        ("InvertedPendulum-v5", ("nbody", 2.0), UnknownNameError, "opt.gravity"),
        ("CartPole-v1", ("mass", 2.0), InvalidValueError, "physics cannot be reached"),
    ],
)
def test_shifts_that_cannot_be_are_refused(env_id, arguments, error, words):
    env = gymnasium.make(env_id)
    with pytest.raises(error, match=words):
        single.DynamicsShift(env, *arguments)
    if env_id == ID:
        assert float(env.unwrapped.params["mass"]) == 1.0


def test_a_list_that_cannot_be_applied_leaves_the_environment_as_it_was():
    env = gymnasium.make(ID)
    with pytest.raises(ShapeError):
        perturb(env, [{"DynamicsShift": {"parameter": "mass", "factor": 2.0}}, {"ObservationNoise": [1.0, 2.0]}])
    assert float(env.unwrapped.params["mass"]) == 1.0
