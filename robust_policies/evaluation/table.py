"""From measurements to tables: rows with statistics, the worst attack of each size, one line an episode in the CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.evaluation.bench import read_recording
from robust_policies.evaluation.statistics import summary
from robust_policies.files.atomic import write_atomic

MONITORED = ("region_exits", "saturations")
"""Steps that a Youla policy's monitor counted in each episode."""
COLUMNS = (
    "policy",
    "method",
    "training_seed",
    "task",
    "group",
    "perturbation",
    "attack",
    "norm",
    "size",
    "unit",
    "point",
    "seed",
    "episode",
    "return",
    "length",
    "deviation",
)


def rows_of(policy: str, task: str, measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a measurement, one for each seed, without those in which an episode failed."""
    rows = []
    for seed, found in measured["episodes"].items():
        returns = found["returns"]
        if None in returns:
            continue
        labels = {name: measured[name] for name in ("group", "perturbation", "attack", "norm", "size", "unit", "point")}
        rows.append(
            {
                "policy": policy,
                "task": task,
                **labels,
                "seed": int(seed),
                "episodes": len(returns),
                **summary(returns),
                "returns": returns,
                "lengths": found["lengths"],
                "deviation": _over(np.mean, found["deviations"]),
                "measured_gain": _over(np.max, found["gains"]),
                **{name: found[name] for name in MONITORED if name in found},
            }
        )
    return rows


def failed_episodes(measured: Mapping[str, Any]) -> str | None:
    """Return what to say of a measurement with episodes that gave NaN; None if all are well."""
    returns = [value for found in measured["episodes"].values() for value in found["returns"]]
    failed = returns.count(None)
    if not failed:
        return None
    where = (
        ", ".join(f"{name} x {factor:g}" for name, factor in measured["point"].items()) or f"size {measured['size']:g}"
    )
    return f"{failed} of {len(returns)} episodes gave NaN or infinity at {where}; no mean is reported there"


def worst_rows(
    task: str, rows: Sequence[Mapping[str, Any]], tuning: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return for each norm and size the attack with the lowest mean on the tuning episodes, as reported on the others.

    An attack without rows there (its episodes failed) is left out. Sizes are compared exactly: entries of one norm with
    different sizes make different lines.
    """
    worst = []
    for norm, size in dict.fromkeys((one["norm"], one["size"]) for one in tuning):
        here = [
            (one, [row for row in rows if row["group"] == "attack" and _same(row, one)])
            for one in tuning
            if one["norm"] == norm and one["size"] == size and one["mean"] is not None
        ]
        here = [(one, found) for one, found in here if found]
        if here:
            chosen, found = min(here, key=lambda pair: pair[0]["mean"])
            returns = [value for row in found for value in row["returns"]]
            worst.append(
                {
                    "task": task,
                    "norm": norm,
                    "size": size,
                    "attack": chosen["perturbation"],
                    "unit": found[0]["unit"],
                    **summary(returns),
                    "returns": returns,
                    "tuning_mean": chosen["mean"],
                }
            )
    return worst


def write_csv(path: Path, facts: Mapping[str, Any], task_measurements: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Write one line an episode; an empty return or deviation is one that is not a number.

    Args:
        path: of the file.
        facts: "policy", "method", "training_seed".
        task_measurements: (task, measurement) pairs.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for task, one in task_measurements:
        point = " ".join(f"{name}={factor:g}" for name, factor in one["point"].items())
        labels = (one["group"], one["perturbation"], one["attack"], one["norm"], one["size"], one["unit"], point)
        for seed, found in one["episodes"].items():
            columns = zip(found["returns"], found["lengths"], found["deviations"], strict=True)
            for episode, values in enumerate(columns):
                writer.writerow((*(facts[name] for name in COLUMNS[:3]), task, *labels, seed, episode, *values))
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def write_trajectories(path: Path, recordings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write the recordings as one npz without pickled objects and return its index.

    The arrays of an entry are named KEY_observations, KEY_perturbed, KEY_actions (time, episodes, n) and KEY_rewards
    (time, episodes).
    """
    arrays, index = {}, []
    for number, one in enumerate(recordings):
        key = f"t{number}"
        arrays |= {f"{key}_{name}": value for name, value in read_recording(one["npz"]).items()}
        index.append({name: one[name] for name in ("task", "perturbation", "norm", "size")} | {"key": key})
    if arrays:
        write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
    else:
        path.unlink(missing_ok=True)
    return index


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(row[name] == other[name] for name in ("perturbation", "norm", "size"))


def _over(reduce: Any, values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return float(reduce(finite)) if finite else None
