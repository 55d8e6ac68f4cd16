"""Data -> model -> run folder: what `robust-policies identify` does, as a function."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch

from robust_policies import checks
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.files.atomic import write_atomic, write_json
from robust_policies.identification.faults import check_split
from robust_policies.identification.folder import RESULT_SCHEMA, IdentificationFolder
from robust_policies.identification.learner import Identification, simulated
from robust_policies.identification.model import DTYPES, IdentifiedModel, Signals
from robust_policies.identification.page import write_page
from robust_policies.identification.plant import STATES, states_of
from robust_policies.identification.reading import Columns, Data, read_data, stacked
from robust_policies.identification.records import Array, Experiment, Split, split
from robust_policies.identification.residuals import crosscorrelation, scores, whiteness
from robust_policies.identification.settings import IdentificationSettings
from robust_policies.identification.subspace import Baseline, linear_baseline
from robust_policies.networks import CELLS, Cell, LearnedState, StateEncoder, make_cell
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.loop import run_updates, trained
from robust_policies.train.run.progress import Reporter, Silent
from robust_policies.train.run.stop import StopRequest

# What a cell is given unless it is told otherwise, of those that its kind takes.
_SIZES: dict[str, Any] = {
    "state_size": 8,
    "features": 16,
    "hidden_sizes": (32, 32),
    "activation": "tanh",
    "init": "long_memory",
}


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the settings make of the data.

    Attributes:
        data: what was read.
        parts: training, validation and test.
        signals: names and scales.
        settings: those of the identification, its burn-in known.
        warnings: about the data, one line each.
    """

    data: Data
    parts: Split
    signals: Signals
    settings: IdentificationSettings
    warnings: list[str]


def prepare(settings: IdentificationSettings) -> Prepared:
    """Return the data of an identification, read, split and checked; raises a `UserError` for a fault in it."""
    section = settings.data
    columns = Columns(section.inputs, section.outputs, section.time, section.experiment, section.sample_time)
    data = read_data(section.files, columns)
    named = {"train": section.train, "validation": section.validation, "test": section.test}
    parts = split(data.experiments, named)
    settings = settings.for_records(min(len(one) for pieces in parts.parts().values() for one in pieces))
    warnings = check_split(parts, data.inputs, data.outputs, max(settings.washout, settings.burn_in))
    short = [one.label for one in parts.train if len(one) < settings.algorithm.window]
    if short and len(short) < len(parts.train):
        warnings.append(f"Not trained on, since shorter than algorithm.window: {', '.join(short)}.")
    inputs, outputs = stacked(parts.train, "inputs"), stacked(parts.train, "outputs")
    signals = Signals.of(data.inputs, data.outputs, data.sample_time, inputs, outputs)
    return Prepared(data, parts, signals, settings, warnings)


def new_model(settings: IdentificationSettings, signals: Signals) -> IdentifiedModel:
    """Return the untrained model that the settings describe, the same for the same seed.

    Raises:
        UnknownNameError, InvalidValueError: an option of the cell is unknown or wrong.
    """
    own = settings.algorithm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        cell = _new_cell(settings.cell, len(signals.inputs), len(signals.outputs)).to(DTYPES[settings.precision])
        initial = None
        if own.initial_state == "learned":
            initial = LearnedState(cell)
        elif own.initial_state == "encoded":
            initial = StateEncoder(cell, settings.burn_in, len(signals.outputs), own.encoder_sizes)
    return IdentifiedModel(cell, signals, initial, settings.burn_in)


def _new_cell(options: dict[str, Any], nu: int, ny: int) -> Cell:
    given = dict(options)
    name = given.pop("name", "r2dn")
    if name not in CELLS:
        raise UnknownNameError.among("cell", str(name), CELLS)
    taken = inspect.signature(CELLS[name]).parameters
    defaults = {key: value for key, value in _SIZES.items() if key in taken}
    if name == "convex":  # which takes convex activations alone
        del defaults["activation"]
    if given.get("output") == "state":
        defaults["state_size"] = ny
    cell = make_cell(name, nu, ny, **{**defaults, **given})
    if cell.state_size == 0:
        raise InvalidValueError(
            f"The cell {name!r} has no memory; expected one with a state, such as r2dn, ren or lstm."
        )
    return cell


def identify(
    settings: IdentificationSettings,
    folder: str | Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    page: bool = True,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Return the result of fitting a model to data, into a run folder.

    Writes model.json and model.safetensors, certificate.json, identification.json (errors and tests of residuals),
    simulation.npz, report.html with its pictures, and what every run folder has.

    Args:
        settings: data, cell and training.
        folder: new or empty, or with `resume` that of an interrupted identification of the same settings.
        device: `cpu`, `cuda` or `cuda:N`.
        resume: go on from the last checkpoint.
        page: write report.html.
        reporter: shows progress.
        stop: as of `train.train`.

    Raises:
        UserError: the data has a fault, a setting is wrong, or the folder is in use; then nothing was written.
        TrainingInterruptedError: `stop` asked for it; a checkpoint was written.
        DivergedError: something became NaN or infinite.
    """
    checks.device(device)
    prepared = prepare(settings)
    run = IdentificationFolder(folder)

    def report(model: IdentifiedModel, run: RunFolder) -> None:
        write_result(model.to("cpu"), prepared, cast(IdentificationFolder, run), page)

    def make(job: Job, stack: ExitStack) -> Identification:
        model = new_model(prepared.settings, prepared.signals).to(device)
        parts = prepared.parts
        return Identification(model, prepared.settings, parts.train, parts.validation, report, device)

    # The loop reads of a recipe what these settings have too.
    job = Job(cast(Any, settings), run, device, resume, reporter or Silent(), stop or StopRequest(), settings.seed)
    return trained(job, make, run_updates, "algorithm.batch", "algorithm.window")


def write_result(model: IdentifiedModel, prepared: Prepared, run: IdentificationFolder, page: bool) -> None:
    """Write what there is to say of a model: certificate.json, identification.json, simulation.npz, report.html."""
    settings = prepared.settings
    certificate = model.certificate()
    baseline = linear_baseline(prepared.parts.train, prepared.parts.validation, prepared.signals, settings.washout)
    records, arrays = [], {}
    for part, pieces in prepared.parts.parts().items():
        for one in pieces:
            if part == "train" and one is not max(pieces, key=len):
                continue
            entry, here = _judged(model, baseline, one, part, settings.washout)
            records.append(entry)
            arrays |= {f"{len(records) - 1}.{name}": value for name, value in here.items()}
    content = {
        "schema": RESULT_SCHEMA,
        "cell": model.cell.config(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sample_time": prepared.signals.sample_time,
        "inputs": prepared.signals.inputs,
        "outputs": prepared.signals.outputs,
        "washout": settings.washout,
        "warnings": prepared.warnings,
        "baseline": baseline.note,
        "records": records,
    }
    certificate.to_json(run.certificate)
    train = prepared.parts.train
    found = states_of(model, [one.inputs for one in train], [one.outputs for one in train])
    data = safetensors.torch.save({name: states.contiguous() for name, states in found.items()})
    write_atomic(run.path / STATES, lambda file: file.write(data))
    write_json(run.result, content)
    write_atomic(run.simulation, lambda file: np.savez_compressed(file, **arrays))
    if page:
        write_page(run.path, content, arrays, certificate)


def _judged(
    model: IdentifiedModel, baseline: Baseline, one: Experiment, part: str, washout: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return errors and residual tests of a record, and the arrays behind its pictures."""
    runs = {"model": simulated(model, one)}
    if baseline.model is not None:
        runs["linear"] = baseline.model.simulate(one.inputs)
    arrays = {"measured": one.outputs, **runs}
    entry: dict[str, Any] = {"record": one.label, "part": part, "samples": len(one)}
    entry["scores"] = {name: scores(one.outputs, found, washout) for name, found in runs.items()}
    if part == "train":
        return entry, {}
    residual = (one.outputs - runs["model"])[washout:]
    entry["residuals"] = [
        {
            "output": name,
            "whiteness": whiteness(column),
            "cross": [crosscorrelation(column, u[washout:]) for u in one.inputs.T],
        }
        for name, column in zip(model.signals.outputs, residual.T, strict=True)
    ]
    return entry, arrays


def result_lines(run: IdentificationFolder) -> Sequence[str]:
    """Return what a person is told of a finished identification, a line each."""
    content = run.read_result()
    lines = [f"Warning: {text}" for text in content["warnings"]]
    for entry in content["records"]:
        for name, found in entry["scores"].items():
            units = ", ".join(f"{o} {v:.4g}" for o, v in zip(content["outputs"], found["rmse"], strict=True))
            both = found["all"]
            lines.append(
                f"{entry['part']} {entry['record']}, {name}: NRMSE {_text(both['nrmse_std'])} of the deviation, "
                f"{_text(both['nrmse_rms'])} of the root mean square; RMSE {units}"
            )
    return [*lines, content["baseline"]]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
