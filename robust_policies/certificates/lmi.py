"""The linear matrix inequality of a recurrent cell and its proof in floating point, on plain float64 arrays.

The cell is x+ = A x + B1 w + B2 u, v = C1 x + D11 w + D12 u, y = C2 x + D21 w + D22 u, w = phi(v). For increments and
V = x'P x the dissipation inequality

    V+ - rate^2 V  <=  [y; u]' supply [y; u]  -  [v; w]' multiplier [v; w]

follows, with z = (x, w, u), from M(P) = F' K F >= 0, where F stacks the maps from z to the signals
(x, x+, v, w, y, u) and K = blk(rate^2 P, -P, -multiplier, supply). The multiplier's form is nonnegative for every
admissible phi (`multipliers`). A memoryless net is the case nx = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from robust_policies.errors import NonFiniteError, ShapeError

Array = np.ndarray
UNIT = 2.0**-53
# Bounds of rounding are themselves computed with rounding, all of it relative and far less than this.
UP = 1.0 + 1e-9


@dataclass(frozen=True)
class Matrices:
    """The explicit matrices of a cell, float64; D11 is strictly lower triangular or zero.

    `error` bounds, entry by entry, how far the exact matrices lie from these; None where these are exact.
    """

    A: Array
    B1: Array
    B2: Array
    C1: Array
    D12: Array
    C2: Array
    D21: Array
    D22: Array
    D11: Array
    error: Matrices | None = None

    def __post_init__(self) -> None:
        nx, nv, nu, ny = self.A.shape[0], self.C1.shape[0], self.B2.shape[1], self.C2.shape[0]
        expected = {
            "A": (nx, nx),
            "B1": (nx, nv),
            "B2": (nx, nu),
            "C1": (nv, nx),
            "D11": (nv, nv),
            "D12": (nv, nu),
            "C2": (ny, nx),
            "D21": (ny, nv),
            "D22": (ny, nu),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ShapeError(f"Matrix {name} has shape {array.shape}; expected {shape}.")
            if not np.isfinite(array).all():
                raise NonFiniteError(f"Matrix {name} holds NaN or infinite values; expected finite numbers.")

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Return (nx, nv, nu, ny)."""
        return self.A.shape[0], self.C1.shape[0], self.B2.shape[1], self.C2.shape[0]

    def then(self, head: Array) -> Matrices:
        """Return the model with the linear map `head` (n, ny) after its output, and what rounding may have done."""
        error = self.error or zeros(self.sizes)
        outputs: dict[str, Any] = {}
        bounds: dict[str, Any] = {}
        for name in ("C2", "D21", "D22"):
            outputs[name], bounds[name] = product(head, getattr(self, name), right_error=getattr(error, name))
        return replace(self, **outputs, error=replace(error, **bounds))

    def in_coordinates(self, S: Array) -> Matrices | None:
        """Return the model of the state S x with bounds on what rounding did, or None if S is too near a singular one.

        S (nx, nx) is upper triangular. Gains, rates and supply rates do not depend on the coordinates of the state, so
        what is proven of the one model holds for the other. With a T near S^-1 and S T = 1 + e, S^-1 = T (1 + d) and
        every |d_ij| <= r / (1 - r), r = |e| (largest sum of a row).
        """
        nx = len(S)
        if not np.diagonal(S).all():
            return None
        with np.errstate(all="ignore"):
            T = scipy.linalg.solve_triangular(S, np.eye(nx), check_finite=False)
            near, rounding = product(S, T)
            r = float((np.abs(near - np.eye(nx)) + rounding).sum(axis=1).max())
            if not r < 1e-3:
                return None
            before = self.error or zeros(self.sizes)
            made: dict[str, Array] = {}
            bounds: dict[str, Array] = {}
            for name in ("B1", "B2", "A"):
                made[name], bounds[name] = product(S, getattr(self, name), right_error=getattr(before, name))
            for name in ("C1", "C2"):
                made[name], bounds[name] = getattr(self, name), getattr(before, name)
            for name in ("A", "C1", "C2"):
                value, rounding = product(made[name], T)
                off = (rounding + bounds[name] @ np.abs(T)) * (1 + 1e-9)
                turned = 1.01 * r * (np.abs(value) + off).sum(axis=1, keepdims=True)
                made[name], bounds[name] = value, (off + turned) * (1 + 1e-9)
            try:
                return replace(self, **made, error=replace(before, **bounds))
            except NonFiniteError:
                return None


def matrices(A, B1, B2, C1, D12, C2, D21, D22, D11=None) -> Matrices:
    """Return the arrays upcast exactly to float64; D11 None means zero. Raises ShapeError, NonFiniteError."""
    nv = np.asarray(C1).shape[0]
    D11 = np.zeros((nv, nv)) if D11 is None else D11
    return Matrices(
        *(np.asarray(array, dtype=np.float64) for array in (A, B1, B2, C1, D12, C2, D21, D22, D11)), error=None
    )


def zeros(sizes: tuple[int, int, int, int]) -> Matrices:
    """Return the model of zeros with these (nx, nv, nu, ny)."""
    nx, nv, nu, ny = sizes
    shapes = ((nx, nx), (nx, nv), (nx, nu), (nv, nx), (nv, nu), (ny, nx), (ny, nv), (ny, nu))
    return matrices(*map(np.zeros, shapes))


def product(
    left: Array, right: Array, *, left_error: Array | None = None, right_error: Array | None = None
) -> tuple[Array, Array]:
    """Return left @ right (rows, columns) and a bound on its error, entry by entry.

    Args:
        left: (rows, k).
        right: (k, columns).
        left_error: (rows, k), how far the exact left factor may lie from `left`, entry by entry; None: it is exact.
        right_error: (k, columns), likewise.

    The product has rounded by at most g_k |left| |right|, g_k = k u / (1 - k u); see N. J. Higham, "Accuracy and
    Stability of Numerical Algorithms", 2nd edition, 2002, chapter 3. The bound is itself computed with rounding, for
    which the two further u and the last factor are.
    """
    sizes = np.abs(left), np.abs(right)
    bound = growth(left.shape[1] + 2) * (sizes[0] @ sizes[1])
    right_error = np.zeros_like(right) if right_error is None else right_error
    carried = sizes[0] @ right_error
    if left_error is not None:
        carried = carried + left_error @ (sizes[1] + right_error)
    return left @ right, (bound + carried) * UP


def gain_supply(gamma: float, outputs: Array, inputs: Array) -> Array:
    """Return the form (gamma sum (u_i / inputs_i)^2 - sum (outputs_i y_i)^2 / gamma) of (y, u).

    Dissipation with it is an incremental l2 gain of at most gamma from u, in units of `inputs` (nu,), to y, in units
    of 1 / `outputs` (ny,).
    """
    return np.diag(np.concatenate([-np.square(outputs) / gamma, gamma / np.square(inputs)]))


def signal_maps(model: Matrices, with_input: bool, eye: float = 1.0) -> tuple[Array, Array]:
    """Return F_x, the maps to (x, x+), and F_r, to (v, w[, y, u]), of z = (x, w[, u]).

    `eye` is 0 for a model of errors: what is not a matrix of the model has none.
    """
    nx, nv, nu, ny = model.sizes
    nu, ny = (nu, ny) if with_input else (0, 0)
    F_x, F_r = np.zeros((2 * nx, nx + nv + nu)), np.zeros((2 * nv + ny + nu, nx + nv + nu))
    x, w, u = (slice(begin, begin + size) for begin, size in ((0, nx), (nx, nv), (nx + nv, nu)))
    F_x[:nx, x].flat[:: nx + 1] = eye
    F_x[nx:, x], F_x[nx:, w] = model.A, model.B1
    F_r[:nv, x], F_r[:nv, w] = model.C1, model.D11
    F_r[nv : 2 * nv, w].flat[:: nv + 1] = eye
    if with_input:
        F_x[nx:, u], F_r[:nv, u] = model.B2, model.D12
        y = slice(2 * nv, 2 * nv + ny)
        F_r[y, x], F_r[y, w], F_r[y, u] = model.C2, model.D21, model.D22
        F_r[2 * nv + ny :, u].flat[:: nu + 1] = eye
    return F_x, F_r


def assemble(
    model: Matrices, P: Array, rate: float, multiplier: Array, supply: Array | None
) -> tuple[Array, Array, Array | None]:
    """Return (F, K, bound on F's error) with M = F' K F.

    Args:
        model: the matrices.
        P: (nx, nx) the metric.
        rate: the contraction rate.
        multiplier: (2 nv, 2 nv), the form of (v, w).
        supply: (ny + nu, ny + nu), the form of (y, u); None leaves out input and output: contraction.

    F is (rows, columns) with rows for the signals and columns for z, K symmetric of as many rows.
    """
    F = np.vstack(signal_maps(model, supply is not None))
    error = None if model.error is None else np.vstack(signal_maps(model.error, supply is not None, eye=0.0))
    blocks = [rate * rate * P, -P, -multiplier] + ([] if supply is None else [supply])
    return F, np.asarray(scipy.linalg.block_diag(*(block for block in blocks if block.size))), error


@dataclass(frozen=True)
class Proof:
    """Whether F' K F > 0 is proven for the exact real matrices, its smallest eigenvalue, and the shift allowed for."""

    holds: bool
    margin: float
    shift: float


def prove_positive(F: Array, K: Array, error: Array | None = None) -> Proof:
    """Return a proof of F' K F > 0 in exact arithmetic, or its failure (which proves nothing).

    F is (rows, columns), K (rows, rows) and symmetric, `error` (rows, columns). Rounding of the two products is bounded
    entrywise by g_k |F|'|K||F|, g_k = k u / (1 - k u); that of the Cholesky factorization by
    g_{n+2} / (1 - g_{n+2}) tr|M| (Rump, "Verification of positive definiteness", BIT 2006). If the factorization of M
    minus both bounds ends, M is positive definite. K's entries may carry 8 roundings of their own. Where the exact F
    lies within `error` (entrywise) of the one given, 2 |F|'|K| error + error'|K| error is added. M is first scaled to a
    diagonal near 1 by powers of two, a congruence without rounding; both numbers are of that.
    """
    n = F.shape[1]
    with np.errstate(all="ignore"):
        diagonal = np.einsum("ij,ij->j", F, K @ F)
        usable = np.isfinite(diagonal) & (diagonal > 0)
        exponent = np.where(usable, np.clip(np.round(-0.5 * np.log2(np.where(usable, diagonal, 1.0))), -200, 200), 0)
        F = F * np.exp2(exponent)
        M = F.T @ (K @ F)
        M = 0.5 * (M + M.T)
        bound = growth(2 * (F.shape[0] + 8)) * (np.abs(F).T @ (np.abs(K) @ np.abs(F)))
        if error is not None:
            error = error * np.exp2(exponent)
            cross = np.abs(F).T @ (np.abs(K) @ error)
            bound = bound + (cross + cross.T + error.T @ (np.abs(K) @ error)) * UP
        if not (np.isfinite(M).all() and np.isfinite(bound).all()):
            return Proof(False, -math.inf, math.inf)
        g = growth(n + 2)
        trace = float(np.abs(np.diag(M)).sum())
        shift = 1.01 * ((g / (1 - g) + 4 * UNIT) * trace + float(bound.sum(axis=1).max())) + 1e-300
    margin = float(np.linalg.eigvalsh(M)[0])
    try:
        np.linalg.cholesky(M - shift * np.eye(n))
    except np.linalg.LinAlgError:
        return Proof(False, margin, shift)
    return Proof(True, margin, shift)


def growth(k: int) -> float:
    """Return g_k = k u / (1 - k u), the bound on the relative error of k roundings."""
    return k * UNIT / (1 - k * UNIT)
