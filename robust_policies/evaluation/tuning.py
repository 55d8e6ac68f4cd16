"""Attacks tuned on episodes that are not reported, and the size at which a share of the return is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from robust_policies.errors import DivergedError
from robust_policies.evaluation.attacks import prepare_attack
from robust_policies.evaluation.attacks.names import OBSERVATION
from robust_policies.evaluation.bench import Bench, Part, finite, measurement, pooled_mean, recording
from robust_policies.evaluation.suite import AttackEntry

# Sizes played side by side in each round of the search for a critical size.
_POINTS = 7


class Choice(NamedTuple):
    """What an attacker with a budget does: a set of options at a size of at most the budget."""

    variant: int
    """Number of the set of options, -1: nothing."""
    index: int
    """Number of the size among those played."""
    mean: float
    """Mean return on the tuning episodes."""


def choose(means: Sequence[Sequence[float]], nominal: float) -> list[Choice]:
    """Return for each budget the set of options and the size up to the budget with the lowest mean return.

    An attacker may use less than the budget allows, or do nothing. Means that are not finite are never chosen.

    Args:
        means: (sets of options, sizes) mean returns on tuning episodes, sizes ascending.
        nominal: mean return of the same episodes without an attack.
    """
    # Without a nominal mean, doing nothing is no option, and any mean that is finite is better.
    best, chosen = Choice(-1, -1, nominal if np.isfinite(nominal) else float("inf")), []
    for index in range(len(means[0]) if means else 0):
        for variant, row in enumerate(means):
            # On a tie the larger size: it is what the budget is for.
            if np.isfinite(row[index]) and row[index] <= best.mean:
                best = Choice(variant, index, float(row[index]))
        chosen.append(best)
    return chosen


def measure_attack(
    bench: Bench, entry: AttackEntry, nominal: tuple[Part, Part], shown: Sequence[float]
) -> dict[str, Any]:
    """Return the measurements of an attack at its sizes, what was chosen on the tuning episodes, and trajectories.

    Args:
        bench: policy and task.
        entry: the attack.
        nominal: the reported and the tuning episodes without an attack.
        shown: sizes at which trajectories are kept.
    """
    sizes = [size for size in entry.sizes or bench.suite.sizes if size > 0]
    labels = {
        "group": "attack",
        "perturbation": entry.shown,
        "norm": entry.norm,
        "unit": OBSERVATION,
        "point": {},
    }
    played: list[tuple[Part, Part]] = []
    for variant in entry.tune if sizes else ():
        played.append(
            bench.play(
                entry.name, sizes, tuning=True, record=bench.suite.record, **attack_settings(bench, entry, variant)
            )
        )
    means = [[pooled_mean(tuned, i) for i in range(len(sizes))] for _, tuned in played]
    rows = [measurement(nominal[0], 0, **labels, attack="", size=0.0)]
    tuning, recordings = [], []
    base = pooled_mean(nominal[1], 0)
    for size, choice in zip(sizes, choose(means, base), strict=True):
        nothing = choice.variant < 0
        part, index = (nominal[0], 0) if nothing else (played[choice.variant][0], choice.index)
        options = {} if nothing else {**entry.options, **entry.tune[choice.variant]}
        used = 0.0 if nothing else sizes[choice.index]
        rows.append(measurement(part, index, **labels, attack="" if nothing else entry.name, size=size))
        tuning.append(
            {
                "perturbation": entry.shown,
                "norm": entry.norm,
                "size": size,
                "chosen": {**options, "size": used},
                "mean": finite(choice.mean),
                "nominal": finite(base),
                "seeds": list(bench.suite.tuning.seeds),
                "episodes": bench.suite.tuning.episodes,
            }
        )
        if bench.suite.record and any(abs(size - one) < 1e-12 for one in shown):
            recordings.append(
                {"perturbation": entry.shown, "norm": entry.norm, "size": size, "npz": recording(part, index)}
            )
    return {"rows": rows, "tuning": tuning, "recordings": recordings}


def attack_settings(bench: Bench, entry: AttackEntry, variant: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `run_episodes` for an attack, prepared on tuning seeds if it must be."""
    options = {**entry.options, **variant}
    prepared = prepare_attack(
        entry.name,
        bench.policy,
        bench.task,
        entry.norm,
        options,
        bench.suite.tuning.seeds,
        sizes=entry.sizes or bench.suite.sizes,
        episodes=bench.suite.tuning.episodes,
        env_kwargs=bench.env_kwargs,
        perturbations=bench.around,
    )
    return {"norm": entry.norm, "options": options, "prepared": prepared}


def measure_critical(bench: Bench, entry: AttackEntry, found: dict[str, Any]) -> dict[str, Any]:
    """Return the size at which the mean return under an attack falls below the suite's share of the nominal one.

    The options are those chosen on the tuning episodes for the first measured size below the threshold.

    Args:
        bench: policy and task.
        entry: the attack.
        found: what `measure_attack` returned.
    """
    critical, means = bench.suite.critical, {}
    for row in found["rows"]:
        values = [value for one in row["episodes"].values() for value in one["returns"]]
        means[row["size"]] = float(np.mean(values)) if None not in values else float("nan")
    nominal = means.pop(0.0)
    if not np.isfinite(nominal):
        raise DivergedError("Unperturbed episodes gave NaN or infinity; there is no return of which a share is left.")
    threshold = nominal - (1.0 - critical.level) * abs(nominal)
    result: dict[str, Any] = {
        "perturbation": entry.shown,
        "norm": entry.norm,
        "level": critical.level,
        "nominal": nominal,
        "threshold": threshold,
        "size": None,
        "low": max(means),
        "high": None,
        "evaluations": 0,
    }
    tolerance = critical.tolerance * max(means)
    low, high = 0.0, None
    for size, mean in means.items():
        if mean < threshold:
            high = size
            break
        low = size
    if high is None:
        return result
    chosen = next(one["chosen"] for one in found["tuning"] if one["size"] == high)
    settings = attack_settings(bench, entry, {k: v for k, v in chosen.items() if k != "size"})

    def mean_returns(sizes: Sequence[float]) -> list[float]:
        part, _ = bench.play(entry.name, sizes, **settings)
        return [pooled_mean(part, index) for index in range(len(sizes))]

    low, high, evaluations = bracket(mean_returns, threshold, low, high, tolerance)
    return {**result, "size": (low + high) / 2, "low": low, "high": high, "evaluations": evaluations}


def bracket(
    mean_returns: Callable[[Sequence[float]], Sequence[float]],
    threshold: float,
    low: float,
    high: float,
    tolerance: float,
    points: int = _POINTS,
) -> tuple[float, float, int]:
    """Return (low, high, sizes evaluated) with high - low <= tolerance, the return below `threshold` at high only.

    Repeated section at `points` equidistant sizes, which is bisection for one; several are played side by side in the
    time of one. Where the returns cross the threshold more than once, the first crossing seen is followed.

    Args:
        mean_returns: from sizes to mean returns; not finite counts as below the threshold.
        threshold: of the return.
        low: a size at which the return is at least the threshold.
        high: a larger size at which it is below.
        tolerance: width of the bracket to reach.
        points: number of sizes tried in each round.
    """
    evaluations = 0
    while high - low > tolerance:
        # No more than are needed to reach the tolerance in one round.
        count = min(points, max(1, int(np.ceil((high - low) / tolerance)) - 1))
        sizes = [float(size) for size in np.linspace(low, high, count + 2)[1:-1]]
        evaluations += count
        for size, value in zip(sizes, mean_returns(sizes), strict=True):
            if not value >= threshold:
                high = size
                break
            low = size
    return low, high, evaluations
