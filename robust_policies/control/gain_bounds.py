"""The least gain that a linear system with bounded blocks in feedback is proven to have.

The loop is `certificates.lmi.Matrices`: x+ = A x + B1 w + B2 d, v = C1 x + D12 d, z = C2 x + D21 w + D22 d, and block i
answers w_i to v_i with a gain of at most ell_i. For scalings tau_i > 0 (one a block) the gain d -> z is at most g if

    |z|^2 / g^2 + sum tau_i ell_i^2 |v_i|^2  <=  |d|^2 + sum tau_i |w_i|^2      for all frequencies of the linear part.

With the spectral factor W~W = blk(tau, I) - Gv~ tau ell^2 Gv the least such g is the H-infinity norm of Gz W^-1: one
Riccati equation and one norm for given tau. The problem is convex in (tau g^2, g^2). For one block that is memoryless
this is the dissipation inequality of a recurrent cell, and for gains that hold for sums over time (a Youla parameter)
the small-gain theorem with D-scaling. All of it holds for increments where the blocks' gains do.

Source: J. C. Doyle, "Analysis of feedback systems with structured uncertainties", IEE Proc. D 129 (1982); the time
domain form is the bounded real lemma.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from robust_policies.certificates.lmi import (
    Array,
    Matrices,
    assemble,
    gain_supply,
    prove_positive,
)
from robust_policies.certificates.riccati import recover_metric
from robust_policies.control.norms import StateSpace, hinf_norm, norm2, radius
from robust_policies.errors import InvalidValueError, ShapeError

_SLACKS = (1e-4, 1e-6, 1e-8, 1e-10)
_LIFTS = (1e2, 1e4, 1e6, 1e9, 1e12, 1e15)
_MARGINS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class GainBound:
    """An upper bound of a gain.

    Attributes:
        gain: the bound. If `proven` it holds in exact arithmetic for the loop's matrices (within their `error`): a
            Cholesky factorization that allows for rounding has shown the inequality. Otherwise it is `estimate`, or
            infinity where no scaling works.
        proven: whether it is.
        estimate: the least gain the search found, in ordinary floating point.
        tau: the scaling of each block whose gain is not zero.
        metric: the storage function's matrix of the proof, None without one.
    """

    gain: float
    proven: bool
    estimate: float
    tau: tuple[float, ...] = ()
    metric: Array | None = None


def linear_loop(system: StateSpace) -> Matrices:
    """Return the loop that has no block."""
    n, (ny, nu) = len(system.A), system.D.shape
    none = np.zeros((0, 0))
    return Matrices(
        A=system.A,
        B1=np.zeros((n, 0)),
        B2=system.B,
        C1=np.zeros((0, n)),
        D12=np.zeros((0, nu)),
        C2=system.C,
        D21=np.zeros((ny, 0)),
        D22=system.D,
        D11=none,
    )


def known_gain(inputs: int, outputs: int) -> Matrices:
    """Return what stands for any system of which only the gain is known: y = w with the block w = Q(u), nothing else.

    The block's v and w have one width, the larger of the two; the shorter is padded with zeros, which adds no gain.
    """
    width, none = max(inputs, outputs), np.zeros
    return Matrices(
        A=none((0, 0)),
        B1=none((0, width)),
        B2=none((0, inputs)),
        C1=none((width, 0)),
        D11=none((width, width)),
        D12=np.eye(width, inputs),
        C2=none((outputs, 0)),
        D21=np.eye(outputs, width),
        D22=none((outputs, inputs)),
    )


def gain_bound(loop: Matrices, ell: Sequence[float] = (), sizes: Sequence[int] | None = None) -> GainBound:
    """Return the least bound of the gain d -> z over the scalings, with its proof.

    Args:
        loop: the linear part; D11 must be zero.
        ell: the gain of each block, >= 0; one number for each of `sizes`.
        sizes: how many channels of w and v each block has (pad the shorter side with zeros); None: one block of all.
    """
    nv = loop.sizes[1]
    sizes = ([nv] if nv else []) if sizes is None else list(sizes)
    if sum(sizes) != nv or len(ell) != len(sizes):
        raise ShapeError(
            f"{len(ell)} gain(s) and blocks of {list(sizes)} channels; expected one gain a block and "
            f"{nv} channels together."
        )
    if loop.D11.any():
        raise InvalidValueError("D11 is not zero; expected a loop whose blocks do not feed each other at once.")
    if not all(math.isfinite(value) and value >= 0 for value in ell):
        raise InvalidValueError(f"The blocks' gains are {list(ell)}; expected finite numbers >= 0.")
    if radius(loop.A) >= 1.0:
        return GainBound(math.inf, False, math.inf)
    if 0.0 in ell:
        # A block of gain zero answers nothing.
        loop, sizes = (
            _without(loop, np.repeat(np.asarray(ell) == 0.0, sizes)),
            [s for s, g in zip(sizes, ell, strict=True) if g],
        )
        ell = [value for value in ell if value]
    bounds = np.repeat(np.asarray(ell, dtype=np.float64), sizes)
    tau, estimate = _search(loop, bounds, sizes)
    if not math.isfinite(estimate):
        return GainBound(math.inf, False, math.inf, tuple(tau))
    found = _prove(loop, bounds, sizes, tau, estimate)
    for lift in _LIFTS if sizes else ():
        # A block that hardly reaches the output lets its scaling fall until the proof fails; a larger one costs little.
        if found.proven:
            break
        lifted = tau * lift
        gain = scaled_gain(loop, bounds, np.repeat(lifted, sizes))
        if math.isfinite(gain):
            tried = _prove(loop, bounds, sizes, lifted, gain)
            found = replace(tried, estimate=estimate) if tried.proven else found
    return found


def _without(loop: Matrices, silent: Array) -> Matrices:
    """Return the loop without the channels of w and v that `silent` (nv,) marks."""
    kept = ~silent
    return replace(
        loop,
        B1=loop.B1[:, kept],
        C1=loop.C1[kept],
        D12=loop.D12[kept],
        D21=loop.D21[:, kept],
        D11=loop.D11[np.ix_(kept, kept)],
        error=None if loop.error is None else _without(loop.error, silent),
    )


def scaled_gain(loop: Matrices, ell: Array, tau: Array) -> float:
    """Return the least g for the scalings `tau` (nv,) of blocks with gains `ell` (nv,); infinity where none works."""
    nx, nv, nd, _ = loop.sizes
    if nv == 0:
        return hinf_norm(StateSpace(loop.A, loop.B2, loop.C2, loop.D22))
    B, D = np.hstack((loop.B1, loop.B2)), np.hstack((loop.D21, loop.D22))
    scale = (np.sqrt(tau) * ell)[:, None]
    Cv, Dv = scale * loop.C1, scale * np.hstack((np.zeros((nv, nv)), loop.D12))
    R = np.diag(np.concatenate((tau, np.ones(nd)))) - Dv.T @ Dv
    try:
        # The inputs are eliminated first, so that the pencil has the size of the state only.
        solved = np.linalg.solve(R, np.hstack((Dv.T @ Cv, B.T)))
        root = np.linalg.solve(np.linalg.cholesky(R), B.T)
        drive = root.T @ root
        values, vectors = np.linalg.eigh(drive)
        keep = values > 1e-15 * max(values[-1], 1e-300)
        cost = Cv.T @ Cv + Cv.T @ Dv @ solved[:, :nx]
        narrow = vectors[:, keep] * np.sqrt(values[keep])
        P = -scipy.linalg.solve_discrete_are(
            loop.A + B @ solved[:, :nx], narrow, -0.5 * (cost + cost.T), np.eye(int(keep.sum()))
        )
        W0 = np.linalg.cholesky(R - B.T @ P @ B)
    except (np.linalg.LinAlgError, ValueError):
        return math.inf
    F = -scipy.linalg.cho_solve((W0, True), B.T @ P @ loop.A + Dv.T @ Cv)
    inverse = np.linalg.inv(W0).T
    closed = loop.A - B @ F
    if radius(closed) >= 1.0:
        return math.inf
    return hinf_norm(StateSpace(closed, B @ inverse, loop.C2 - D @ F, D @ inverse))


def _search(loop: Matrices, bounds: Array, sizes: Sequence[int]) -> tuple[Array, float]:
    """Return the best scaling found of each block, and its gain."""
    if not sizes:
        return np.zeros(0), scaled_gain(loop, bounds, np.zeros(0))

    relative = _balance(loop, bounds, sizes)

    def gain(logs: Array) -> float:
        return scaled_gain(loop, bounds, np.repeat(np.exp(logs), sizes))

    # No tau works for which the path d -> v alone exceeds the budget |d|^2; the search starts below it.
    weight = (bounds * np.repeat(np.exp(0.5 * relative), sizes))[:, None]
    direct = hinf_norm(StateSpace(loop.A, loop.B2, weight * loop.C1, weight * loop.D12))
    out = norm2(np.hstack((loop.C2, loop.D21)))
    top = -2.0 * math.log(direct) if direct > 0 else 2.0 * math.log(max(out, 1e-6)) + 25.0
    grid = top - 1e-6 - np.concatenate((np.arange(0.0, 3.0, 0.5), np.arange(3.0, 36.0, 1.5)))
    values = [gain(relative + point) for point in grid]
    best = int(np.argmin(values))
    if not math.isfinite(values[best]):
        return np.exp(relative + grid[best]), math.inf
    upper, lower = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found: Any = scipy.optimize.minimize_scalar(
        lambda point: min(gain(relative + point), 1e300),
        bounds=(lower, upper),
        method="bounded",
        options={"xatol": 1e-6},
    )
    point, value = relative + found.x, float(found.fun)
    if values[best] < value:
        point, value = relative + grid[best], values[best]
    if len(sizes) > 1:
        refined = scipy.optimize.minimize(
            lambda logs: min(gain(logs), 1e300),
            point,
            method="Nelder-Mead",
            options={"xatol": 1e-4, "fatol": 1e-9 * value, "maxiter": 120 * len(sizes)},
        )
        point, value = refined.x, float(refined.fun)
    return np.exp(point), value


def _balance(loop: Matrices, bounds: Array, sizes: Sequence[int]) -> Array:
    """Return log tau of each block that makes the loops among the blocks alone weakest; their sum is zero.

    For a matrix N of gains from block to block the largest eigenvalue is the least norm of D N D^-1, at the D made of
    its two eigenvectors (Perron). Without it, blocks in units that differ by orders of magnitude look unstable.
    """
    count = len(sizes)
    if count == 1:
        return np.zeros(1)
    ends = np.concatenate(([0], np.cumsum(sizes)))
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    N = np.array(
        [
            [bounds[i.start] * hinf_norm(StateSpace(loop.A, loop.B1[:, j], loop.C1[i], loop.D11[i, j])) for j in parts]
            for i in parts
        ]
    )
    own = np.sqrt(np.diag(N))
    N = N + 1e-3 * np.outer(own, own) + 1e-9 * max(N.max(), 1e-300)
    right, left = _perron(N), _perron(N.T)
    logs = np.log(np.maximum(left, 1e-12)) - np.log(np.maximum(right, 1e-12))
    return logs - logs.mean()


def _perron(N: Array) -> Array:
    """Return the nonnegative eigenvector of the largest eigenvalue of a positive matrix."""
    values, vectors = np.linalg.eig(N)
    return np.abs(vectors[:, int(np.argmax(np.real(values)))])


def _prove(loop: Matrices, bounds: Array, sizes: Sequence[int], tau: Array, estimate: float) -> GainBound:
    """Return the bound least above `estimate` for which a Cholesky factorization shows the inequality."""
    _, _, nd, nz = loop.sizes
    for margin in _MARGINS:
        g = max(estimate, 1e-12) * (1.0 + margin)
        weights = np.repeat(tau, sizes) * g
        multiplier = np.diag(np.concatenate((weights * bounds**2, -weights)))
        supply = gain_supply(g, np.ones(nz), np.ones(nd))
        for slack in _SLACKS:
            P = recover_metric(loop, 1.0, multiplier, supply, slack)
            if P is None or not prove_positive(np.eye(len(P)), P).holds:
                continue
            if prove_positive(*assemble(loop, P, 1.0, multiplier, supply)).holds:
                return GainBound(g, True, estimate, tuple(map(float, tau)), P)
    return GainBound(estimate, False, estimate, tuple(map(float, tau)))
