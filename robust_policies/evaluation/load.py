"""What a report reads of run folders, with a note in words for each part that is missing or broken."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.certificates import Certificate
from robust_policies.certificates.files import read_json
from robust_policies.errors import UserError
from robust_policies.evaluation.figures import Run
from robust_policies.evaluation.table import read_evaluation

TRAINING_TAG = "rollout/ep_rew_mean"
PROVENANCE_SCHEMA = 1


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Return what can be shown of each folder.

    Labels are the folders' names, made unique by their parents', behind the cell's name where they do not hold it.
    """
    names = [folder.resolve().name for folder in folders]
    runs = []
    for index, folder in enumerate(folders):
        notes: list[str] = []
        evaluation = certificate = provenance = None
        try:
            evaluation = read_evaluation(folder)
            for failure in evaluation.get("failures", []):
                notes.append(f"{failure.get('task')} was not evaluated: {failure.get('reason')}")
            if evaluation.get("perturbations"):
                wrappers = ", ".join(map(_wrapper, evaluation["perturbations"]))
                notes.append(f"evaluated inside wrappers, the first nearest to the plant: {wrappers}")
        except UserError as error:
            notes.append(str(error))
        try:
            certificate = Certificate.from_json(folder / "certificate.json")
        except UserError as error:
            notes.append(str(error))
        if (folder / "provenance.json").exists():
            try:
                provenance = read_json(folder / "provenance.json", "provenance", PROVENANCE_SCHEMA)
            except UserError as error:
                notes.append(str(error))
        resolved = folder.resolve()
        label = names[index] if names.count(names[index]) == 1 else f"{resolved.parent.name}/{resolved.name}"
        cell = (evaluation or {}).get("cell")
        if cell and cell not in label:
            label = f"{cell} ({label})"
        runs.append(Run(folder, label, index, evaluation, certificate, provenance, training_curve(folder), notes))
    return runs


def _wrapper(item: Any) -> str:
    """Return an item of a list of perturbations as a reader writes it: ObservationDelay: 2."""
    if not isinstance(item, dict):
        return str(item)
    return ", ".join(f"{name}: {value}" for name, value in item.items()).replace("'", "")


def training_curve(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (environment steps, mean return) from progress.csv or the TensorBoard events, None if there is neither."""
    path = folder / "progress.csv"
    if path.is_file():
        with path.open(newline="") as file:
            return _curve([(row.get("time/total_timesteps"), row.get(TRAINING_TAG)) for row in csv.DictReader(file)])
    events = sorted((folder / "tensorboard").rglob("events.out.tfevents.*"))
    points: dict[Any, Any] = {}
    for event in events:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        accumulator = EventAccumulator(str(event), size_guidance={"scalars": 0})
        accumulator.Reload()
        if TRAINING_TAG in accumulator.Tags()["scalars"]:
            # A resumed run repeats steps; the later file is what happened.
            points.update({scalar.step: scalar.value for scalar in accumulator.Scalars(TRAINING_TAG)})
    return _curve(sorted(points.items()))


def _curve(points: Sequence[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    numbers = []
    for step, value in points:
        try:
            numbers.append((float(step), float(value)))
        except (TypeError, ValueError):
            continue
    array = np.array([pair for pair in numbers if np.isfinite(pair).all()])
    return (array[:, 0], array[:, 1]) if len(array) else None
