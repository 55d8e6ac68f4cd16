"""The implicit layer z = act(W z + U u + b), well posed in a weighted l-infinity norm, and a classifier made of one.

With |z|_eta = max_i |z_i| / eta_i and the matrix measure mu(W) = max_i (W_ii + sum over j of |W_ij| eta_j / eta_i)
there is one z for every u if mu(W) < 1, the average iteration z <- (1 - a) z + a act(W z + U u + b) with
a = 1 / (1 - min_i min(W_ii, 0)) comes nearer by the factor 1 - a (1 - max(mu, 0)), and |z - z'|_eta is at most
max_i (|U_i| |u - u'|) / eta_i over 1 - max(mu, 0). Free T and d give every W with mu <= m < 1:

    W = m I + D^-1 T D - diag(|T| 1),   D = diag(exp d),   eta = exp(-d)

Source: S. Jafarpour, A. Davydov, A. V. Proskurnikov and F. Bullo, "Robust implicit networks via non-Euclidean
contractions", NeurIPS 2021 (arXiv 2106.03194).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks.activations import activation_named
from robust_policies.networks.linalg import full_precision

MOST_PASSES = 10_000


class ImplicitMatrices(NamedTuple):
    """Arrays of an implicit layer: W (n, n), U (n, nu), b (n,) and the weights eta (n,) of its norm."""

    W: Tensor
    U: Tensor
    b: Tensor
    eta: Tensor


class NemonLayer(nn.Module):
    """Inputs (..., nu) -> z (..., n) with z = act(W z + U u + b).

    Args:
        input_size: nu.
        features: n.
        m: bound of the matrix measure of W, below 1; the layer's gain grows like 1 / (1 - max(m, 0)).
        activation: a name in `ACTIVATIONS`.
        tolerance: of z, relative, where the iteration ends; None: 100 times the number type's rounding.

    T_ii > 0 cancels in W and is never trained: T starts with a diagonal below zero.
    """

    def __init__(
        self,
        input_size: int,
        features: int,
        m: float = 0.0,
        activation: str = "relu",
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        self.input_size = checks.positive_int("input_size", input_size)
        self.features = checks.positive_int("features", features)
        self.m = checks.finite_float("m", m)
        if self.m >= 1:
            raise InvalidValueError(f"m is {m!r}; expected a number below 1, where the layer has a value.")
        self.activation = activation_named(activation)
        self.tolerance = None if tolerance is None else checks.finite_float("tolerance", tolerance, above=0.0)
        n, nu = self.features, self.input_size
        T = torch.randn(n, n) / n
        T.fill_diagonal_(-0.1)
        self.T, self.d = nn.Parameter(T), nn.Parameter(torch.zeros(n))
        self.U, self.b = nn.Parameter(torch.randn(n, nu) / math.sqrt(nu)), nn.Parameter(torch.zeros(n))

    def explicit(self) -> ImplicitMatrices:
        """Return the arrays that run."""
        size = self.d.exp()
        W = self.T / size.unsqueeze(1) * size
        W = W + torch.diag(self.m - self.T.abs().sum(1))
        return ImplicitMatrices(W, self.U, self.b, 1 / size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return z (..., n) for inputs (..., nu); differentiable once.

        Raises:
            InvalidValueError: W comes so near to mu = 1 that the iteration needs more than 10,000 passes.
        """
        checks.shape("the last axis of inputs", inputs[..., :].new_empty(inputs.shape[-1:]), (self.input_size,))
        with full_precision(inputs):
            e = self.explicit()
            drive = inputs @ e.U.mT + e.b
            with torch.no_grad():
                z = self._fixed_point(e, drive)
            if not torch.is_grad_enabled():
                return z
            # One step of Newton's method, whose matrix is held: its derivative is that of the fixed point.
            value = self.activation.function(z @ e.W.mT + drive)
            with torch.no_grad():
                slope = self.activation.slope(value, torch.empty_like(value))
                inner = torch.eye(self.features, dtype=z.dtype, device=z.device) - slope.unsqueeze(-1) * e.W
            return z + torch.linalg.solve(inner, (value - z).unsqueeze(-1)).squeeze(-1)

    def _fixed_point(self, e: ImplicitMatrices, drive: Tensor) -> Tensor:
        """Return z by the average iteration, to the tolerance, without a graph."""
        average = 1 / (1 - min(float(e.W.diagonal().min()), 0.0))
        factor = 1 - average * (1 - max(matrix_measure(e.W, e.eta), 0.0))
        tolerance = 100 * torch.finfo(drive.dtype).eps if self.tolerance is None else self.tolerance
        passes = 1 if factor <= 0 else math.ceil(math.log(tolerance) / math.log(factor)) if factor < 1 else math.inf
        if passes > MOST_PASSES:
            raise InvalidValueError(
                f"The layer nears its value by {factor:.6g} a pass, and {MOST_PASSES} are not enough for a "
                f"tolerance of {tolerance:.3g}; use a smaller m or a larger tolerance."
            )
        z = torch.zeros_like(drive)
        for _ in range(int(passes) + 10):
            following = torch.lerp(z, self.activation.function(z @ e.W.mT + drive), average)
            change = float(((following - z).abs() / e.eta).max())
            z = following
            if change <= tolerance * (1 - factor) * max(1.0, float((z.abs() / e.eta).max())):
                break
        return z


class NemonClassifier(nn.Module):
    """Inputs (..., nu) -> logits (..., classes): an implicit layer and a linear head; arguments as `NemonLayer`'s."""

    def __init__(
        self,
        input_size: int,
        features: int,
        classes: int,
        m: float = 0.0,
        activation: str = "relu",
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        self.layer = NemonLayer(input_size, features, m, activation, tolerance)
        self.head = nn.Linear(features, checks.positive_int("classes", classes, minimum=2))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (..., classes) for inputs (..., nu)."""
        return self.head(self.layer(inputs))


def matrix_measure(W: Tensor, eta: Tensor) -> float:
    """Return mu(W) of W (n, n) in the l-infinity norm with weights eta (n,) > 0."""
    W, eta = W.detach(), eta.detach()
    sizes = (W.abs() * eta).sum(1) / eta - W.diagonal().abs()
    return float((W.diagonal() + sizes).max())
