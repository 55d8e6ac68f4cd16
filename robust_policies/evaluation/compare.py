"""Run folders beside one another: a table of what is asked for, over training seeds, sorted by one of its columns."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.evaluation.quantities import Asked, asked_for
from robust_policies.evaluation.readings import Reading, read
from robust_policies.evaluation.report.load import find_runs, load_runs
from robust_policies.evaluation.report.methods import Method, group_by_method, main_worst, shown_sizes, tasks_of
from robust_policies.evaluation.statistics import RANGE, mean_interval
from robust_policies.files.text_table import aligned, markdown

FORMATS = ("text", "markdown", "csv", "json")
_ALWAYS = ("gamma", "found_gain", "rate", "return")


@dataclass(frozen=True)
class Cell:
    """One number of a method over its training seeds; all None where no seed has it.

    Attributes:
        value: the mean of returns over seeds and episodes; of anything else the median of the seeds.
        low, high: the ends of `over`.
        over: what they are over, "" where there is one number alone.
        seeds: how many have it.
        reasons: why the others have not, by the name of the run.
    """

    value: float | None
    low: float | None
    high: float | None
    over: str
    seeds: int
    reasons: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """A table: a line for each method (runs that differ by their training seed are one), a column for what is asked."""

    columns: tuple[Asked, ...]
    lines: tuple[tuple[Method, tuple[Cell, ...]], ...]

    def written(self, form: str) -> str:
        """Return the table as "text", "markdown", "csv" or "json"; raises UnknownNameError for another `form`."""
        if form not in FORMATS:
            raise UnknownNameError.among("format", form, FORMATS)
        if form == "json":
            return json.dumps(self._content(), indent=2, allow_nan=False)
        if form == "csv":
            return self._csv()
        head = ["policy", "seeds", *map(str, self.columns)]
        rows = [
            [
                method.name,
                str(len(method.runs)),
                *map(self._shown, cells, self.columns, [len(method.runs)] * len(cells)),
            ]
            for method, cells in self.lines
        ]
        return (markdown if form == "markdown" else aligned)(head, rows, range(1, len(head)))

    def notes(self) -> list[str]:
        """Return what the numbers are, and why some are missing: once for each column and reason's first run."""
        over = dict.fromkeys(cell.over for _, cells in self.lines for cell in cells if cell.over)
        said = [f"Returns are means, other numbers medians of the training seeds; behind them: {', '.join(over)}."]
        for place, asked in enumerate(self.columns):
            missing = [(run, why) for _, cells in self.lines for run, why in cells[place].reasons.items()]
            if missing:
                run, why = missing[0]
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                said.append(f"{asked}: {run}{more}: {why.rstrip('.')}.")
        return said if over else said[1:]

    def _shown(self, cell: Cell, asked: Asked, runs: int) -> str:
        if cell.value is None:
            return "-"
        shown = asked.quantity.shown
        text = shown(cell.value)
        if cell.over and cell.low is not None and cell.high is not None:
            low, high = shown(cell.low), shown(cell.high)
            if low != high:
                text += f" ({low} to {high})" if cell.over == RANGE else f" [{low}, {high}]"
        return text if cell.seeds == runs else f"{text} of {cell.seeds}"

    def _content(self) -> list[dict[str, Any]]:
        return [
            {
                "policy": method.name,
                "runs": [str(run.folder) for run in method.runs],
                "seeds": len(method.runs),
                "values": {str(asked): _plain(cell) for asked, cell in zip(self.columns, cells, strict=True)},
            }
            for method, cells in self.lines
        ]

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        parts = [f"{asked}{end}" for asked in self.columns for end in ("", "_low", "_high", "_seeds")]
        writer.writerow(["policy", "seeds", *parts])
        for method, cells in self.lines:
            values = [v for cell in cells for v in (cell.value, cell.low, cell.high, cell.seeds)]
            writer.writerow([method.name, len(method.runs), *("" if value is None else value for value in values)])
        return text.getvalue().rstrip("\n")


def compare_runs(
    folders: Sequence[str | Path],
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    task: str | None = None,
) -> Comparison:
    """Return the comparison of run folders.

    Args:
        folders: run folders, or folders that hold some; those that differ by their training seed only are one line.
        columns: quantities (`quantities.QUANTITIES`), with @SIZE; None: gains, rate, return, and what there is of
            worst attacks and proven returns.
        sort: the quantity to sort by, its best first and without it last; None: as given.
        task: that returns are of; None: the first that was evaluated.

    Raises:
        MissingFileError, InvalidValueError: as `report.load.find_runs`; UnknownNameError, InvalidValueError: a column.
    """
    asked = None if columns is None else [asked_for(text, "--columns") for text in columns]
    if asked is not None and not asked:
        raise InvalidValueError("--columns names none; expected such as gamma,return@0.1.")
    order = None if sort is None else asked_for(sort, "--sort")
    methods = group_by_method(load_runs(find_runs([Path(folder) for folder in folders]), pictures=False))
    asked = _defaults(methods, task) if asked is None else list(dict.fromkeys(asked))
    if order is not None and order not in asked:
        asked.append(order)
    lines = [(method, tuple(_cell(method, one, task) for one in asked)) for method in methods]
    if order is not None:
        place, sign = asked.index(order), 1.0 if order.quantity.better == "less" else -1.0

        def key(line: tuple[Method, tuple[Cell, ...]]) -> tuple[bool, float]:
            value = line[1][place].value
            return value is None, 0.0 if value is None else sign * value

        lines.sort(key=key)
    return Comparison(tuple(asked), tuple(lines))


def _defaults(methods: Sequence[Method], task: str | None) -> list[Asked]:
    """Return what is shown where no columns are asked for: what some run has."""
    asked = [Asked(name) for name in _ALWAYS]
    for where in ([task] if task is not None else tasks_of(methods))[:1]:
        worst = main_worst(methods, where)
        asked += [Asked("return", None, size) for size in ([] if worst is None else shown_sizes(methods, worst, 2))]
    proven = [run.returns.rows for method in methods for run in method.runs if run.returns is not None]
    shared = set.intersection(*({row.size for row in rows} for rows in proven)) if proven else set()
    asked += [Asked("certified_return", None, size) for size in sorted(shared)[len(shared) // 2 :][:1]]
    kept = [one for one in asked if any(_cell(method, one, task).value is not None for method in methods)]
    if task is not None and Asked("return") not in kept:
        # That the task asked for was not evaluated is said, and not left out.
        kept.append(Asked("return"))
    return kept or [Asked("gamma"), Asked("return")]


def _cell(method: Method, asked: Asked, task: str | None) -> Cell:
    readings = {run.name: read(run, asked, task) for run in method.runs}
    known = [one for one in readings.values() if one.value is not None]
    reasons = {name: one.reason for name, one in readings.items() if one.value is None}
    if not known:
        return Cell(None, None, None, "", 0, reasons)
    if asked.name == "return" and all(one.returns is not None for one in known):
        return _mean(known, reasons)
    values = [one.value for one in known if one.value is not None]
    over = RANGE if len(values) > 1 else ""
    return Cell(float(np.median(values)), min(values), max(values), over, len(values), reasons)


def _mean(known: Sequence[Reading], reasons: dict[str, str]) -> Cell:
    returns = [one.returns for one in known if one.returns is not None]
    episodes = min(map(len, returns))
    found = mean_interval(np.stack([one[:episodes] for one in returns]))
    over = RANGE if found.over == RANGE else f"95% interval over {found.over}"
    return Cell(found.value, found.low, found.high, over, len(returns), reasons)


def _plain(cell: Cell) -> dict[str, Any]:
    numbers = {name: getattr(cell, name) for name in ("value", "low", "high")}
    # JSON has no infinity: a size beyond the largest that was tried.
    plain = {name: None if value is None or math.isinf(value) else value for name, value in numbers.items()}
    return {**plain, "over": cell.over, "seeds": cell.seeds, "reasons": cell.reasons}
