"""Initial states that are learned, or read from the measurements before: the modules that make them for a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.networks.baselines import MLPCell
from robust_policies.networks.cell import Cell, hidden_widths


class LearnedState(nn.Module):
    """One initial state x0 (nx,) for all sequences, a parameter that starts at zero.

    Args:
        cell: whose state it is; its number type is taken.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.x0 = nn.Parameter(cell.initial_state(1)[0].detach().clone())

    def forward(self, batch_size: int) -> Tensor:
        """Return the initial state (batch, nx)."""
        return self.x0.expand(checks.positive_int("batch_size", batch_size), -1)


class StateEncoder(nn.Module):
    """The state after a window of inputs and measured outputs, by a multilayer perceptron that reads the window.

    Args:
        cell: whose state it is; its number type and device are taken.
        window: the number of time steps it reads.
        output_size: width of the measured outputs; None: the cell's own.
        hidden_sizes: of the perceptron.
    """

    def __init__(
        self, cell: Cell, window: int, output_size: int | None = None, hidden_sizes: Sequence[int] = (64,)
    ) -> None:
        super().__init__()
        self.window, self.hidden_sizes = checks.positive_int("window", window), hidden_widths(hidden_sizes)
        self.output_size = checks.positive_int("output_size", cell.output_size if output_size is None else output_size)
        self.input_size = cell.input_size
        width = self.window * (self.input_size + self.output_size)
        self.network = MLPCell(width, self.hidden_sizes, cell.state_size).to(cell.initial_state(1))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the state (batch, nx) after a window of inputs (window, batch, nu) and outputs (window, batch, ny).

        Raises ShapeError where they do not fit.
        """
        checks.shape("inputs", inputs, (self.window, None, self.input_size))
        checks.shape("outputs", outputs, (self.window, inputs.shape[1], self.output_size))
        window = torch.cat((inputs, outputs), -1).transpose(0, 1).flatten(1)
        found, _ = self.network.step(self.network.explicit(), window, window[:, :0])
        return found

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments beside the cell, JSON-able."""
        return {"window": self.window, "output_size": self.output_size, "hidden_sizes": list(self.hidden_sizes)}
