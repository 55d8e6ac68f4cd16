"""The search for a proof of a loop around single neurons: contraction, and the least gain.

What it ends at is kept (`certificates.kept`) and proven again in place of another search. That it found nothing is kept
too, and believed: it says nothing of the loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from robust_policies.certificates import kept, optimum
from robust_policies.certificates.decay import Decay, least_decay
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.optimum import Candidate
from robust_policies.certificates.riccati import recover_metric
from robust_policies.certificates.search import Search
from robust_policies.control.norms import radius

# Entries of the metric and multipliers with which the interior-point method takes seconds; above it only the parts' own
# multipliers are tried.
MOST_VARIABLES = 800
# Of the blocks' multipliers, powers of ten; the rates that they are tried for, and a Riccati equation's slack.
_WEIGHTS = (0.0, 1.0, -1.0, 2.0, -2.0)
_RATES = (1.0, 1.5, 4.0)
_SLACK = 1e-6
# The search for a smaller rate ends after so many tries that failed, of a large loop (a try takes ten seconds) and of
# another one, or this close, as a difference of logarithms.
_FAILURES, _CLOSE = (2, 5), 0.01
# Relative distance from the least gain's square: nearer to it the path of a large loop loses its digits.
_GAP = 1e-4
# No larger gain is looked at, and no smaller multiplier: powers of two near it multiply without rounding.
_LARGEST, _SMALLEST = 1e9, 1e-60
_REASONS = (
    "",
    "contraction was found in floating point and could not be proven",
    "no metric and multipliers were found with which the loop contracts",
)


class Proven(NamedTuple):
    """The decay that is proven (None: nothing is, for this reason) and the gain, None where none is."""

    decay: Decay | None
    gain: float | None = None
    reason: str = ""


class _LeastGain(NamedTuple):
    """What proves a gain: in the coordinates where the metric of `start` is the identity, `best` with its gamma."""

    start: Candidate
    best: Candidate


def proven(loop: Neurons, blocks: Sequence[int]) -> Proven:
    """Return what a search proves of a loop, or what was kept of an earlier one.

    Args:
        loop: with multipliers to start from.
        blocks: how many neurons each block of it has; the multipliers of each are weighted against the others'.
    """
    if not (rho := radius(loop.model.A)) < 1.0:
        return Proven(None, reason=f"the loop without its neurons has spectral radius {rho:.6g}, not below 1")
    key = kept.asked("loop", loop.model)
    again = _again(key, loop)
    return _searched_for(key, loop, blocks, rho) if again is None else again


def _again(key: str, loop: Neurons) -> Proven | None:
    """Return what is kept of an earlier search: that it found nothing, or its proofs where they hold."""
    nx, nv = loop.model.sizes[:2]
    part = kept.known(key, {"reason": (), "metrics": (3, nx, nx), "multipliers": (3, nv), "gamma": ()})
    if part is None or part["reason"] not in range(len(_REASONS)):
        return None
    if reason := _REASONS[int(part["reason"])]:
        found = Proven(None, reason=reason)
    else:
        contracts, start, best = itertools.starmap(Candidate, zip(part["metrics"], part["multipliers"], strict=True))
        decay = least_decay(Search(loop.model, loop.family, 1.0), contracts.theta, [contracts.P])
        gamma = float(part["gamma"])
        if decay is None or (gamma and not _shows(loop, start, best, gamma)):
            return None
        found = Proven(decay, gamma or None)
    kept.keep(key, part)
    return found


def _shows(loop: Neurons, start: Candidate, best: Candidate, gamma: float) -> bool:
    """Return whether `best`, in the coordinates where the metric of `start` is the identity, proves a gain."""
    scaled = _Scaled.by(loop, start) if 0 < gamma < _LARGEST else None
    return scaled is not None and scaled.search(loop).at(best, gamma, 1.0) is not None


def _searched_for(key: str, loop: Neurons, blocks: Sequence[int], rho: float) -> Proven:
    found = _contracting(loop, blocks, rho)
    search = Search(loop.model, loop.family, 1.0)
    tried = ((one, least_decay(search, one.theta, [one.P])) for one in reversed(found))
    contracts, decay = next(((one, decay) for one, decay in tried if decay is not None), (None, None))
    gain = None if decay is None else _least_gain(loop, found)
    nx, nv = loop.model.sizes[:2]
    none = Candidate(np.zeros((nx, nx)), np.zeros(nv))
    parts = [one or none for one in (contracts, *(gain or (None, None)))]
    reason = 0 if decay is not None else 1 if found else 2
    arrays = {"metrics": [one.P for one in parts], "multipliers": [one.theta for one in parts]}
    gamma = None if gain is None else gain.best.gamma
    kept.keep(key, {**arrays, "reason": reason, "gamma": gamma or 0.0})
    return Proven(decay, gamma, _REASONS[reason])


def _contracting(loop: Neurons, blocks: Sequence[int], rho: float) -> list[Candidate]:
    """Return metrics and multipliers with which the loop seems to contract, the least rate last, [] if none are found.

    The parts' own multipliers, weighted against each other, give a metric in which the loop may even expand; from it
    the interior-point method goes to smaller rates.
    """
    best, reached = _weighted(loop, blocks)
    good = [best] if best is not None and reached <= 1.0 else []
    if not _searched(loop):
        return good
    if best is None:
        best, reached = optimum.contraction(loop.model, loop.family, 1.0), 1.0
        good = [] if best is None else [best]
    low, high, failed = math.log(max(rho, 1e-3)), math.log(reached), 0
    most = _FAILURES[optimum.small_enough(loop.model, loop.family)]
    while best is not None and failed < most and high - low > _CLOSE:
        # Down to 1 by halves, which the method can follow; then towards the least there may be.
        target = 0.5 * (high + low) if high <= 0.0 else 0.0 if high < 0.1 else 0.5 * high
        scaled = _Scaled.by(loop, best)
        found = None if scaled is None else optimum.contraction(scaled.model, loop.family, math.exp(target))
        if scaled is not None and found is not None:
            best, high = scaled.back(found), target
            good += [best] if target <= 0.0 else []
        elif target >= 0.0:
            return good
        else:
            low, failed = target, failed + 1
    return good


def _weighted(loop: Neurons, blocks: Sequence[int]) -> tuple[Candidate | None, float]:
    """Return the first of the multipliers with weights for each block that proves the least of some rates, and it."""
    exponents = sorted(itertools.product(_WEIGHTS, repeat=len(blocks) - 1), key=np.linalg.norm)
    weighted = [loop.theta * np.repeat(np.power(10.0, [*one, 0.0]), blocks) for one in exponents]
    for rate, theta in itertools.product(_RATES, weighted):
        if (P := _metric(loop, theta, rate)) is not None:
            return Candidate(P, theta), rate
    return None, math.inf


def _metric(loop: Neurons, theta: Array, rate: float) -> Array | None:
    """Return a metric that proves the rate with these multipliers, None where none is found."""
    inner = np.diag(theta) - theta[:, None] * loop.model.D11
    try:
        np.linalg.cholesky(inner + inner.T)
    except np.linalg.LinAlgError:
        return None
    P = recover_metric(loop.model, rate, loop.family.matrix(theta), None, _SLACK)
    shown = P is not None and Search(loop.model, loop.family, 1.0).prove(P, theta, rate, None).holds
    return P if shown else None


def _searched(loop: Neurons) -> bool:
    nx = loop.model.sizes[0]
    return nx * (nx + 1) // 2 + loop.family.size + 1 <= MOST_VARIABLES


class _Scaled(NamedTuple):
    """A loop in the state S x around neurons of d v and d w, d powers of two: those have slopes in [0, 1] too."""

    model: Matrices
    S: Array
    d: Array

    @classmethod
    def by(cls, loop: Neurons, candidate: Candidate) -> _Scaled | None:
        """Return the loop where a candidate's metric is the identity and its multipliers are near 1."""
        try:
            S = np.linalg.cholesky(candidate.P).T
        except np.linalg.LinAlgError:
            return None
        made = loop.model.in_coordinates(S)
        if made is None or made.error is None:
            return None
        theta = np.maximum(candidate.theta, 1e-12 * candidate.theta.max())
        if not _SMALLEST < theta.min() <= theta.max() < 1 / _SMALLEST:
            return None
        d = np.exp2(np.round(0.5 * np.log2(theta)))

        def scaled(one: Matrices) -> Matrices:
            # Without rounding.
            rows = {name: d[:, None] * getattr(one, name) for name in ("C1", "D12")}
            return replace(one, **rows, D11=d[:, None] * one.D11 / d, B1=one.B1 / d, D21=one.D21 / d)

        return cls(replace(scaled(made), error=scaled(made.error)), S, d)

    def search(self, loop: Neurons) -> Search:
        """Return the search of this for the loop that it is of."""
        return Search(self.model, loop.family, 1.0)

    def back(self, found: Candidate) -> Candidate:
        """Return what a candidate for this is for the loop."""
        P = self.S.T @ found.P @ self.S
        # A proof is one at every size.
        size = np.exp2(-np.round(np.log2(np.abs(P).max())))
        return Candidate(size * 0.5 * (P + P.T), size * found.theta * self.d**2)


def _least_gain(loop: Neurons, proofs: Sequence[Candidate]) -> _LeastGain | None:
    """Return what proves the least gain, from what proves contraction; None where none is proven."""
    starts: list[tuple[float, Search, Candidate, Candidate]] = []
    for one in proofs:
        if (scaled := _Scaled.by(loop, one)) is not None:
            search = scaled.search(loop)
            first = search.scaled(np.eye(len(one.P)), one.theta / scaled.d**2, 1.0, 1.0)
            if first is not None and first.gamma is not None:
                starts.append((first.gamma, search, first, one))
    if not starts:
        return None
    gamma, search, first, start = min(starts, key=lambda entry: entry[0])
    slack = Candidate(first.P * (1 + 1e-6), first.theta * (1 + 1e-6), 1.1 * gamma)
    best = None
    if _searched(loop):
        args = search.model, loop.family, 1.0, slack, search.inputs, search.outputs
        best = optimum.least_gain(*args, gap=_GAP)
    for candidate, gain in _tried([best, first]):
        if search.at(candidate, gain, 1.0) is not None:
            return _LeastGain(start, replace(candidate, gamma=gain))
    return None


def _tried(candidates: Sequence[Candidate | None]) -> Iterator[tuple[Candidate, float]]:
    """Yield candidates with the gains to prove of them, a little above their own."""
    for candidate, delta in itertools.product(candidates, (1e-7, 1e-5, 1e-3, 1e-1)):
        if candidate is not None and candidate.gamma is not None and 0 < candidate.gamma < _LARGEST:
            yield candidate, candidate.gamma * (1 + delta)
