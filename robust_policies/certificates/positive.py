"""Bounds of a recurrent cell from a positive linear system that its increments never exceed, entry by entry.

With slopes in [0, 1] and |.| of single numbers, or Euclidean norms of blocks of them, the increments of

    x+ = A x + B1 w + B2 u,   w = act(C1 x + D11 w + D12 u),   y = C2 x + D21 w + D22 u

obey (|x+|, |w|) <= M (|x|, |w|) + E |u| and |y| <= C (|x|, |w|) + F |u|, M, E, C and F the norms of the blocks. Where w
comes of K passes from zero, in place of the fixed point, the same holds of every pass. Three bounds follow from
vectors t > 0 with M t + E units <= t (each checked as it is, with rounding upwards):

    every step       |u| <= units for ever keeps (|x|, |w|) <= t, so |y| <= C t + F units
    rate             p > 0 and z with C1 p + D11 z <= z and A p + B1 z <= rate p: max_b |x|_b / p_b shrinks by the rate
    l2               the gain of a positive system is the norm of its sum over time, N = C (I - M)^-1 E + F, and
                     |N|^2 <= max_l (N' N q)_l / q_l for every q > 0 (Collatz and Wielandt)

Sources: R. A. Horn and C. R. Johnson, "Matrix Analysis" (2nd edition, 2013), section 8.1, for the last; A. Berman and
R. J. Plemmons, "Nonnegative Matrices in the Mathematical Sciences" (1994), chapter 6, for (I - M)^-1 >= 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from robust_policies.certificates.certificate import Verification
from robust_policies.certificates.decay import steps_to_forget
from robust_policies.certificates.lmi import UNIT, Array, Matrices, zeros
from robust_policies.certificates.search import ROUNDING
from robust_policies.files import numbers

METHOD = "positive system that bounds each increment, rows checked with upward rounding"
# Room left in each row, relative to the largest, so that rounding does not decide.
_ROOM = 1e-10
# Shares of the way from the least rate to 1.
_SHARES = (1e-6, 1e-3, 0.02, 0.1, 0.3)


class Positive(NamedTuple):
    """A positive system M (n, n), E (n, nu), C (ny, n), F (ny, nu), the first `blocks` of n the states'."""

    M: Array
    E: Array
    C: Array
    F: Array
    blocks: int


class Rows(NamedTuple):
    """A cell's matrices, the positive system that bounds its increments, and how many states a block has."""

    model: Matrices
    system: Positive
    block_size: int

    def hints(self) -> tuple[Array, Array] | None:
        """Return a metric P (nx, nx) and multipliers (nv,) with which a matrix inequality holds, None without one.

        With M t < t and M's < s the weights s / t make a quadratic form that shrinks.
        """
        M, m = self.system.M, self.system.blocks
        t, s = (_level(matrix, np.ones(len(M))) for matrix in (M, M.T))
        if t is None or s is None:
            return None
        weights = s / t
        return np.diag(np.repeat(weights[:m], self.block_size)), weights[m:]


class PositiveDecay(NamedTuple):
    """A rate, the factor by which the Euclidean norm may grow before it shrinks like it, and when 99% is forgotten."""

    rate: float
    overshoot: float
    steps: int | None


def positive_system(model: Matrices, block_size: int = 1) -> Positive:
    """Return the positive system that bounds a cell's increments, its states taken `block_size` (1 or 2) at a time."""
    error, s = model.error or zeros(model.sizes), block_size

    def sizes(name: str) -> Array:
        return _up(np.abs(getattr(model, name)) + getattr(error, name), 1)

    def rows(matrix: Array) -> Array:
        if s == 1:
            return matrix
        return np.sqrt(np.square(matrix.reshape(len(matrix) // s, s, matrix.shape[1])).sum(1)) * _ROOT

    def columns(matrix: Array) -> Array:
        return rows(matrix.T).T

    A = sizes("A") if s == 1 else _spectral(model.A, error.A)
    M = np.block([[A, rows(sizes("B1"))], [columns(sizes("C1")), sizes("D11")]])
    E = np.vstack((rows(sizes("B2")), sizes("D12")))
    return Positive(M, E, np.hstack((columns(sizes("C2")), sizes("D21"))), sizes("D22"), len(A))


def rows_of(model: Matrices, block_size: int) -> Rows:
    """Return a cell as rows that bound its increments entry by entry; see `positive_system`."""
    return Rows(model, positive_system(model, block_size), block_size)


def proven_by_rows(rows: Rows, guarantee: Any, rate: float | None) -> Verification:
    """Return what the rows prove of a cell with a guarantee of its own, which rounding may cost a thousandth.

    Args:
        rows: of the arrays that run.
        guarantee: what it was designed for; None: nothing.
        rate: likewise, the contraction rate.
    """
    system, claimed = rows.system, getattr(guarantee, "gamma", None)
    by_step, known = hasattr(guarantee, "unit"), decay(system)
    units = np.ones(system.F.shape[1])
    if by_step:
        units = np.array(guarantee.units(len(units)))
    each, proven = peaks(system, units), gain(system)
    designed = None if by_step else claimed
    if known is None or each is None or (rate is not None and known.rate > rate * ROUNDING):
        reason = "the norms of the arrays' rows prove no contraction" if known is None else "no rate is proven"
        if known is not None and rate is not None and known.rate > rate * ROUNDING:
            reason = f"the arrays prove a rate of {numbers.upper(known.rate)} only"
        return Verification("NOT_CERTIFIED", reason=reason, claimed_gamma=designed)
    reached = float(each.max()) if by_step else proven
    if claimed is not None and (reached is None or reached > claimed * ROUNDING):
        what = "at every step a bound" if by_step else "a gain"
        shown = "none" if reached is None else numbers.upper(reached)
        reason = f"the arrays prove {what} of {shown} only"
        return Verification("NOT_CERTIFIED", reason=reason, claimed_gamma=designed)
    return Verification(
        "PASS",
        proven,
        known.rate,
        overshoot=known.overshoot,
        claimed_gamma=designed,
        method=METHOD,
        forgets=known.steps,
        peak={"units": units.tolist(), "gamma": each.tolist(), "method": METHOD},
    )


def peaks(system: Positive, units: Array) -> Array | None:
    """Return (ny,) how far each output may differ at any step where every input differs by at most `units` (nu,)."""
    reach = _up(system.E @ units, len(units))
    level = _level(system.M, reach)
    return None if level is None else _up(system.C @ level + system.F @ units, len(level) + len(units))


def gain(system: Positive, inputs: Array | None = None, outputs: Array | None = None) -> float | None:
    """Return an incremental l2 gain, None where none is proven; units (nu,) and (ny,) as of `lmi.gain_supply`."""
    M, E, C, F, _ = system
    E, F = (matrix if inputs is None else _up(matrix * inputs, 1) for matrix in (E, F))
    C, F = (matrix if outputs is None else _up(outputs[:, None] * matrix, 1) for matrix in (C, F))
    n, (ny, nu) = len(M), F.shape
    try:
        whole = C @ np.linalg.solve(np.eye(n) - M, E) + F
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(whole).all() or (whole < 0).any():
        return None
    _, _, right = np.linalg.svd(whole)
    q = np.abs(right[0]) + 1e-9
    t = _level(M, _up(E @ q, nu))
    if t is None:
        return None
    y = _up(C @ t + F @ q, n + nu)
    s = _level(M.T, _up(C.T @ y, ny))
    if s is None:
        return None
    back = _up(E.T @ s + F.T @ y, n + ny)
    return math.sqrt(float((back / q).max())) * (1 + 8 * UNIT)


def decay(system: Positive) -> PositiveDecay | None:
    """Return the least rate that is proven, with the overshoot of its proof, None where none below 1 is."""
    m, M = system.blocks, system.M
    if not m:
        return None
    A, B, V, W = M[:m, :m], M[:m, m:], M[m:, :m], M[m:, m:]
    try:
        inner = np.linalg.solve(np.eye(len(W)) - W, V) if len(W) else V
    except np.linalg.LinAlgError:
        return None
    N = A + B @ inner
    if not np.isfinite(N).all() or (N < 0).any():
        return None
    least = float(np.abs(np.linalg.eigvals(N)).max())
    found = []
    for share in _SHARES:
        rate = least + share * (1 - least)
        if not rate < 1:
            return None
        p = np.linalg.solve(rate * np.eye(m) - N, np.ones(m))
        z = (inner @ p) * (1 + _ROOM) + _ROOM * float(np.abs(p).max())
        if not ((p > 0).all() and np.isfinite(p).all() and (_up(V @ p + W @ z, len(M)) <= z).all()):
            continue
        proven = float((_up(A @ p + B @ z, len(M)) / p).max()) * (1 + 4 * UNIT)
        if proven < 1:
            grown = math.sqrt(float(np.square(p).sum())) / float(p.min()) * (1 + 1e-12)
            found.append((proven, grown, steps_to_forget(proven, grown)))
    if not found:
        return None
    rate, overshoot, _ = min(found)
    return PositiveDecay(rate, overshoot, min((steps for _, _, steps in found if steps is not None), default=None))


def _level(M: Array, reach: Array) -> Array | None:
    """Return t >= (I - M)^-1 reach (n,), proven, with M t < t; None where there is none."""
    largest = float(reach.max(initial=0.0))
    room = _ROOM * (largest if largest > 0 else 1.0)
    try:
        t = np.linalg.solve(np.eye(len(M)) - M, reach + room) * (1 + 1e-12)
    except np.linalg.LinAlgError:
        return None
    if not (np.isfinite(t).all() and (t > 0).all()):
        return None
    inner = _up(M @ t, len(M))
    holds = (_up(inner + reach, 1) <= t).all() and (inner < t).all()
    return t if holds else None


# A Euclidean norm of two numbers, whose square, sum and root have rounded.
_ROOT = 1 + 8 * UNIT


def _up(value: Array, terms: int) -> Array:
    """Return an upper bound of a sum of nonnegative products of which each entry of `value` has `terms`."""
    return value * (1 + 1.01 * (terms + 4) * UNIT)


def _spectral(A: Array, error: Array) -> Array:
    """Return bounds (n / 2, n / 2) of the spectral norms of the blocks of two by two of A (n, n).

    That of [[a, b], [c, d]] is half of |(a + d, c - b)| + |(a - d, c + b)|, of which nothing cancels.
    """
    blocks, off = (part.reshape(len(A) // 2, 2, -1, 2).swapaxes(1, 2) for part in (A, error))
    a, b, c, d = (blocks[..., i, j] for i in (0, 1) for j in (0, 1))
    norm = 0.5 * (np.sqrt(np.square(a + d) + np.square(c - b)) + np.sqrt(np.square(a - d) + np.square(c + b)))
    return (norm + np.sqrt(np.square(off).sum((2, 3)))) * (1 + 16 * UNIT)
