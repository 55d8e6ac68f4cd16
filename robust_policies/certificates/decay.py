"""How fast a cell forgets what its state was: the smallest contraction rate that is proven, and what it is in steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from robust_policies.certificates import kept
from robust_policies.certificates.certificate import PERCENT
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.riccati import recover_metric
from robust_policies.certificates.search import ProvenRate, Search

# Of the Riccati equation: far above what rounding may take, far below what the resolution sees.
_SLACK = 1e-6
# No rate nearer to 1 is looked for.
_SLOWEST = 1e-9
# How finely 1 - rate is searched, relative.
_RESOLUTION = 0.02


class Decay:
    """Rates of contraction that are proven, the smallest one, and how soon a difference is all but forgotten.

    Args:
        proven: each with its metric.
    """

    def __init__(self, proven: Sequence[ProvenRate]) -> None:
        least = min(proven, key=lambda one: one.rate)
        self.rate, self.overshoot, self.metric = least.rate, least.overshoot, least.P
        steps = [(steps_to_forget(one.rate, one.overshoot), one) for one in proven]
        known = [(count, one) for count, one in steps if count is not None]
        self.steps, soonest = min(known, key=lambda pair: pair[0], default=(None, least))
        self.needed = [least, soonest]
        """What alone proves all of this."""


def steps_to_forget(rate: float, overshoot: float, percent: float = PERCENT) -> int | None:
    """Return the steps t after which overshoot * rate^t <= 1 - percent / 100, None for a rate of 1.

    The overshoot is counted: a difference may grow by that factor before it decays.
    """
    if not 0 < rate < 1:
        return None
    steps = math.log(overshoot / (1 - percent / 100)) / -math.log(rate)
    # Rounding of the logarithms, upwards.
    return max(1, math.ceil(steps * (1 + 1e-9) + 1e-9))


def least_decay(search: Search, theta: Array, metrics: Sequence[Array] = ()) -> Decay | None:
    """Return the decay with the smallest rate that a bisection proves, None where no rate below 1 is.

    Args:
        search: of the model; its own rate is not used.
        theta: (size,) the multiplier, which stays as it is.
        metrics: (nx, nx) each, known ones, tried where the Riccati equation gives none.

    Each rate is proven by the inequality with the metric that goes with it (`Search.prove`). A larger rate holds where
    a smaller one does, so 1 - rate is bisected, on a logarithmic scale, between the spectral radius of A, below which
    no rate holds, and 1. What is kept of an earlier bisection (`kept`) is proven in place of it.
    """
    key = kept.asked("decay", search.model, theta, *metrics)
    found = _again(key, search, theta)
    if found is None:
        found = _bisected(search, theta, metrics)
        if found is not None:
            rates, of = zip(*found.needed, strict=True)
            kept.keep(key, {"rates": rates, "metrics": of})
    return found


def _again(key: str, search: Search, theta: Array) -> Decay | None:
    """Return what is kept of an earlier bisection, if it is proven again."""
    nx = search.model.sizes[0]
    part = kept.known(key, {"rates": (2,), "metrics": (2, nx, nx)})
    if part is None:
        return None
    found = [ProvenRate(float(rate), P) for rate, P in zip(part["rates"], part["metrics"], strict=True)]
    if not all(0 < rate < 1 and (P == P.T).all() and search.prove(P, theta, rate, None).holds for rate, P in found):
        return None
    kept.keep(key, part)
    return Decay(found)


def _bisected(search: Search, theta: Array, metrics: Sequence[Array]) -> Decay | None:
    A = search.model.A
    radius = float(np.abs(np.linalg.eigvals(A)).max()) if A.size else 1.0
    if not math.isfinite(radius) or radius >= 1.0:
        return None
    proven: list[ProvenRate] = []
    low, high = math.log(_SLOWEST), math.log(min(1.0 - radius, 1.0 - 1e-6))
    while high - low > _RESOLUTION:
        middle = 0.5 * (low + high)
        found = _proven_at(search, theta, 1.0 - math.exp(middle), metrics)
        low, high = (low, middle) if found is None else (middle, high)
        proven += [] if found is None else [found]
    return Decay(proven) if proven else None


def _proven_at(search: Search, theta: Array, rate: float, metrics: Sequence[Array]) -> ProvenRate | None:
    """Return the rate with a metric of which it is proven, None where none is found."""
    recovered = recover_metric(search.model, rate, search.family.matrix(theta), None, _SLACK)
    for P in [*([] if recovered is None else [recovered]), *metrics]:
        if np.isfinite(P).all() and search.prove(P, theta, rate, None).holds:
            return ProvenRate(rate, 0.5 * (P + P.T))
    return None
