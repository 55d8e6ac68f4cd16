"""A replay buffer of windows that stores single observations, and what a checkpoint keeps of any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "ages")


class WindowReplayBuffer(ReplayBuffer):
    """Transitions between windows (window, n + 1) of `VecHistory`, put together when they are sampled.

    It needs a `window`-th of the memory of Stable-Baselines3's own, and samples the same transitions but for those
    whose window began before what is still there: `window` - 1 steps of every environment, once it is full.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Box,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
    ) -> None:
        # ReplayBuffer's own would ask for the memory of whole windows.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage, self.handle_timeout_termination = optimize_memory_usage, True
        self.window, width = observation_space.shape
        rows, kind = (self.buffer_size, n_envs), np.float32
        self.observations = np.zeros((*rows, width - 1), kind)
        self.next_observations = np.zeros((*rows, width - 1), kind)
        self.actions = np.zeros((*rows, self.action_dim), kind)
        self.rewards, self.dones, self.timeouts = (np.zeros(rows, kind) for _ in range(3))
        self.ages = np.zeros(rows, np.int32)
        """Observed rows of the window that ends at each step."""

    def add(self, obs: np.ndarray, next_obs: np.ndarray, *rest: Any) -> None:
        """Store a transition of every environment; `rest` as in ReplayBuffer."""
        self.ages[self.pos] = obs[..., -1].sum(-1)
        super().add(obs[:, -1, :-1], next_obs[:, -1, :-1], *rest)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return random transitions, normalised as `env` does it now."""
        first = self.window - 1 if self.full else 0
        offsets = np.random.randint(first, self.buffer_size if self.full else self.pos, size=batch_size)
        return self._get_samples((offsets + (self.pos if self.full else 0)) % self.buffer_size, env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        which = np.random.randint(0, self.n_envs, size=len(batch_inds))
        back = np.arange(self.window - 1, -1, -1)
        steps = (batch_inds[:, None] - back) % self.buffer_size
        observed = (back < self.ages[batch_inds, which][:, None])[..., None]
        rows = np.where(observed, self.observations[steps, which[:, None]], np.float32(0.0))
        windows = np.concatenate((rows, observed.astype(np.float32)), -1)
        row = np.append(self.next_observations[batch_inds, which], np.ones((len(which), 1), np.float32), -1)
        after = np.concatenate((windows[:, 1:], row[:, None]), 1)
        ended = self.dones[batch_inds, which] * (1 - self.timeouts[batch_inds, which])
        rewards = self._normalize_reward(self.rewards[batch_inds, which].reshape(-1, 1), env)
        # As NumPy arrays; the annotations of Stable-Baselines3 allow for a Dict.
        seen: Any = (self._normalize_obs(windows, env), self._normalize_obs(after, env))
        actions = self.actions[batch_inds, which]
        found = (seen[0], actions, seen[1], ended.reshape(-1, 1), rewards)
        return ReplayBufferSamples(*map(self.to_torch, found))


def arrays_of(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """Return a buffer's arrays (steps, n, ...) by name."""
    found: dict[str, np.ndarray] = {}
    for name in _ARRAYS:
        value: Any = getattr(buffer, name, None)
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": part for key, part in value.items()}
        elif value is not None:
            found[name] = value
    return found


def replay_tensors(buffer: ReplayBuffer) -> dict[str, Tensor]:
    """Return what a buffer holds by name, the filled rows alone, and its `position` (where it writes, whether full)."""
    filled = buffer.size()
    tensors = {name: torch.from_numpy(array[:filled]) for name, array in arrays_of(buffer).items()}
    return tensors | {"position": torch.tensor([buffer.pos, int(buffer.full)])}


def load_replay(buffer: ReplayBuffer, tensors: Mapping[str, Tensor]) -> None:
    """Fill a buffer of the same size with what `replay_tensors` returned, (steps, n, ...) by name.

    Raises KeyError or ValueError where they do not fit.
    """
    for name, array in arrays_of(buffer).items():
        array[: len(tensors[name])] = tensors[name].numpy()
    position, full = tensors["position"].tolist()
    buffer.pos, buffer.full = int(position), bool(full)
