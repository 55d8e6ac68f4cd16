"""What each perturbation of actions does, seen by an environment that records what reaches it."""

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs import perturb as single
from robust_policies.envs.perturb import vector
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError

CONTINUOUS = gymnasium.spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([1.0, 2.0], np.float32))
COUNT = 64


class Recorder(gymnasium.Env):
    """Keeps the actions that reach it."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, action_space=CONTINUOUS):
        self.action_space = action_space
        self.applied = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.applied = []
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.applied.append(np.array(action))
        return np.zeros(1, np.float32), 0.0, False, False, {}


def applied(wrapper, *args, actions, action_space=CONTINUOUS, seed=0, **kwargs):
    """Return what reaches the environment (steps, ...) and the sizes."""
    env = wrapper(Recorder(action_space), *args, **kwargs)
    env.reset(seed=seed)
    key = next(key for key in env.step(actions[0])[4] if key.endswith("_size"))
    env.reset(seed=seed)
    sizes = [env.step(action)[4][key] for action in actions]
    return np.stack(env.unwrapped.applied), np.array(sizes)


@pytest.fixture
def actions():
    return np.random.default_rng(0).uniform(CONTINUOUS.low, CONTINUOUS.high, (400, 2)).astype(np.float32)


def test_action_noise_is_added_and_clipped_to_the_space(actions):
    given, sizes = applied(single.ActionNoise, 0.2, actions=actions)
    assert (given >= CONTINUOUS.low).all() and (given <= CONTINUOUS.high).all()
    assert np.allclose(sizes, np.linalg.norm(given - actions, axis=-1), atol=1e-6)
    free, _ = applied(single.ActionNoise, 0.2, clip=False, actions=actions)
    assert np.allclose(np.clip(free, CONTINUOUS.low, CONTINUOUS.high), given, atol=1e-6)
    noise = (free - actions) / 0.2
    assert np.abs(noise.mean(0)).max() < 5 / np.sqrt(400) and np.abs(noise.std(0) - 1).max() < 5 / np.sqrt(800)
    assert given.dtype == np.float32


def test_normalized_action_noise_is_in_half_widths_of_the_action_space(actions):
    given, _ = applied(single.ActionNoise, 0.1, "linf", "normalized", clip=False, actions=actions)
    assert np.allclose(np.abs(given - actions), [0.1, 0.075], atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_delayed_actions_come_out_so_many_steps_later_after_idle_ones(actions, steps):
    given, sizes = applied(single.ActionDelay, steps, actions=actions)
    # Zero is not in the second interval: the idle action is the closest that is.
    idle = np.tile(np.array([0.0, 0.5], np.float32), (steps, 1))
    assert np.array_equal(given, np.concatenate((idle, actions))[:400])
    assert np.allclose(sizes, np.linalg.norm(given - actions, axis=-1), atol=1e-6)


def test_lost_actions_are_idle_ones_or_the_last_applied(actions):
    zeroed, _ = applied(single.ActionDropout, 0.4, actions=actions)
    lost = (zeroed == np.array([0.0, 0.5], np.float32)).all(-1)
    assert np.array_equal(zeroed[~lost], actions[~lost])
    assert abs(lost.mean() - 0.4) < 5 * np.sqrt(0.24 / 400)
    held, sizes = applied(single.ActionDropout, 0.4, "hold", actions=actions)
    assert np.array_equal(held[0], actions[0])
    assert all(np.array_equal(held[t], held[t - 1] if lost[t] else actions[t]) for t in range(1, 400))
    assert np.array_equal(sizes[1:] > 0, lost[1:])


def test_lost_dimensions_are_lost_by_themselves(actions):
    given, _ = applied(single.ActionDropout, 0.5, per_dimension=True, actions=actions)
    lost = given == np.array([0.0, 0.5], np.float32)
    assert np.array_equal(given[~lost], actions[~lost])
    assert len({tuple(row) for row in lost.tolist()}) == 4


def test_sticky_actions_repeat_the_last_applied_at_their_rate(actions):
    given, _ = applied(single.StickyAction, actions=actions)
    repeated = np.array([False] + [np.array_equal(given[t], given[t - 1]) for t in range(1, 400)])
    assert np.array_equal(given[~repeated], actions[~repeated])
    assert abs(repeated[1:].mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 399)


@pytest.mark.parametrize(
    ("space", "first"),
    [
        (gymnasium.spaces.Discrete(4, start=3), 3),
        (gymnasium.spaces.MultiDiscrete([4, 5]), [0, 0]),
        (gymnasium.spaces.MultiBinary(3), [0, 0, 0]),
    ],
    ids=["Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_choices_can_be_delayed_lost_and_repeated(space, first):
    space.seed(0)
    actions = [space.sample() for _ in range(100)]
    late, sizes = applied(single.ActionDelay, 2, actions=actions, action_space=space)
    assert late[:2].tolist() == [first, first]
    assert np.array_equal(late[2:], np.stack(actions[:-2]))
    changed = (late != np.stack(actions)).reshape(100, -1).sum(-1)
    assert np.allclose(sizes, np.sqrt(changed))
    lost, _ = applied(single.ActionDropout, 1.0, actions=actions, action_space=space)
    assert lost.tolist() == [first] * 100
    sticky, _ = applied(single.StickyAction, 1.0, actions=actions, action_space=space)
    assert np.array_equal(sticky, np.stack([actions[0]] * 100))
    assert space.contains(np.asarray(actions[0]).dtype.type(sticky[0]) if space.shape == () else sticky[0])


def test_noise_on_choices_is_refused_with_what_works_instead():
    with pytest.raises(InvalidValueError, match="StickyAction, ActionDelay and ActionDropout"):
        single.ActionNoise(gymnasium.make("CartPole-v1"))


def test_a_discrete_gymnasium_environment_runs_single_and_batched():
    env = single.StickyAction(gymnasium.make("CartPole-v1"), 0.5)
    env.reset(seed=0)
    assert isinstance(env.step(1)[4]["sticky_action_size"], float)
    batched = vector.ActionDelay(gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync"), 1)
    batched.reset(seed=0)
    sizes = batched.step(np.array([1, 0, 1]))[4]["action_delay_size"]
    assert sizes.tolist() == [1.0, 0.0, 1.0]


def test_tensors_stay_tensors_and_reach_the_plant_delayed():
    env = vector.ActionDelay(gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=COUNT), 1)
    plain = gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=COUNT)
    env.reset(seed=0)
    plain.reset(seed=0)
    actions = torch.linspace(-2, 2, COUNT).unsqueeze(-1)
    delayed = [env.step(actions * (0.5 + t))[0] for t in range(3)]
    idle_first = [plain.step(actions * scale)[0] for scale in (0.0, 0.5, 1.5)]
    assert torch.equal(torch.stack(delayed), torch.stack(idle_first))
    assert torch.equal(env.step(actions.double().numpy())[0], plain.step(actions * 2.5)[0])


@pytest.mark.parametrize("name", ["ActionNoise", "ActionDelay", "ActionDropout", "StickyAction"])
@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (np.full((4, 1), np.nan, np.float32), NonFiniteError, "NaN"),
        (np.zeros((4, 2), np.float32), ShapeError, "expected"),
        (np.zeros((4, 1), np.int64), ShapeError, "floating"),
        ("left", ShapeError, "numbers"),
    ],
    ids=["nan", "shape", "dtype", "text"],
)
def test_a_refused_action_leaves_environment_and_perturbation_untouched(name, bad, error, words):
    env, twin = (getattr(vector, name)(gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=4)) for _ in range(2))
    action = torch.ones(4, 1)
    for one in (env, twin):
        one.reset(seed=5)
        one.step(action)
    state = env.unwrapped.state
    with pytest.raises(error, match=words):
        env.step(bad)
    assert torch.equal(env.unwrapped.state, state)
    for t in range(4):
        assert torch.equal(env.step(action * t)[0], twin.step(action * t)[0])


def test_an_action_that_only_the_environment_refuses_leaves_the_perturbation_untouched():
    class Strict(Recorder):
        def step(self, action):
            if action[0] > 0.9:
                raise ValueError("too much")
            return super().step(action)

    env, twin = (single.ActionNoise(Strict(), 0.05, "uniform", clip=False) for _ in range(2))
    for one in (env, twin):
        one.reset(seed=1)
    for t in range(20):
        with pytest.raises(ValueError, match="too much"):
            env.step(np.array([1.0, 1.0], np.float32))
        action = np.array([0.04 * t, 1.0], np.float32)
        env.step(action)
        twin.step(action)
    assert np.array_equal(env.unwrapped.applied, twin.unwrapped.applied)


def test_a_single_action_of_the_wrong_kind_is_refused():
    env = single.ActionDelay(gymnasium.make("robust_policies/Pendulum-v0"), 1)
    env.reset(seed=0)
    with pytest.raises(ShapeError, match=r"action has shape \(2,\); expected \(1\)"):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(NonFiniteError, match="action holds NaN"):
        env.step(np.array([np.nan], np.float32))
