"""Direct parameters -> explicit matrices of an R2DN, one function a guarantee.

The model is x+ = A x + B1 w + B2 u + bx, v = C1 x + D12 u + bv, y = C2 x + D21 w + D22 u + by, w = phi(v) with phi
1-Lipschitz. With V = x'P x of the increments, the gain-bounded forms obey, scaled to unit gain,
    M(P) = blk(rate^2 P, I) - [A Bb; Cb Db]' blk(P, I) [A Bb; Cb Db] >= 0,
    Bb = [B1, B2b], Cb = [C1; C2b], Db = [[0, V], [W, Z]].

Sizes: A (nx, nx), B1 (nx, nv), B2 (nx, nu), C1 (nv, nx), C2 (ny, nx), D12 (nv, nu), D21 (ny, nv), D22 (ny, nu); the
free X (2 nx, 2 nx), p (1,) and Y (nx, nx). An ill-conditioned H or E raises torch's LinAlgError.

Source: Barbara, Wang & Manchester, "R2DN" (arXiv 2504.01250), section IV for the model, section V for the contracting
(eqs. 20-21) and the Lipschitz form (section V-C, eqs. 24-26); the numbers are as another public implementation of it,
tsfast, cites them. There D22 = 0 and V, W are bounded each alone; the feedthrough here is complete, and its derivation
is this package's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robust_policies.networks.linalg import block_diagonal, identity_like, lower_root, regularized, scaled_gram, solved
from robust_policies.networks.supply import Supply


class LinearPart(NamedTuple):
    """The eight matrices of an R2DN and the implicit (E, H22) with the metric P = E' H22^-1 E."""

    A: Tensor
    B1: Tensor
    B2: Tensor
    C1: Tensor
    C2: Tensor
    D12: Tensor
    D21: Tensor
    D22: Tensor
    E: Tensor
    H22: Tensor

    def metric(self) -> Tensor:
        """Return P = E' H22^-1 E."""
        return self.E.mT @ torch.linalg.solve(self.H22, self.E)


def implicit_e(H11: Tensor, H22: Tensor, Y: Tensor, rate: float) -> Tensor:
    """Return E = (H11 + H22 / rate^2 + Y - Y') / 2, all (nx, nx); as a REN's (IEEE TAC 2023) and an R2DN's."""
    return 0.5 * (H11 + H22 / rate**2 + Y - Y.mT)


def contracting(p: dict[str, Tensor], rate: float, eps: float | None) -> LinearPart:
    """Return the contracting R2DN: H = p^2 X'X/|X|^2 + blk(C1'C1, B1 B1') + eps I, A = E^-1 H21, B1 <- E^-1 B1.

    Args:
        p: the free parameters by name, shapes as in the module's docstring.
        rate: of contraction, in (0, 1].
        eps: added to H's diagonal, None: relative to its trace.

    Source: arXiv 2504.01250, eqs. 20-21.
    """
    nx = p["Y"].shape[0]
    H = scaled_gram(p["X"], p["p"]) + block_diagonal(p["C1"].mT @ p["C1"], p["B1"] @ p["B1"].mT)
    H = regularized(H, eps)
    E = implicit_e(H[:nx, :nx], H[nx:, nx:], p["Y"], rate)
    A, B1 = solved(E, torch.cat((H[nx:, :nx], p["B1"]), dim=1)).split((nx, p["B1"].shape[1]), dim=1)
    return LinearPart(A, B1, p["B2"], p["C1"], p["C2"], p["D12"], p["D21"], p["D22"], E, H[nx:, nx:])


class Feedthrough(NamedTuple):
    """A strict contraction Db = [[0, V], [W, Z]] and the lower Cholesky factors that generate it."""

    V: Tensor
    W: Tensor
    Z: Tensor
    Lu: Tensor
    Lv: Tensor
    U: Tensor


def feedthrough(Mv: Tensor, Mw: Tensor, Mu: Tensor) -> Feedthrough:
    """Return every Db with |Db| < 1 and D11 = 0 (Parrott's theorem), bijectively from free matrices.

    Lv = chol(I + Mv'Mv), V = Mv Lv^-T;  Lw = chol(I + Mw Mw'), W = Lw^-1 Mw;  Lu = chol(I + Mu'Mu), U = Mu Lu^-T;
    Z = Lw^-1 U Lv^-T.

    Mv is (nv, nu), Mw (ny, nv), Mu (ny, nu); V, W, Z have their shapes, and Db is (nv + ny, nv + nu).
    Source: Parrott's theorem; the parametrization is this package's own.
    """
    eye_u, eye_y = identity_like(Mv), identity_like(Mw, Mw.shape[0])
    Lv = lower_root(eye_u + Mv.mT @ Mv)
    Lw = lower_root(eye_y + Mw @ Mw.mT)
    Lu = lower_root(eye_u + Mu.mT @ Mu)
    V = _right_solve_transposed(Mv, Lv)
    U = _right_solve_transposed(Mu, Lu)
    WU = torch.linalg.solve_triangular(Lw, torch.cat((Mw, U), dim=1), upper=False)
    W, LwU = WU.split((Mw.shape[1], U.shape[1]), dim=1)
    return Feedthrough(V, W, _right_solve_transposed(LwU, Lv), Lu, Lv, U)


def unit_gain_gram(p: dict[str, Tensor], D: Feedthrough) -> Tensor:
    """Return the part of H that pays for inputs and outputs: N R^-1 N' + blk(Cb'Cb, 0), R = I - Db'Db, without R^-1.

    With N = [-Cb'Db; Bc] = [N1, N2] and K1 = N1', K2 = Mw N1', K3 = Lu (Lv N2' + U' K2) the identity
    K1'K1 + K2'K2 + K3'K3 = N R^-1 N' is exact, so nothing is lost as |Db| -> 1. The result is (2 nx, 2 nx); `p` holds
    the free parameters by name. What it pays for is that of eqs. 24-26 of arXiv 2504.01250 with D22 = 0 there.
    """
    C1, C2, B1, B2 = p["C1"], p["C2"], p["B1"], p["B2"]
    N1 = torch.cat((-C2.mT @ D.W, B1))
    N2 = torch.cat((-(C1.mT @ D.V + C2.mT @ D.Z), B2))
    K2 = p["Mw"] @ N1.mT
    K3 = D.Lu @ (D.Lv @ N2.mT + D.U.mT @ K2)
    K = torch.cat((N1.mT, K2, K3))
    nx = B1.shape[0]
    return K.mT @ K + block_diagonal(C1.mT @ C1 + C2.mT @ C2, B1.new_zeros(nx, nx))


def dissipative(p: dict[str, Tensor], supply: Supply, rate: float, eps: float | None) -> LinearPart:
    """Return the R2DN that obeys the supply rate, Lipschitz bounds included: H, E, one solve with E, then unscale.

    Completing M(P) > 0 by Schur complement gives
        [[E + E' - H22/rate^2 - Cb'Cb, -Cb'Db, H21'], [., R, Bc'], [., ., H22]] > 0,
    met by H = p^2 X'X/|X|^2 + eps I + `unit_gain_gram`; every strictly feasible model is reached.

    Args:
        p: the free parameters by name, shapes as in the module's docstring and `feedthrough`'s.
        supply: the supply rate, Q (ny, ny), S (nu, ny), R (nu, nu).
        rate: of contraction, in (0, 1].
        eps: added to H's diagonal, None: relative to its trace.

    Source: arXiv 2504.01250, section V-C (eqs. 24-26), there with D22 = 0.
    """
    nx, nv = p["B1"].shape
    D = feedthrough(p["Mv"], p["Mw"], p["Mu"])
    H = regularized(scaled_gram(p["X"], p["p"]) + unit_gain_gram(p, D), eps)
    H22 = H[nx:, nx:]
    E = implicit_e(H[:nx, :nx], H22, p["Y"], rate)
    found = solved(E, torch.cat((H[nx:, :nx], p["B1"], p["B2"]), dim=1))
    A, B1, B2 = found.split((nx, nv, p["B2"].shape[1]), dim=1)
    LQ_inverse, LR, shift = supply.LQ_inverse, supply.LR, supply.shift
    C2, D21, D22 = LQ_inverse @ p["C2"], LQ_inverse @ D.W, LQ_inverse @ D.Z @ LR - shift
    return LinearPart(A, B1, B2 @ LR, p["C1"], C2, D.V @ LR, D21, D22, E, H22)


def _right_solve_transposed(matrix: Tensor, L: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(L, matrix.mT, upper=False).mT
