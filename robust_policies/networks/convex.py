"""A recurrent network that is convex in its inputs and has an exact gain.

w = relu(W x + U u + bv),  x+ = w,  y = V w + D u + by,   W, V >= 0 entry by entry, U and D of any sign.

Sums with weights >= 0 and maxima of convex functions are convex, so every output at every step is convex in all the
inputs before it. With W = rate diag(d) S diag(d)^-1, S >= 0 with row sums below 1, |x|_d = max_k |x_k| / d_k shrinks by
the rate. Increments obey |w| <= W |x| + |U| |u| entry by entry, a positive linear system, whose l2 gain is that of
constants: gamma_0 = |V (I - W)^-1 |U| + |D||, one solve; for U, D >= 0 it is attained where all units are on. V and D
are divided by gamma_0 / gamma where it is larger: the gain is gamma by construction.

Sources: B. Amos, L. Xu and J. Z. Kolter, "Input convex neural networks" (ICML 2017), for the signs; L. Farina and
S. Rinaldi, "Positive linear systems" (2000), for the gain. Norms of W and U at most 1 at each step, as in Z. Wang et
al., "Input convex Lipschitz recurrent neural networks" (arXiv 2401.07494), bound one step only: gains over time grow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks.activations import activation_named
from robust_policies.networks.guarantees import Contracting, Guarantee, Lipschitz, as_guarantee
from robust_policies.networks.linalg import full_precision, identity_like, solved
from robust_policies.networks.neuron_cell import NeuronCell, RENExplicit

CONVEX = ("relu", "leaky_relu", "elu", "softplus", "identity")
"""Activations of slope in [0, 1] that are convex."""


# How much more a unit reads of itself than of another at first, as a logarithm.
_OWN = 4.0


class ConvexCell(NeuronCell):
    """Recurrent network whose outputs are convex in all inputs, of l2 gain at most gamma.

    Args:
        input_size: nu.
        state_size: nx, the number of units.
        output_size: ny.
        activation: one of `CONVEX`.
        guarantee: Contracting() or Lipschitz(gamma).
        rate: upper bound of the contraction rate, 0 < rate < 1.
        positive: U and D are >= 0 too, so that outputs do not decrease with the inputs and the gain is exact.
    """

    name = "convex"
    passes = 1
    guarantee: Guarantee
    rate: float
    W: nn.Parameter
    U: nn.Parameter
    V: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        activation: str = "relu",
        guarantee: Guarantee | Mapping[str, Any] = Contracting(),  # noqa: B008 (frozen)
        rate: float = 0.99,
        positive: bool = False,
    ) -> None:
        super().__init__(input_size, state_size, output_size)
        self.activation = activation_named(activation)
        if activation not in CONVEX:
            raise InvalidValueError(
                f"activation is {activation!r}; a convex cell needs a convex one: use one of {', '.join(CONVEX)}."
            )
        self.guarantee = as_guarantee(guarantee, self.input_size, self.output_size, (Contracting, Lipschitz))
        self.rate = checks.finite_float("rate", rate, above=0.0)
        if self.rate >= 1:
            raise InvalidValueError(f"rate is {rate!r}; expected a number in (0, 1): at 1 the gain has no bound.")
        self.positive = checks.flag("positive", positive)
        nu, nx, ny = self.input_size, self.state_size, self.output_size
        shapes = {"W": (nx, nx), "U": (nx, nu), "V": (ny, nx), "D": (ny, nu)}
        for key, (rows, columns) in shapes.items():
            value = torch.randn(rows, columns) / math.sqrt(columns)
            # Each unit reads itself first, and what is kept at zero or above starts there.
            value = {"W": value + _OWN * torch.eye(rows, columns), "V": value.abs()}.get(key, value)
            self.register_parameter(key, nn.Parameter(value))
        # Units forget between half of a difference and a hundredth of it at each step.
        self.share = nn.Parameter(torch.logit(torch.linspace(0.5, 0.99, nx)))
        self.level = nn.Parameter(torch.zeros(nx))
        self.bv, self.by = nn.Parameter(torch.zeros(nx)), nn.Parameter(torch.zeros(ny))
        self.log_gamma: nn.Parameter | None = None
        if isinstance(self.guarantee, Lipschitz) and self.guarantee.trainable:
            self.log_gamma = nn.Parameter(torch.tensor([math.log(self.guarantee.gamma)]))

    @property
    def gamma(self) -> float | None:
        """The certified incremental l2 gain, None unless the guarantee is Lipschitz."""
        if not isinstance(self.guarantee, Lipschitz):
            return None
        return self.guarantee.gamma if self.log_gamma is None else math.exp(float(self.log_gamma.detach()))

    def explicit(self) -> RENExplicit:
        """Return the arrays that run."""
        with full_precision(self.W):
            d = self.level.exp()
            W = self.rate * torch.sigmoid(self.share).unsqueeze(1) * torch.softmax(self.W, 1) * d.unsqueeze(1) / d
            V, U, D = _kept_positive(self.V), self.U, self.D
            if self.positive:
                U, D = _kept_positive(U), _kept_positive(D)
            if isinstance(self.guarantee, Lipschitz):
                whole = V @ solved(identity_like(W) - W, U.abs()) + D.abs()
                gamma = self.guarantee.gamma if self.log_gamma is None else self.log_gamma.exp()
                shrink = 1 / (torch.linalg.matrix_norm(whole, 2) / gamma).clamp(min=1.0)
                V, D = V * shrink, D * shrink
            eye, none = identity_like(W), W.new_zeros
            nu, nx, ny = self.input_size, self.state_size, self.output_size
            zero, rest = none(nx, nx), (none(nx), self.bv, self.by)
            return RENExplicit(zero, eye, none(nx, nu), W, none(ny, nx), zero, U, V, D, *rest)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "input_size": self.input_size,
            "state_size": self.state_size,
            "output_size": self.output_size,
            "activation": self.activation.name,
            "guarantee": self.guarantee.config(),
            "rate": self.rate,
            "positive": self.positive,
        }

    @torch.no_grad()
    def zero_output_(self) -> ConvexCell:
        """Zero V, D and by; the gradient with respect to them is not zero."""
        for array in (self.V, self.D, self.by):
            array.zero_()
        return self


def _kept_positive(matrix: Tensor) -> Tensor:
    """Return max(matrix, 0), whose gradient is passed on as it is: what was driven below zero can come back."""
    return matrix + (matrix.clamp(min=0.0) - matrix).detach()
