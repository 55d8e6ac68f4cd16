"""What disturbances of known sizes at every step do to one output, for ever: summed lag by lag, and proven.

Of a system around neurons with slopes in [0, 1], x+ = A x + B1 w + B2 e, join two trajectories by ones whose
disturbances differ in one step each. With `certificates.impulse`'s forms, each of which is proven here,

    y^2 + N_0 <= x' P_0 x,   x+' P_(k-1) x+ + N_k <= x' P_k x    (e = 0),   the same <= e' Q_k e    (x = 0),

what e does k steps later is at most sqrt(e' Q_k e), and over |e_l| <= E_l at most g_k = sqrt(sum |Q_k,lm| E_l E_m). The
difference of the outputs is at most the sum of all g_k. After the last lag a metric P of a contraction rate takes over:
P_K <= c P leaves sqrt(c) g / (1 - rate), g that of x+' P x+ + N <= e' Q e.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy

from robust_policies.certificates.impulse import lag_forms
from robust_policies.certificates.lmi import Array, Matrices, prove_positive, signal_maps
from robust_policies.certificates.multipliers import SlopeMultiplier
from robust_policies.certificates.optimum import Candidate

_MOST, _TAIL = 400, 0.02
# Room for the proof, relative.
_ROOMS = (1e-7, 1e-5, 1e-3)


def lag_sum(model: Matrices, sizes: Array, theta: Array, rate: float, metric: Candidate) -> float | None:
    """Return how far the output of a system can be moved by disturbances at every step, None without a proof.

    Args:
        model: with one output, whose inputs are the disturbances; `error` says how far the exact one may lie.
        sizes: (nu,) of each disturbance, > 0.
        theta: (nv,) multipliers to start from.
        rate: a contraction rate.
        metric: P (nx, nx) and multipliers with which it has been proven.
    """
    system = _Lags(model, sizes)
    last = system.tail(metric)
    found = None if last is None else (_summed(system, theta, room, rate, metric, last) for room in _ROOMS)
    return None if found is None else next((total for total in found if total is not None), None)


def _summed(system: _Lags, theta: Array, room: float, rate: float, metric: Candidate, last: float) -> float | None:
    """Return the sum over all lags, whose forms are larger by `room`, None where one of them is not proven."""
    total, P = 0.0, np.zeros_like(metric.P)
    for lag, (multiplier, whole) in enumerate(lag_forms(system.scaled, theta, room)):
        states, inputs = whole[: system.nx, : system.nx], whole[system.nx :, system.nx :]
        if not (
            system.holds(lag == 0, P, multiplier, states, None) and system.holds(lag == 0, P, multiplier, None, inputs)
        ):
            return None
        P, total = states, total + _largest(inputs)
        if lag % 8 == 7 or lag == _MOST:
            left = system.over(P, metric.P)
            rest = math.inf if left is None else math.sqrt(left) * last / (1.0 - rate)
            if rest <= _TAIL * total or lag == _MOST:
                return (total + rest) * (1 + 1e-9) if math.isfinite(rest) else None
    return None


def _largest(form: Array) -> float:
    """Return a bound of the root of a form of numbers in [-1, 1]."""
    return math.sqrt(float(np.abs(form).sum())) * (1 + 1e-12)


class _Lags:
    def __init__(self, model: Matrices, sizes: Array) -> None:
        self.nx, self.nv, self.nu, _ = model.sizes
        self.sizes, self.family = sizes, SlopeMultiplier(self.nv)
        drive = {name: getattr(model, name) * sizes for name in ("B2", "D12", "D22")}
        self.scaled = replace(model, **drive, error=None)
        self.F = np.vstack(signal_maps(model, True))
        self.error = None if model.error is None else np.vstack(signal_maps(model.error, True, eye=0.0))

    def tail(self, metric: Candidate) -> float | None:
        """Return g of one step into a metric."""
        form = self.F[self.nx : 2 * self.nx]
        N = self.F[2 * self.nx : 2 * (self.nx + self.nv)]
        H = form.T @ metric.P @ form + N.T @ self.family.matrix(metric.theta) @ N
        w, e = slice(self.nx, self.nx + self.nv), slice(self.nx + self.nv, None)
        try:
            worst = scipy.linalg.cho_solve(scipy.linalg.cho_factor(-H[w, w]), H[w, e]) if self.nv else H[w, e]
        except np.linalg.LinAlgError:
            return None
        drive = (H[e, e] + H[e, w] @ worst) * np.outer(self.sizes, self.sizes)
        for room in _ROOMS:
            found = 0.5 * (1 + room) * (drive + drive.T)
            found += room * np.diag(np.abs(np.diagonal(drive)) + np.abs(drive).max())
            if self.holds(False, metric.P, metric.theta, None, found):
                return _largest(found)
        return None

    def over(self, P: Array, metric: Array) -> float | None:
        """Return c with P <= c metric, proven."""
        least = float(scipy.linalg.eigh(P, metric, eigvals_only=True)[-1])
        for room in _ROOMS:
            c = least * (1 + room) + 1e-300
            if prove_positive(np.eye(self.nx), c * metric - P).holds:
                return c * (1 + 1e-12)
        return None

    def holds(self, first: bool, P: Array, theta: Array, left: Array | None, right: Array | None) -> bool:
        """Return whether the inequality is proven with the form of x, or the one of e / sizes, on its right."""
        nx, nu = self.nx, self.nu
        before = np.zeros((nx, nx)) if left is None else left
        drive = np.zeros((nu, nu)) if right is None else right / np.outer(self.sizes, self.sizes)
        output = np.array([[-1.0 if first else 0.0]])
        blocks = [before, -P, -self.family.matrix(theta), output, drive]
        K = np.asarray(scipy.linalg.block_diag(*(block for block in blocks if block.size)))
        columns = slice(None, nx + self.nv) if right is None else slice(nx, None)
        error = None if self.error is None else self.error[:, columns]
        return prove_positive(self.F[:, columns], K, error).holds
