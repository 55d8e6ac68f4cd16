"""What the wrappers share: the environments that they take, and what ended or was reset in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError


def torch_env(env: Any) -> TorchVectorEnv:
    """Return the `TorchVectorEnv` inside `env`; raise `InvalidValueError` if there is none."""
    if isinstance(env, VectorEnv) and isinstance(env.unwrapped, TorchVectorEnv):
        return env.unwrapped
    hint = " For NumPy environments use gymnasium.wrappers.vector." if isinstance(env, VectorEnv) else ""
    raise InvalidValueError(f"env is {env!r}; expected a TorchVectorEnv or a wrapper around one.{hint}")


class Changing:
    """What a wrapper keeps in an object of its own and changes with every step: part of what a run resumes from."""


class TensorWrapper(VectorWrapper):
    """A wrapper around a `TorchVectorEnv`, or wrappers of one, that knows its device and autoreset mode."""

    def __init__(self, env: VectorEnv) -> None:
        self.base = torch_env(env)
        super().__init__(env)
        self.device = self.base.device
        self.autoreset_mode = self.base.autoreset_mode

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of observations and rewards."""
        return self.base.dtype

    @property
    def max_episode_steps(self) -> int:
        """The time limit [steps]."""
        return self.base.max_episode_steps

    def render_one(self, row: int = 0) -> np.ndarray | None:
        """Return the picture of environment `row`."""
        return self.base.render_one(row)

    def reset_mask(self, options: Mapping[str, Any] | None) -> torch.Tensor | None:
        """Return which environments (num_envs,) a reset with `options` concerns, None for all of them."""
        mask = (options or {}).get("reset_mask")
        return None if mask is None else torch.as_tensor(mask, device=self.device)

    def some_ended(self, info: Mapping[str, Any]) -> bool:
        """Return whether an episode ended in the step that returned `info`, without asking the device."""
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            return "_final_obs" in info
        return self.base.some_ended
