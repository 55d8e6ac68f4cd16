"""Direct parameters -> explicit matrices of a REN, one function a guarantee.

The model is x+ = A x + B1 w + B2 u + bx, v = C1 x + D11 w + D12 u + bv, y = C2 x + D21 w + D22 u + by, w = act(v) entry
by entry, D11 strictly lower triangular. A Gram matrix
H (2 nx + nv, blocks nx, nv, nx) gives them all: with P_imp = H33, F = H31, Lam = diag(H22) / 2,
    E = (H11 + P_imp / rate^2 + Y - Y') / 2,   A = E^-1 F,   B1 = E^-1 H32,   B2 <- E^-1 B2,
    C1 = -Lam^-1 H21,   D11 = -Lam^-1 tril(H22, -1),   D12 <- Lam^-1 D12,   metric P = E' P_imp^-1 E.

Sizes: A (nx, nx), B1 (nx, nv), B2 (nx, nu), C1 (nv, nx), C2 (ny, nx), D11 (nv, nv), D12 (nv, nu), D21 (ny, nv),
D22 (ny, nu); the free X (2 nx + nv, 2 nx + nv), p (1,), Y1 (nx, nx) and, with d = min(nu, ny), X3 and Y3 (d, d) and
Z3 (|ny - nu|, d). An ill-conditioned H or E raises torch's LinAlgError.

Source: Revay, Wang & Manchester, "Recurrent Equilibrium Networks", IEEE TAC 2023 (arXiv 2104.05942): H of the
contracting form eq. 19, of the dissipative form eqs. 28-29, its D22 eqs. 31-33 (numbers as the authors' own code
RobustNeuralNetworks.jl and robustnn cite them).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robust_policies.networks.linalg import identity_like, lower_root, regularized, scaled_gram, solved
from robust_policies.networks.r2dn_forms import implicit_e
from robust_policies.networks.supply import Supply


class ImplicitREN(NamedTuple):
    """The matrices of a REN, the implicit (E, H33) behind the metric, and the multiplier of the activation."""

    A: Tensor
    B1: Tensor
    B2: Tensor
    C1: Tensor
    C2: Tensor
    D11: Tensor
    D12: Tensor
    D21: Tensor
    D22: Tensor
    E: Tensor
    H33: Tensor
    multiplier: Tensor

    def metric(self) -> Tensor:
        """Return P = E' H33^-1 E."""
        return self.E.mT @ torch.linalg.solve(self.H33, self.E)


def contracting(p: dict[str, Tensor], rate: float, eps: float | None) -> ImplicitREN:
    """Return the contracting REN: H = p^2 X'X/|X|^2 + eps I (eq. 19 of the TAC paper).

    Args:
        p: the free parameters by name, shapes as in the module's docstring.
        rate: of contraction, in (0, 1].
        eps: added to H's diagonal, None: relative to its trace.
    """
    return _from_gram(regularized(scaled_gram(p["X"], p["p"]), eps), p, p["D22"], rate)


def dissipative(p: dict[str, Tensor], supply: Supply, rate: float, eps: float | None) -> ImplicitREN:
    """Return the REN that obeys the supply rate, Lipschitz bounds included.

    D22 = -Q^-1 S' + LQ^-1 N LR with |N| < 1, and with mQ = [C2, D21, 0], T = D22'Q + S, mR = [T C2, T D21 - D12', B2'],
    R1 = LR'(I - N'N) LR the Gram matrix pays for inputs and outputs:
        H = p^2 X'X/|X|^2 + eps I + mR' R1^-1 mR - mQ' Q mQ.

    Args:
        p: the free parameters by name, shapes as in the module's docstring.
        supply: the supply rate, Q (ny, ny), S (nu, ny), R (nu, nu).
        rate: of contraction, in (0, 1].
        eps: added to the Gram matrices' diagonals, None: relative to their traces.

    Source: the TAC paper, D22 by eqs. 31-33, H by eqs. 28-29.
    """
    LQ, LR = -(supply.LQ_inverse.mT @ supply.Q), supply.LR
    C2, D21, D12, B2 = p["C2"], p["D21"], p["D12"], p["B2"]
    N, M = _contraction(p["X3"], p["Y3"], p["Z3"], C2.shape[0], B2.shape[1], eps)
    D22 = supply.LQ_inverse @ N @ LR - supply.shift
    # T = D22'Q + S: the shift cancels against S.
    T = -(LR.mT @ N.mT @ LQ)
    mR = torch.cat((T @ C2, T @ D21 - D12.mT, B2.mT), dim=1)
    mQ = LQ @ torch.cat((C2, D21, C2.new_zeros(C2.shape[0], B2.shape[0])), dim=1)
    K = torch.linalg.solve_triangular(LR.mT, mR, upper=False)
    H = scaled_gram(p["X"], p["p"]) + mQ.mT @ mQ + _inverse_defect_gram(K, M, p["X3"], p["Z3"], eps)
    return _from_gram(regularized(H, eps), p, D22, rate)


def _contraction(X3: Tensor, Y3: Tensor, Z3: Tensor, ny: int, nu: int, eps: float | None) -> tuple[Tensor, Tensor]:
    """Return N (ny, nu), |N| < 1, and M = X3'X3 + eps I + Y3 - Y3' + Z3'Z3.

    N = [(I - M)(I + M)^-1; -2 Z3 (I + M)^-1] for ny >= nu, else [(I + M)^-1 (I - M), -2 (I + M)^-1 Z3']: eqs. 31-33 of
    the TAC paper.
    """
    M = regularized(X3.mT @ X3, eps) + Y3 - Y3.mT + Z3.mT @ Z3
    eye = identity_like(M)
    if ny >= nu:
        return solved(eye + M, torch.cat((eye - M, -2.0 * Z3)), left=False), M
    return solved(eye + M, torch.cat((eye - M, -2.0 * Z3.mT), dim=1)), M


def _inverse_defect_gram(K: Tensor, M: Tensor, X3: Tensor, Z3: Tensor, eps: float | None) -> Tensor:
    """Return K'(I - N'N)^-1 K without forming I - N'N, which loses every digit as |N| -> 1.

    For ny >= nu, I - N'N = 4 (I + M)^-T G (I + M)^-1 with G = X3'X3 + eps I = L L', so the result is
    |L^-1 (I + M)'K|^2 / 4. Else it is K'K + |L^-1 [I - M, -2 Z3'] K|^2 / 4, from I - N N' = 4 (I + M)^-1 G (I + M)^-T.
    """
    L = lower_root(regularized(X3.mT @ X3, eps))
    eye = identity_like(M)
    if K.shape[0] == M.shape[0]:
        half = torch.linalg.solve_triangular(L, (eye + M).mT @ K, upper=False)
        return 0.25 * (half.mT @ half)
    half = torch.linalg.solve_triangular(L, torch.cat((eye - M, -2.0 * Z3.mT), dim=1) @ K, upper=False)
    return K.mT @ K + 0.25 * (half.mT @ half)


def _from_gram(H: Tensor, p: dict[str, Tensor], D22: Tensor, rate: float) -> ImplicitREN:
    nx, nv = p["Y1"].shape[0], p["D12"].shape[0]
    H33 = H[nx + nv :, nx + nv :]
    E = implicit_e(H[:nx, :nx], H33, p["Y1"], rate)
    right = torch.cat((H[nx + nv :, : nx + nv], p["B2"]), dim=1)
    A, B1, B2 = solved(E, right).split((nx, nv, p["B2"].shape[1]), dim=1)
    H22 = H[nx : nx + nv, nx : nx + nv]
    multiplier = 0.5 * H22.diagonal()
    left = torch.cat((-H[nx : nx + nv, :nx], -torch.tril(H22, -1), p["D12"]), dim=1) / multiplier.unsqueeze(1)
    C1, D11, D12 = left.split((nx, nv, p["D12"].shape[1]), dim=1)
    return ImplicitREN(A, B1, B2, C1, p["C2"], D11, D12, p["D21"], D22, E, H33, multiplier)
