"""What one update learns from: windows at random places, or consecutive segments side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from robust_policies.errors import InvalidValueError
from robust_policies.identification.model import Signals
from robust_policies.identification.records import Experiment
from robust_policies.identification.settings import TrainingSection


class Batches:
    """Batches of scaled inputs (time, batch, nu) and outputs (time, batch, ny); each is given by its number alone.

    Args:
        pieces: of the training.
        signals: scales.
        settings: batching, batch and window; a window is no longer than the longest piece.
        seed: of the places of windows.
        dtype: of the batches.
    """

    def __init__(
        self,
        pieces: Sequence[Experiment],
        signals: Signals,
        settings: TrainingSection,
        seed: int,
        dtype: torch.dtype,
        device: str = "cpu",
    ) -> None:
        self.seed, self.count = seed, settings.batch
        self.window = min(settings.window, max(map(len, pieces)))
        if self.window <= (settings.burn_in or 0):
            raise InvalidValueError(
                f"The longest piece of the training has {self.window} samples and algorithm.burn_in is "
                f"{settings.burn_in}; lower it."
            )
        long = [one for one in pieces if len(one) >= self.window]
        scaled = [signals.scaled(one.inputs, one.outputs) for one in long]
        self.inputs, self.outputs = (
            torch.as_tensor(np.concatenate(parts), dtype=dtype, device=device) for parts in zip(*scaled, strict=True)
        )
        self.lengths = np.array([len(one) for one in long])
        self.firsts = np.concatenate(([0], np.cumsum(self.lengths)[:-1]))
        self.lanes = self._lanes() if settings.batching == "segments" else None

    def _lanes(self) -> np.ndarray:
        """Return where each of the lanes begins: the pieces cut into equal lengths, as many as a batch holds."""
        self.lane = max(self.window, min(int(self.lengths.min()), int(self.lengths.sum()) // self.count))
        begins = [
            first + k * self.lane
            for first, n in zip(self.firsts, self.lengths, strict=True)
            for k in range(n // self.lane)
        ]
        return np.array(begins[: self.count])

    @property
    def per_epoch(self) -> int:
        """Segments of a lane."""
        return self.lane // self.window

    @property
    def size(self) -> int:
        """Windows of a batch."""
        return self.count if self.lanes is None else len(self.lanes)

    def begins(self, number: int) -> bool:
        """Return whether batch `number` (from 0) begins anew, rather than where the one before ended."""
        return self.lanes is None or number % self.per_epoch == 0

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return batch `number` (from 0): inputs (window, batch, nu) and outputs (window, batch, ny)."""
        if self.lanes is not None:
            starts = self.lanes + (number % self.per_epoch) * self.window
        else:
            rng = np.random.default_rng([self.seed, number])
            places = self.lengths - self.window + 1
            flat = rng.integers(0, places.sum(), self.count)
            ends = np.cumsum(places)
            piece = np.searchsorted(ends, flat, side="right")
            starts = self.firsts[piece] + flat - (ends[piece] - places[piece])
        rows = torch.as_tensor(starts[None, :] + np.arange(self.window)[:, None], device=self.inputs.device)
        return self.inputs[rows], self.outputs[rows]
