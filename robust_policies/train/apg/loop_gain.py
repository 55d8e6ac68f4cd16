"""The gain of the closed loop from what a policy reads to the root of the cost, as a differentiable number.

With a multiplier lambda >= 0 for each neuron, N = 2 sum lambda_i w_i (v_i - w_i) >= 0, the loop's response G to (w, d)
bounds its gain where for every z of the unit circle

    M = Gz* Gz + N(Gv, lambda),   M_ww < 0,   g^2 = max over z of lambda_max(M_dd - M_dw M_ww^-1 M_wd).

For a lambda of a proof this is that proof's gain but for its margins (the Kalman-Yakubovich-Popov lemma), from below
as only samples of the circle are looked at. lambda is held fixed when the policy is moved, and taken from a new proof
every few updates: where it is optimal, the gradient is that of the least gain (the envelope theorem).

Sources: A. Rantzer, "On the Kalman-Yakubovich-Popov lemma", Systems & Control Letters 28 (1996); A. Megretski and
A. Rantzer, "System analysis via integral quadratic constraints", IEEE Trans. Automatic Control 42 (1997).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_policies.certificates.lmi import Matrices
from robust_policies.train.imitation.margin import unit_circle

_TINY = 1e-16


class LoopGain:
    """The gain of loops that differ in the weights of an R2DN only.

    Args:
        around: all of the loop but the cell, of `policies.return_loop.around_cell`.
        sizes: (nu, ny) of the cell.
        device: where.
    """

    def __init__(self, around: Matrices, sizes: tuple[int, int], device: torch.device) -> None:
        nu, ny = sizes
        names = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")
        A, B1, B2, C1, D12, C2, D21, D22 = (torch.as_tensor(getattr(around, n), device=device) for n in names)
        # A system that reads more than it gives, or less, has its place padded with zeros.
        self.A, self.Bu, self.Bd, self.Cz, self.Dzu, self.Dzd = A, B1[:, :ny], B2, C2, D21[:, :ny], D22
        self.Cy, self.Dyd = C1[:nu], D12[:nu]
        self.circle = unit_circle(device)

    def loop(self, explicit: Any) -> tuple[Tensor, ...]:
        """Return A, B1, B2, C1, D11, D12, C2, D21, D22 of the loop around single neurons, states (outside, cell)."""
        A, B1, B2, C1, D12, C2, D21, D22 = (
            getattr(explicit, name).double() for name in ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")
        )
        B1, C1, D11, D12, D21 = _written_out(B1, C1, D12, D21, explicit.layers)
        Bu, Cy, Dyd, Dzu = self.Bu, self.Cy, self.Dyd, self.Dzu
        return (
            torch.cat((torch.cat((self.A + Bu @ D22 @ Cy, Bu @ C2), 1), torch.cat((B2 @ Cy, A), 1))),
            torch.cat((Bu @ D21, B1)),
            torch.cat((self.Bd + Bu @ D22 @ Dyd, B2 @ Dyd)),
            torch.cat((D12 @ Cy, C1), 1),
            D11,
            D12 @ Dyd,
            torch.cat((self.Cz + Dzu @ D22 @ Cy, Dzu @ C2), 1),
            Dzu @ D21,
            self.Dzd + Dzu @ D22 @ Dyd,
        )

    def __call__(self, explicit: Any, theta: Tensor) -> Tensor | None:
        """Return the gain () of the cell with these explicit arrays, None where multipliers theta (nv,) give none."""
        A, B1, B2, C1, D11, D12, C2, D21, D22 = self.loop(explicit)
        with torch.no_grad():
            if not bool(torch.linalg.eigvals(A).abs().max() < 1.0):
                return None
        nw, kind = B1.shape[1], self.circle.dtype
        shifted = self.circle[:, None, None] * torch.eye(len(A), device=A.device) - A
        into = torch.cat((B1, B2), 1).to(kind).expand(len(self.circle), -1, -1)
        states = torch.linalg.solve(shifted, into)
        Gv = C1.to(kind) @ states + torch.cat((D11, D12), 1)
        Gz = C2.to(kind) @ states + torch.cat((D21, D22), 1)
        # 2 theta w (v - w) = w* theta (v - w) + its conjugate; w are the first inputs.
        rows = theta.to(kind)[:, None] * (Gv - torch.eye(nw, Gv.shape[2], dtype=kind, device=A.device))
        M = Gz.mH @ Gz
        M = torch.cat((M[:, :nw] + rows, M[:, nw:]), 1)
        M = torch.cat((M[:, :, :nw] + rows.mH, M[:, :, nw:]), 2)
        ww, wd, dd = M[:, :nw, :nw], M[:, :nw, nw:], M[:, nw:, nw:]
        if nw:
            factor, failed = torch.linalg.cholesky_ex(-0.5 * (ww + ww.mH))
            if bool(failed.any()):
                return None
            half = torch.linalg.solve_triangular(factor, wd, upper=False)
            dd = dd + half.mH @ half
        return torch.linalg.eigvalsh(0.5 * (dd + dd.mH))[:, -1].max().clamp_min(_TINY).sqrt()


def _written_out(
    B1: Tensor, C1: Tensor, D12: Tensor, D21: Tensor, layers: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return B1, C1, D11, D12, D21 with phi written out, as `certificates.neurons.written_out` does with its errors."""
    inward: list[Tensor] = []
    pending: Tensor | None = None
    for layer in layers:
        inner = layer.in_map().double()
        inner = inner if pending is None else inner @ pending
        pending = inner if layer.psi is None else layer.out_map().double()
        if layer.psi is not None:
            inward.append(inner)
    assert pending is not None
    widths = [len(inner) for inner in inward]
    first, last, count = widths[0], widths[-1], sum(widths)
    column, rows = 0, [B1.new_zeros(first, count)]
    for inner in inward[1:]:
        height, width = inner.shape
        rows.append(
            torch.cat((inner.new_zeros(height, column), inner, inner.new_zeros(height, count - column - width)), 1)
        )
        column += width
    below, before = B1.new_zeros(count - first, 1), B1.new_zeros(1, count - last)
    return (
        torch.cat((before.expand(len(B1), -1), B1 @ pending), 1),
        torch.cat((inward[0] @ C1, below.expand(-1, C1.shape[1]))),
        torch.cat(rows),
        torch.cat((inward[0] @ D12, below.expand(-1, D12.shape[1]))),
        torch.cat((before.expand(len(D21), -1), D21 @ pending), 1),
    )
