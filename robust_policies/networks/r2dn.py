"""The R2DN: a linear system in feedback with a 1-Lipschitz deep network (arXiv 2504.01250).

x+ = A x + B1 w + B2 u + bx,  v = C1 x + D12 u + bv,  y = C2 x + D21 w + D22 u + by,  w = phi(v).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.errors import InvalidValueError
from robust_policies.networks import r2dn_forms as forms
from robust_policies.networks.cell import hidden_widths
from robust_policies.networks.compiled import Collapsed, run, runs, with_step
from robust_policies.networks.guarantees import Contracting, Dissipative, Guarantee
from robust_policies.networks.lbdn import LayerMatrices, explicit_layers, sandwich_layers
from robust_policies.networks.linalg import frobenius, full_precision
from robust_policies.networks.program import recorded
from robust_policies.networks.r2dn_step import FixedR2DN
from robust_policies.networks.robust_cell import RobustCell
from robust_policies.networks.rows import Sizes
from robust_policies.networks.scan import scan


class R2DNExplicit(NamedTuple):
    """The arrays that run: the linear part, the biases, and phi as explicit layers (first layer first)."""

    A: Tensor
    B1: Tensor
    B2: Tensor
    C1: Tensor
    C2: Tensor
    D12: Tensor
    D21: Tensor
    D22: Tensor
    bx: Tensor
    bv: Tensor
    by: Tensor
    layers: tuple[LayerMatrices, ...]


_Together = with_step(R2DNExplicit)


class R2DN(RobustCell):
    """Robust recurrent deep network.

    Args:
        input_size: nu.
        state_size: nx.
        output_size: ny.
        features: nv, the width of v and w.
        hidden_sizes: widths inside phi; at least one unless `linear_output` is False.
        activation: a name in `ACTIVATIONS`.
        guarantee: Contracting(), Lipschitz(gamma) or Dissipative(Q, S, R).
        rate: upper bound of the contraction rate, 0 < rate <= 1.
        init: "random"; "long_memory" for A close to rate * I; "timescales" for A diagonal with memories from one step
            to a thousand.
        linear_output: phi's last layer is linear (the published architecture) or a full sandwich layer.
        eps: absolute regularization of H; None (recommended) scales it with trace(H).
        output: "free", or "state": y = x, the state before the step, and no parameters of the output are left. Then
            output_size is state_size, and the guarantee Contracting().
    """

    name = "r2dn"
    Y: nn.Parameter
    B1: nn.Parameter
    C1: nn.Parameter
    Mv: nn.Parameter
    Mw: nn.Parameter
    Mu: nn.Parameter

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        features: int,
        hidden_sizes: Sequence[int],
        activation: str = "relu",
        guarantee: Guarantee | Mapping[str, Any] = Contracting(),  # noqa: B008 (frozen)
        rate: float = 1.0,
        init: str = "random",
        linear_output: bool = True,
        eps: float | None = None,
        output: str = "free",
    ) -> None:
        super().__init__(input_size, state_size, output_size, features, activation, guarantee, rate, init, eps, output)
        nu, nx, ny, nv = self.input_size, self.state_size, self.output_size, self.features
        self.hidden_sizes = hidden_widths(hidden_sizes)
        self.linear_output = checks.flag("linear_output", linear_output)
        if self.linear_output and not self.hidden_sizes:
            raise InvalidValueError(
                "hidden_sizes is empty; a phi with a linear last layer needs a hidden layer: (32,)."
            )
        shapes = {"X": (2 * nx, 2 * nx), "Y": (nx, nx), "B1": (nx, nv), "B2": (nx, nu), "C1": (nv, nx), "C2": (ny, nx)}
        if self.contracting_only:
            shapes |= {"D12": (nv, nu), "D21": (ny, nv), "D22": (ny, nu)}
        else:
            shapes |= {"Mv": (nv, nu), "Mw": (ny, nv), "Mu": (ny, nu)}
        self.register_direct(shapes)
        self.network = sandwich_layers([nv, *self.hidden_sizes, nv], linear_output=self.linear_output)
        if init != "random":
            self._remember()

    def linear_part(self) -> forms.LinearPart:
        """Return the matrices around phi and the implicit E, H22 they came from."""
        if self.contracting_only:
            return forms.contracting(self.direct(), self.rate, self.eps)
        return forms.dissipative(self.direct(), self.supply(), self.rate, self.eps)

    def explicit(self) -> R2DNExplicit:
        """Return the arrays that run."""
        found = recorded(self, self._with_collapsed)
        if found is None:
            return self._explicit()
        together = _Together(*found[0])
        together.collapsed = found[1]
        return together

    def _explicit(self) -> R2DNExplicit:
        with full_precision(self.X):
            linear = self.linear_part()
            return R2DNExplicit(*linear[:8], self.bx, self.bv, self.by, explicit_layers(self.network))

    def _with_collapsed(self) -> tuple[R2DNExplicit, Collapsed]:
        found = self._explicit()
        return found, self.collapsed(found)

    def collapsed(self, explicit: R2DNExplicit) -> Collapsed:
        """Return the step with everything linear between two activations collapsed."""
        e = explicit
        if (known := getattr(e, "collapsed", None)) is not None:
            return known
        first = e.layers[0].in_map()
        active = e.layers[: self.layers_active]
        ins, outs = [layer.in_map() for layer in active[1:]], [layer.out_map() for layer in active]
        out, bx, by = outs[-1], e.bx, e.by
        if len(active) < len(e.layers):
            out, constant = e.layers[-1].B @ out, e.layers[-1].b
            bx, by = bx + e.B1 @ constant, by + e.D21 @ constant
        return Collapsed(
            torch.cat((torch.cat((e.A, e.B2), 1), first @ torch.cat((e.C1, e.D12), 1))),
            torch.cat((bx, first @ e.bv + active[0].b)),
            e.B1 @ out,
            torch.cat((e.C2, e.D22), 1),
            e.D21 @ out,
            by,
            tuple(inner @ outer for inner, outer in zip(ins, outs[:-1], strict=True)),
            tuple(layer.b for layer in active[1:]),
        )

    def step(self, explicit: R2DNExplicit, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state) by the model's equations as they stand."""
        e = explicit
        with full_precision(state):
            w = state @ e.C1.mT + input @ e.D12.mT + e.bv
            for layer in e.layers:
                w = layer.apply(w, self.activation)
            output = state @ e.C2.mT + w @ e.D21.mT + input @ e.D22.mT + e.by
            return output, state @ e.A.mT + w @ e.B1.mT + input @ e.B2.mT + e.bx

    def fixed_step(self, explicit: R2DNExplicit) -> FixedR2DN:
        """Return `step` with these arrays, without what does not change from step to step; the same numbers."""
        with torch.no_grad(), full_precision(explicit.A):
            P, c, B, Q, R, d, weights, biases = self.collapsed(explicit)
            both = torch.cat((P, Q))
            AM, drive = both.split((explicit.A.shape[0], explicit.B2.shape[1]), 1)
            window = drive, torch.cat((c, d)), AM, torch.cat((B, R)), weights, biases
        return FixedR2DN(self.activation, explicit[:11], explicit.layers, window)

    def run(
        self, explicit: R2DNExplicit, inputs: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state) by the collapsed scan."""
        # A closed loop runs as its inner cell, whose sizes are others.
        nx = explicit.A.shape[0]
        with full_precision(inputs):
            step = self.collapsed(explicit)
            if runs(self.activation.name, inputs, state, step):
                return run(self.activation.name, starts, inputs, state, step)
            P, c, B, Q, R, d, weights, biases = step
            drive = nn.functional.linear(inputs, P[:, nx:], c)
            states, last, final = scan(self.activation, starts, drive, state, P[:, :nx], B, weights, biases)
            outputs = nn.functional.linear(inputs, Q[:, nx:], d) + states @ Q[:, :nx].mT + last @ R.mT
            return outputs, final

    def step_sizes(self) -> Sizes:
        """Return the widths of the collapsed step."""
        widths = self.hidden_sizes if self.linear_output else (*self.hidden_sizes, self.features)
        return Sizes(self.input_size, self.state_size, self.output_size, widths)

    @property
    def layers_active(self) -> int:
        """Number of phi's layers that have an activation."""
        return len(self.network) - int(self.linear_output)

    def metric(self) -> Tensor:
        """Return P = E' H22^-1 E (nx, nx), float64 on the CPU; the guarantee's LMI holds with it and tau = 1."""
        with torch.no_grad():
            # The layers have no part in it, and are most of a copy.
            linear = copy.deepcopy(self, {id(self.network): nn.Identity()}).to(device="cpu", dtype=torch.float64)
            return linear.linear_part().metric()

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().options(),
            "hidden_sizes": list(self.hidden_sizes),
            "linear_output": self.linear_output,
        }

    @torch.no_grad()
    def zero_output_(self) -> R2DN:
        """Zero C2, D21, D22 and by; the gradient with respect to them is not zero.

        Raises:
            InvalidValueError: the supply rate does not allow a zero output (R must be positive definite if S is not 0),
                or the output is the state.
        """
        self._refuse_zero_output()
        self.C2.zero_()
        self.by.zero_()
        if self.contracting_only:
            self.D21.zero_()
            self.D22.zero_()
            return self
        self.Mw.zero_()
        self.Mu.zero_()
        if isinstance(self.guarantee, Dissipative) and bool(self.guarantee.S.any()):
            supply = self.supply().to(torch.float64)
            U = supply.zero_feedthrough()
            root = torch.linalg.cholesky(torch.eye(U.shape[1], dtype=U.dtype, device=U.device) - U.mT @ U)
            self.Mv.zero_()
            self.Mu.copy_(torch.linalg.solve_triangular(root, U.mT, upper=False).mT)
        return self

    @torch.no_grad()
    def _remember(self) -> None:
        """Set X, p, Y so that A is `first_poles`; what else enters H is shrunk to fit."""
        nx, a = self.state_size, self.first_poles()
        if self.init == "timescales":
            self.drive_alike(a, across=("B1", "B2"), along=("C1",) if self.contracting_only else ("C1", "C2"))
        eye = torch.eye(nx, dtype=torch.float64)
        off = torch.diag(a) * self.rate**2
        base = torch.cat((torch.cat((eye * self.rate**2, off), 1), torch.cat((off, eye * self.rate**4), 1)))
        copy = self.double_copy()
        assert isinstance(copy, R2DN)
        direct = copy.direct()
        if self.contracting_only:
            cost = forms.block_diagonal(direct["C1"].mT @ direct["C1"], direct["B1"] @ direct["B1"].mT)
        else:
            cost = forms.unit_gain_gram(direct, forms.feedthrough(direct["Mv"], direct["Mw"], direct["Mu"]))
        if self.init == "timescales":  # shares of base, so that the slowest state does not shrink the others' part
            ratio = 1.0 / _largest_share(cost, base).clamp(min=1e-12)
        else:
            ratio = torch.linalg.eigvalsh(base)[0] / torch.linalg.eigvalsh(cost)[-1].clamp(min=1e-12)
        shrink = float((0.5 * ratio).sqrt().clamp(max=1.0))
        inputs = ("B1",) if self.contracting_only else ("B1", "B2", "C2")
        for key in ("C1", *inputs):
            getattr(self, key).mul_(shrink)
        root = torch.linalg.cholesky(base - shrink**2 * cost).mT
        self.X.copy_(root)
        self.p.copy_(frobenius(root))
        self.Y.zero_()


def _largest_share(part: Tensor, whole: Tensor) -> Tensor:
    """Return the largest x'part x / x'whole x."""
    root = torch.linalg.cholesky(whole)
    half = torch.linalg.solve_triangular(root, part, upper=False)
    return torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))[-1]
