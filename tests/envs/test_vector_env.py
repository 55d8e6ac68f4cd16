"""Seeding, autoreset, partial resets and bad input of the vectorized environment."""

import copy
import pickle

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs import TorchVectorEnv
from robust_policies.errors import DeviceError, InvalidValueError, NonFiniteError, ShapeError, UnknownNameError

# One with noise in every step, one without. What holds for every id is in tests/conformance.
TASKS = ["pendulum", "linear"]
IDS = ["robust_policies/Pendulum-v0", "robust_policies/Linear-v0"]


def snapshot(env):
    return [value.clone() for value in (env._state, env._observation, env.clock.elapsed, env._streams.state)]


def unchanged(env, before):
    return all(torch.equal(now, then) for now, then in zip(snapshot(env), before, strict=True))


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP", "DISABLED"])
def test_environment_i_does_what_the_single_one_with_its_seed_does(env_id, mode):
    count, steps = 4, 50
    many = gymnasium.make_vec(env_id, num_envs=count, autoreset_mode=mode, max_episode_steps=20)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-2.5, 2.5, (steps, count, 1)).astype(np.float32)
    singles = [gymnasium.make(env_id, max_episode_steps=20) for _ in range(count)]
    batch, _ = many.reset(seed=20)
    for i, single in enumerate(singles):
        np.testing.assert_allclose(batch[i].numpy(), single.reset(seed=20 + i)[0], atol=1e-6)
    ended = False
    for k in range(steps):
        if ended and mode == "DISABLED":
            batch, _ = many.reset(options={"reset_mask": np.ones(count, bool)})
            for i, single in enumerate(singles):
                np.testing.assert_allclose(batch[i].numpy(), single.reset()[0], atol=1e-6)
        batch, rewards, terminated, truncated, info = many.step(torch.as_tensor(actions[k]))
        for i, single in enumerate(singles):
            if ended and mode == "NEXT_STEP":
                expected, reward, flags = single.reset()[0], 0.0, [False, False]
            else:
                expected, reward, *flags, _ = single.step(actions[k, i])
            if flags[1] and mode == "SAME_STEP":
                np.testing.assert_allclose(info["final_obs"][i].numpy(), expected, atol=1e-6)
                expected = single.reset()[0]
            np.testing.assert_allclose(batch[i].numpy(), expected, atol=1e-6)
            np.testing.assert_allclose(rewards[i].numpy(), reward, rtol=1e-6, atol=1e-6)
            assert [bool(terminated[i]), bool(truncated[i])] == flags
        ended = bool(truncated.any())


@pytest.mark.parametrize("task", TASKS)
def test_neighbours_do_not_matter(task):
    small, large = TorchVectorEnv(task, 2), TorchVectorEnv(task, 5)
    small.reset(seed=[7, 9])
    large.reset(seed=[1, 9, 2, 7, 3])
    mask = np.array([True, False, True, False, True])
    for k in range(30):
        if k == 10:
            large.reset(options={"reset_mask": mask})
        small.step(torch.full((2, 1), 0.5))
        large.step(torch.full((5, 1), 0.5))
    torch.testing.assert_close(small.state, large.state[[3, 1]], rtol=0, atol=1e-10)


def test_a_list_of_seeds_may_leave_generators_alone():
    env, other = TorchVectorEnv("pendulum", 3), TorchVectorEnv("pendulum", 3)
    env.reset(seed=5)
    other.reset(seed=5)
    first, second = env.reset(seed=[None, 11, None])[0], other.reset()[0]
    assert torch.equal(first[[0, 2]], second[[0, 2]]) and not torch.equal(first[1], second[1])
    assert env.np_random_seed == (5, 11, 7)
    assert env.np_random[1].bit_generator.state != np.random.PCG64(11).state


def test_the_constructor_takes_a_seed_and_unseeded_ones_differ():
    seeded = [TorchVectorEnv("pendulum", 2, seed=3).reset()[0] for _ in range(2)]
    assert torch.equal(*seeded) and torch.equal(seeded[0], TorchVectorEnv("pendulum", 2).reset(seed=3)[0])
    assert not torch.equal(TorchVectorEnv("pendulum", 2).reset()[0], TorchVectorEnv("pendulum", 2).reset()[0])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_reset_mask_resets_only_what_it_marks(kind):
    env = TorchVectorEnv("pendulum", 3, autoreset_mode="DISABLED", max_episode_steps=4)
    env.reset(seed=0)
    for _ in range(2):
        before, *_ = env.step(torch.ones(3, 1))
    options = {"reset_mask": kind(np.array([False, True, False]))}
    after, info = env.reset(options=options)
    assert info == {} and "reset_mask" in options
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[1], before[1])
    assert env.elapsed.tolist() == [2, 0, 2]
    env.step(torch.ones(3, 1))
    *_, truncated, _ = env.step(torch.ones(3, 1))
    assert truncated.tolist() == [True, False, True]
    held = snapshot(env)
    with pytest.raises(InvalidValueError, match=r"2 episode\(s\) have ended and autoreset is DISABLED"):
        env.step(torch.ones(3, 1))
    assert unchanged(env, held)
    env.reset(options={"reset_mask": truncated})
    *_, truncated, _ = env.step(torch.ones(3, 1))
    assert not truncated.any()


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (torch.zeros(3), ShapeError, r"shape \(3,\); expected \(3, 1\)"),
        (torch.zeros(2, 1), ShapeError, r"shape \(2, 1\)"),
        (np.zeros((3, 2), np.float32), ShapeError, r"shape \(3, 2\)"),
        (torch.zeros(3, 1, dtype=torch.int64), ShapeError, "dtype torch.int64"),
        (np.zeros((3, 1), np.int64), ShapeError, "dtype int64"),
        (torch.zeros(3, 1, device="meta"), ShapeError, "on device meta; expected cpu"),
        (torch.tensor([[0.0], [float("nan")], [0.0]]), NonFiniteError, r"1 environment\(s\), the first 1"),
        (np.full((3, 1), np.inf), NonFiniteError, r"3 environment\(s\), the first 0"),
        ([[0.0]] * 3, ShapeError, "type list"),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_bad_actions_are_refused_and_nothing_changes(task, actions, error, message):
    env = TorchVectorEnv(task, 3)
    env.reset(seed=0)
    env.step(torch.zeros(3, 1))
    before = snapshot(env)
    with pytest.raises(error, match=message):
        env.step(actions)
    assert unchanged(env, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"reset_mask": np.zeros(2, bool)}}, r"reset_mask has shape \(2,\); expected \(3\)"),
        ({"options": {"reset_mask": np.zeros(3)}}, "reset_mask has dtype float64; expected bool"),
        ({"options": {"reset_mask": torch.zeros(3, dtype=torch.int64)}}, "reset_mask has dtype torch.int64"),
        ({"options": {"reset_mask": [True, False, True]}}, "reset_mask is list"),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, "marks no environment"),
        ({"options": {"state": np.zeros((3, 5))}}, r"shape \(3, 5\); expected \(3, 2\)"),
        ({"options": {"state": np.full((3, 2), np.nan)}}, "NaN"),
        ({"options": {"x_int": 1.0}}, "Did you mean 'x_init'"),
        ({"options": {"x_init": -1.0}}, "reset option x_init is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": [1, 2]}, "expected a whole number or 3 of them"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_bad_resets_are_refused_and_nothing_changes(arguments, message):
    env = TorchVectorEnv("pendulum", 3)
    env.reset(seed=0)
    env.step(torch.zeros(3, 1))
    before = snapshot(env)
    with pytest.raises(ValueError, match=message):
        env.reset(**arguments)
    assert unchanged(env, before)


def test_bad_constructions_are_refused():
    with pytest.raises(InvalidValueError, match="num_envs is 0"):
        TorchVectorEnv("pendulum", 0)
    with pytest.raises(InvalidValueError, match="dtype is 'float16'"):
        TorchVectorEnv("pendulum", dtype="float16")
    with pytest.raises(InvalidValueError, match=r"autoreset_mode is 'never'.*SAME_STEP"):
        TorchVectorEnv("pendulum", autoreset_mode="never")
    with pytest.raises(InvalidValueError, match="max_episode_steps is -3"):
        TorchVectorEnv("pendulum", max_episode_steps=-3)
    with pytest.raises(InvalidValueError, match="render_mode is 'ansi'"):
        TorchVectorEnv("pendulum", render_mode="ansi")
    with pytest.raises(DeviceError, match="'gpu'"):
        TorchVectorEnv("pendulum", device="gpu")
    with pytest.raises(UnknownNameError, match="Did you mean 'pendulum'"):
        TorchVectorEnv("pendulums")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="0 CUDA"):
            gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=2, device="cuda")
    with pytest.raises(InvalidValueError, match="before reset"):
        TorchVectorEnv("pendulum").step(torch.zeros(1, 1))
    with pytest.raises(InvalidValueError, match="before the first reset"):
        TorchVectorEnv("pendulum").reset(options={"reset_mask": np.ones(1, bool)})


def test_returned_tensors_are_the_callers_to_keep():
    env = TorchVectorEnv("pendulum", 2, dtype="float64", max_episode_steps=3)
    kept, copies = [], []
    kept.append(env.reset(seed=0)[0])
    copies.append(kept[0].clone())
    for _ in range(8):
        observation, reward, terminated, truncated, info = env.step(torch.ones(2, 1))
        for value in (observation, reward, terminated, truncated, *(v for v in info.values() if torch.is_tensor(v))):
            kept.append(value)
            copies.append(value.clone())
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))
    expected, _ = copy.deepcopy(env).reset(options={"reset_mask": np.array([True, False])})
    observation.fill_(99.0)
    assert torch.equal(env.reset(options={"reset_mask": np.array([True, False])})[0], expected)


def test_actions_that_require_gradients_leave_no_graph_behind():
    env = TorchVectorEnv("linear", 2)
    env.reset(seed=0)
    observation, reward, *_ = env.step(torch.zeros(2, 1, requires_grad=True))
    assert not observation.requires_grad and not reward.requires_grad and not env.state.requires_grad


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_continue_alike(copied):
    env = TorchVectorEnv("linear", 3, max_episode_steps=7)
    env.reset(seed=0)
    env.step(torch.ones(3, 1))
    other = copied(env)
    for _ in range(12):
        assert torch.equal(env.step(torch.ones(3, 1))[0], other.step(torch.ones(3, 1))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_those_asked_for(dtype):
    env = TorchVectorEnv("pendulum", 2, dtype=dtype, state_dtype=dtype, max_episode_steps=2)
    observation, _ = env.reset(seed=0)
    for _ in range(2):
        observation, reward, terminated, truncated, info = env.step(np.zeros((2, 1)))
    assert observation.dtype == reward.dtype == info["final_obs"].dtype == env.state.dtype == dtype
    assert terminated.dtype == truncated.dtype == torch.bool
    assert str(env.single_observation_space.dtype) == str(dtype).removeprefix("torch.")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("task", TASKS)
def test_the_device_does_not_change_the_numbers(task):
    here, there = (
        TorchVectorEnv(task, 8, max_episode_steps=20),
        TorchVectorEnv(task, 8, device="cuda", max_episode_steps=20),
    )
    torch.testing.assert_close(here.reset(seed=0)[0], there.reset(seed=0)[0].cpu())
    for _ in range(50):
        for mine, theirs in zip(here.step(torch.ones(8, 1)), there.step(torch.ones(8, 1, device="cuda")), strict=True):
            if torch.is_tensor(theirs):
                assert theirs.device.type == "cuda"
                torch.testing.assert_close(mine, theirs.cpu())


def test_pictures_of_a_batch():
    env = gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=3, render_mode="rgb_array")
    env.reset(seed=0)
    pictures = env.render()
    assert len(pictures) == 3 and np.array_equal(pictures[1], env.render_one(1))
    with pytest.raises(UnknownNameError, match="expected 0 to 2"):
        env.render_one(3)
    env.close()
    env.close()
