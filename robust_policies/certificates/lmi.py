"""The linear matrix inequality of a recurrent cell and its proof in floating point, on plain float64 arrays.

The cell is x+ = A x + B1 w + B2 u, v = C1 x + D11 w + D12 u, y = C2 x + D21 w + D22 u, w = phi(v). For increments and
V = x'P x the dissipation inequality

    V+ - rate^2 V  <=  [y; u]' supply [y; u]  -  [v; w]' multiplier [v; w]

follows, with z = (x, w, u), from M(P) = F' K F >= 0, where F stacks the maps from z to the signals
(x, x+, v, w, y, u) and K = blk(rate^2 P, -P, -multiplier, supply). The multiplier's form is nonnegative for every
admissible phi: tau (ell^2 |v|^2 - |w|^2) for a phi with Lipschitz bound ell, 2 w'Lam (v - w) for activations with
slopes in [0, 1] neuron by neuron.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import scipy.linalg

from robust_policies.errors import NonFiniteError, ShapeError

Array = np.ndarray
UNIT = 2.0**-53


@dataclass(frozen=True)
class Matrices:
    """The explicit matrices of a cell, float64; D11 is strictly lower triangular or zero."""

    A: Array
    B1: Array
    B2: Array
    C1: Array
    D12: Array
    C2: Array
    D21: Array
    D22: Array
    D11: Array

    def __post_init__(self) -> None:
        nx, nv, nu, ny = self.A.shape[0], self.C1.shape[0], self.B2.shape[1], self.C2.shape[0]
        expected = {
            "A": (nx, nx), "B1": (nx, nv), "B2": (nx, nu), "C1": (nv, nx), "D11": (nv, nv), "D12": (nv, nu),
            "C2": (ny, nx), "D21": (ny, nv), "D22": (ny, nu),
        }  # fmt: skip
        for item in fields(self):
            array = getattr(self, item.name)
            if array.shape != expected[item.name]:
                raise ShapeError(f"Matrix {item.name} has shape {array.shape}; expected {expected[item.name]}.")
            if not np.isfinite(array).all():
                raise NonFiniteError(f"Matrix {item.name} holds NaN or infinite values; expected finite numbers.")

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Return (nx, nv, nu, ny)."""
        return self.A.shape[0], self.C1.shape[0], self.B2.shape[1], self.C2.shape[0]


def matrices(A, B1, B2, C1, D12, C2, D21, D22, D11=None) -> Matrices:
    """Return the arrays upcast exactly to float64; D11 None means zero. Raises ShapeError, NonFiniteError."""
    nv = np.asarray(C1).shape[0]
    D11 = np.zeros((nv, nv)) if D11 is None else D11
    return Matrices(*(np.asarray(array, dtype=np.float64) for array in (A, B1, B2, C1, D12, C2, D21, D22, D11)))


def lipschitz_multiplier(nv: int, tau: float, ell: float) -> Array:
    """Return blk(tau ell^2 I, -tau I): nonnegative on (v, phi(v)) for every phi with Lipschitz bound `ell`."""
    return np.diag(np.concatenate([np.full(nv, tau * ell * ell), np.full(nv, -tau)]))


def slope_multiplier(Lam: Array) -> Array:
    """Return the form 2 w'Lam (v - w), nonnegative for activations with slopes in [0, 1]; `Lam` (nv,) nonnegative."""
    diagonal = np.diag(Lam)
    return np.block([[np.zeros_like(diagonal), diagonal], [diagonal, -2 * diagonal]])


def gain_supply(gamma: float, ny: int, nu: int) -> Array:
    """Return blk(-I/gamma, gamma I) on (y, u): dissipation with it is an incremental l2 gain of at most gamma."""
    return np.diag(np.concatenate([np.full(ny, -1.0 / gamma), np.full(nu, gamma)]))


def signal_maps(model: Matrices, with_input: bool) -> tuple[Array, Array]:
    """Return F_x, the maps to (x, x+), and F_r, to (v, w[, y, u]), of z = (x, w[, u])."""
    nx, nv, nu, _ = model.sizes
    if with_input:
        F_x = np.block([[np.eye(nx), np.zeros((nx, nv + nu))], [model.A, model.B1, model.B2]])
        F_r = np.block([
            [model.C1, model.D11, model.D12],
            [np.zeros((nv, nx)), np.eye(nv), np.zeros((nv, nu))],
            [model.C2, model.D21, model.D22],
            [np.zeros((nu, nx + nv)), np.eye(nu)],
        ])  # fmt: skip
        return F_x, F_r
    F_x = np.block([[np.eye(nx), np.zeros((nx, nv))], [model.A, model.B1]])
    return F_x, np.block([[model.C1, model.D11], [np.zeros((nv, nx)), np.eye(nv)]])


def assemble(model: Matrices, P: Array, rate: float, multiplier: Array, supply: Array | None) -> tuple[Array, Array]:
    """Return (F, K) with M = F' K F; `supply` None leaves out the input and output: contraction alone."""
    F_x, F_r = signal_maps(model, supply is not None)
    blocks = [rate * rate * P, -P, -multiplier] + ([] if supply is None else [supply])
    return np.vstack([F_x, F_r]), np.asarray(scipy.linalg.block_diag(*blocks))


@dataclass(frozen=True)
class Proof:
    """Whether F' K F > 0 is proven for the exact real matrices, its smallest eigenvalue, and the shift allowed for."""

    holds: bool
    margin: float
    shift: float


def prove_positive(F: Array, K: Array) -> Proof:
    """Return a proof of F' K F > 0 in exact arithmetic, or its failure (which proves nothing).

    Rounding of the two products is bounded entrywise by g_k |F|'|K||F|, g_k = k u / (1 - k u); that of the Cholesky
    factorization by g_{n+2} / (1 - g_{n+2}) tr|M| (Rump, "Verification of positive definiteness", BIT 2006). If the
    factorization of M minus both bounds ends, M is positive definite. K's entries may carry 8 roundings of their own.
    M is first scaled to a diagonal near 1 by powers of two, a congruence without rounding; both numbers are of that.
    """
    n = F.shape[1]
    with np.errstate(all="ignore"):
        diagonal = np.einsum("ij,ij->j", F, K @ F)
        usable = np.isfinite(diagonal) & (diagonal > 0)
        exponent = np.where(usable, np.clip(np.round(-0.5 * np.log2(np.where(usable, diagonal, 1.0))), -200, 200), 0)
        F = F * np.exp2(exponent)
        M = F.T @ (K @ F)
        M = 0.5 * (M + M.T)
        bound = _growth(2 * (F.shape[0] + 8)) * (np.abs(F).T @ (np.abs(K) @ np.abs(F)))
        if not (np.isfinite(M).all() and np.isfinite(bound).all()):
            return Proof(False, -math.inf, math.inf)
        g = _growth(n + 2)
        trace = float(np.abs(np.diag(M)).sum())
        shift = 1.01 * ((g / (1 - g) + 4 * UNIT) * trace + float(bound.sum(axis=1).max())) + 1e-300
    margin = float(np.linalg.eigvalsh(M)[0])
    try:
        np.linalg.cholesky(M - shift * np.eye(n))
    except np.linalg.LinAlgError:
        return Proof(False, margin, shift)
    return Proof(True, margin, shift)


def layer_bound(inner: Array, outer: Array, psi: Array | None = None) -> float:
    """Return a Lipschitz bound of h -> outer act(inner h + b), act with slopes in [0, 1] neuron by neuron.

    With B = psi inner / sqrt 2 and A' = outer / (psi sqrt 2): if A A' + B B' <= s I then the bound is max(1, s). Any
    positive psi (n,) proves a bound; a sandwich layer's own proves 1. `inner` (n, n_in), `outer` (n_out, n).
    """
    scale = np.ones(inner.shape[0]) if psi is None else np.asarray(psi, dtype=np.float64)
    B = scale[:, None] * inner / math.sqrt(2)
    A = (outer / scale).T / math.sqrt(2)
    return max(1.0, _largest_eigenvalue(np.hstack([A, B])))


def spectral_bound(weight: Array) -> float:
    """Return an upper bound of the spectral norm of `weight`, rounding included."""
    return math.sqrt(_largest_eigenvalue(weight if weight.shape[0] <= weight.shape[1] else weight.T)) * (1 + 1e-15)


def _largest_eigenvalue(stacked: Array) -> float:
    """Return an upper bound of lambda_max(stacked stacked')."""
    if not np.isfinite(stacked).all():
        raise NonFiniteError("A layer's weights hold NaN or infinite values; expected finite numbers.")
    gram = stacked @ stacked.T
    error = _growth(stacked.shape[1] + 8) * float((np.abs(stacked) @ np.abs(stacked).T).sum(axis=1).max())
    return (float(np.linalg.eigvalsh(gram)[-1]) + error) * (1 + 1e-12)


def _growth(k: int) -> float:
    """Return g_k = k u / (1 - k u), the bound on the relative error of k roundings."""
    return k * UNIT / (1 - k * UNIT)


def recover_metric(model: Matrices, rate: float, multiplier: Array, supply: Array | None, slack: float) -> Array | None:
    """Return a P > 0 that makes M(P) >= slack (relative), from the Riccati equation of the LMI, or None.

    With N the part of M free of P, on (x | w, u): the Riccati equation of rate^2 P - A'P A + N11 - (A'P B - N12)
    (N22 - B'P B)^-1 (..)' = 0. The inputs are eliminated first (N22 > 0), so the pencil has the size of the state only.
    """
    nx = model.sizes[0]
    F_x, F_r = signal_maps(model, supply is not None)
    K = scipy.linalg.block_diag(*([-multiplier] if supply is None else [-multiplier, supply]))
    N = F_r.T @ K @ F_r
    N = 0.5 * (N + N.T) - slack * np.diag(np.abs(np.diag(N)) + 1e-6 * np.abs(N).max())
    A, B = F_x[nx:, :nx], F_x[nx:, nx:]
    N11, N12, N22 = N[:nx, :nx], N[:nx, nx:], N[nx:, nx:]
    try:
        factor = scipy.linalg.cho_factor(N22)
        reduced = A - B @ scipy.linalg.cho_solve(factor, N12.T)
        cost = -(N11 - N12 @ scipy.linalg.cho_solve(factor, N12.T))
        drive = B @ scipy.linalg.cho_solve(factor, B.T)
        values, vectors = np.linalg.eigh(0.5 * (drive + drive.T))
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        keep = values > 1e-14 * max(values[-1], 1e-300)
        P = scipy.linalg.solve_discrete_are(
            reduced / rate, root[:, keep], 0.5 * (cost + cost.T) / rate**2, -np.eye(int(keep.sum()))
        )
    except (np.linalg.LinAlgError, ValueError):
        return None
    P = 0.5 * (P + P.T)
    return P if np.isfinite(P).all() and np.linalg.eigvalsh(P)[0] > 0 else None
