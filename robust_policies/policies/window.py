"""A cell that runs anew over a window of past observations at every step, as windowed policies of PPO and SAC do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from robust_policies import checks
from robust_policies.errors import CorruptFileError
from robust_policies.networks import Cell, cell_from_config
from robust_policies.networks.baselines import MLPCell


class WindowArrays(NamedTuple):
    """What runs: the arrays of the cell and of the perceptron, and the row (nu,) in place of one not observed yet."""

    cell: Any
    perceptron: Any
    blank: Tensor


class WindowCell(Cell):
    """The last output of a cell that ran over the window from its initial state, through a perceptron.

    The state (batch, window * (nu + 1)) is the window: rows of scaled observations, oldest first, the last column 1
    where a row was observed.

    Args:
        inner: runs over the window.
        perceptron: reads its last output.
        window: the number of rows.
        masked: the inner cell begins where the episode did (`HistoryWrapper`); else rows before that are read as
            `blank`, what an observation of zeros becomes (VecFrameStack).
    """

    name = "window"
    blank: Tensor

    def __init__(self, inner: Cell, perceptron: MLPCell, window: int, masked: bool) -> None:
        self.window, self.masked = checks.positive_int("window", window), checks.flag("masked", masked)
        super().__init__(inner.input_size, self.window * (inner.input_size + 1), perceptron.output_size)
        self.inner = inner
        self.perceptron = perceptron
        self.register_buffer("blank", torch.zeros(inner.input_size))

    def explicit(self) -> WindowArrays:
        """Return the arrays of both networks."""
        return WindowArrays(self.inner.explicit(), self.perceptron.explicit(), self.blank)

    def step(self, explicit: WindowArrays, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state): the window moves on by one row, and is read from its oldest."""
        row = torch.cat((input, torch.ones_like(input[..., :1])), -1)
        window = torch.cat((state[..., input.shape[-1] + 1 :], row.to(state.dtype)), -1)
        rows = window.unflatten(-1, (self.window, -1)).movedim(-2, 0)
        inputs, observed = rows[..., :-1], rows[..., -1] > 0.5
        starts = None
        if self.masked:
            # Resetting at every row before the episode and at its first starts the cell where the episode did.
            starts = torch.cat((torch.ones_like(observed[:1]), ~observed[:-1]))
            starts = starts if bool(starts[1:].any()) else None
        else:
            inputs = torch.where(observed.unsqueeze(-1), inputs, explicit.blank)
        outputs, _ = self.inner.run(explicit.cell, inputs, self.inner.initial_state(len(state)).to(inputs), starts)
        nothing = state.new_zeros(len(state), 0)
        return self.perceptron.step(explicit.perceptron, outputs[-1], nothing)[0], window

    def run(
        self, explicit: WindowArrays, inputs: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state), step by step: each step reads another window."""
        return self.unroll(explicit, inputs, state, starts)

    def options(self) -> dict[str, Any]:
        """Return the configurations of both networks, and the window."""
        return {
            "inner": self.inner.config(),
            "perceptron": self.perceptron.config(),
            "window": self.window,
            "masked": self.masked,
        }

    def zero_output_(self) -> WindowCell:
        """Zero the perceptron's last layer."""
        self.perceptron.zero_output_()
        return self


def stored_cell(config: Any) -> Cell:
    """Return a new cell of a configuration, one with a window too; raises as `cell_from_config`."""
    if not isinstance(config, Mapping) or config.get("type") != WindowCell.name:
        return cell_from_config(config)
    perceptron = cell_from_config(config["perceptron"])
    if not isinstance(perceptron, MLPCell):
        raise CorruptFileError(f"The perceptron of a window is stored as {perceptron.name!r}; save the policy again.")
    return WindowCell(cell_from_config(config["inner"]), perceptron, config["window"], cast(bool, config["masked"]))
