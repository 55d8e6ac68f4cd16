"""Sequences of steps with the states that the networks had there.

Source: S. Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning" (ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class SequenceReplay:
    """The last `rows` steps of n environments, tensors (rows, n, ...) by name on one device.

    Args:
        rows: steps of each environment.
        shapes: of one step of one environment, by name.
        flags: names of those that are true or false.
        count: n.
        device: where.
    """

    def __init__(
        self, rows: int, shapes: Mapping[str, tuple[int, ...]], flags: set[str], count: int, device: torch.device
    ) -> None:
        self.rows, self.count, self.position, self.filled = rows, count, 0, 0
        self.arrays = {
            name: torch.zeros(rows, count, *shape, dtype=torch.bool if name in flags else torch.float32, device=device)
            for name, shape in shapes.items()
        }

    @property
    def bytes(self) -> int:
        """What it needs when it is full."""
        return sum(array.numel() * array.element_size() for array in self.arrays.values())

    def add(self, **step: Tensor) -> None:
        """Store one step (n, ...) of all environments, by name."""
        for name, value in step.items():
            self.arrays[name][self.position] = value
        self.position = (self.position + 1) % self.rows
        self.filled = min(self.filled + 1, self.rows)

    def sample(self, batch: int, length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `batch` sequences (length, batch, ...) by name, any of those that are whole."""
        device = next(iter(self.arrays.values())).device
        draw = {"generator": generator, "device": device}
        first = torch.randint(self.filled - length + 1, (batch,), **draw)
        which = torch.randint(self.count, (batch,), **draw)
        oldest = self.position if self.filled == self.rows else 0
        steps = (oldest + first + torch.arange(length, device=device).unsqueeze(-1)) % self.rows
        return {name: array[steps, which] for name, array in self.arrays.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return what it holds, the filled rows alone, and its `position`."""
        found = {name: array[: self.filled] for name, array in self.arrays.items()}
        return found | {"position": torch.tensor([self.position, self.filled])}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill it with what `tensors` returned of one of the same size; raises KeyError or RuntimeError elsewhere."""
        self.position, self.filled = tensors["position"].tolist()
        for name, array in self.arrays.items():
            array[: self.filled] = tensors[name]
