"""A cell as a features extractor for algorithms that keep no recurrent state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.certificates import Certificate, Factor, compose, verify
from robust_policies.certificates.signals import FEATURES, WINDOWED, Signals
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.networks import make_cell
from robust_policies.policies.actor import FrozenNormalizer, Scaling
from robust_policies.policies.certify import Scales, normalized, verification_of_window, window_factor


class WindowedExtractor(BaseFeaturesExtractor):
    """The output of a cell that ran over a window of past observations, started from its initial state.

    It is not quite the recurrent policy: what is older than the window is forgotten at once. For a contracting cell the
    difference of the states is at most overshoot * rate^window times their size: take window well above 1 / (1 - rate).

    Args:
        observation_space: of `HistoryWrapper` or `VecHistory`: a Box (window, n + 1) whose last column says which rows
            are observed; or, with `window` given, the flat Box (window * n,) of Stable-Baselines3's VecFrameStack,
            whose leading zeros the cell then reads as observations.
        cell, cell_kwargs: as for RecurrentCellPolicy.
        features_dim: width of the cell's output.
        window: only for stacked flat observations.
        observation_scale, observation_offset: the cell's input is (observation - offset) / scale; fixed.

    Raises:
        ShapeError: the observations are not a window.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        cell: str = "r2dn",
        cell_kwargs: Mapping[str, Any] | None = None,
        features_dim: int = 64,
        window: int | None = None,
        observation_scale: Any = None,
        observation_offset: Any = None,
    ) -> None:
        features_dim = checks.positive_int("features_dim", features_dim)
        super().__init__(observation_space, features_dim)
        self.masked = window is None
        self.window, size = _window_of(observation_space, window)
        self.scaling = Scaling(size, observation_scale, observation_offset)
        self.cell = make_cell(cell, size, features_dim, **(cell_kwargs or {}))

    def forward(self, observations: Tensor) -> Tensor:
        """Return features (batch, features_dim) of windows (batch, window, n + 1) or (batch, window * n)."""
        inputs = observations.unflatten(-1, (self.window, -1)) if not self.masked else observations
        inputs = inputs.swapaxes(0, 1)
        starts = None
        if self.masked:
            inputs, observed = inputs[..., :-1], inputs[..., -1] > 0.5
            # Resetting at every padded row and at the first observed one starts the cell where the episode did.
            starts = torch.cat((torch.ones_like(observed[:1]), ~observed[:-1]))
            starts = None if not bool(starts[1:].any()) else starts
        state = self.cell.initial_state(inputs.shape[1])
        outputs, _ = self.cell.run(self.cell.explicit(), self.scaling(inputs), state, starts)
        return outputs[-1]

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Return this module untouched: SB3's orthogonal initialisation would overwrite the cell's layers."""
        return self

    def certificate(self) -> Certificate:
        """Return the certificate of the gain from the sequence of observations to that of the features.

        The last output of a window is at most gamma times the window's norm, and each observation is read in `window`
        windows, so the factor sqrt(window) comes on top of the cell's. Raises NotCertifiableError.
        """
        return certify_extractor(self)


def _window_of(space: spaces.Space, window: int | None) -> tuple[int, int]:
    """Return (rows of a window, numbers in an observation)."""
    shape = space.shape if isinstance(space, spaces.Box) else None
    if shape is None:
        raise InvalidValueError(
            f"The observation space is a {type(space).__name__}; WindowedExtractor needs a Box of past observations: "
            "put HistoryWrapper or VecHistory around the environment."
        )
    if window is None:
        if len(shape) != 2 or shape[1] < 2:
            raise ShapeError(
                f"Observations have shape {shape}; expected (window, n + 1) from HistoryWrapper or VecHistory. For "
                "stacked flat observations (VecFrameStack) pass window=."
            )
        return shape[0], shape[1] - 1
    window = checks.positive_int("window", window)
    if len(shape) != 1 or shape[0] % window:
        raise ShapeError(f"Observations have shape {shape}; expected (window * n,) with window {window}.")
    return window, shape[0] // window


def certify_extractor(extractor: WindowedExtractor) -> Certificate:
    """Return the certificate from the sequence of observations to that of a windowed extractor's features."""
    verification = verify(extractor.cell)
    arrays = dict(extractor.state_dict())
    return compose(
        verification_of_window(verification),
        signals=Signals(WINDOWED, FEATURES, extractor.cell.input_size, extractor.features_dim),
        before=window_factors(extractor, None),
        arrays=arrays,
        cell_note=extractor.cell.name,
    )


def window_factors(extractor: WindowedExtractor, statistics: FrozenNormalizer | None) -> list[Factor]:
    """Return what stands before the cell of a windowed extractor."""
    scales = Scales(np.ones(extractor.cell.input_size))
    scale = extractor.scaling.scale
    if scale is not None:
        scales.divide("observation scale", scale.detach().cpu().double().numpy(), "1 / smallest observation_scale")
    return [*normalization_factors(statistics), window_factor(extractor.window), *scales.factors]


def normalization_factors(statistics: FrozenNormalizer | None) -> list[Factor]:
    """Return the factor of a frozen normalizer, if there is one."""
    if statistics is None:
        return []
    scales = Scales(np.ones(statistics.std.numel()))
    normalized(scales, statistics)
    return scales.factors
