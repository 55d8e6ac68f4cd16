"""What an error of bounded size at every step can do to an output at any step, for ever: an ellipsoid that holds it.

With increments of a system around neurons of slopes in [0, 1], equal states at first and |u_l| <= units_l at every
step, for some mu = rate^2 < 1, P > 0, r, s >= 0 and multipliers with N_L = 2 sum L_k w_k (v_k - w_k) >= 0

    M1 = mu x'Px - x+'P x+ + sum r_l (u_l / units_l)^2 - N_L1  >= 0
    M2 = x'Px + sum s_l (u_l / units_l)^2 - y_i^2 - N_L2       >= 0

give V+ <= mu V + sum r, so V = x'Px never exceeds a = sum r / (1 - mu), and then |y_i| <= sqrt(a + sum s) at every
step. A system without a state has M2 alone, with a = 0: LipSDP for the largest entry. Both forms are the F' K F that
`lmi` proves with its rounding allowed for; the search over P, r, s, L for a given mu is convex, and mu is searched on a
line.

Sources: J. Abedor, K. Nagpal and K. Poolla, "A linear matrix inequality approach to peak-to-peak gain minimization",
Int. J. Robust and Nonlinear Control 6 (1996), for the ellipsoid; M. Fazlyab et al. (LipSDP, NeurIPS 2019) for N.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy

from robust_policies.certificates import kept
from robust_policies.certificates.decay import least_decay
from robust_policies.certificates.lmi import Array, Matrices, assemble, prove_positive
from robust_policies.certificates.multipliers import SlopeMultiplier, admissible
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.optimum import Candidate, PeakCandidate, least_peak
from robust_policies.certificates.riccati import recover_metric
from robust_policies.certificates.search import Search

METHOD = "invariant ellipsoid with a multiplier for each neuron, rounding-error bound"
METHOD_MEMORYLESS = "LipSDP for the largest entry, rounding-error bound"
# Shares of the way from 1 to the least mu, on a logarithmic scale; then how often the best one is refined.
_SHARES = (0.8, 0.5, 0.3, 0.15, 0.05)
_REFINED, _SMALL, _FINE = (2, 14), 60, 1.01
# More variables than this take minutes.
MOST = 420
# Relative gaps of the search on the line, and of what is then proven.
_NEAR, _LAST = (3e-2, 1e-3), (1e-4, 1e-6)
# Of the Riccati equation, the larger the better to start from.
_SLACKS = (0.3, 0.1, 1e-2, 1e-4, 1e-6)
_PARTS = ("rate", "P", "theta1", "r", "theta2", "s")
_LIFTS = (1.0, 1 + 1e-7, 1 + 1e-5, 1 + 1e-3)


def peak_bounds(neurons: Neurons, units: Array, P: Array | None = None) -> Array | None:
    """Return (ny,) how far each output may differ at any step, None where there is no proof of it.

    Args:
        neurons: the system, with multipliers to start from.
        units: (nu,) how far each input may differ at every step, > 0.
        P: (nx, nx) a metric in which the system is contracting, a hint.
    """
    model, family, theta = neurons.model, neurons.family, neurons.theta
    nx, nv, nu, ny = model.sizes
    if nx * (nx + 1) // 2 + 2 * (nv + nu) > MOST or not np.isfinite(theta).all():
        return None
    key = kept.asked("peak", model, theta, units)
    again = _again(key, neurons, units)
    if again is not None:
        return again
    metric, least = np.zeros((0, 0)), 0.0
    proofs: dict[str, Array] = {}
    if nx:
        known = _contraction(neurons, P)
        if known is None:
            return None
        least, metric = known
        # In these coordinates the metric to start from is the identity; gains do not depend on them.
        balanced = Search(model, family, 1.0).balanced(metric)
        if balanced is not None:
            proofs["metric"], model, metric = metric, balanced.model, np.eye(nx)
    start = Candidate(metric, theta)
    bounds, share = [], None
    for output in range(ny):
        if not any(getattr(model, name)[output].any() for name in ("C2", "D21", "D22")) and _exact_row(model, output):
            bounds.append(0.0)
            continue
        line = _Line(model, family, output, units, start, least)
        bound, share, found = line.least(share)
        if bound is None or found is None:
            return None
        bounds.append(bound)
        proofs |= {f"{output}.{name}": getattr(found, name) for name in _PARTS}
    kept.keep(key, proofs)
    return np.array(bounds)


def _again(key: str, neurons: Neurons, units: Array) -> Array | None:
    """Return the bounds (ny,) that what is kept of an earlier search proves, None where it does not prove them all."""
    model, family = neurons.model, neurons.family
    nx, _, nu, ny = model.sizes
    zeros = [not any(getattr(model, name)[i].any() for name in ("C2", "D21", "D22")) for i in range(ny)]
    sizes = dict(zip(_PARTS, ((), (nx, nx), (family.size,), (nu,), (family.size,), (nu,)), strict=True))
    wanted = {f"{i}.{name}": size for i in range(ny) if not zeros[i] for name, size in sizes.items()}
    part = kept.known(key, wanted)
    if part is None or not wanted or any(zero and not _exact_row(model, i) for i, zero in enumerate(zeros)):
        return None
    if "metric" in part:
        metric = part["metric"]
        balanced = Search(model, family, 1.0).balanced(metric) if metric.shape == (nx, nx) else None
        if balanced is None:
            return None
        model = balanced.model
    bounds = []
    for output in range(ny):
        arrays = [] if zeros[output] else [part[f"{output}.{name}"] for name in _PARTS]
        found = PeakCandidate(float(arrays[0]), *arrays[1:]) if arrays else None
        bound = 0.0 if found is None else proven_peak(model, family, output, units, found)
        if bound is None:
            return None
        bounds.append(bound)
    kept.keep(key, part)
    return np.array(bounds)


def _exact_row(model: Matrices, output: int) -> bool:
    return model.error is None or not any(getattr(model.error, name)[output].any() for name in ("C2", "D21", "D22"))


def _contraction(neurons: Neurons, P: Array | None) -> tuple[float, Array] | None:
    """Return a rate near the least one below 1 in whose metric, the second, the system contracts, or None."""
    if not neurons.family.size:
        least = float(np.abs(np.linalg.eigvals(neurons.model.A)).max())
        metric = metric_at(neurons.model, neurons.family, neurons.theta, 0.5 * (1 + least)) if least < 1 else None
        return None if metric is None else (least, metric)
    decay = least_decay(Search(neurons.model, neurons.family, 1.0), neurons.theta, [] if P is None else [P])
    return None if decay is None else (decay.rate, decay.metric)


def metric_at(model: Matrices, family: SlopeMultiplier, theta: Array, rate: float, slack: float = 1e-6) -> Array | None:
    """Return a metric (nx, nx) in which the system contracts with this rate, None where none is found."""
    if family.size:
        return recover_metric(model, rate, family.matrix(theta), None, slack)
    found = scipy.linalg.solve_discrete_lyapunov(model.A.T / rate, np.eye(len(model.A)))
    return found if np.isfinite(found).all() and np.linalg.eigvalsh(found)[0] > 0 else None


def proven_peak(
    model: Matrices, family: SlopeMultiplier, output: int, units: Array, found: PeakCandidate
) -> float | None:
    """Return the bound of one output that a candidate proves for the exact matrices, None where it proves none.

    `units` (nu,) is how far each input may differ at every step.
    """
    nx, _, _, ny = model.sizes
    for lift in _LIFTS:
        r, s = lift * found.r, lift * found.s
        if not (admissible(family, found.theta1) and admissible(family, found.theta2)):
            return None
        if not (np.isfinite([*r, *s]).all() and (r >= 0).all() and (s >= 0).all()):
            return None
        shape = np.zeros((ny, ny))
        supply = np.asarray(scipy.linalg.block_diag(shape, np.diag(r / np.square(units))))
        F, first, error = assemble(model, found.P, found.rate, family.matrix(found.theta1), supply)
        shape[output, output] = -1.0
        blocks = [found.P, np.zeros((nx, nx)), -family.matrix(found.theta2), shape, np.diag(s / np.square(units))]
        second = np.asarray(scipy.linalg.block_diag(*(block for block in blocks if block.size)))
        level = 0.0
        if nx:
            left = 1.0 - found.rate * found.rate - 4e-16
            held = prove_positive(np.eye(nx), found.P).holds and prove_positive(F, first, error).holds
            if not held or left <= 0:
                continue
            level = float(r.sum()) / left
        if prove_positive(F, second, error).holds:
            # Sums, a quotient and a root, each of which rounds by less than 1e-15 a term.
            return math.sqrt(level + float(s.sum())) * (1 + 1e-12)
    return None


class _Line:
    """The bound of one output as a function of mu."""

    def __init__(
        self, model: Matrices, family: SlopeMultiplier, output: int, units: Array, start: Candidate, least: float
    ) -> None:
        self.model, self.family, self.output, self.units = model, family, output, units
        self.start, self.slow = start, 1.0 - least * least
        self.found: dict[float, PeakCandidate] = {}
        nx, nv, _, _ = model.sizes
        self.small = nx * (nx + 1) // 2 + nv <= _SMALL

    def at(self, share: float) -> float:
        """Return nearly the least bound with 1 - mu this share of the largest, infinity without one; nothing proven."""
        rate = math.sqrt(1.0 - share * self.slow)
        slower = [other for other in self.found if other > share]
        # What holds for a smaller mu holds for this one, with some room.
        starts: list[Any] = [self.found[min(slower)]] if slower else []
        if not starts:
            slacks = _SLACKS if self.model.A.size and self.family.size else ()
            metrics = [metric_at(self.model, self.family, self.start.theta, rate, slack) for slack in slacks]
            starts = [Candidate(metric, self.start.theta) for metric in metrics if metric is not None]
        for start in (*starts, self.start):
            found = least_peak(self.model, self.family, rate, self.output, self.units, start, _NEAR[self.small])
            if found is not None:
                self.found[share] = found
                return found.bound
        return math.inf

    def proven(self, share: float) -> tuple[float | None, PeakCandidate | None]:
        """Return the bound that is proven there, and by what."""
        near = self.found[share]
        for gap in (_LAST[self.small], 1e-3, _NEAR[0]):
            found = least_peak(self.model, self.family, near.rate, self.output, self.units, near, gap)
            bound = None if found is None else proven_peak(self.model, self.family, self.output, self.units, found)
            if bound is not None:
                return bound, found
        return None, None

    def least(self, near: float | None) -> tuple[float | None, float | None, PeakCandidate | None]:
        """Return the least bound found, its share and what proves it; `near` is where another output had its own."""
        if not self.model.A.size:
            bound, found = self.proven(0.0) if math.isfinite(self.at(0.0)) else (None, None)
            return bound, None, found
        shares = _SHARES if near is None else (near * 1.5, near, near / 1.5)
        values = {share: self.at(share) for share in shares if share < 1}
        for _ in range(_REFINED[self.small]):
            best = min(values, key=lambda share: values[share])
            if not math.isfinite(values[best]):
                return None, None, None
            share = _between(best, sorted(values))
            values[share] = self.at(share)
            if max(share / best, best / share) < _FINE:
                break
        best = min(values, key=lambda share: values[share])
        bound, found = self.proven(best) if math.isfinite(values[best]) else (None, None)
        return bound, best, found


def _between(best: float, known: list[float]) -> float:
    """Return the middle, on a logarithmic scale, of the wider of the two gaps beside the best."""
    place = known.index(best)
    below = known[place - 1] if place else best / 2
    above = known[place + 1] if place + 1 < len(known) else min(2 * best, 0.5 * (1 + best))
    return math.sqrt(best * (below if best / below > above / best else above))
