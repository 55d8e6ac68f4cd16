"""Actions brought into a range before the environment takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from robust_policies import checks
from robust_policies.envs.wrappers.base import TensorWrapper
from robust_policies.errors import InvalidValueError, ShapeError


class _ActionWrapper(TensorWrapper):
    """A wrapper that maps actions (num_envs, action_size) of its own space to those of the environment's Box."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        space = env.single_action_space
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise InvalidValueError(
                f"The action space is {checks.space_text(space)}; expected a Box of vectors for {type(self).__name__}."
            )
        self._inner = space
        self.action_size = space.shape[0]
        self._low, self._high = self._limit(space.low), self._limit(space.high)

    def _limit(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _take(self, low: np.ndarray | float, high: np.ndarray | float) -> None:
        """Set the space of the actions that this wrapper takes."""
        # A Box has one.
        kind: Any = self._inner.dtype.type  # type: ignore[union-attr]
        least, most = (np.full(self.action_size, bound).astype(kind) for bound in (low, high))
        self.single_action_space = Box(least, most, dtype=kind)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Return what the wrapped environment is given for `actions` (num_envs, action_size)."""
        raise NotImplementedError

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step with the mapped actions, NumPy or torch; `ShapeError` for a wrong type, dtype, shape or device."""
        if isinstance(actions, np.ndarray):
            actions = torch.as_tensor(np.ascontiguousarray(actions), device=self.device)
        if not isinstance(actions, torch.Tensor):
            kind = type(actions).__name__
            raise ShapeError(f"actions are of type {kind}; expected a torch tensor or a NumPy array.")
        if not actions.dtype.is_floating_point:
            raise ShapeError(f"actions have dtype {actions.dtype}; expected torch.float32 or torch.float64.")
        if actions.device.type != self.device.type:
            raise ShapeError(f"actions are on device {actions.device}; expected {self.device}.")
        checks.shape("actions", actions, (self.num_envs, self.action_size))
        return self.env.step(self.actions(actions))


class ClipAction(_ActionWrapper):
    """Takes any action and clips it to the bounds of the environment's action space, each dimension to its own."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._take(-np.inf, np.inf)

    def actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the clipped actions (n, nu)."""
        return actions.clamp(self._low.to(actions.dtype), self._high.to(actions.dtype))


class RescaleAction(_ActionWrapper):
    """Takes actions in [low, high] and maps them affinely onto the environment's action space.

    `low` and `high` are numbers, or arrays (action_size,) with one for each dimension. Actions beyond them are mapped
    by the same line, and then clipped by the environment.
    """

    def __init__(self, env: VectorEnv, low: Any = -1.0, high: Any = 1.0) -> None:
        super().__init__(env)
        if not bool(torch.isfinite(torch.stack((self._low, self._high))).all()):
            raise InvalidValueError(f"The action space is {self._inner}; expected finite bounds to rescale to.")
        bounds = [self._bound("low", low), self._bound("high", high)]
        if not (bounds[0] < bounds[1]).all():
            raise InvalidValueError(f"low is {low!r} and high is {high!r}; expected low < high in every dimension.")
        self._take(*bounds)
        self._from = self._limit(bounds[0])
        self._gain = (self._high - self._low) / self._limit(bounds[1] - bounds[0])

    def _bound(self, name: str, value: Any) -> np.ndarray:
        try:
            bound = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidValueError(f"{name} is {value!r}; expected a number or one a dimension.") from error
        if bound.shape not in {(), (self.action_size,)} or not np.isfinite(bound).all():
            raise InvalidValueError(f"{name} is {value!r}; expected a finite number, or {self.action_size} of them.")
        return np.broadcast_to(bound, (self.action_size,))

    def actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Return low' + (action - low) (high' - low') / (high - low) for actions (n, nu); low', high': the plant's."""
        low, start, gain = (value.to(actions.dtype) for value in (self._low, self._from, self._gain))
        return low + (actions - start) * gain
