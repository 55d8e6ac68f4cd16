"""Semidefinite programs about closed loops, by cvxpy and Clarabel (`pip install robust-policies[control]`).

A solver's answer proves nothing; what is claimed from it is shown again by a Cholesky factorization that allows for
rounding (`certificates.lmi.prove_positive`).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import scipy

from robust_policies.certificates.lmi import Array, Matrices, prove_positive, signal_maps
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.residual import Residual, ResidualGain
from robust_policies.control.small_gain import AllowedGain
from robust_policies.control.youla import direct_gain
from robust_policies.errors import InvalidValueError, ShapeError


def least_gain(loop: Matrices, ell: float) -> float:
    """Return the least g with V+ - V + |z|^2 + lam (ell^2 |v|^2 - |w|^2) - g^2 |d|^2 <= 0, in one program.

    A second way to the estimate of `gain_bounds.gain_bound` for one block, and no bound: the solver ends on either side
    of the least g. It finds g^2 where inputs and outputs are scaled to entries of at most 1, to about 1e-9 there: so g
    is good to 1e-4 times (the largest output entry times the largest input entry) in absolute terms, and to 1e-6 of
    itself where it is not smaller than that product. Raises InvalidValueError if there is none.
    """
    cp = _cvxpy()
    nx, nv, _, nz = loop.sizes
    outward = _largest(loop.C2, loop.D21, loop.D22)
    inward = _largest(loop.B2, loop.D12)
    F_x, F_r = signal_maps(loop, True)
    # In the units d inward and z / outward; w and x are the loop's own.
    units = np.ones(F_x.shape[1])
    units[nx + nv :] = 1.0 / inward
    F_x, F_r = F_x * units, F_r * units
    P, lam, squared = cp.Variable((nx, nx), PSD=True), cp.Variable(nonneg=True), cp.Variable(nonneg=True)
    v, w, z, d = np.split(F_r, np.cumsum([nv, nv, nz]))
    z, d = z / outward, d * inward
    left = F_x[:nx].T @ P @ F_x[:nx] - F_x[nx:].T @ P @ F_x[nx:]
    left = left + squared * (d.T @ d) - z.T @ z - lam * (ell**2 * v.T @ v - w.T @ w)
    if not _solved(cp, cp.Minimize(squared), [_symmetric(left) >> 0]):
        raise InvalidValueError("The program for the gain has no solution; no scaling of the block gives a bound.")
    return float(np.sqrt(squared.value)) * outward * inward


def _largest(*arrays: Array) -> float:
    """Return the largest absolute entry, 1 where all are zero or there is none."""
    return max((float(np.abs(one).max(initial=0.0)) for one in arrays), default=0.0) or 1.0


def hull_gain(
    model: LinearModel,
    design: LQGDesign,
    jacobians: Sequence[tuple[Array, Array]],
    known: ResidualGain,
    rate: float = 1.0,
) -> AllowedGain:
    """Return the gain of Q allowed on a plant whose Jacobians (Jx, Ju) lie in the convex hull of those given.

    One metric P for all of them: V+ <= rate^2 V + |ut|^2 - gQ^2 |yt|^2 with the largest gQ, in one program. C is the
    measurement's exact matrix.

    Args:
        model: the model the observer runs.
        design: the gains.
        jacobians: the vertices of the hull, each (n, n) and (n, m).
        known: how it is known that they span the Jacobians of the region; its value is not used.
        rate: the contraction rate of the base loop asked for, in (0, 1].

    Raises:
        InvalidValueError: cvxpy or Clarabel is missing, or rate is outside (0, 1].
    """
    cp = _cvxpy()
    if not 0 < rate <= 1:
        raise InvalidValueError(f"rate is {rate!r}; expected a number in (0, 1].")
    n, m = model.B.shape
    loops = [hull_loop(model, design, Jx, Ju) for Jx, Ju in jacobians]
    if not loops:
        raise ShapeError("No Jacobians were given; expected at least one pair (Jx, Ju).")
    Ep = np.eye(n)
    residual = Residual(Ep, Ep, np.zeros((n, m)), (known,))
    state, ut = np.eye(2 * n, 2 * n + m), np.eye(m, 2 * n + m, 2 * n)
    # Unit scales: the innovation's and input's sizes would otherwise differ by orders of magnitude.
    unit = 1.0 / max(float(np.abs(model.C).max()), 1e-12)
    yt = unit * np.hstack((np.zeros((len(model.C), n)), model.C, np.zeros((len(model.C), m))))
    P, squared = cp.Variable((2 * n, 2 * n), PSD=True), cp.Variable(nonneg=True)
    constraints = [
        _symmetric(rate**2 * state.T @ P @ state - F.T @ P @ F + ut.T @ ut - squared * (yt.T @ yt)) >> 0 for F in loops
    ]
    if not _solved(cp, cp.Maximize(squared), constraints):
        return AllowedGain(0.0, 0.0, False, residual)
    found = float(squared.value)
    metric = (P.value + P.value.T) / 2
    for share in (0.999, 0.99, 0.95, 0.8, 0.5, 0.1):
        for lift in (0.0, 1e-9, 1e-7, 1e-5):
            lifted = metric + lift * np.trace(metric) * np.eye(2 * n)
            if prove_positive(np.eye(2 * n), lifted).holds and all(
                _hull_holds(F, lifted, rate, yt, share * found) for F in loops
            ):
                gain = float(np.sqrt(share * found)) * unit * (1 - 1e-12)
                return AllowedGain(0.0, gain, True, residual)
    return AllowedGain(0.0, 0.0, False, residual)


def hull_loop(model: LinearModel, design: LQGDesign, Jx: Array, Ju: Array) -> Array:
    """Return [Mcl, Bu] (2n, 2n + m): (x, e, ut) -> (x+, e+) of increments where the plant's Jacobians are Jx, Ju.

    Jx is (n, n), Ju (n, m). Raises ShapeError where they are not.
    """
    n, m = model.B.shape
    if Jx.shape != (n, n) or Ju.shape != (n, m):
        raise ShapeError(f"A Jacobian has shapes {Jx.shape} and {Ju.shape}; expected {(n, n)} and {(n, m)}.")
    A, B, C, K, L = model.A, model.B, model.C, design.K, design.L
    Ke = K - direct_gain(design) @ C
    return np.block([[Jx - Ju @ K, Ju @ Ke, Ju], [Jx - A - (Ju - B) @ K, A - L @ C + (Ju - B) @ Ke, Ju - B]])


def _hull_holds(F: Array, P: Array, rate: float, yt: Array, squared: float) -> bool:
    n2, m = len(P), F.shape[1] - len(P)
    stacked = np.vstack((np.eye(n2, n2 + m), F, np.eye(m, n2 + m, n2), yt))
    K = scipy.linalg.block_diag(rate**2 * P, -P, np.eye(m), -squared * np.eye(len(yt)))
    return prove_positive(stacked, np.asarray(K)).holds


def invariant_set(
    loop: Matrices, bounds: Array, sizes: Sequence[int], limits: Array, rate: float, slack: float
) -> tuple[Array, Array, float] | None:
    """Return (P, multipliers, mu) with the least mu, or None where there is none.

        rate^2 P - [..]'P[..] + mu |d|^2 - sum lam_i (bounds_i^2 |v_i|^2 - |w_i|^2) >= slack, P >= limits_j limits_j'

    `loop` is the linear part with one block a nonlinearity (z is not used), `bounds` (nv,) their gains, `sizes` the
    channels of each, `limits` (k, nx) the rows l_j of |l_j x| <= 1 that must hold in {x'P x <= 1}.
    """
    cp = _cvxpy()
    nx, nv, nd, _ = loop.sizes
    F_x, F_r = signal_maps(loop, True)
    v, w, d = F_r[:nv], F_r[nv : 2 * nv], F_r[-nd:]
    P, mu = cp.Variable((nx, nx), symmetric=True), cp.Variable(nonneg=True)
    lam = cp.Variable(len(sizes), nonneg=True)
    left = rate**2 * F_x[:nx].T @ P @ F_x[:nx] - F_x[nx:].T @ P @ F_x[nx:] + mu * (d.T @ d)
    ends = np.concatenate(([0], np.cumsum(sizes)))
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        wide = bounds[a:b, None] * v[a:b]
        left = left - lam[i] * (wide.T @ wide - w[a:b].T @ w[a:b])
    constraints = [_symmetric(left) >> slack * np.eye(left.shape[0]), P >> slack * np.eye(nx)]
    constraints += [P - np.outer(row, row) >> 0 for row in limits]
    if not _solved(cp, cp.Minimize(mu), constraints):
        return None
    return (P.value + P.value.T) / 2, np.repeat(lam.value, sizes), float(mu.value)


def _symmetric(expression: Any) -> Any:
    return (expression + expression.T) / 2


def _solved(cp: Any, objective: Any, constraints: list) -> bool:
    """Return whether the solver found values. That they may be inaccurate is no matter: they are checked again."""
    problem = cp.Problem(objective, constraints)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Solution may be inaccurate")
            problem.solve(solver=cp.CLARABEL)
    except cp.error.SolverError:
        return False
    return problem.status in ("optimal", "optimal_inaccurate")


def _cvxpy() -> ModuleType:
    try:
        import clarabel  # noqa: F401
        import cvxpy
    except ImportError as error:
        raise InvalidValueError(
            "Semidefinite programs need cvxpy and Clarabel; install them with: pip install robust-policies[control]."
        ) from error
    return cvxpy
