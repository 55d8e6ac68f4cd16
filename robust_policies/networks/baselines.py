"""Networks without a guarantee behind the same interface: LSTM, GRU and a memoryless MLP."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust_policies.errors import InvalidValueError
from robust_policies.networks.activations import GROUP_ACTIVATIONS, perceptron_activation, turned
from robust_policies.networks.cell import Cell, hidden_widths
from robust_policies.networks.gated import GatedMatrices, applies, run, stepped
from robust_policies.networks.perceptron import perceptron


class MLPMatrices(NamedTuple):
    """Weights and biases of a multilayer perceptron, first layer first."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


class _GatedCell(Cell):
    """What LSTM and GRU share: torch's fused sequence kernel, cut where a reset falls inside the sequence."""

    core: nn.RNNBase
    output: nn.Linear

    @abstractmethod
    def _segment(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (hidden values (time, batch, h), final state) of a stretch without resets."""

    def explicit(self) -> GatedMatrices:
        """Return the weights."""
        weight_ih, weight_hh, bias_ih, bias_hh = self.core.parameters()
        return GatedMatrices(weight_ih, weight_hh, bias_ih, bias_hh, self.output.weight, self.output.bias)

    def run(
        self, explicit: GatedMatrices, inputs: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state): many small steps in a compiled loop, else one call between resets."""
        if applies(inputs, state, explicit):
            return run(starts, inputs, state, explicit)
        values, state = self._hidden(inputs, state, starts)
        return functional.linear(values, explicit.C, explicit.by), state

    def run_between(
        self, explicit: GatedMatrices, inputs: Tensor, state: Tensor, starts: Tensor, begins: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return what `run` does in one call between resets, without asking the device where these are.

        Args:
            explicit: the weights.
            inputs: (time, batch, nu).
            state: (batch, nx).
            starts: (time, batch) bool.
            begins: the steps with a start, or more of them.
        """
        values, state = self._hidden(inputs, state, starts, begins)
        return functional.linear(values, explicit.C, explicit.by), state

    def _hidden(
        self, inputs: Tensor, state: Tensor, starts: Tensor | None, begins: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (hidden values (time, batch, h), final state)."""
        cuts = [0]
        if starts is not None:
            known = starts.any(dim=1).nonzero().flatten().tolist() if begins is None else begins
            cuts += [t for t in known if t > 0]
        hidden = []
        for begin, end in zip(cuts, [*cuts[1:], inputs.shape[0]], strict=True):
            if starts is not None:
                state = state.masked_fill(starts[begin].unsqueeze(-1), 0.0)
            values, state = self._segment(inputs[begin:end], state)
            hidden.append(values)
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden), state

    def options(self) -> dict[str, Any]:
        """Return the three sizes."""
        return {"input_size": self.input_size, "state_size": self.state_size, "output_size": self.output_size}

    def zero_output_(self) -> _GatedCell:
        """Zero the output map."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        return self


class LSTMCell(_GatedCell):
    """An LSTM with a linear output; its state is [h, c] side by side, so `state_size` is even."""

    name = "lstm"

    def __init__(self, input_size: int, state_size: int, output_size: int) -> None:
        super().__init__(input_size, state_size, output_size)
        if self.state_size % 2:
            raise InvalidValueError(
                f"state_size is {state_size}; an LSTM's state is [h, c] side by side: use an even number."
            )
        self.hidden_size = self.state_size // 2
        self.core = nn.LSTM(self.input_size, self.hidden_size)
        self.output = nn.Linear(self.hidden_size, self.output_size)

    def step(self, explicit: GatedMatrices, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state): c+ = f c + i g, h+ = o tanh(c+), y = C h+ + by."""
        return stepped(input, state, explicit)

    def _segment(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, c = (part.contiguous().unsqueeze(0) for part in state.split(self.hidden_size, dim=-1))
        values, (h, c) = self.core(inputs, (h, c))
        return values, torch.cat((h[0], c[0]), dim=-1)


class GRUCell(_GatedCell):
    """A GRU with a linear output."""

    name = "gru"

    def __init__(self, input_size: int, state_size: int, output_size: int) -> None:
        super().__init__(input_size, state_size, output_size)
        self.core = nn.GRU(self.input_size, self.state_size)
        self.output = nn.Linear(self.state_size, self.output_size)

    def step(self, explicit: GatedMatrices, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state): h+ = (1 - z) n + z h, y = C h+ + by."""
        return stepped(input, state, explicit)

    def run_states(
        self, explicit: GatedMatrices, inputs: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs, states after each step), which are the hidden values."""
        values, _ = self._hidden(inputs, state, starts)
        return functional.linear(values, explicit.C, explicit.by), values

    def _segment(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        values, h = self.core(inputs, state.unsqueeze(0).contiguous())
        return values, h[0]


class MLPCell(Cell):
    """A multilayer perceptron, memoryless: its state has width 0.

    `activation` is a name in `ACTIVATIONS`, "maxmin", or "householder": MaxMin between weights that are turned.
    """

    name = "mlp"

    def __init__(
        self, input_size: int, hidden_sizes: Sequence[int], output_size: int, activation: str = "tanh"
    ) -> None:
        super().__init__(input_size, 0, output_size, memoryless=True)
        self.hidden_sizes = hidden_widths(hidden_sizes)
        self.activation = perceptron_activation(activation, self.hidden_sizes)
        self.angles: nn.ParameterList | None = None
        if self.activation is GROUP_ACTIVATIONS["householder"]:
            self.activation = GROUP_ACTIVATIONS["maxmin"]
            self.angles = nn.ParameterList(torch.zeros(width // 2) for width in self.hidden_sizes)
        widths = [self.input_size, *self.hidden_sizes, self.output_size]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def explicit(self) -> MLPMatrices:
        """Return the weights that run, with "householder" turned before each MaxMin and back after it."""
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers]
        for k, angle in enumerate(self.angles or ()):
            weights[k], biases[k] = turned(weights[k], angle), turned(biases[k], angle)
            weights[k + 1] = turned(weights[k + 1].mT, angle).mT
        return MLPMatrices(tuple(weights), tuple(biases))

    def step(self, explicit: MLPMatrices, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output (batch, ny), the empty state (batch, 0))."""
        for weight, bias in zip(explicit.weights[:-1], explicit.biases[:-1], strict=True):
            input = self.activation.function(functional.linear(input, weight, bias))
        return functional.linear(input, explicit.weights[-1], explicit.biases[-1]), state

    def run(self, explicit: MLPMatrices, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs (time, batch, ny), the empty state (batch, 0)), all time steps in one product."""
        outputs = perceptron(self.activation.name, inputs, explicit.weights, explicit.biases)
        return self.step(explicit, inputs, state) if outputs is None else (outputs, state)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "input_size": self.input_size,
            "hidden_sizes": list(self.hidden_sizes),
            "output_size": self.output_size,
            "activation": self.activation.name if self.angles is None else "householder",
        }

    def zero_output_(self) -> MLPCell:
        """Zero the last layer."""
        last = self.layers[-1]
        # The last layer is linear; `Sequential` says Module.
        nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
        return self
