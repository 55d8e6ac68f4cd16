"""Environments of other packages side by side; Gymnasium's pendulums all in one call of their own step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv

_NUMBERS = ("max_speed", "max_torque", "dt", "g", "m", "l")


class SideBySide(SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv`, in which pendulums that are all alike step together.

    What Gymnasium's pendulum computes holds entry by entry for arrays too. Observations and states are the same bit for
    bit; the squares in the reward are rounded otherwise, 1e-9 at most. The single environments have their states again
    as soon as `envs` is read.
    """

    _arrays: tuple[PendulumEnv, np.ndarray, int] | None = None
    _alike: bool | None = None

    @property
    def envs(self) -> list[gymnasium.Env]:
        """The single environments."""
        if self._arrays is not None:
            (scratch, elapsed, _), self._arrays = self._arrays, None
            torques: Any = scratch.last_u
            for env, state, torque, steps in zip(self._envs, scratch.state.T, torques, elapsed, strict=True):
                inner: Any = env.unwrapped
                inner.state, inner.last_u = state.copy(), torque
                env._elapsed_steps = int(steps)  # type: ignore[attr-defined]
            self._env_obs = list(self._observations.copy())
        return self._envs

    @envs.setter
    def envs(self, value: list[gymnasium.Env]) -> None:
        self._envs = value

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return what Gymnasium's returns."""
        if self._alike is None:
            self._alike = self.autoreset_mode is AutoresetMode.DISABLED and all(map(_is_pendulum, self._envs))
        ready = self._alike and self.num_envs == len(actions) and not self._autoreset_envs.any()
        if not ready or (self._arrays is None and not self._gather()):
            return super().step(actions)
        assert self._arrays is not None
        scratch, elapsed, limit = self._arrays
        observation, reward, *_ = scratch.step(np.ascontiguousarray(np.asarray(actions).T))
        elapsed += 1
        self._observations = np.ascontiguousarray(observation.T)
        self._rewards, self._terminations = np.asarray(reward, np.float64), np.zeros(self.num_envs, np.bool_)
        self._truncations = elapsed >= limit
        self._autoreset_envs = self._truncations.copy()
        return self._observations.copy(), self._rewards.copy(), self._terminations.copy(), self._truncations.copy(), {}

    def _gather(self) -> bool:
        """Take the states of all environments into one; return whether all have begun and have the same numbers."""
        inner: list[Any] = [env.unwrapped for env in self._envs]
        limits: list[Any] = self._envs
        numbers = {tuple(getattr(one, name) for name in _NUMBERS) for one in inner}
        longest = {limit._max_episode_steps for limit in limits}
        if len(numbers) > 1 or len(longest) > 1 or any(one.state is None for one in inner):
            return False
        scratch = PendulumEnv()
        for name, value in zip(_NUMBERS, numbers.pop(), strict=True):
            setattr(scratch, name, value)
        scratch.state = np.stack([one.state for one in inner], axis=1)
        self._arrays = scratch, np.array([limit._elapsed_steps for limit in limits]), longest.pop()
        return True


def _is_pendulum(env: Any) -> bool:
    """Return whether this is Gymnasium's pendulum inside the wrappers of `gymnasium.make` alone, and not drawn."""
    kinds = []
    while isinstance(env, gymnasium.Wrapper):
        kinds.append(type(env))
        env = env.env
    own = all(kind.__module__.startswith("gymnasium.") for kind in kinds)
    usual = [kind.__name__ for kind in kinds] == ["TimeLimit", "OrderEnforcing", "PassiveEnvChecker"]
    return own and usual and type(env) is PendulumEnv and not env.render_mode
