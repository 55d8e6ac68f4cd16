"""Runs grouped by method, and the statistics of a method over its training seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from robust_policies.evaluation.attacks.names import OBSERVATION
from robust_policies.evaluation.report.chart import Look
from robust_policies.evaluation.report.load import Array, Row, Run
from robust_policies.evaluation.statistics import FEW, area_under_curve, cvar, iqm
from robust_policies.train.run.folder import RunFolder

NORMS = ("per_step_l2", "per_step_linf", "total_l2")
NORM_WORDS = {
    "per_step_l2": "l2 norm of each step",
    "per_step_linf": "largest component of each step",
    "total_l2": "l2 norm of the whole sequence",
}
# What an evaluation calls the episodes in which nothing is perturbed.
UNPERTURBED = "none"
# Enough for two digits of an interval, and a report on a hundred policies needs a thousand intervals.
RESAMPLES = 1000


@dataclass(frozen=True)
class Condition:
    """What was done to the policy, apart from how much: one perturbation in one task."""

    task: str
    group: str
    perturbation: str
    norm: str


@dataclass(frozen=True)
class Curve:
    """Return against size, with the ends of its 95% interval; all (sizes,)."""

    sizes: Array
    value: Array
    low: Array
    high: Array


@dataclass
class Method:
    """Folders that differ by their training seed only; `index` decides colour and marker."""

    name: str
    index: int
    runs: list[Run]
    _intervals: dict[tuple[Condition, float, tuple[Any, ...]], tuple[float, float, float]] = field(default_factory=dict)

    @property
    def look(self) -> Look:
        """The look of this method in every picture."""
        return Look.of(self.index)

    @cached_property
    def _rows(self) -> dict[tuple[Condition, float, tuple[Any, ...]], dict[int, list[Row]]]:
        """Return {(condition, size, point): {number of the run: its rows by evaluation seed}}."""
        table: dict[tuple[Condition, float, tuple[Any, ...]], dict[int, list[Row]]] = {}
        for number, run in enumerate(self.runs):
            for row in [*run.rows, *_derived_worst(run)]:
                key = (Condition(row.task, row.group, row.perturbation, row.norm), row.size, row.point)
                table.setdefault(key, {}).setdefault(number, []).append(row)
        for found in table.values():
            for rows in found.values():
                rows.sort(key=lambda row: row.seed)
        return table

    @cached_property
    def conditions(self) -> list[Condition]:
        """All conditions that were measured, in the order of the rows."""
        return list(dict.fromkeys(condition for condition, _, _ in self._rows))

    @property
    def tasks(self) -> list[str]:
        """The tasks it was evaluated in."""
        return list(dict.fromkeys(condition.task for condition in self.conditions))

    def rows(self, condition: Condition, size: float, point: tuple[Any, ...] = ()) -> dict[int, list[Row]]:
        """Return {number of the training seed in `runs`: its rows}, without those that have none."""
        return self._rows.get((condition, size, point), {})

    def points(self, condition: Condition) -> dict[tuple[tuple[str, float], ...], float]:
        """Return {factors of the plant at which it was measured: the size written beside them}."""
        return {point: size for other, size, point in self._rows if other == condition and point}

    def matrix(self, condition: Condition, size: float, point: tuple[Any, ...] = ()) -> Array | None:
        """Return the returns, (training seeds, episodes), None if there are none.

        A seed with more episodes than another is shown by its first ones. Size 0 of an attack is any unperturbed row.
        """
        found = self.rows(condition, size, point)
        if not found and size == 0.0 and not point:
            return self.nominal(condition.task)
        if not found:
            return None
        values = [np.concatenate([row.returns for row in rows]) for rows in found.values()]
        episodes = min(map(len, values))
        return np.stack([value[:episodes] for value in values])

    def nominal(self, task: str) -> Array | None:
        """Return the unperturbed returns, (training seeds, episodes), None if there are none."""
        for condition, size, point in self._rows:
            if condition.task == task and size == 0.0 and not point and condition.group in ("noise", "attack", "worst"):
                return self.matrix(condition, size)
        return None

    def interval(self, condition: Condition, size: float, point: tuple[Any, ...] = ()) -> tuple[float, float, float]:
        """Return (interquartile mean, low, high): 95% over training seeds, over episodes where there is one seed."""
        key = (condition, size, point)
        if key not in self._intervals:
            matrix = self.matrix(condition, size, point)
            self._intervals[key] = (np.nan, np.nan, np.nan) if matrix is None else interval(matrix)
        return self._intervals[key]

    def sizes(self, condition: Condition) -> list[float]:
        """Return the sizes of a condition in order; size 0 is among those of noise and attacks."""
        sizes = {size for other, size, point in self._rows if other == condition and not point}
        if condition.group in ("noise", "attack", "worst") and sizes and self.nominal(condition.task) is not None:
            sizes.add(0.0)
        return sorted(sizes)

    def curve(self, condition: Condition) -> Curve | None:
        """Return return against size, None if the condition was not measured."""
        sizes = self.sizes(condition)
        if not sizes:
            return None
        found = np.array([self.interval(condition, size) for size in sizes])
        return Curve(np.array(sizes), found[:, 0], found[:, 1], found[:, 2])

    def seed_means(self, condition: Condition, size: float) -> dict[int, float]:
        """Return {number of the training seed: mean return over its episodes} at a size."""
        found = self.rows(condition, size)
        return {number: float(np.concatenate([r.returns for r in rows]).mean()) for number, rows in found.items()}

    def area(self, condition: Condition, up_to: float) -> float | None:
        """Return the mean return over sizes from 0 to `up_to`: the area under the curve over its width."""
        curve = self.curve(condition)
        if curve is None or up_to <= 0 or curve.sizes[0] > 0:
            return None
        keep = (curve.sizes <= up_to) & np.isfinite(curve.value)
        if keep.sum() < 2 or curve.sizes[keep][-1] != up_to:
            return None
        return float(area_under_curve(curve.sizes[keep], curve.value[keep]))

    def tail(self, condition: Condition, size: float) -> float | None:
        """Return the mean of the worst tenth of all episodes at a size."""
        matrix = self.matrix(condition, size)
        return None if matrix is None else float(cvar(matrix.ravel(), 0.1))


_SPREADS = {
    "five or more training seeds": "95% bootstrap interval over training seeds",
    "two to four": "range of the training seeds, least to largest",
    "one": "95% bootstrap interval over episodes",
}


def interval_words(methods: Sequence[Method]) -> str:
    """Return what intervals of returns are for these methods, which follows from how many training seeds each has."""
    kinds = [0 if len(method.runs) >= FEW else 1 if len(method.runs) > 1 else 2 for method in methods]
    shown = [(who, what) for kind, (who, what) in enumerate(_SPREADS.items()) if kind in kinds]
    return shown[0][1] if len(shown) == 1 else ", ".join(f"{what} (methods with {who})" for who, what in shown)


def interval(matrix: Array) -> tuple[float, float, float]:
    """Return (interquartile mean, low, high) of returns of the shape (training seeds, episodes).

    It is over training seeds, and over episodes where there is one seed.
    """
    found = iqm(matrix if len(matrix) > 1 else matrix.T, resamples=RESAMPLES)
    return float(found.value), float(found.low), float(found.high)


def _derived_worst(run: Run) -> Iterable[Row]:
    """Return the worst attack of each size, where the evaluation did not choose one on other episodes."""
    chosen = {(row.task, row.norm) for row in run.rows if row.group == "worst"}
    found: dict[tuple[str, str, float, int], Row] = {}
    for row in run.rows:
        if row.group == "attack" and (row.task, row.norm) not in chosen:
            key = (row.task, row.norm, row.size, row.seed)
            if key not in found or row.returns.mean() < found[key].returns.mean():
                found[key] = row
    return [replace(r, group="worst", perturbation="worst", attack=r.attack or r.perturbation) for r in found.values()]


def worst_was_derived(runs: Sequence[Run]) -> bool:
    """Return whether the worst attack of some run was chosen among the very episodes that are reported."""
    return any(next(iter(_derived_worst(run)), None) is not None for run in runs)


def group_by_method(runs: Sequence[Run]) -> list[Method]:
    """Return the methods in the order of their first runs, with names of their own."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method_key, []).append(run)
    names = [_group_name(group) for group in groups.values()]
    methods = []
    for index, group in enumerate(groups.values()):
        name = names[index]
        if names.count(name) > 1:
            name = f"{name} ({group[0].name})"
        methods.append(Method(name, index, group))
    return methods


def _group_name(runs: Sequence[Run]) -> str:
    if len(runs) == 1 or runs[0].method_key.startswith("method "):
        return runs[0].method
    cell = (runs[0].evaluation or {}).get("cell")
    name = RunFolder(runs[0].folder).method
    return f"{cell} ({name})" if isinstance(cell, str) and cell and cell not in name else name


def tasks_of(methods: Sequence[Method]) -> list[str]:
    """Return the tasks of all methods, in order."""
    return list(dict.fromkeys(task for method in methods for task in method.tasks))


def conditions_of(methods: Sequence[Method], task: str, groups: Sequence[str]) -> list[Condition]:
    """Return the conditions in a task that some method was measured under, by group and norm."""
    found = dict.fromkeys(
        c
        for method in methods
        for c in method.conditions
        if c.task == task and c.group in groups and c.perturbation != UNPERTURBED
    )

    def place(condition: Condition) -> tuple[int, int]:
        norm = NORMS.index(condition.norm) if condition.norm in NORMS else len(NORMS)
        return groups.index(condition.group), norm

    return sorted(found, key=place)


def main_worst(methods: Sequence[Method], task: str) -> Condition | None:
    """Return the worst-attack condition that tables and pictures choose: the norm most methods were measured in."""
    found = conditions_of(methods, task, ("worst",))
    return max(found, key=lambda c: sum(c in method.conditions for method in methods), default=None)


def shown_sizes(methods: Sequence[Method], condition: Condition, number: int = 3) -> list[float]:
    """Return at most `number` sizes above 0, spread over those measured for most methods."""
    counts: dict[float, int] = {}
    for method in methods:
        for size in method.sizes(condition):
            counts[size] = counts.get(size, 0) + (size > 0)
    most = max(counts.values(), default=0)
    sizes = sorted(size for size, count in counts.items() if count == most and size > 0)
    places = np.linspace(0, len(sizes) - 1, min(number, len(sizes))).round().astype(int) if sizes else []
    return [sizes[place] for place in places]


def unit_of(methods: Sequence[Method], condition: Condition) -> str:
    """Return the unit of the sizes of a condition."""
    units = (
        r.unit
        for m in methods
        for run in m.runs
        for r in run.rows
        if (r.task, r.group, r.perturbation, r.norm)
        == (condition.task, condition.group, condition.perturbation, condition.norm)
        and r.unit
    )
    default = OBSERVATION if condition.group in ("noise", "attack", "worst") else ""
    unit = next(units, default)
    return "observation units" if unit == OBSERVATION else unit


def condition_title(condition: Condition) -> str:
    """Return what a reader calls a condition."""
    if condition.group == "worst":
        return "worst of the attacks"
    return condition.perturbation.replace("_", " ")
