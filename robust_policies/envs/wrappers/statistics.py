"""Return, length and duration of each episode, as tensors."""

from __future__ import annotations

import time
from typing import Any

import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from robust_policies import checks
from robust_policies.envs.wrappers.base import TensorWrapper
from robust_policies.errors import InvalidValueError


class EpisodeStatistics(TensorWrapper):
    """Adds info["episode"] = {"r", "l", "t"} and the mask info["_episode"] to steps in which an episode ended.

    As in Gymnasium's RecordEpisodeStatistics: "r" (num_envs,) float64 is the sum of the episode's rewards, "l" int64
    its number of steps and "t" float64 its duration [s]; 0 where info["_episode"] is False. Rewards are those of the
    wrapped environment, so put this wrapper inside a reward normalisation. The ignored step of NEXT_STEP does not
    count.

    `return_queue`, `length_queue` and `time_queue` are the last `buffer_length` episodes as tensors, oldest first; only
    reading them, or `episode_count`, waits for the device.
    """

    def __init__(self, env: VectorEnv, buffer_length: int = 100, stats_key: str = "episode") -> None:
        super().__init__(env)
        self.buffer_length = checks.positive_int("buffer_length", buffer_length)
        self.stats_key = stats_key
        self._returns = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        self._lengths = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._began = torch.full((self.num_envs,), time.perf_counter(), dtype=torch.float64, device=self.device)
        self._ignored: torch.Tensor | None = None
        self._count = torch.zeros((), dtype=torch.int64, device=self.device)
        # One place more than episodes kept: there goes what need not be, so that no row must be picked on the host.
        self._kept = {
            name: torch.zeros(self.buffer_length + 1, dtype=values.dtype, device=self.device)
            for name, values in (("r", self._returns), ("l", self._lengths), ("t", self._began))
        }

    @property
    def episode_count(self) -> int:
        """The number of episodes that have ended."""
        return int(self._count)

    @property
    def return_queue(self) -> torch.Tensor:
        """The returns (k,) of the last k <= `buffer_length` episodes, float64, oldest first."""
        return self._queue("r")

    @property
    def length_queue(self) -> torch.Tensor:
        """The lengths (k,) [steps] of the last k <= `buffer_length` episodes, int64, oldest first."""
        return self._queue("l")

    @property
    def time_queue(self) -> torch.Tensor:
        """The durations (k,) [s] of the last k <= `buffer_length` episodes, float64, oldest first."""
        return self._queue("t")

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and begin the statistics of the reset environments' episodes anew."""
        mask = self.reset_mask(options)
        result = self.env.reset(seed=seed, options=options)
        if mask is None:
            mask = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        self._begin(mask, time.perf_counter())
        self._ignored = None if self._ignored is None else self._ignored & ~mask
        return result

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return the step, with the statistics of the episodes that ended in it."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        if self._ignored is None:
            self._returns += reward
            self._lengths += 1
        else:
            self._returns += torch.where(self._ignored, 0.0, reward)
            self._lengths += ~self._ignored
            self._began.masked_fill_(self._ignored, time.perf_counter())
            self._ignored = None
        if self.some_ended(info):
            if self.stats_key in info:
                raise InvalidValueError(
                    f"info already holds {self.stats_key!r}; expected one EpisodeStatistics, or another stats_key."
                )
            done = terminated | truncated
            info = {**info, self.stats_key: self._end(done), f"_{self.stats_key}": done.clone()}
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                self._ignored = done
        return observation, reward, terminated, truncated, info

    def _end(self, done: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the statistics of the ended episodes, keep them and begin the next ones."""
        now = time.perf_counter()
        episode = {
            "r": torch.where(done, self._returns, 0.0),
            "l": torch.where(done, self._lengths, 0),
            "t": torch.where(done, now - self._began, 0.0),
        }
        rank = done.cumsum(0)
        latest = done & (rank > rank[-1] - self.buffer_length)
        place = torch.where(latest, (self._count + rank - 1) % self.buffer_length, self.buffer_length)
        for name, values in episode.items():
            self._kept[name][place] = values
        self._count += rank[-1]
        self._begin(done, now)
        return episode

    def _begin(self, rows: torch.Tensor, now: float) -> None:
        self._returns.masked_fill_(rows, 0.0)
        self._lengths.masked_fill_(rows, 0)
        self._began.masked_fill_(rows, now)

    def _queue(self, name: str) -> torch.Tensor:
        count = self.episode_count
        last = torch.arange(max(0, count - self.buffer_length), count, device=self.device)
        return self._kept[name][last % self.buffer_length]
