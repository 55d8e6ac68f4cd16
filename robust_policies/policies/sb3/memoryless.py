"""Observations without a memory as features for Stable-Baselines3's policies: scaled, and through a memoryless cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks import make_cell
from robust_policies.policies.actor import Scaling
from robust_policies.policies.observations import flat_size, parts_of


class FlatExtractor(BaseFeaturesExtractor):
    """Flat observations, scaled; with a cell, its output.

    Args:
        observation_space: anything that `policies.observations` reads flat.
        cell, cell_kwargs: a memoryless cell as for `make_cell`; None: the scaled observations are the features.
        features_dim: width of the cell's output.
        observation_scale, observation_offset: what is read is (observation - offset) / scale; fixed.

    Raises:
        InvalidValueError: the cell has a memory, for which there is `WindowedExtractor`.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        cell: str | None = None,
        cell_kwargs: Mapping[str, Any] | None = None,
        features_dim: int = 64,
        observation_scale: Any = None,
        observation_offset: Any = None,
    ) -> None:
        size = flat_size(observation_space)
        features_dim = size if cell is None else checks.positive_int("features_dim", features_dim)
        super().__init__(observation_space, features_dim)
        self.keys = [key for key, _ in parts_of(observation_space) if key]
        self.scaling = Scaling(size, observation_scale, observation_offset)
        self.cell = None if cell is None else make_cell(cell, size, features_dim, **(cell_kwargs or {}))
        if self.cell is not None and self.cell.state_size:
            raise InvalidValueError(f"The cell {cell!r} has a memory; put WindowedExtractor around it.")

    def forward(self, observations: Any) -> Tensor:
        """Return features (batch, features_dim) of a batch of observations as Stable-Baselines3 preprocesses them."""
        parts = [observations[key].flatten(1) for key in self.keys] if self.keys else [observations.flatten(1)]
        inputs = self.scaling(torch.cat(parts, -1))
        if self.cell is None:
            return inputs
        return self.cell.step(self.cell.explicit(), inputs, inputs.new_zeros(len(inputs), 0))[0]

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Return this module untouched: SB3's orthogonal initialisation would overwrite the cell's layers."""
        return self


class FlatWindow(BaseFeaturesExtractor):
    """All rows of a window (window, n + 1) side by side, scaled, those not observed zero: what a critic reads of it."""

    def __init__(self, observation_space: spaces.Box, scaling: Scaling) -> None:
        super().__init__(observation_space, flat_size(observation_space))
        self.scaling = scaling

    def forward(self, windows: Tensor) -> Tensor:
        """Return features (batch, window * (n + 1)) of windows (batch, window, n + 1)."""
        observed = windows[..., -1:]
        return torch.cat((self.scaling(windows[..., :-1]) * observed, observed), -1).flatten(1)
