"""Statistics of returns: what is reported of them and how sure it is.

Scores are an array (training seeds, episodes), or a list of such arrays, one a stratum (a task, a condition). What
varies between repetitions of an experiment is the training seed, so the bootstrap resamples whole rows, in each stratum
on its own; with one training seed everywhere it can only resample episodes, and `Interval.over` says so. Two to four
training seeds are too few to resample: the ends are then the least and the largest seed's own value.
Source: R. Agarwal and others, "Deep reinforcement learning at the edge of the statistical precipice" (NeurIPS 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy

from robust_policies.errors import InvalidValueError, ShapeError

RESAMPLES = 2000
LEVEL = 0.95
SEEDS, EPISODES, RANGE = "training seeds", "episodes", "training seeds, least to largest"
# Resamples at once, and the largest number of draws that is kept for the next interval.
_BATCH, _KEPT = 200, 1_000_000
# The share that an interquartile mean leaves out at either end.
_CUT = 0.25
FEW = 5
"""From so many training seeds on an interval is one; below it is the range of the seeds."""


@dataclass(frozen=True)
class Interval:
    """A number and its 95% interval, or its range over few training seeds; `over` names what was resampled."""

    value: float
    low: float
    high: float
    over: str = SEEDS

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Profile:
    """The share of episodes whose score is above each threshold, and a pointwise 95% band or range; (thresholds,)."""

    thresholds: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over: str = SEEDS


def iqm(scores: Any, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the interquartile mean of all scores (the lowest and highest quarter left out), 95% stratified bootstrap.

    Args:
        scores: (training seeds, episodes), or a list of these, one a stratum; a vector is one training seed.
        resamples: of the bootstrap (percentile method).
        seed: of the bootstrap.

    Raises:
        ShapeError, InvalidValueError: no scores, more than two dimensions, or not all finite.
    """
    return _interval(scores, _trimmed_mean, resamples, seed, _trimmed)


def mean_interval(scores: Any, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the mean of all scores and its 95% stratified bootstrap interval; arguments and errors as `iqm`."""
    return _interval(scores, lambda pooled: pooled.mean(axis=-1), resamples, seed, _mean)


def optimality_gap(scores: Any, target: float, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return by how much scores fall short of `target` in the mean, those above it counting 0: mean max(0, target - s).

    Arguments and errors as `iqm`.
    """
    return _interval(scores, lambda pooled: np.maximum(target - pooled, 0.0).mean(axis=-1), resamples, seed)


def probability_of_improvement(a: Any, b: Any, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return P(A > B) + P(A = B) / 2 for the mean score of a training seed of each, with its 95% bootstrap interval.

    The Mann-Whitney statistic divided by its largest value. Single episodes are compared if both have one training
    seed only. Errors as `iqm`.

    Args:
        a: (training seeds of A, episodes).
        b: (training seeds of B, episodes).
        resamples: of the bootstrap (percentile method; A and B resampled on their own).
        seed: of the bootstrap.
    """
    first, second = _matrix(a), _matrix(b)
    single = len(first) == len(second) == 1
    x, y = (m[0] if single else m.mean(axis=1) for m in (first, second))

    def statistic(left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
        found = scipy.stats.mannwhitneyu(left, right, axis=axis, method="asymptotic")
        return found.statistic / (left.shape[axis] * right.shape[axis])

    low, high = _bootstrap((x, y), statistic, resamples, seed)
    return Interval(float(statistic(x, y)), float(low), float(high), EPISODES if single else SEEDS)


def performance_profile(scores: Any, thresholds: Any, *, resamples: int = RESAMPLES, seed: int = 0) -> Profile:
    """Return the share of episodes with a score above each threshold, with a pointwise 95% band; errors as `iqm`.

    Args:
        scores: (training seeds, episodes).
        thresholds: (n,) in the unit of the scores.
        resamples: of the bootstrap over training seeds.
        seed: of the bootstrap.
    """
    matrix = _matrix(scores)
    levels = np.asarray(thresholds, dtype=np.float64).ravel()
    above = matrix[:, :, None] > levels
    single = len(matrix) == 1
    shares = above[0].astype(np.float64) if single else above.mean(axis=1)
    if 1 < len(matrix) < FEW:
        return Profile(levels, shares.mean(axis=0), shares.min(axis=0), shares.max(axis=0), RANGE)
    low, high = _bootstrap((shares,), lambda sample, axis=-1: sample.mean(axis=axis), resamples, seed, axis=0)
    return Profile(levels, shares.mean(axis=0), low, high, EPISODES if single else SEEDS)


def cvar(values: Any, fraction: float = 0.1) -> float:
    """Return the mean of the worst (lowest) `fraction` of the values, the conditional value at risk.

    n values weigh 1/n each; a value on the edge counts with the part of its weight that is inside.
    Raises InvalidValueError, ShapeError as `iqm`, and for a fraction outside (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise InvalidValueError(f"fraction is {fraction!r}; expected a number above 0 and at most 1.")
    ordered = np.sort(_matrix(values), axis=None)
    inside = fraction * ordered.size
    weights = np.clip(inside - np.arange(ordered.size), 0.0, 1.0)
    return float(weights @ ordered / inside)


def area_under_curve(sizes: Any, values: Any) -> Any:
    """Return the area under `values` (sizes, ...) over `sizes`, divided by the sizes' range: the mean over the sizes.

    Trapezoidal rule, sizes sorted first; a float for one curve, else an array (...).

    Raises:
        ShapeError: fewer than two sizes, or values of another number.
        InvalidValueError: two equal sizes, or numbers that are not finite.
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or y.shape[:1] != x.shape:
        raise ShapeError(f"sizes have shape {x.shape} and values {y.shape}; expected (n,) with n >= 2 and (n, ...).")
    order = np.argsort(x)
    x, y = x[order], y[order]
    if not np.isfinite(x).all() or not np.isfinite(y).all() or (np.diff(x) == 0).any():
        raise InvalidValueError("The curve has a size twice or numbers that are not finite; expected distinct sizes.")
    steps = np.diff(x).reshape(-1, *[1] * (y.ndim - 1))
    area = (steps * (y[1:] + y[:-1]) / 2).sum(axis=0) / (x[-1] - x[0])
    return float(area) if y.ndim == 1 else area


def tightness_ratio(found: float, proven: float) -> float:
    """Return the largest gain found divided by the proven bound, in [0, 1] if both are right.

    A low ratio means a loose bound or a weak search; which of the two it cannot tell.
    """
    if not (np.isfinite(found) and np.isfinite(proven) and found >= 0.0 and proven > 0.0):
        raise InvalidValueError(f"The gains are {found!r} (found) and {proven!r} (proven); expected finite, >= 0, > 0.")
    return float(found / proven)


def summary(values: Any, seed: int = 0) -> dict[str, float]:
    """Return {"mean", "low", "high"} of the episodes of one policy: the mean and its 95% bootstrap interval."""
    found = mean_interval(np.ravel(np.asarray(values, dtype=np.float64)), seed=seed)
    return {"mean": found.value, "low": found.low, "high": found.high}


def _matrix(scores: Any) -> np.ndarray:
    """Return scores as (training seeds, episodes); a vector is one training seed."""
    try:
        matrix = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ShapeError(
            f"The scores are not an array of numbers ({error}); expected (training seeds, episodes)."
        ) from error
    if matrix.ndim != 2 or matrix.size == 0:
        raise ShapeError(f"The scores have shape {matrix.shape}; expected (training seeds, episodes), some of each.")
    if not np.isfinite(matrix).all():
        count = int((~np.isfinite(matrix)).sum())
        raise InvalidValueError(f"{count} of {matrix.size} scores are NaN or infinite; expected finite numbers.")
    return matrix


def _interval(
    scores: Any,
    statistic: Callable[[np.ndarray], Any],
    resamples: int,
    seed: int,
    weighted: Callable[[list[np.ndarray]], Callable[[list[np.ndarray]], np.ndarray]] | None = None,
) -> Interval:
    """Return the statistic of all scores (it reduces the last axis) and its interval.

    `weighted` makes of the units of all strata, (units, scores) each, the statistic as a function of how often each
    was drawn, (resamples, units) for each stratum.
    """
    strata = [_matrix(s) for s in scores] if _several(scores) else [_matrix(scores)]
    single = all(len(matrix) == 1 for matrix in strata)
    if len(strata) == 1 and 1 < len(strata[0]) < FEW:
        own = statistic(strata[0])
        return Interval(float(statistic(strata[0].ravel())), float(own.min()), float(own.max()), RANGE)
    # Rows of a stratum are what is resampled: training seeds, or the episodes of the only one.
    units = [matrix.T if single else matrix for matrix in strata]
    value = float(statistic(np.concatenate([matrix.ravel() for matrix in strata])))

    sizes = tuple(map(len, units))
    if weighted is not None and max(sizes) > 1:
        mean, drawn = weighted(units), _kept(_counted, sizes, resamples)
        low, high = _ends(np.concatenate([mean(counts) for counts in drawn(sizes, resamples, seed)]))
        return Interval(value, float(low), float(high), EPISODES if single else SEEDS)

    def resampled(*rows: np.ndarray, axis: int = -1) -> np.ndarray:
        # A stratum of one row was doubled and must not weigh twice.
        drawn = [row[..., : len(unit)] for unit, row in zip(units, rows, strict=True)]
        chosen = [unit[row] for unit, row in zip(units, drawn, strict=True)]
        return statistic(np.concatenate([c.reshape(*c.shape[:-2], -1) for c in chosen], axis=-1))

    rows = tuple(np.arange(len(unit)) for unit in units)
    low, high = _bootstrap(rows, resampled, resamples, seed)
    return Interval(value, float(low), float(high), EPISODES if single else SEEDS)


def _trimmed_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without its lowest and highest `_CUT`."""
    count = scores.shape[-1]
    low = int(_CUT * count)
    return np.partition(scores, (low, count - low - 1), axis=-1)[..., low : count - low].mean(axis=-1)


def _counts(drawn: np.ndarray) -> np.ndarray:
    """Return how often each of n units is in each resample (resamples, n) of n."""
    count, size = drawn.shape
    places = drawn + size * np.arange(count)[:, None]
    return np.bincount(places.ravel(), minlength=count * size).reshape(count, size)


def _mean(units: list[np.ndarray]) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Return the mean of what was drawn, from how often each unit was."""
    sums, number = [unit.sum(axis=1) for unit in units], sum(unit.size for unit in units)
    return lambda counts: np.sum([count @ own for count, own in zip(counts, sums, strict=True)], axis=0) / number


def _trimmed(units: list[np.ndarray]) -> Callable[[list[np.ndarray]], np.ndarray]:
    """Return the mean without the lowest and highest `_CUT` of what was drawn, from how often each unit was.

    All scores are sorted once, and cut into buckets: how many drawn scores are below the end of a bucket, and their
    sum, are products with the counts, and only the two buckets in which a resample's quarters end are looked at score
    by score.
    """
    scores, number = np.concatenate([unit.ravel() for unit in units]), sum(map(len, units))
    owner = np.repeat(np.arange(number), np.concatenate([np.full(len(unit), unit.shape[1]) for unit in units]))
    order = np.argsort(scores, kind="stable")
    width = max(1, math.isqrt(len(scores)) // 2)
    buckets = -(-len(scores) // width)
    # What is beyond the last score belongs to a unit that is never drawn.
    empty = buckets * width - len(scores)
    ordered = np.pad(scores[order], (0, empty), mode="edge").reshape(buckets, width)
    owners = np.pad(owner[order], (0, empty), constant_values=number).reshape(buckets, width)
    held, sums = np.zeros((2, number + 1, buckets + 1))
    np.add.at(held, (owners, np.arange(1, buckets + 1)[:, None]), 1.0)
    np.add.at(sums, (owners, np.arange(1, buckets + 1)[:, None]), ordered)
    # Of each unit, below the beginning of each bucket and in all; the steps from score to score within each.
    held, below = np.cumsum(held, axis=1), np.ascontiguousarray(np.cumsum(sums, axis=1).T)
    last, rises = ordered[:, -1], np.diff(ordered, axis=1, append=ordered[:, -1:])
    low = int(_CUT * len(scores))

    def lowest(count: int) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function of what was drawn: the sum of the `count` lowest scores of each resample."""
        # Between these buckets the lowest end in the resamples so far.
        span = [0, buckets]

        def of(drawn: np.ndarray) -> np.ndarray:
            first, final = span
            ranks = drawn @ held[:, first : final + 1]
            if (ranks[:, 0] >= count).any() or (ranks[:, -1] < count).any():
                first, ranks = 0, drawn @ held
            place = np.maximum((ranks < count).sum(axis=1) - 1, 0)
            rows = np.arange(len(drawn))
            left, place = count - ranks[rows, place], place + first
            known = (int(place.min()), int(place.max()) + 1)
            span[:] = known if span == [0, buckets] else (min(span[0], known[0]), max(span[1], known[1]))
            here = np.cumsum(drawn.ravel()[owners[place] + drawn.shape[1] * rows[:, None]], axis=1)
            taken = np.minimum(here, left[:, None], out=here)
            inside = left * last[place] - np.einsum("ij,ij->i", taken, rises[place])
            return np.einsum("ij,ij->i", drawn, below[place]) + inside

        return of

    lower, upper = lowest(low), lowest(len(scores) - low)

    def mean(counts: list[np.ndarray]) -> np.ndarray:
        drawn = np.concatenate([*counts, np.zeros((len(counts[0]), 1))], axis=1)
        return (upper(drawn) - lower(drawn)) / (len(scores) - 2 * low)

    return mean


def _several(scores: Any) -> bool:
    """Whether scores are a list of strata, matrices each, and not one matrix given as lists."""
    return isinstance(scores, Sequence) and len(scores) > 0 and all(np.ndim(stratum) == 2 for stratum in scores)


def _bootstrap(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., Any], resamples: int, seed: int, axis: int = -1
) -> tuple[Any, Any]:
    """Return the ends of the 95% percentile interval; a sample of one varies by nothing."""
    if all(sample.shape[axis] == 1 for sample in samples):
        value = statistic(*samples, axis=axis)
        return value, value
    # A sample of one is drawn from twice, the same for means and ranks alike.
    padded = [np.repeat(s, 2, axis=axis) if s.shape[axis] == 1 else s for s in samples]
    ordered = [np.moveaxis(sample, axis, -1) for sample in padded]
    sizes = tuple(sample.shape[-1] for sample in ordered)
    found = [
        statistic(*(sample[..., rows] for sample, rows in zip(ordered, batch, strict=True)), axis=-1)
        for batch in _kept(_draws, sizes, resamples)(sizes, resamples, seed)
    ]
    return _ends(np.concatenate(found, axis=-1))


def _ends(values: np.ndarray) -> tuple[Any, Any]:
    """Return the ends of the 95% percentile interval of values (..., n)."""
    ordered = np.sort(values, axis=-1)
    return tuple(_quantile(ordered, share) for share in ((1.0 - LEVEL) / 2, 1.0 - (1.0 - LEVEL) / 2))


def _kept(drawing: Any, sizes: tuple[int, ...], resamples: int) -> Callable[..., list[Any]]:
    """Return a function with a cache, without the cache where it would keep too much."""
    return drawing if resamples * sum(sizes) <= _KEPT else drawing.__wrapped__


def _quantile(values: np.ndarray, share: float) -> Any:
    """Return the quantile of sorted values (..., n), between two of them by their distance."""
    place = share * values.shape[-1] + (1.0 - share) - 1.0
    below = int(place)
    part = place - below
    return (1.0 - part) * values[..., below] + part * values[..., min(below + 1, values.shape[-1] - 1)]


@lru_cache(maxsize=8)
def _draws(sizes: tuple[int, ...], resamples: int, seed: int) -> list[tuple[np.ndarray, ...]]:
    """Return in batches which units are drawn, (resamples in the batch, units) for each of the samples."""
    generator = np.random.default_rng(seed)
    batches = [min(_BATCH, resamples - first) for first in range(0, resamples, _BATCH)]
    return [tuple(generator.integers(0, size, (count, size)) for size in sizes) for count in batches]


@lru_cache(maxsize=8)
def _counted(sizes: tuple[int, ...], resamples: int, seed: int) -> list[list[np.ndarray]]:
    """Return in batches how often each unit is drawn, (resamples in the batch, units) of each stratum."""
    # Of one unit two are drawn, the same for means and ranks alike, and one is counted.
    drawn = _draws.__wrapped__(tuple(max(size, 2) for size in sizes), resamples, seed)
    return [[_counts(rows[:, :size] % size) for rows, size in zip(batch, sizes, strict=True)] for batch in drawn]
