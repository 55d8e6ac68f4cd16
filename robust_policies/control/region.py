"""A region of a nonlinear plant's closed loop that no admissible disturbance leaves, with the Youla parameter in it.

States zeta = (x, e, states of Q), blocks Delta (the residual) and phi (the nonlinearity of Q). If for some P > 0,
multipliers >= 0 and mu > 0

    rate^2 P - [..]'P[..] + mu |d|^2 - sum lam_i (delta_i^2 |q_i|^2 - |p_i|^2) - tau (ell^2 |v|^2 - |w|^2) > 0,
    P >= Cq_i'Cq_i / limit_i^2

then {zeta'P zeta <= 1} keeps every |q_i| <= limit_i, is invariant for |d_t| <= sqrt((1 - rate^2) / mu), and all
trajectories in it contract with `rate`. zeta = 0 must be the equilibrium: Delta(0) = 0, and Q without biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from robust_policies.certificates.lmi import Array, Matrices, prove_positive, signal_maps
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import radius
from robust_policies.control.residual import Residual
from robust_policies.control.semidefinite import invariant_set
from robust_policies.control.youla import Performance, closed_loop_matrices
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.files import numbers

_SLACKS = (1e-7, 1e-5, 1e-3)


@dataclass(frozen=True)
class Region:
    """The ellipsoid {zeta'P zeta <= 1} and what is proven of it.

    `disturbance` bounds |(w_t, v_t)| at every step, in the units of `Performance`; `rate` is the contraction rate in
    the metric P, `overshoot` = sqrt(cond P).
    """

    P: Array
    rate: float
    disturbance: float
    overshoot: float
    residual: Residual

    def holds(self, zeta: Array) -> Array:
        """Return which states (..., nx) lie in the region: what a runtime monitor counts."""
        return np.einsum("...i,ij,...j->...", zeta, self.P, zeta) <= 1.0

    def claim(self) -> str:
        """Return what is proven, with the residual's kind in it."""
        return self.residual.claim(
            "trajectories that start in the ellipsoid zeta'P zeta <= 1 stay in it and in the region "
            f"{self.residual.region} while the disturbance of every step is at most {numbers.lower(self.disturbance)}, "
            f"and any two of them under the same disturbance approach each other like "
            f"{numbers.upper(self.overshoot)} * {numbers.rate(self.rate)}^t",
            inside=True,
        )


def region(
    model: LinearModel,
    design: LQGDesign,
    q: Matrices,
    ell: float,
    residual: Residual,
    limits: Sequence[float],
    disturbance: Performance,
    rates: Sequence[float] | None = None,
) -> Region:
    """Return the region that tolerates the largest disturbance among those found for the rates tried.

    Args:
        model: the model with the residual's centre in it.
        design: the gains.
        q: the explicit matrices of Q in the plant's units (`youla.scaled_parameter`), its biases zero, D11 = 0.
        ell: the Lipschitz bound of its nonlinearity.
        residual: Fu must be zero: a region in terms of the state.
        limits: the largest |q_i| at which each residual gain holds, one a channel.
        disturbance: Bw and Dv scale w and v; Cz and Dz are not used.
        rates: contraction rates to try, in (0, 1); None: eight between the linear loop's and 1.

    Raises:
        InvalidValueError: no region was found for any rate, with what to change. ShapeError.
    """
    k = residual.Ep.shape[1]
    if residual.Fu.any():
        raise InvalidValueError(
            "The residual depends on the input (Fu is not zero); expected one of the state alone, "
            "such as that of a plant which is linear in the input."
        )
    if len(limits) != k or not all(math.isfinite(limit) and limit > 0 for limit in limits):
        raise ShapeError(f"limits is {list(limits)}; expected {k} finite number(s) > 0, one for each channel of q.")
    loop, bounds, sizes = _loop(model, design, q, ell, residual, disturbance)
    rows = np.hstack((residual.Fx, np.zeros((k, len(loop.A) - residual.Fx.shape[1])))) / np.array(limits)[:, None]
    start = radius(loop.A)
    tried = (
        [start + (1 - start) * share for share in (0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)]
        if rates is None
        else [float(rate) for rate in rates]
    )
    if start >= 1.0 or not all(0 < rate < 1 for rate in tried):
        raise InvalidValueError(
            f"The linear loop has spectral radius {start:.6g} and the rates are {tried}; expected numbers in (0, 1)."
        )
    found = [candidate for rate in tried if (candidate := _certify(loop, bounds, sizes, rows, rate, residual))]
    if not found:
        raise InvalidValueError(
            f"No invariant region was found for residual gains {[g.value for g in residual.gains]} in "
            f"{residual.region} with this Youla parameter; expected a smaller gamma, or state a smaller region."
        )
    return max(found, key=lambda candidate: candidate.disturbance)


def _loop(
    model: LinearModel, design: LQGDesign, q: Matrices, ell: float, residual: Residual, disturbance: Performance
) -> tuple[Matrices, Array, list[int]]:
    """Return the loop with the blocks Delta and phi, their gains a channel, and their sizes."""
    closed = closed_loop_matrices(model, design, q, disturbance)
    nx, nv, nd, nz = closed.sizes
    n, k = residual.Ep.shape
    loop = Matrices(
        A=closed.A,
        B2=closed.B2,
        C2=closed.C2,
        D22=closed.D22,
        B1=np.hstack((np.vstack((residual.Ep, residual.Ep, np.zeros((nx - 2 * n, k)))), closed.B1)),
        C1=np.vstack((np.hstack((residual.Fx, np.zeros((k, nx - n)))), closed.C1)),
        D11=np.zeros((k + nv, k + nv)),
        D12=np.vstack((np.zeros((k, nd)), closed.D12)),
        D21=np.hstack((np.zeros((nz, k)), closed.D21)),
    )
    deltas = [gain.value for gain in residual.gains]
    sizes = residual.sizes + ([nv] if nv else [])
    return loop, np.repeat([*deltas, ell][: len(sizes)], sizes), sizes


def _certify(
    loop: Matrices, bounds: Array, sizes: list[int], limits: Array, rate: float, residual: Residual
) -> Region | None:
    """Return the region of the least mu at this rate, if it can be proven."""
    nx, nv, nd, _ = loop.sizes
    F_x, F_r = signal_maps(loop, True)
    stacked = np.vstack((F_x, F_r[: 2 * nv], F_r[-nd:]))
    for slack in _SLACKS:
        solution = invariant_set(loop, bounds, sizes, limits, rate, slack)
        if solution is None:
            return None
        # The inequality is homogeneous: a larger P, with all the rest, leaves it true and keeps q strictly within.
        P, lam, mu = solution
        P, lam, mu = (1 + 1e-6) * P, (1 + 1e-6) * np.maximum(lam, 0.0), (1 + 1e-6) * mu
        for more in (1 + 1e-6, 1 + 1e-4, 1 + 1e-2):
            weights = (rate**2 * P, -P, -np.diag(lam * bounds**2), np.diag(lam), more * mu * np.eye(nd))
            if (
                prove_positive(np.eye(nx), P).holds
                and prove_positive(stacked, np.asarray(scipy.linalg.block_diag(*weights))).holds
                and all(_within(P, row) for row in limits)
            ):
                values = np.linalg.eigvalsh(P)
                disturbance = math.sqrt((1 - rate**2) / (more * mu)) * (1 - 1e-12)
                return Region(P, rate, disturbance, math.sqrt(values[-1] / values[0]) * (1 + 1e-6), residual)
    return None


def _within(P: Array, row: Array) -> bool:
    """Return whether P - row row' > 0 is proven."""
    stacked = np.vstack((np.eye(len(P)), row))
    return prove_positive(stacked, np.asarray(scipy.linalg.block_diag(P, [[-1.0]]))).holds
