"""Per-environment physics, randomization, disturbances, discrete actions, backends and compiled steps of the base."""

import copy
import pickle
import shutil

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs import TaskEnv, TorchVectorEnv
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError

UPRIGHT = {"state": np.zeros((3, 2))}


def speeds(env):
    env.step(torch.ones(3, 1))
    return env.state[:, 1]


def snapshot(env):
    params = {name: value.clone() for name, value in env.params.items()}
    return env.state, env.elapsed, env._streams.state.clone(), params


def same(first, second):
    tensors = all(torch.equal(*pair) for pair in zip(first[:3], second[:3], strict=True))
    return tensors and all(torch.equal(first[3][name], second[3][name]) for name in first[3])


def test_parameters_are_assigned_for_all_or_for_each():
    env = TorchVectorEnv("pendulum", 3)
    env.reset(seed=0, options=UPRIGHT)
    env.params["mass"] = 2.0
    torch.testing.assert_close(speeds(env), torch.full((3,), 0.075, dtype=torch.float64))
    env.reset(seed=0, options={**UPRIGHT, "parameters": {"mass": [0.5, 1.0, 2.0]}})
    torch.testing.assert_close(speeds(env), torch.tensor([0.3, 0.15, 0.075], dtype=torch.float64))
    del env.params["mass"]
    assert env.params["mass"] == env.params.nominal["mass"] == env.prepared["mass"]


def test_a_masked_reset_assigns_only_the_marked_environments():
    env = TorchVectorEnv("pendulum", 3)
    env.reset(seed=0)
    mask = np.array([False, True, False])
    env.reset(options={"reset_mask": mask, "parameters": {"mass": 4.0}})
    assert env.params["mass"].tolist() == [1.0, 4.0, 1.0]
    env.reset(options={"reset_mask": ~mask, "parameters": {"mass": [5.0, 6.0, 7.0]}})
    assert env.params["mass"].tolist() == [5.0, 4.0, 7.0] == env.prepared["mass"].tolist()


def test_a_tensor_changed_by_its_owner_later_changes_nothing():
    env = TorchVectorEnv("pendulum", 3)
    mine = torch.ones(3, dtype=torch.float64)
    env.params["mass"] = mine
    mine[:] = 9.0
    assert env.params["mass"].tolist() == [1.0, 1.0, 1.0]


def test_randomized_parameters_lie_in_their_ranges_and_change_at_each_reset():
    env = TorchVectorEnv("pendulum", 500, randomize={"mass": [0.5, 2.0], "length": (0.9, 1.1)}, max_episode_steps=3)
    env.reset(seed=0)
    first = env.params["mass"].clone()
    for name, low, high in (("mass", 0.5, 2.0), ("length", 0.9, 1.1)):
        value = env.params[name]
        assert value.shape == (500,) and bool(((value >= low) & (value <= high)).all())
        assert value.min() < low + 0.05 * (high - low) and value.max() > high - 0.05 * (high - low)
        assert torch.equal(value, env.prepared[name])
    assert env.params["gravity"].ndim == 0
    for _ in range(3):
        *_, info = env.step(torch.zeros(500, 1))
    assert bool(info["_final_obs"].all()) and not torch.equal(first, env.params["mass"])
    assert torch.equal(env.params["mass"], env.prepared["mass"])


def test_randomization_does_not_change_the_start_states():
    plain, random = TorchVectorEnv("pendulum", 4), TorchVectorEnv("pendulum", 4, randomize=True)
    assert torch.equal(plain.reset(seed=5)[0], random.reset(seed=5)[0])


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_a_randomized_environment_of_many_equals_the_single_one(mode):
    ranges = {"mass": [0.5, 2.0]}
    many = TorchVectorEnv("pendulum", 3, autoreset_mode=mode, max_episode_steps=4, randomize=ranges)
    many.reset(seed=7)
    single = TaskEnv("pendulum", max_episode_steps=4, randomize=ranges)
    single.reset(seed=8)
    for _ in range(2):
        assert many.params["mass"][1] == single.params["mass"][0]
        for _ in range(4):
            mine, *_ = many.step(torch.ones(3, 1))
            theirs, *_ = single.step(np.ones(1, np.float32))
            if single._batch.elapsed < 4:
                np.testing.assert_allclose(mine[1].numpy(), theirs, atol=1e-6)
        single.reset()
        if mode == "NEXT_STEP":
            many.step(torch.ones(3, 1))
        if mode == "DISABLED":
            many.reset(options={"reset_mask": np.ones(3, bool)})


def test_randomization_is_switched_by_a_reset_option():
    env = TorchVectorEnv("pendulum", 3, randomize=True)
    env.reset(seed=0)
    assert env.params["mass"].shape == (3,)
    env.reset(options={"randomize": False})
    assert env.params["mass"].ndim == 0 and env.params["mass"] == env.params.nominal["mass"]
    single = gymnasium.make("robust_policies/Pendulum-v0", randomize={"length": [2.0, 2.0]}).unwrapped
    single.reset(seed=0)
    assert single.params["length"][0] == 2.0 * single.params.nominal["length"]


def test_a_disturbance_acts_until_it_is_taken_away():
    env = TorchVectorEnv("pendulum", 3)
    env.reset(seed=0, options=UPRIGHT)
    env.disturbance = np.array([[1.0], [0.0], [-1.0]])
    torch.testing.assert_close(speeds(env), torch.tensor([0.3, 0.15, 0.0], dtype=torch.float64))
    env.disturbance = None
    env.reset(seed=0, options=UPRIGHT)
    torch.testing.assert_close(speeds(env), torch.full((3,), 0.15, dtype=torch.float64))
    single = TaskEnv("pendulum")
    single.reset(seed=0, options={"state": np.zeros(2)})
    single.disturbance = [1.0]
    single.step(np.ones(1, np.float32))
    assert single.state[1] == pytest.approx(0.3) and single.disturbance.tolist() == [1.0]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda env: env.params.__setitem__("mas", 1.0),
            UnknownNameError,
            r"'mas'. Did you mean 'mass'\?.*mass \[kg\]",
        ),
        (lambda env: env.params.__setitem__("mass", [1.0, 2.0]), ShapeError, r"shape \(2,\); expected \(\).*\(3,\)"),
        (lambda env: env.params.__setitem__("mass", float("nan")), NonFiniteError, "parameter mass holds 1 NaN"),
        (lambda env: env.params.__setitem__("mass", "heavy"), ShapeError, "parameter mass is 'heavy'"),
        (lambda env: env.params["masss"], UnknownNameError, "Did you mean 'mass'"),
        (lambda env: env.reset(options={"parameters": {"weight": 1.0}}), UnknownNameError, "'weight'"),
        (lambda env: env.reset(options={"parameters": 3.0}), InvalidValueError, "expected a mapping"),
        (
            lambda env: env.reset(seed=3, options={"randomize": {"mass": [2.0, 1.0]}}),
            InvalidValueError,
            "the highest is",
        ),
        (
            lambda env: env.reset(seed=3, options={"randomize": {"mass": [0.0, 1.0]}}),
            InvalidValueError,
            "lowest factor",
        ),
        (lambda env: env.reset(seed=3, options={"randomize": {"mas": [1.0, 1.0]}}), UnknownNameError, "'mass'"),
        (
            lambda env: env.reset(seed=3, options={"randomize": {"mass": 2.0}}),
            InvalidValueError,
            r"expected \[low, high",
        ),
        (lambda env: env.reset(seed=3, options={"randomize": 2}), InvalidValueError, "randomize is 2"),
        (lambda env: setattr(env, "disturbance", np.zeros((3, 2))), ShapeError, r"disturbance has shape \(3, 2\)"),
        (lambda env: setattr(env, "disturbance", np.full((3, 1), np.inf)), NonFiniteError, "disturbance"),
    ],
)
def test_bad_physics_are_refused_and_nothing_changes(act, error, message):
    env = TorchVectorEnv("pendulum", 3)
    env.reset(seed=0)
    before = snapshot(env)
    with pytest.raises(error, match=message):
        act(env)
    assert same(before, snapshot(env)) and env.disturbance is None


def test_a_task_without_ranges_says_how_to_give_them(own_task):
    folder = own_task("linear", lambda content: content.pop("randomize", None))
    with pytest.raises(InvalidValueError, match="no section 'randomize'; give a mapping"):
        TorchVectorEnv(folder, 2, randomize=True)
    folder = own_task("pendulum", lambda content: content.update(randomize={"mas": [0.9, 1.1]}), "wrong")
    with pytest.raises(UnknownNameError, match=r"task.yaml: randomize: Unknown parameter 'mas'. Did you mean 'mass'"):
        TorchVectorEnv(folder, 2)


def test_only_what_computes_a_task_can_be_asked_for():
    with pytest.raises(UnknownNameError, match="backend is 'warp'; a pendulum task has only 'torch'"):
        TorchVectorEnv("pendulum", 2, backend="warp")
    with pytest.raises(InvalidValueError, match="compile is 'yes'"):
        TorchVectorEnv("pendulum", 2, compile="yes")


def test_choices_are_whole_numbers_within_the_table():
    env = TorchVectorEnv("cartpole", 3)
    assert env.single_action_space == gymnasium.spaces.Discrete(2)
    assert env.action_space == gymnasium.spaces.MultiDiscrete([2, 2, 2])
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.step(torch.tensor([0, 1, 1], dtype=torch.int32))
    before = snapshot(env)
    for given, error, message in (
        (torch.tensor([0, 1, 2]), InvalidValueError, "actions hold 2 for environment 2; expected 0 to 1"),
        (np.array([0, -1, 0]), InvalidValueError, "actions hold -1 for environment 1"),
        (np.zeros(3, np.float32), ShapeError, "dtype float32; expected whole numbers 0 to 1"),
        (np.zeros((3, 1), np.int64), ShapeError, r"shape \(3, 1\); expected \(3\)"),
        (np.zeros(3, bool), ShapeError, "dtype bool"),
    ):
        with pytest.raises(error, match=message):
            env.step(given)
        assert same(before, snapshot(env))
    single = TaskEnv("cartpole")
    single.reset(seed=0)
    observation, *_ = single.step(1)
    assert observation.shape == (4,)
    with pytest.raises(InvalidValueError, match="action holds 5"):
        single.step(5)


# Without what pays off from the second kernel on: a trial of each vector instruction set that the processor names,
# headers compiled ahead, and the optimization of what calls the kernel.
ONE_KERNEL = {
    "cpp.vec_isa_ok": True,
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiled steps need a C++ compiler on the CPU")
def test_a_compiled_step_gives_the_same_results():
    # Without an end of an episode the start is not compiled; the long form below has both, and torch's own settings.
    plain = TorchVectorEnv("cartpole", 24, max_episode_steps=30)
    compiled = TorchVectorEnv("cartpole", 24, max_episode_steps=30, compile=True)
    plain.action_space.seed(0)
    for env in (plain, compiled):
        env.reset(seed=0)
    kept = []
    for _ in range(5):
        actions = torch.as_tensor(plain.action_space.sample())
        with torch._inductor.config.patch(ONE_KERNEL):
            first, second = plain.step(actions)[:4], compiled.step(actions)[:4]
        for mine, theirs in zip(first, second, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        kept += [(value, value.clone()) for value in second]
    assert all(torch.equal(*pair) for pair in kept)


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiled steps need a C++ compiler on the CPU")
@pytest.mark.parametrize("task", ["cartpole", "linear"])
def test_compiled_steps_and_starts_give_the_same_results_and_a_copy_compiles_its_own(task):
    plain = TorchVectorEnv(task, 24, max_episode_steps=30)
    compiled = TorchVectorEnv(task, 24, max_episode_steps=30, compile=True)
    assert torch.equal(plain.reset(seed=0)[0], compiled.reset(seed=0)[0])
    plain.action_space.seed(0)
    kept, ends = [], []
    for _ in range(70):
        actions = torch.as_tensor(plain.action_space.sample())
        first, second = plain.step(actions), compiled.step(actions)
        for mine, theirs in zip(first[:4], second[:4], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        assert first[4].keys() == second[4].keys()
        if first[4]:
            torch.testing.assert_close(first[4]["final_obs"], second[4]["final_obs"], rtol=1e-6, atol=1e-6)
            ends.append(int(first[4]["_final_obs"].sum()))
        kept += [(value, value.clone()) for value in second[:4]]
    assert all(torch.equal(*pair) for pair in kept)
    assert torch.equal(plain._streams.state, compiled._streams.state)
    assert torch.equal(plain.elapsed, compiled.elapsed)
    assert {1, 2} <= set(ends) if task == "cartpole" else set(ends) == {24}
    other = pickle.loads(pickle.dumps(copy.deepcopy(compiled)))
    actions = torch.as_tensor(plain.action_space.sample())
    for mine, again, theirs in zip(*(env.step(actions)[:4] for env in (plain, compiled, other)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(again, theirs)


def test_a_picture_shows_the_physics_of_its_environment():
    env = gymnasium.make_vec("robust_policies/CartPoleSwingUp-v0", num_envs=2, render_mode="rgb_array")
    env.reset(seed=0, options={"state": np.zeros((2, 4)), "parameters": {"length": [0.5, 1.0]}})
    first, second = env.render()
    assert not np.array_equal(first, second)


def test_the_ends_of_episodes_can_be_spread():
    env = TorchVectorEnv("pendulum", 3, max_episode_steps=5)
    env.reset(seed=0)
    env.elapsed = torch.tensor([0, 2, 4])
    for expected in ([False, False, True], [False, False, False], [False, True, False]):
        assert env.step(torch.zeros(3, 1))[3].tolist() == expected
    with pytest.raises(InvalidValueError, match="goes from 0 to 5; expected 0 to 4"):
        env.elapsed = [0, 1, 5]


def test_a_given_state_gets_the_readings_that_belong_to_it():
    env = TorchVectorEnv("reacher", 2)
    env.reset(seed=0)
    state = env.state
    spoilt = state.clone()
    spoilt[:, env.plant.layout.physics : -1] = 7.0
    env.reset(options={"state": spoilt})
    torch.testing.assert_close(env.state, state)
    single = TaskEnv("reacher")
    single.reset(seed=0)
    single.state = spoilt[0].numpy()
    np.testing.assert_allclose(single.state, state[0].numpy())
