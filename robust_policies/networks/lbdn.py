"""Lipschitz-bounded deep network (LBDN) of sandwich layers, after Wang and Manchester (ICML 2023).

A sandwich layer is h -> sqrt2 A' Psi act(sqrt2 Psi^-1 B h + b) with A A' + B B' = I and Psi > 0 diagonal: 1-Lipschitz
for every activation of slope in [0, 1]. The linear last layer is h -> B h + b with |B| <= 1. Around MaxMin or
Householder, whose slopes are not entry by entry, a layer is h -> act(B h + b): 1-Lipschitz because both parts are.

Source: R. Wang and I. R. Manchester, "Direct parameterization of Lipschitz-bounded deep networks", ICML 2023 (arXiv
2301.11526); the network's structure is its eq. 8 (number as the authors' RobustNeuralNetworks.jl cites it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.networks.activations import Activation, GroupActivation, perceptron_activation, turned
from robust_policies.networks.cell import Cell, hidden_widths
from robust_policies.networks.guarantees import Lipschitz
from robust_policies.networks.linalg import cayley, frobenius, full_precision
from robust_policies.networks.program import recorded

_SQRT2 = math.sqrt(2.0)


class LayerMatrices(NamedTuple):
    """Explicit arrays of one layer with n_in inputs and n_out outputs.

    A (n_out, n_out), B (n_out, n_in), psi (n_out,), b (n_out,):
    h -> sqrt2 A' diag(psi) act(sqrt2 diag(psi)^-1 B h + b).
    A and psi are None for a linear layer h -> B h + b.
    """

    A: Tensor | None
    B: Tensor
    psi: Tensor | None
    b: Tensor

    def in_map(self) -> Tensor:
        """Return the matrix (n_out, n_in) in front of the activation (of a linear layer: the layer's)."""
        return self.B if self.psi is None else (_SQRT2 / self.psi).unsqueeze(1) * self.B

    def out_map(self) -> Tensor:
        """Return the matrix (n_out, n_out) after the activation of a sandwich layer."""
        assert self.A is not None and self.psi is not None
        return _SQRT2 * self.A.mT * self.psi

    def apply(self, h: Tensor, activation: Activation | GroupActivation) -> Tensor:
        """Return the layer's value for h (..., n_in)."""
        pre = h @ self.in_map().mT + self.b
        return pre if self.A is None else activation.function(pre) @ self.out_map().mT


class SandwichLayer(nn.Module):
    """Free parameters of one layer: XY ((n_in + n_out) x n_out), a (1,), b (n_out,) and, unless linear, d (n_out,).

    Before a `group` activation there is no d; where that turns pairs, there are angles (n_out / 2,).
    """

    def __init__(self, n_in: int, n_out: int, *, linear: bool = False, group: GroupActivation | None = None) -> None:
        super().__init__()
        self.XY = nn.Parameter(torch.empty(n_in + n_out, n_out))
        nn.init.xavier_normal_(self.XY)
        self.a = nn.Parameter(frobenius(self.XY.detach()).reshape(1))
        self.b = nn.Parameter(torch.zeros(n_out))
        self.d = None if linear or group else nn.Parameter(torch.zeros(n_out))
        self.pairs = group is not None and not linear
        self.angle = nn.Parameter(torch.zeros(n_out // 2)) if self.pairs and group and group.angles else None

    def explicit(self) -> LayerMatrices:
        """Return the layer's arrays; Psi = exp(clip(d, -20, 20))."""
        A_T, B_T = cayley(self.XY, self.a)
        if self.pairs:
            # With A = R / sqrt 2 and B <- R B / sqrt 2 the maps before and after the activation are R B and R'.
            R, B, b = torch.eye(len(self.b), dtype=self.b.dtype, device=self.b.device), B_T.mT, self.b
            if self.angle is not None:
                R, B, b = (turned(part, self.angle) for part in (R, B, b))
            return LayerMatrices(R / _SQRT2, B / _SQRT2, torch.ones_like(b), b)
        if self.d is None:
            return LayerMatrices(None, B_T.mT, None, self.b)
        return LayerMatrices(A_T.mT, B_T.mT, self.d.clamp(-20.0, 20.0).exp(), self.b)


def sandwich_layers(
    widths: Sequence[int], *, linear_output: bool, group: GroupActivation | None = None
) -> nn.ModuleList:
    """Return the layers widths[0] -> ... -> widths[-1], the last linear if `linear_output`; `group` acts on pairs."""
    last = len(widths) - 2
    return nn.ModuleList(
        SandwichLayer(a, b, linear=linear_output and k == last, group=group)
        for k, (a, b) in enumerate(pairwise(widths))
    )


def explicit_layers(layers: nn.ModuleList) -> tuple[LayerMatrices, ...]:
    """Return the explicit arrays of `layers`, first layer first."""
    return tuple(layer.explicit() for layer in layers if isinstance(layer, SandwichLayer))


class LBDN(nn.Module):
    """The memoryless map u -> sqrt(gamma) layers(sqrt(gamma) u), gamma-Lipschitz in the Euclidean norm.

    Args:
        input_size: width of u.
        hidden_sizes: widths of the hidden layers.
        output_size: width of the output.
        gamma: Lipschitz bound, > 0.
        activation: a name in `ACTIVATIONS`, "maxmin" or "householder" (pairs of neurons, so layers of even widths).
        linear_output: the last layer is linear (the published architecture) or a full sandwich layer.
        trainable_gamma: log(gamma) is a parameter, `gamma` its initial value.
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        output_size: int,
        gamma: float = 1.0,
        activation: str = "relu",
        linear_output: bool = True,
        trainable_gamma: bool = False,
    ) -> None:
        super().__init__()
        self.input_size = checks.positive_int("input_size", input_size)
        self.hidden_sizes = hidden_widths(hidden_sizes)
        self.output_size = checks.positive_int("output_size", output_size)
        self.linear_output = checks.flag("linear_output", linear_output)
        widths = [self.input_size, *self.hidden_sizes, self.output_size]
        self.activation = perceptron_activation(activation, widths[1:-1] if self.linear_output else widths[1:])
        self._gamma = checks.finite_float("gamma", gamma, above=0.0)
        self.log_gamma = nn.Parameter(torch.tensor([math.log(self._gamma)])) if trainable_gamma else None
        group = self.activation if isinstance(self.activation, GroupActivation) else None
        self.layers = sandwich_layers(widths, linear_output=self.linear_output, group=group)

    @property
    def gamma(self) -> float:
        """The certified Lipschitz bound."""
        return self._gamma if self.log_gamma is None else math.exp(float(self.log_gamma.detach()))

    def explicit(self) -> LBDNExplicit:
        """Return the arrays that run."""
        found = recorded(self, self._explicit)
        return self._explicit() if found is None else found

    def _explicit(self) -> LBDNExplicit:
        layers = explicit_layers(self.layers)
        scale = layers[0].b.new_full((1,), math.sqrt(self._gamma))
        if self.log_gamma is not None:
            scale = (0.5 * self.log_gamma).exp()
        return LBDNExplicit(layers, scale)

    def evaluate(self, explicit: LBDNExplicit, inputs: Tensor) -> Tensor:
        """Return the outputs (..., ny) for inputs (..., nu) and already computed arrays."""
        with full_precision(inputs):
            h = inputs * explicit.scale
            for layer in explicit.layers:
                h = layer.apply(h, self.activation)
            return h * explicit.scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs (..., ny) for inputs (..., nu)."""
        checks.shape("the last axis of inputs", inputs[..., :].new_empty(inputs.shape[-1:]), (self.input_size,))
        return self.evaluate(self.explicit(), inputs)


class LBDNExplicit(NamedTuple):
    """Arrays of an LBDN: its layers and the factor sqrt(gamma) (1,) applied before and after them."""

    layers: tuple[LayerMatrices, ...]
    scale: Tensor


class LBDNCell(Cell):
    """An LBDN behind the cell interface: memoryless, state width 0, Lipschitz(gamma); arguments as `LBDN`'s."""

    name = "lbdn"

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        output_size: int,
        gamma: float = 1.0,
        activation: str = "relu",
        linear_output: bool = True,
        trainable_gamma: bool = False,
    ) -> None:
        super().__init__(input_size, 0, output_size, memoryless=True)
        self.network = LBDN(input_size, hidden_sizes, output_size, gamma, activation, linear_output, trainable_gamma)
        self.guarantee = Lipschitz(gamma, trainable=checks.flag("trainable_gamma", trainable_gamma))
        self.rate = 1.0

    @property
    def gamma(self) -> float:
        """The certified Lipschitz bound."""
        return self.network.gamma

    def explicit(self) -> LBDNExplicit:
        """Return the arrays that run."""
        return self.network.explicit()

    def step(self, explicit: LBDNExplicit, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output (batch, ny), the empty state (batch, 0))."""
        return self.network.evaluate(explicit, input), state

    def run(
        self, explicit: LBDNExplicit, inputs: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs (time, batch, ny), the empty state (batch, 0)), all time steps at once."""
        return self.network.evaluate(explicit, inputs), state

    def metric(self) -> Tensor:
        """Return the empty matrix (0, 0)."""
        return torch.zeros(0, 0, dtype=torch.float64)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        network, guarantee = self.network, self.guarantee
        assert isinstance(guarantee, Lipschitz)
        return {
            "input_size": self.input_size,
            "hidden_sizes": list(network.hidden_sizes),
            "output_size": self.output_size,
            "gamma": guarantee.gamma,
            "activation": network.activation.name,
            "linear_output": network.linear_output,
            "trainable_gamma": guarantee.trainable,
        }

    def zero_output_(self) -> LBDNCell:
        """Zero the last layer: its B (of a linear one) or its activation's input rows, and its bias.

        For a sandwich layer with act(0) = 0 both leave the output zero; softplus and sigmoid have no such point.
        """
        with torch.no_grad():
            last = self.network.layers[-1]
            assert isinstance(last, SandwichLayer)
            last.XY[last.XY.shape[1] :].zero_()
            last.b.zero_()
        return self
