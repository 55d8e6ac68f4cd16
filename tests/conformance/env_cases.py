"""What the environment suites share: the ids, the oracle, actions beyond the limits, and a way into a termination."""

from __future__ import annotations

import functools
import os
from collections import deque

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from kinds import KINDS, of_each_kind

from robust_policies.envs import ENV_IDS

MODES = list(AutoresetMode)
MUJOCO_IDS = tuple(
    f"robust_policies/{name}-v0"
    for name in (
        "InvertedPendulum",
        "InvertedDoublePendulum",
        "Reacher",
        "Hopper",
        "HopperNoVelocity",
        "HalfCheetah",
        "Walker2d",
    )
)
TORCH_IDS = tuple(env_id for env_id in ENV_IDS if env_id not in MUJOCO_IDS)
KIND_IDS = tuple(f"robust_policies/{name}-v0" for name in KINDS)
# These have no termination of their own: they end only where MuJoCo finds the simulation unstable.
ENDLESS_IDS = ("robust_policies/Reacher-v0", "robust_policies/HalfCheetah-v0")

every_id = pytest.mark.parametrize("env_id", ENV_IDS)
# The other ids are the same code with other numbers: in the soak.
every_kind = pytest.mark.parametrize("env_id", of_each_kind(ENV_IDS))
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)

SAID_ON_PURPOSE = {
    "recommend using a symmetric and normalized space": "actions are in physical units (N, V, N m), as Pendulum-v1's",
    "recommend you to use a symmetric and normalized Box action space": "the same, in Stable-Baselines3's words",
    "minimum value is -infinity": "speeds and errors have no bound, as in CartPole-v1 and every MuJoCo environment",
    "maximum value is infinity": "the same",
}
"""The warnings of the checkers that our environments give rise to, and why."""


def unexpected(caught):
    """Return the texts of caught warnings that are neither on purpose nor about another package's own imports."""
    texts = [str(warning.message) for warning in caught if not issubclass(warning.category, DeprecationWarning)]
    return [text for text in texts if not any(part in text for part in SAID_ON_PURPOSE)]


def ours(env_id, mode=AutoresetMode.SAME_STEP, count=3, **kwargs):
    return gymnasium.make_vec(env_id, num_envs=count, autoreset_mode=mode, **kwargs)


def theirs(env_id, mode=AutoresetMode.SAME_STEP, count=3, **kwargs):
    """Gymnasium's own vector of our single environment; its time limit is Gymnasium's TimeLimit."""
    return SyncVectorEnv([lambda: gymnasium.make(env_id, **kwargs) for _ in range(count)], autoreset_mode=mode)


def close(tensor, array, **tolerance):
    np.testing.assert_allclose(np.asarray(tensor), array, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def wild_actions(space, shape, seed=0):
    """Return actions (*shape, *space.shape): uniform to half the range beyond a box's limits, or any choice."""
    rng = np.random.default_rng(seed)
    if isinstance(space, gymnasium.spaces.Discrete):
        return rng.integers(0, space.n, shape)
    middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
    return (middle + 1.5 * half * rng.uniform(-1.0, 1.0, (*shape, *space.shape))).astype(space.dtype)


def still_action(space):
    """Return the action that does least: zero, or the nearest to it in the box."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return np.int64(0)
    return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)


@functools.cache
def way_into_termination(env_id, ahead=3):
    """Return a state and the `ahead` actions after it that end an episode; None for a task that never terminates."""
    env = ours(env_id, count=64)
    if env_id in ENDLESS_IDS or not env.plant.terminates:
        return None
    env.reset(seed=0)
    moments = deque(maxlen=ahead)
    for actions in wild_actions(env.single_action_space, (env.max_episode_steps, 64)):
        old_enough = env.elapsed >= ahead - 1
        moments.append((env.state.numpy(), actions))
        terminated = env.step(actions)[2]
        rows = (terminated & old_enough).nonzero().flatten()
        if len(rows):
            row = int(rows[0])
            return moments[0][0][row], np.stack([taken[row] for _, taken in moments])
    raise AssertionError(f"{env_id} says that it terminates, but did not in 64 episodes of random actions.")


def begin(env_id, mine, oracle=None, seed=123):
    """Reset ours and the oracle alike, environment 1 a few steps before its termination if there is such a thing."""
    observation, _ = mine.reset(seed=seed)
    way = way_into_termination(env_id)
    if way is not None:
        states = mine.state
        states[1] = torch.as_tensor(way[0])
        observation, _ = mine.reset(seed=seed, options={"state": states})
    if oracle is not None:
        oracle.reset(seed=seed)
        for row, env in enumerate(oracle.envs if way is not None else ()):
            expected, _ = env.reset(seed=seed + row, options={"state": states[row].numpy()})
            close(observation[row], expected)
    return observation


def planned_actions(env_id, space, steps, count=3):
    """Return random actions (steps, count, ...): the first for environment 1 lead into its termination.

    The last environment's are small, so that it reaches a short time limit in the tasks that soon end, too.
    """
    actions = wild_actions(space, (steps, count))
    if not isinstance(space, gymnasium.spaces.Discrete):
        still = still_action(space)
        actions[:, -1] = still + 0.02 * (actions[:, -1] - still)
    way = way_into_termination(env_id)
    if way is not None:
        actions[: len(way[1]), 1] = way[1]
    return actions


@functools.cache
def why_no_pictures():
    """Return why MuJoCo cannot draw on this machine, None if it can."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    import mujoco

    try:
        context = mujoco.GLContext(64, 64)
        context.make_current()
        context.free()
    except Exception as error:  # Any of a dozen kinds, by platform and backend.
        return f"MuJoCo has no OpenGL here: {error!r}"
    return None
