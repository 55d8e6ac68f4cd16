"""Linear recurrent units of bounded gain, in a stack: y = s E_out S_L G_L ... S_1 G_1 E_in s u, s = sqrt(gamma).

G_i is a linear system x+ = A x + B h, y = C x + D h of l2 gain at most 1, S_i a sandwich layer (1-Lipschitz), and E_in,
E_out have spectral norms at most 1. The poles of A are where they are put: A = rate blk(rho_k times a rotation by
theta_k), rho_k = exp(-exp(nu_k)). With A/rate = N, a normal matrix, and q = sqrt(1 - rho^2), every contraction
[[N, B], [C / rate, D]] is

    B = diag(q) V,   C = rate U diag(q),   D = -U N' V + (I - U U')^(1/2) Z (I - V'V)^(1/2)

with |V|, |U|, |Z| < 1, each of a free matrix M by Cholesky factors: M (I + M'M)^(-1/2). So |x+|^2 + |y|^2 <=
rate^2 |x|^2 + |h|^2 for any parameters, and the stack's gain is at most gamma. q comes of expm1: nothing cancels where
rho is near 1.

Sources: S. Parrott, "On a quotient norm and the Sz.-Nagy-Foias lifting theorem", J. Functional Analysis 30 (1978), for
the completion; the stack of linear recurrent units with static layers after A. Orvieto et al., "Resurrecting recurrent
neural networks for long sequences" (ICML 2023), with a prescribed gain after the L2RU of L. Massai and
G. Ferrari-Trecate (arXiv 2503.23818), whose parametrization is another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks.activations import activation_named
from robust_policies.networks.cell import Cell
from robust_policies.networks.guarantees import Contracting, Guarantee, Lipschitz, as_guarantee
from robust_policies.networks.lbdn import LayerMatrices, SandwichLayer, explicit_layers
from robust_policies.networks.linalg import full_precision, identity_like, lower_root
from robust_policies.networks.modal_scan import modal_scan

# What the fastest and the slowest state forget at first, a share of itself each step.
_FORGOTTEN = (0.5, 0.001)


class ModalMatrices(NamedTuple):
    """A linear system: poles (n / 2, 2), real and imaginary parts; B (n, p), C (p, n), D (p, p)."""

    poles: Tensor
    B: Tensor
    C: Tensor
    D: Tensor


class L2RUExplicit(NamedTuple):
    """The arrays that run: `inward` and `outward` are linear layers, `size` (1,) is sqrt(gamma) before and after."""

    inward: LayerMatrices
    linear: tuple[ModalMatrices, ...]
    layers: tuple[LayerMatrices, ...]
    outward: LayerMatrices
    size: Tensor


class _Modal(nn.Module):
    """Free parameters of a linear system of gain at most 1 from p inputs to p outputs, with n states in pairs."""

    def __init__(self, states: int, width: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        forgotten = torch.logspace(math.log10(_FORGOTTEN[0]), math.log10(_FORGOTTEN[1]), states // 2)
        self.nu = nn.Parameter(torch.log(-torch.log1p(-forgotten)))
        self.theta = nn.Parameter(math.pi * torch.rand(states // 2).pow(3))
        self.Mv = nn.Parameter(torch.randn(states, width) / math.sqrt(states))
        self.Mu = nn.Parameter(torch.randn(width, states) / math.sqrt(states))
        self.Mz = nn.Parameter(0.1 * torch.randn(width, width))

    def explicit(self) -> ModalMatrices:
        """Return the arrays that run."""
        log_rho = -self.nu.exp()
        rho = log_rho.exp()
        normal = torch.stack((rho * torch.cos(self.theta), rho * torch.sin(self.theta)), 1)
        q = (-torch.expm1(2 * log_rho)).sqrt().repeat_interleave(2)
        V, v_root = _shrunk(self.Mv)
        turned, u_root = _shrunk(self.Mu.mT)
        U, (Z, _) = turned.mT, _shrunk(self.Mz)
        # (I - U U')^(1/2) Z (I - V'V)^(1/2) with triangular roots.
        Z = torch.linalg.solve_triangular(u_root, Z, upper=False)
        Z = torch.linalg.solve_triangular(v_root, Z.mT, upper=False).mT
        # N'V: each pair of rows turned back.
        pair, (c, s) = V.unflatten(0, (-1, 2)), normal.unsqueeze(2).unbind(1)
        back = torch.stack((c * pair[:, 0] + s * pair[:, 1], c * pair[:, 1] - s * pair[:, 0]), 1).flatten(0, 1)
        return ModalMatrices(self.rate * normal, q.unsqueeze(1) * V, self.rate * U * q, Z - U @ back)


class L2RU(Cell):
    """Linear recurrent units in a stack with sandwich layers between, of gain at most gamma, without a loop over time.

    Args:
        input_size: nu.
        state_size: nx, all units together: an even number, pairs of which the units share as evenly as they can.
        output_size: ny.
        features: width p of the signals between the units; None: as many as states.
        layers: L, the number of units; None: 2, of one pair 1.
        activation: of the sandwich layers, a name in `ACTIVATIONS`.
        guarantee: Contracting() or Lipschitz(gamma).
        rate: no pole is larger, 0 < rate <= 1.
    """

    name = "l2ru"
    guarantee: Guarantee
    rate: float

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        features: int | None = None,
        layers: int | None = None,
        activation: str = "relu",
        guarantee: Guarantee | Mapping[str, Any] = Contracting(),  # noqa: B008 (frozen)
        rate: float = 1.0,
    ) -> None:
        super().__init__(input_size, state_size, output_size)
        self.features = checks.positive_int("features", self.state_size if features is None else features)
        pairs = self.state_size // 2
        self.count = checks.positive_int("layers", max(1, min(2, pairs)) if layers is None else layers)
        if self.state_size % 2 or pairs < self.count:
            raise InvalidValueError(
                f"state_size is {state_size}; expected an even number, a pair or more for each of {self.count} unit(s)."
            )
        self.sizes = [2 * (pairs // self.count + (k < pairs % self.count)) for k in range(self.count)]
        self.activation = activation_named(activation)
        self.guarantee = as_guarantee(guarantee, self.input_size, self.output_size, (Contracting, Lipschitz))
        self.rate = checks.finite_float("rate", rate, above=0.0, at_most=1.0)
        p = self.features
        self.inward = nn.ModuleList([SandwichLayer(self.input_size, p, linear=True)])
        self.units = nn.ModuleList(_Modal(states, p, self.rate) for states in self.sizes)
        self.between = nn.ModuleList(SandwichLayer(p, p) for _ in range(self.count))
        self.outward = nn.ModuleList([SandwichLayer(p, self.output_size, linear=True)])
        self.log_gamma: nn.Parameter | None = None
        if not isinstance(self.guarantee, Lipschitz) or self.guarantee.trainable:
            first = self.guarantee.gamma if isinstance(self.guarantee, Lipschitz) else 1.0
            self.log_gamma = nn.Parameter(torch.tensor([math.log(first)]))

    @property
    def gamma(self) -> float | None:
        """The certified incremental l2 gain, None unless the guarantee is Lipschitz."""
        if not isinstance(self.guarantee, Lipschitz):
            return None
        return self.guarantee.gamma if self.log_gamma is None else math.exp(float(self.log_gamma.detach()))

    def explicit(self) -> L2RUExplicit:
        """Return the arrays that run."""
        with full_precision(self._reference()):
            (inward,), (outward,) = explicit_layers(self.inward), explicit_layers(self.outward)
            if self.log_gamma is not None:
                size = (0.5 * self.log_gamma).exp()
            else:
                size = inward.b.new_full((1,), math.sqrt(self.gamma or 1.0))
            linear = tuple(unit.explicit() for unit in self.units if isinstance(unit, _Modal))
            return L2RUExplicit(inward, linear, explicit_layers(self.between), outward, size)

    def step(self, explicit: L2RUExplicit, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state) by the model's equations as they stand."""
        with full_precision(state):
            h, following = explicit.inward.apply(input * explicit.size, self.activation), []
            for unit, layer, x in zip(explicit.linear, explicit.layers, state.split(self.sizes, -1), strict=True):
                pair, (c, s) = x.unflatten(-1, (-1, 2)), unit.poles.unbind(1)
                turned = torch.stack((c * pair[..., 0] - s * pair[..., 1], s * pair[..., 0] + c * pair[..., 1]), -1)
                following.append(turned.flatten(-2) + h @ unit.B.mT)
                h = layer.apply(x @ unit.C.mT + h @ unit.D.mT, self.activation)
            return explicit.outward.apply(h, self.activation) * explicit.size, torch.cat(following, -1)

    def run(
        self, explicit: L2RUExplicit, inputs: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state): a sum by doubling for each unit, products over all time steps for the rest."""
        keep = None if starts is None else ~starts.unsqueeze(-1)
        with full_precision(inputs):
            h, final = explicit.inward.apply(inputs * explicit.size, self.activation), []
            for unit, layer, x in zip(explicit.linear, explicit.layers, state.split(self.sizes, -1), strict=True):
                poles = torch.view_as_complex(unit.poles.contiguous())
                drive = torch.view_as_complex((h @ unit.B.mT).unflatten(-1, (-1, 2)))
                first = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
                first = first if keep is None else first * keep[0]
                following = modal_scan(poles, torch.cat(((drive[0] + poles * first).unsqueeze(0), drive[1:])), keep)
                seen = torch.cat((first.unsqueeze(0), following[:-1]))
                seen = seen if keep is None else seen * keep
                final.append(torch.view_as_real(following[-1]).flatten(-2))
                h = torch.view_as_real(seen).flatten(-2) @ unit.C.mT + h @ unit.D.mT
                h = layer.apply(h, self.activation)
            return explicit.outward.apply(h, self.activation) * explicit.size, torch.cat(final, -1)

    def metric(self) -> Tensor:
        """Return the identity (nx, nx): every unit shrinks the norm of its own state."""
        return torch.eye(self.state_size, dtype=torch.float64)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "input_size": self.input_size,
            "state_size": self.state_size,
            "output_size": self.output_size,
            "features": self.features,
            "layers": self.count,
            "activation": self.activation.name,
            "guarantee": self.guarantee.config(),
            "rate": self.rate,
        }

    @torch.no_grad()
    def zero_output_(self) -> L2RU:
        """Zero the last linear layer; its gradient is not zero."""
        last = self.outward[0]
        assert isinstance(last, SandwichLayer)
        last.XY[last.XY.shape[1] :].zero_()
        last.b.zero_()
        return self


def _shrunk(M: Tensor) -> tuple[Tensor, Tensor]:
    """Return M L^-T (n, k), a contraction, and L (k, k) with L L' = I + M'M, for M (n, k): I - V'V = (L L')^-1."""
    L = lower_root(identity_like(M) + M.mT @ M)
    return torch.linalg.solve_triangular(L, M.mT, upper=False).mT, L
