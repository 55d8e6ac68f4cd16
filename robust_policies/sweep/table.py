"""The table of all trials, and means over the seeds of each setting with their intervals."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from rich.table import Table

from robust_policies.errors import RobustPoliciesError
from robust_policies.evaluation.statistics import FEW
from robust_policies.files.atomic import write_atomic
from robust_policies.train import RunFolder

# Name of the figure: what it is.
METRICS = {
    "return": "mean unperturbed return over the evaluation's episodes, of the first evaluated task",
    "worst": "lowest mean return over the kinds of perturbation, at the evaluation's largest size",
    "best": "best mean return of the evaluations during training",
    "gamma": "proven gain from observation to action",
    "found": "largest gain that a search found",
    "steps": "environment steps of training",
    "seconds": "wall-clock time of training",
}
INTERVAL = f"95% t interval of the mean over seeds; below {FEW} seeds the least and the largest of them"


def read_metrics(run: RunFolder) -> dict[str, float]:
    """Return the figures that a run folder holds, by the names in `METRICS`; what cannot be read is left out."""
    found: dict[str, Any] = {}
    with suppress(RobustPoliciesError):
        provenance = run.read_provenance()
        found["steps"], found["seconds"] = provenance.get("num_timesteps"), provenance.get("training_seconds")
        found["best"] = provenance.get("best_mean_reward")
    with suppress(RobustPoliciesError):
        certificate = run.read_certificate()
        found["gamma"], found["found"] = certificate.gamma_raw, certificate.empirical_lower
    with suppress(RobustPoliciesError):
        evaluation = run.read_evaluation()
        found |= _returns(evaluation["rows"], evaluation.get("tasks") or [])
    return {name: float(found[name]) for name in METRICS if found.get(name) is not None}


def _returns(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, float]:
    evaluated = [task for task in tasks if any(row["task"] == task for row in rows)]
    if not evaluated:
        return {}
    by_kind: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["task"] == evaluated[0] and row.get("group", "noise") in ("noise", "attack"):
            by_kind.setdefault(row["perturbation"], {}).setdefault(row["size"], []).extend(row["returns"])
    largest = max(size for sizes in by_kind.values() for size in sizes)
    # Every kind is measured at size 0 too, on the same episodes.
    unperturbed = next(sizes[0.0] for sizes in by_kind.values() if 0.0 in sizes)
    worst = min(float(np.mean(sizes[largest])) for sizes in by_kind.values() if largest in sizes)
    return {"return": float(np.mean(unperturbed)), "worst": worst}


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return {"mean", "low", "high", "seeds"}: the mean of the values (a seed each), its ends and how many there are.

    The ends are those of the mean's 95% interval by Student's t from five values on, the least and the largest value
    below, and None for one value.
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return {"mean": mean, "low": None, "high": None, "seeds": array.size}
    if array.size < FEW:
        return {"mean": mean, "low": float(array.min()), "high": float(array.max()), "seeds": array.size}
    half = float(scipy.stats.t.ppf(0.975, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": array.size}


def interval_text(found: Mapping[str, float | None], figure: Callable[[float], str]) -> str:
    """Return "mean [low, high]" of an `interval`, "mean (least to largest)" of few values, "mean" of one."""
    mean, *ends = (figure(value) for key in ("mean", "low", "high") if (value := found[key]) is not None)
    if not ends:
        return mean
    low, high = ends
    return f"{mean} ({low} to {high})" if (found["seeds"] or 0) < FEW else f"{mean} [{low}, {high}]"


def settings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry a setting: its values, its numbers of trials, and each metric's interval.

    Trials that are not done count in no mean.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row["setting"], sort_keys=True), []).append(row)
    found = []
    for group in groups.values():
        done = [row for row in group if row["status"] == "done"]
        failed = sum(row["status"] == "failed" for row in group)
        metrics = {
            name: interval([row["metrics"][name] for row in done if name in row["metrics"]])
            for name in METRICS
            if any(name in row["metrics"] for row in done)
        }
        found.append(
            {
                "setting": group[0]["setting"],
                "trials": len(group),
                "done": len(done),
                "failed": failed,
                "metrics": metrics,
            }
        )
    return found


def write_csv(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write trials.csv, one line a trial, and settings.csv, one line a setting, into `folder`."""
    keys = list(dict.fromkeys(key for row in rows for key in row["setting"]))
    lines: list[list[Any]] = [["name", *keys, "seed", "status", *METRICS, "reason"]]
    for row in rows:
        metrics = [row["metrics"].get(name, "") for name in METRICS]
        lines.append([row["name"], *_cells(row, keys), row["seed"], row["status"], *metrics, row["reason"]])
    _write(folder / "trials.csv", lines)
    columns = [f"{name}_{part}" for name in METRICS for part in ("mean", "low", "high")]
    lines = [[*keys, "trials", "done", "failed", *columns]]
    for entry in settings(rows):
        figures = [entry["metrics"].get(name, {}).get(part) for name in METRICS for part in ("mean", "low", "high")]
        lines.append([*_cells(entry, keys), entry["trials"], entry["done"], entry["failed"], *map(_blank, figures)])
    _write(folder / "settings.csv", lines)


def _cells(row: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    values = [row["setting"].get(key) for key in keys]
    return [json.dumps(value) if isinstance(value, (list, dict, bool, type(None))) else value for value in values]


def _blank(value: float | None) -> Any:
    return "" if value is None else value


def _write(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def trials_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of all trials for a terminal."""
    names = [name for name in METRICS if any(name in row["metrics"] for row in rows)]
    table = Table()
    table.add_column("trial", overflow="fold")
    table.add_column("status")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], row["status"], *(_figure(row["metrics"].get(name)) for name in names))
    return table


def settings_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of all settings for a terminal, each metric as its mean and interval."""
    entries = settings(rows)
    names = [
        name for name in ("return", "worst", "best", "gamma") if any(name in entry["metrics"] for entry in entries)
    ]
    table = Table()
    table.add_column("setting", overflow="fold")
    table.add_column("done", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for entry in entries:
        label = " ".join(f"{key}={_value(value)}" for key, value in entry["setting"].items()) or "the recipe's"
        figures = (entry["metrics"].get(name) for name in names)
        table.add_row(label, f"{entry['done']}/{entry['trials']}", *map(_with_interval, figures))
    return table


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(value: float | None) -> str:
    if value is None:
        return "--"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def _with_interval(found: Mapping[str, float | None] | None) -> str:
    return "--" if found is None else interval_text(found, _figure)
