"""How far inputs of bounded size can move a signal of a system around neurons by each step.

In increments from equal states, with multipliers mu_k >= 0 of the inputs' groups and theta_k >= 0 of the neurons, one
for each lag k before the step at which the signal y is looked at,

    2 y_t  <=  kappa_t + sum_(k <= t) mu_k |d_(t-k)|^2,
    kappa_t  the supremum over all (w, d) of  2 y_t - sum mu_k |d_(t-k)|^2 + N_theta_k,

by a recursion backwards from the step that is looked at, which is the same for all steps. Multiplied by any number the
multipliers stay feasible, so |y_t| <= sqrt(kappa_t sum mu_k |d|^2). Without neurons the least bound is the sum of the
absolute impulse response. The least one for the last step is searched by descent; its multipliers bound all steps. All
is float64 arithmetic, no proof of its rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import get_lapack_funcs

from robust_policies.certificates.descent import descend
from robust_policies.certificates.lmi import Array, signal_maps
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.optimum import Candidate
from robust_policies.certificates.trajectory import rated

_factor, _solve = get_lapack_funcs(("potrf", "potrs"), dtype=np.float64)
_ITERATIONS, _RATE = 40, 0.1
_SCALES, _STARTS = 4.0 ** np.arange(-2, 12), 4
_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class Reach:
    """Multipliers of one signal: kappa (steps,) and mu (steps, groups), theta (steps, nv), by lag."""

    kappa: Array
    mu: Array
    theta: Array

    def bound(self, sizes: Array, whole: bool = False) -> Array:
        """Return (steps,) how far the signal moves at most by each step.

        `sizes` (groups,) are those of the inputs' groups, at each step or, if `whole`, of all steps together.
        """
        spent = np.maximum.accumulate(self.mu) if whole else np.cumsum(self.mu, axis=0)
        return np.sqrt(np.maximum(self.kappa, 0.0) * (spent @ np.square(sizes)))

    def after(self, past: Array) -> Array:
        """Return (episodes,) how far one input moves the signal that was at most `past` (t, episodes) at t steps."""
        steps = len(past)
        return np.sqrt(max(float(self.kappa[steps]), 0.0) * (self.mu[steps:0:-1, 0] @ np.square(past)))


def reach_of(
    neurons: Neurons,
    steps: int,
    groups: Array,
    whole: bool = False,
    metrics: Iterable[tuple[float, Candidate]] | None = None,
) -> Reach | None:
    """Return how inputs reach the one signal of a system, None where no multipliers are found.

    Args:
        neurons: the system d (nd,) -> y (1,).
        steps: the number of lags.
        groups: (groups, nd) which inputs each group has; they count as much as one another.
        whole: whether the inputs are bounded together, and not step by step.
        metrics: rates and metrics to start from, which do not depend on the signal; None: those of `rated`.
    """
    model = neurons.model
    if not (model.C2.any() or model.D21.any() or model.D22.any()):
        return Reach(np.zeros(steps), np.ones((steps, len(groups))), np.zeros((steps, neurons.family.size)))
    dual = _Lags(neurons, steps, groups, whole)
    starts = dual.starts(neurons, rated(neurons) if metrics is None else metrics)
    if not starts:
        return None
    start = min(starts, key=dual.value)
    best = descend(dual.descent, start, _ITERATIONS, _RATE)
    mu, theta = dual.split(start if best is None else best)
    back = dual.backward(mu, theta)
    return None if back is None else Reach(back[0], mu, theta)


class _Lags:
    """The recursion over lags of one signal."""

    def __init__(self, neurons: Neurons, steps: int, groups: Array, whole: bool) -> None:
        model = neurons.model
        self.nx, self.nv, self.nd, _ = model.sizes
        F_x, F_r = signal_maps(model, True)
        self.F = F_x[self.nx :]
        v, w, y, _ = np.split(F_r, np.cumsum([self.nv, self.nv, 1]))
        self.y = y[0]
        self.a, self.b = neurons.family.pairs(v, w)[:2]
        self.steps, self.groups, self.whole = steps, groups, whole
        self.shape = (1 if whole else steps, len(groups))

    def split(self, logs: Array) -> tuple[Array, Array]:
        """Return mu (steps, groups) and theta (steps, nv) of their logarithms."""
        count = self.shape[0] * self.shape[1]
        mu = np.broadcast_to(np.exp(logs[:count]).reshape(self.shape), (self.steps, self.shape[1]))
        return mu, np.exp(logs[count:]).reshape(self.steps, self.nv)

    def starts(self, neurons: Neurons, metrics: Iterable[tuple[float, Candidate]]) -> list[Array]:
        """Return logarithms of feasible multipliers that fade as fast as the system contracts in some metric."""
        if not self.nv:
            # One step's sum is the same for all, so this is a start only.
            return [np.zeros(self.shape[0] * self.shape[1])]
        found, lags = [], np.arange(self.steps)
        for rate, candidate in metrics:
            theta = np.maximum(candidate.theta, _LEAST * max(float(candidate.theta.max(initial=0.0)), 1e-300))
            fade = np.maximum(rate ** (2.0 * lags), 1e-150)
            model = neurons.model
            drives = model.B2, model.B1 @ model.D12
            own = sum(np.einsum("ji,jk,ki->i", drive, candidate.P, drive) for drive in drives)
            own = self.groups @ (own + theta @ np.square(model.D12)) + _LEAST * float(theta.max())
            many = fade[:1] if self.whole else fade
            best = []
            for scale in _SCALES:
                logs = np.log(np.concatenate(((scale * many[:, None] * own).ravel(), (fade[:, None] * theta).ravel())))
                if np.isfinite(value := self.value(logs)):
                    best.append((value, logs))
            if best:
                found.append(min(best, key=lambda pair: pair[0])[1])
            if len(found) == _STARTS:
                break
        return found

    def value(self, logs: Array) -> float:
        """Return the logarithm of the square of the bound of the last step, infinity where there is none."""
        mu, theta = self.split(logs)
        back = self.backward(mu, theta)
        return np.inf if back is None or not back[0][-1] > 0 else float(np.log(back[0][-1]) + np.log(self._spent(mu)))

    def _spent(self, mu: Array) -> float:
        return float((mu[0] if self.whole else mu.sum(0)).sum())

    def backward(self, mu: Array, theta: Array) -> tuple[Array, list[Array], list[Array]] | None:
        """Return kappa (steps,), and for each lag K (nr, nx) and k (nr,) with the worst (w, d) at K x + k."""
        nx, inputs = self.nx, np.arange(len(self.y) - self.nd, len(self.y))
        P, p, kappa = np.zeros((nx, nx)), np.zeros(nx), np.zeros(self.steps)
        gains, offsets, total = [], [], 0.0
        for lag in range(self.steps):
            N = (self.a * theta[lag][:, None]).T @ self.b
            H = N + N.T + self.F.T @ (P @ self.F)
            H[inputs, inputs] -= mu[lag] @ self.groups
            drive = p @ self.F if lag else self.y
            factor, failed = _factor(-H[nx:, nx:], lower=1)
            if failed:
                return None
            solved, _ = _solve(factor, np.column_stack((H[nx:, :nx], drive[nx:])), lower=1)
            gains.append(solved[:, :nx])
            offsets.append(solved[:, nx])
            total += float(drive[nx:] @ offsets[-1])
            kappa[lag] = total
            p = drive[:nx] + offsets[-1] @ H[nx:, :nx]
            P = H[:nx, :nx] + H[:nx, nx:] @ gains[-1]
            P = 0.5 * (P + P.T)
            if not (np.isfinite(P).all() and np.isfinite(total)):
                return None
        return kappa, gains, offsets

    def descent(self, logs: Array) -> tuple[float, Array] | None:
        """Return the value and its gradient."""
        mu, theta = self.split(logs)
        back = self.backward(mu, theta)
        if back is None or not back[0][-1] > 0:
            return None
        kappa, gains, offsets = back
        x, squares, forms = np.zeros(self.nx), np.empty_like(mu), np.empty_like(theta)
        for lag in range(self.steps - 1, -1, -1):
            path = np.concatenate((x, gains[lag] @ x + offsets[lag]))
            forms[lag] = 2.0 * (self.a @ path) * (self.b @ path)
            squares[lag] = self.groups @ np.square(path[len(path) - self.nd :])
            x = self.F @ path
        if self.whole:
            mu, squares = mu[:1], squares.sum(0, keepdims=True)
        spent = self._spent(mu)
        slope = np.concatenate(
            ((mu * (1.0 / spent - squares / kappa[-1])).ravel(), (theta * forms / kappa[-1]).ravel())
        )
        return float(np.log(kappa[-1]) + np.log(spent)), slope
