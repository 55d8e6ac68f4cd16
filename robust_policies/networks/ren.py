"""The REN: a linear system in feedback with one implicit layer of neurons (Revay, Wang & Manchester, IEEE TAC 2023).

x+ = A x + B1 w + B2 u + bx,  v = C1 x + D11 w + D12 u + bv,  y = C2 x + D21 w + D22 u + by,  w = act(v).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies.errors import InvalidValueError
from robust_policies.networks import ren_forms as forms
from robust_policies.networks import triton_scan
from robust_policies.networks.compiled import Collapsed, run, runs, with_step
from robust_policies.networks.equilibrium import solve_equilibrium
from robust_policies.networks.guarantees import Contracting, Dissipative, Guarantee
from robust_policies.networks.linalg import frobenius, full_precision
from robust_policies.networks.neuron_cell import RENExplicit, collapsed
from robust_policies.networks.program import recorded
from robust_policies.networks.robust_cell import RobustCell
from robust_policies.networks.rows import Sizes
from robust_policies.networks.scan import scan

_Together = with_step(RENExplicit)


class REN(RobustCell):
    """Recurrent equilibrium network.

    Args:
        input_size: nu.
        state_size: nx.
        output_size: ny.
        features: nv, the number of neurons.
        activation: a name in `ACTIVATIONS`.
        guarantee: Contracting(), Lipschitz(gamma) or Dissipative(Q, S, R).
        rate: upper bound of the contraction rate, 0 < rate <= 1.
        init: "random"; "long_memory" for A close to rate * I; "timescales" for A diagonal with memories from one step
            to a thousand.
        eps: absolute regularization of H; None (recommended) scales it with trace(H).
        output: "free", or "state": y = x, the state before the step, and no parameters of the output are left. Then
            output_size is state_size, and the guarantee Contracting().
    """

    name = "ren"
    Y1: nn.Parameter
    X3: nn.Parameter
    Y3: nn.Parameter
    Z3: nn.Parameter

    def __init__(
        self,
        input_size: int,
        state_size: int,
        output_size: int,
        features: int,
        activation: str = "relu",
        guarantee: Guarantee | Mapping[str, Any] = Contracting(),  # noqa: B008 (frozen)
        rate: float = 1.0,
        init: str = "random",
        eps: float | None = None,
        output: str = "free",
    ) -> None:
        super().__init__(input_size, state_size, output_size, features, activation, guarantee, rate, init, eps, output)
        nu, nx, ny, nv = self.input_size, self.state_size, self.output_size, self.features
        size = 2 * nx + nv
        shapes = {"X": (size, size), "Y1": (nx, nx), "B2": (nx, nu), "C2": (ny, nx), "D12": (nv, nu), "D21": (ny, nv)}
        if self.contracting_only:
            shapes |= {"D22": (ny, nu)}
        else:
            small = min(nu, ny)
            shapes |= {"X3": (small, small), "Y3": (small, small), "Z3": (abs(nu - ny), small)}
        self.register_direct(shapes)
        if init != "random":
            self._remember()

    def implicit(self) -> forms.ImplicitREN:
        """Return the matrices, the implicit E and H33 they came from, and the multiplier of the activation."""
        if self.contracting_only:
            return forms.contracting(self.direct(), self.rate, self.eps)
        return forms.dissipative(self.direct(), self.supply(self.eps or 0.0), self.rate, self.eps)

    def explicit(self) -> RENExplicit:
        """Return the arrays that run."""
        found = recorded(self, self._with_collapsed)
        if found is None:
            return self._explicit()
        together = _Together(*found[0])
        together.collapsed = found[1]
        return together

    def _explicit(self) -> RENExplicit:
        with full_precision(self.X):
            return RENExplicit(*self.implicit()[:9], self.bx, self.bv, self.by)

    def _with_collapsed(self) -> tuple[RENExplicit, Collapsed]:
        found = self._explicit()
        return found, collapsed(found)

    def collapsed(self, explicit: RENExplicit) -> Collapsed:
        """Return the step as `Collapsed` has it, of which a REN's neurons are one by one."""
        known = getattr(explicit, "collapsed", None)
        return collapsed(explicit) if known is None else known

    def step(self, explicit: RENExplicit, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state) by the model's equations as they stand."""
        e = explicit
        with full_precision(state):
            w = solve_equilibrium(state @ e.C1.mT + input @ e.D12.mT + e.bv, e.D11, self.activation)
            output = state @ e.C2.mT + w @ e.D21.mT + input @ e.D22.mT + e.by
            return output, state @ e.A.mT + w @ e.B1.mT + input @ e.B2.mT + e.bx

    def run(self, explicit: RENExplicit, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state); what does not depend on the state is one product over all time steps."""
        e = explicit
        with full_precision(inputs):
            step = self.collapsed(explicit)
            if runs(self.activation.name, inputs, state, step):
                return run(self.activation.name, starts, inputs, state, step)
            drive_x = nn.functional.linear(inputs, e.B2, e.bx)
            drive_v = nn.functional.linear(inputs, e.D12, e.bv)
            if triton_scan.applies(self.activation.name, drive_v, (e.A.shape[0], len(e.D11)), serial=True):
                drive, AM = torch.cat((drive_x, drive_v), -1), torch.cat((e.A, e.C1))
                before, w, state = scan(self.activation, starts, drive, state, AM, e.B1, (e.D11,), ())
                return nn.functional.linear(inputs, e.D22, e.by) + before @ e.C2.mT + w @ e.D21.mT, state
            A_T, B1_T, C1_T = e.A.mT, e.B1.mT, e.C1.mT
            keep = None if starts is None else (~starts).to(inputs.dtype).unsqueeze(-1)
            states, neurons = [], []
            for t, (x_part, v_part) in enumerate(zip(drive_x.unbind(), drive_v.unbind(), strict=True)):
                state = state if keep is None else state * keep[t]
                states.append(state)
                w = solve_equilibrium(torch.addmm(v_part, state, C1_T), e.D11, self.activation)
                neurons.append(w)
                state = torch.addmm(torch.addmm(x_part, state, A_T), w, B1_T)
            outputs = nn.functional.linear(inputs, e.D22, e.by)
            outputs = outputs + torch.stack(states) @ e.C2.mT + torch.stack(neurons) @ e.D21.mT
            return outputs, state

    def step_sizes(self) -> Sizes:
        """Return the widths of the collapsed step."""
        return Sizes(self.input_size, self.state_size, self.output_size, (self.features,), serial=True)

    def metric(self) -> Tensor:
        """Return P = E' H33^-1 E (nx, nx), float64 on the CPU; the guarantee's LMI holds with it and `multiplier()`."""
        return self._implicit64().metric()

    def multiplier(self) -> Tensor:
        """Return the diagonal (nv,) of Lam, float64 on the CPU: (v - w)'Lam w >= 0 for slopes in [0, 1]."""
        return self._implicit64().multiplier

    @torch.no_grad()
    def zero_output_(self) -> REN:
        """Zero C2, D21, by and the feedthrough (to rounding); the gradient with respect to them is not zero.

        Raises:
            InvalidValueError: a supply rate with S other than zero, whose feedthrough is not centred at zero, or the
                output is the state.
        """
        self._refuse_zero_output()
        if isinstance(self.guarantee, Dissipative) and bool(self.guarantee.S.any()):
            raise InvalidValueError("zero_output_ of a REN needs S = 0 in Dissipative(Q, S, R); use R2DN, or skip it.")
        self.C2.zero_()
        self.D21.zero_()
        self.by.zero_()
        if self.contracting_only:
            self.D22.zero_()
            return self
        # M = I makes N = 0, and the regularization of M is relative to X3'X3.
        eye = torch.eye(self.X3.shape[0], dtype=torch.float64)
        amount = float(forms.regularized(eye, self.eps)[0, 0])
        self.X3.copy_(eye / math.sqrt(amount) if self.eps is None else eye * math.sqrt(2.0 - amount))
        self.Y3.zero_()
        self.Z3.zero_()
        return self

    def _implicit64(self) -> forms.ImplicitREN:
        with torch.no_grad():
            copy = self.double_copy()
            assert isinstance(copy, REN)
            return copy.implicit()

    @torch.no_grad()
    def _remember(self) -> None:
        """Set X so that H11 = rate^2 I, H33 = rate^4 I, H31 = rate^2 diag(a), hence A near a, the `first_poles`.

        What else enters H under a gain bound is made small: it would push A towards zero.
        """
        nx, nv = self.state_size, self.features
        a = self.first_poles().to(self.X.dtype)
        if self.init == "timescales":
            self.drive_alike(a, across=("B2",))
        X = 0.01 * self.X
        X[:nx, :nx] += torch.eye(nx) * self.rate
        X[:nx, nx + nv :] += torch.diag(a) * self.rate
        X[nx : nx + nv, nx : nx + nv] += torch.eye(nv)
        X[nx + nv :, nx + nv :] += torch.diag((self.rate**2 - a.square()).sqrt()) * self.rate
        self.X.copy_(X)
        self.p.copy_(frobenius(X))
        self.Y1.zero_()
        if not self.contracting_only:
            for matrix in (self.B2, self.C2, self.D12, self.D21):
                matrix.mul_(0.05)
