"""What one step of an input can still do to a signal k steps later: a system around neurons, lag by lag.

From equal states, inputs that differ in one step alone, by e, change the signal k steps later by at most a_k |e|. With
N_theta >= 0 for every admissible pair of neurons, y the signal and a multiplier for each lag,

    H_0 = y'y + N_theta_0,    H_k = F' P_(k-1) F + N_theta_k   on (x, w, e),

P_k is H_k with the worst w put in (H_ww < 0), on x, and a_k^2 the same on e. Two inputs that differ at many steps are
joined by inputs that differ in one step each, so that |y_t - y'_t| <= sum_k a_k |e_(t-k)|. Where no neuron sees the
input a_k is the impulse response. Any multipliers give a bound; lag by lag those are taken that make P_k small where
the input drives the state, which is convex in theta_k, by Newton's method. All is float64 arithmetic, no proof of its
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy

from robust_policies.certificates.lmi import Array, Matrices, signal_maps
from robust_policies.certificates.multipliers import SlopeMultiplier
from robust_policies.certificates.neurons import Neurons

# Of Newton's method: points at the first lag and at the others, the longest step of a logarithm, and when it ends.
_FIRST, _LATER, _LONGEST, _ENOUGH = 40, 4, 2.0, 1e-3
_HALVINGS, _DOUBLINGS = 12, 60
_LEAST = 1e-12


def impulse_gains(neurons: Neurons, steps: int) -> Array:
    """Return a (steps, signals, nu) for each lag, signal and input of a system; infinite where nothing is found."""
    found = np.empty((steps, neurons.model.sizes[3], neurons.model.sizes[2]))
    for signal, row in enumerate(np.eye(neurons.model.sizes[3])):
        model = neurons.model.then(row[None])
        for place in range(model.sizes[2]):
            at = [place]
            one = replace(model, B2=model.B2[:, at], D12=model.D12[:, at], D22=model.D22[:, at], error=None)
            found[:, signal, place] = _Signal(one, neurons.theta).gains(steps)
    return found


def lag_forms(model: Matrices, theta: Array, room: float) -> Iterator[tuple[Array, Array]]:
    """Yield, lag by lag, multipliers (nv,) and the form (nx + nu, nx + nu) of (x, e) that they make for one output.

    With e = 0 the form of x bounds the output's square that many steps after the states differed by x, with x = 0 that
    of e the square after one step of inputs that differ by e. `theta` (nv,) is where to start. `room` is the share by
    which each form is larger than it need be, so that it can be proven.
    """
    yield from _Signal(replace(model, error=None), theta).lags(room)


def _room(form: Array, room: float) -> Array:
    diagonal = np.abs(np.diagonal(form))
    return room * form + np.diag(room * diagonal + 1e-3 * room * diagonal.max(initial=0.0) + 1e-300)


def _driven(model: Matrices) -> Array:
    """Return a root (nx, nx) of how far the inputs move the states, with the neurons as steep as they may be."""
    drive = model.B2 @ model.B2.T
    first = scipy.linalg.solve_discrete_lyapunov(model.A, drive)
    seen = np.maximum(np.einsum("ij,jk,ik->i", model.C1, first, model.C1), 0.0) + np.square(model.D12).sum(1)
    whole = scipy.linalg.solve_discrete_lyapunov(model.A, drive + (model.B1 * seen) @ model.B1.T)
    values, vectors = np.linalg.eigh(0.5 * (whole + whole.T))
    return vectors * np.sqrt(np.maximum(values, 0.0))


class _Lag(NamedTuple):
    """What multipliers make of a form: whole (nx + nu, nx + nu) without w, and the worst w (nv, nx + nu)."""

    whole: Array
    worst: Array
    curvature: Array


class _Signal:
    """One signal of a system u -> y, and multipliers theta (nv,) to start from."""

    def __init__(self, model: Matrices, theta: Array) -> None:
        self.nx, self.nv, self.nu, _ = model.sizes
        F_x, F_r = signal_maps(model, True)
        v, w, self.y, _ = np.split(F_r, np.cumsum([self.nv, self.nv, 1]))
        order = np.r_[0 : self.nx, self.nx + self.nv : F_x.shape[1], self.nx : self.nx + self.nv]
        # Variables are (x, e, w) from here on.
        self.F, self.y = F_x[self.nx :, order], self.y[:, order]
        a, b = SlopeMultiplier(self.nv).pairs(v, w)[:2]
        self.a, self.b = a[:, order], b[:, order]
        self.root = np.asarray(scipy.linalg.block_diag(_driven(model), np.eye(self.nu)))
        self.theta = np.maximum(theta, _LEAST * max(float(theta.max(initial=0.0)), 1e-300))

    def lags(self, room: float = 0.0) -> Iterator[tuple[Array, Array]]:
        """Yield theta_k (nv,) and, of its H_k with the worst w put in, the form of (x, e); ends where there is none."""
        form, theta, points = self.y.T @ self.y, self.theta, _FIRST
        while (best := self._least(form, theta, points)) is not None and np.isfinite(best[1]).all():
            theta, whole = best
            if room:
                for part in (slice(0, self.nx), slice(self.nx, None)):
                    whole[part, part] += _room(whole[part, part], room)
            yield theta, whole
            form, points = self.F.T @ (whole[: self.nx, : self.nx] @ self.F), _LATER

    def gains(self, steps: int) -> Array:
        """Return the gains (steps,) of one input, infinite from the lag on that has no multipliers."""
        found = np.full(steps, np.inf)
        for lag, (_, whole) in zip(range(steps), self.lags(), strict=False):
            found[lag] = np.sqrt(max(float(whole[-1, -1]), 0.0))
            if np.abs(whole[: self.nx, : self.nx]).max(initial=0.0) < 1e-280:
                found[lag + 1 :] = found[lag]
                break
        return found

    def _least(self, form: Array, theta: Array, points: int) -> tuple[Array, Array] | None:
        """Return multipliers of a small trace for a form, and what they make of it, None where there are none."""
        lag = self._lag(form, theta)
        for _ in range(_DOUBLINGS):
            if lag is not None:
                break
            theta = 2.0 * theta
            lag = self._lag(form, theta)
        if lag is None:
            return None
        if not self.nv:
            return theta, lag.whole
        weight = self._weight(lag.whole)
        value = self._trace(weight, lag.whole)
        for _ in range(points):
            step = self._newton(lag, theta, weight)
            for halving in range(_HALVINGS):
                tried = theta * np.exp(0.5**halving * step)
                after = self._lag(form, tried)
                if after is not None and (then := self._trace(weight, after.whole)) < value:
                    break
            else:
                break
            gained, value, theta, lag = value - then, then, tried, after
            if gained < _ENOUGH * value:
                break
        return theta, lag.whole

    def _weight(self, whole: Array) -> Array:
        """Return what each entry (nx + nu,) of the diagonal counts: states and inputs as much as one another."""
        diagonal = np.maximum(np.einsum("ij,ik,kj->j", self.root, whole, self.root), 0.0)
        parts = [diagonal[: self.nx], diagonal[self.nx :]]
        sums = [float(part.sum()) for part in parts]
        return np.concatenate(
            [np.full(len(part), 1.0 / max(total, 1e-300)) for part, total in zip(parts, sums, strict=True)]
        )

    def _trace(self, weight: Array, whole: Array) -> float:
        return float(weight @ np.einsum("ij,ik,kj->j", self.root, whole, self.root))

    def _lag(self, form: Array, theta: Array) -> _Lag | None:
        N = (self.a * theta[:, None]).T @ self.b
        H = form + N + N.T
        rest = self.nx + self.nu
        try:
            np.linalg.cholesky(-H[rest:, rest:])
        except np.linalg.LinAlgError:
            return None
        curvature = np.linalg.inv(-H[rest:, rest:])
        worst = curvature @ H[rest:, :rest]
        whole = H[:rest, :rest] + H[:rest, rest:] @ worst
        return _Lag(0.5 * (whole + whole.T), worst, 0.5 * (curvature + curvature.T))

    def _newton(self, lag: _Lag, theta: Array, weight: Array) -> Array:
        """Return Newton's step for the logarithms of theta."""
        rest = self.nx + self.nu
        path = np.vstack((self.root, lag.worst @ self.root)) * np.sqrt(weight)
        along_a, along_b = self.a @ path, self.b @ path
        slope = 2.0 * (along_a * along_b).sum(1)
        # How each form's slope in w changes with its multiplier, summed over the paths.
        aw, bw = self.a[:, rest:], self.b[:, rest:]
        C = lag.curvature
        cross = (aw @ C @ aw.T) * (along_b @ along_b.T) + (bw @ C @ bw.T) * (along_a @ along_a.T)
        mixed = (aw @ C @ bw.T) * (along_b @ along_a.T)
        hessian = 2.0 * (cross + mixed + mixed.T)
        log_slope = theta * slope
        whole = theta[:, None] * hessian * theta + np.diag(np.abs(log_slope) + 1e-12 * np.abs(log_slope).max() + 1e-300)
        return np.clip(-np.linalg.solve(whole, log_slope), -_LONGEST, _LONGEST)
