"""Windows of past observations, for a single environment and for Stable-Baselines3's vectorized ones.

An observation becomes (window, n + 1): the last `window` observations, oldest first, each flattened and followed by 1
(in the order of `policies.observations`; choices one-hot).
Rows before the episode began are zeros, their last column included: that column says which rows were observed.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from robust_policies import checks
from robust_policies.policies.observations import alone, encode, flat_box


def history_space(space: spaces.Space, window: int) -> spaces.Box:
    """Return the Box (window, n + 1) of windows over flat observations of `space`; raises InvalidValueError."""
    flat = flat_box(space)
    low = np.append(np.minimum(flat.low, 0), 0).astype(np.float32)
    high = np.append(np.maximum(flat.high, 0), 1).astype(np.float32)
    return spaces.Box(np.tile(low, (window, 1)), np.tile(high, (window, 1)), dtype=np.float32)


class _Window:
    """The windows (count, window, n + 1) of several environments with observations in `space`."""

    def __init__(self, space: spaces.Space, count: int, window: int, width: int) -> None:
        self.space = space
        self.values = np.zeros((count, window, width), dtype=np.float32)

    def clear(self, index: Any = slice(None)) -> None:
        self.values[index] = 0.0

    def flat(self, observations: Any) -> np.ndarray:
        """Return a batch of observations as an environment gives it, flat (count, n)."""
        if isinstance(self.space, spaces.Box):
            return np.asarray(observations).reshape(len(observations), -1)
        return encode(self.space, observations).numpy()

    def push(self, observations: Any) -> np.ndarray:
        """Return a copy of the windows after appending observations (count, ...)."""
        self.values[:, :-1] = self.values[:, 1:].copy()
        self.values[:, -1, :-1] = self.flat(observations)
        self.values[:, -1, -1] = 1.0
        return self.values.copy()


class HistoryWrapper(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """A single environment whose observation is the window of the last `window` observations."""

    def __init__(self, env: gymnasium.Env, window: int = 16) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, window=window)
        gymnasium.Wrapper.__init__(self, env)
        window = checks.positive_int("window", window)
        space = history_space(env.observation_space, window)
        self.observation_space = space
        self._history = _Window(env.observation_space, 1, *space.shape)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Return the window that holds the first observation alone."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._history.clear()
        return self._history.push(alone(observation))[0], info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        """Return the environment's step with the window in place of the observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._history.push(alone(observation))[0], reward, terminated, truncated, info


class VecHistory(VecEnvWrapper):
    """A Stable-Baselines3 VecEnv with windows; wrap it around a VecNormalize, or `NormalizedHistory` around it.

    Where an episode ended, the observation is the new episode's window, and `infos[i]["terminal_observation"]` the
    old one's.
    """

    def __init__(self, venv: VecEnv, window: int = 16) -> None:
        window = checks.positive_int("window", window)
        space = history_space(venv.observation_space, window)
        super().__init__(venv, observation_space=space)
        self._history = _Window(venv.observation_space, venv.num_envs, *space.shape)

    @property
    def windows(self) -> np.ndarray:
        """The present windows (num_envs, window, n + 1) themselves."""
        return self._history.values

    def reset(self) -> np.ndarray:
        """Return the windows that hold the first observations alone."""
        observations = self.venv.reset()
        self._history.clear()
        return self._history.push(observations)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return the step with windows in place of observations."""
        observations, rewards, dones, infos = self.venv.step_wait()
        ended = np.flatnonzero(dones)
        final = {}
        for index in ended:
            if (last := infos[index].get("terminal_observation")) is not None:
                row = np.append(self._history.flat(alone(last))[0], np.float32(1.0)).astype(np.float32)
                final[index] = np.concatenate((self._history.values[index, 1:], row[None]))
            self._history.clear(index)
        windows = self._history.push(observations)
        infos = list(infos)
        for index, window in final.items():
            infos[index] = {**infos[index], "terminal_observation": window}
        return windows, rewards, dones, infos


def history_of(env: VecEnv | None) -> VecHistory | None:
    """Return the `VecHistory` in an environment, None without one."""
    while isinstance(env, VecEnvWrapper) and not isinstance(env, VecHistory):
        env = env.venv
    return env if isinstance(env, VecHistory) else None


class _NewestRow(RunningMeanStd):
    """Statistics (n,) of the newest observation of windows (count, window, n + 1)."""

    def update(self, arr: np.ndarray) -> None:
        """Learn from a batch of windows."""
        super().update(arr[:, -1, :-1])


class NormalizedHistory(VecNormalize):
    """A VecNormalize around a `VecHistory`: every observed row is normalised by statistics of single observations.

    Replay buffers then hold raw windows, which are normalised by the newest statistics when they are sampled, as
    Stable-Baselines3 does it without windows. The options are VecNormalize's.
    """

    def __init__(self, venv: VecHistory, **options: Any) -> None:
        super().__init__(venv, **options)
        if self.norm_obs:
            # Theirs has a number for each of a window.
            self.obs_rms = _NewestRow(shape=(venv.observation_space.shape[1] - 1,))  # pyright: ignore

    def _normalize_obs(self, obs: np.ndarray, obs_rms: RunningMeanStd) -> np.ndarray:
        rows, observed = obs[..., :-1], obs[..., -1:]
        return np.concatenate((super()._normalize_obs(rows, obs_rms) * observed, observed), -1)

    def _unnormalize_obs(self, obs: np.ndarray, obs_rms: RunningMeanStd) -> np.ndarray:
        rows, observed = obs[..., :-1], obs[..., -1:]
        return np.concatenate((super()._unnormalize_obs(rows, obs_rms) * observed, observed), -1)
