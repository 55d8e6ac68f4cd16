"""What a report reads of run folders, with a note in words for each part that is missing or broken."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_policies.certificates import Certificate
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UserError
from robust_policies.evaluation.model_loop import read_model_loop
from robust_policies.evaluation.report.agreement import Agreement, agreement
from robust_policies.evaluation.report.loop_charts import read_loop
from robust_policies.evaluation.report.training import training_curve
from robust_policies.files.npz import Npz
from robust_policies.files.yaml_text import read_yaml
from robust_policies.policies.return_certificate import ReturnCertificate
from robust_policies.policies.smoothed import SmoothedReturn
from robust_policies.train.run.folder import RunFolder

RUN_FILES = (
    "evaluation.json",
    "certificate.json",
    "return_certificate.json",
    "policy.json",
    "recipe.yaml",
    "provenance.json",
)
# Half a character, in JSON.
_HALF = re.compile(rb"\\u[dD]")
SIGNALS = ("observations", "perturbed", "actions", "rewards")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One measurement: the returns of some episodes under one perturbation of one size.

    `attack` is what was run where a perturbation can take several forms, or what was chosen as the worst;
    `point` the factors of a changed plant; `gain` the largest ratio |change of actions| / |perturbation| of an episode.
    """

    task: str
    group: str
    perturbation: str
    norm: str
    size: float
    point: tuple[tuple[str, float], ...]
    seed: int
    returns: Array
    attack: str = ""
    unit: str = ""
    gain: float | None = None


@dataclass(frozen=True)
class Recording:
    """Recorded episodes: each signal is (time, episodes, components), rewards (time, episodes)."""

    task: str
    perturbation: str
    norm: str
    size: float
    signals: dict[str, Array]


@dataclass
class Run:
    """What a report shows of one run folder; parts that are missing are None or empty, and named in `notes`.

    `asides` are notes about other tasks than the first, `agreement` is what was found by computing again.
    """

    folder: Path
    name: str
    method: str
    method_key: str
    training_seed: int | None = None
    evaluation: dict[str, Any] | None = None
    rows: list[Row] = field(default_factory=list)
    critical: list[dict[str, Any]] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)
    certificate: Certificate | None = None
    returns: ReturnCertificate | None = None
    smoothed: SmoothedReturn | None = None
    loop: dict[str, Any] | None = None
    model_loop: dict[str, Any] | None = None
    tightness: tuple[Array, Array, float | None] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    training: tuple[Array, Array] | None = None
    notes: list[str] = field(default_factory=list)
    asides: list[str] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)


def _runs_in(path: Path, depth: int = 2) -> list[Path]:
    if _is_run(path):
        return [path]
    children = sorted((child for child in path.iterdir() if child.is_dir()), key=_natural) if depth else []
    return [run for child in children for run in _runs_in(child, depth - 1)]


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among `paths`, and those up to two folders down in the ones that are none, each once.

    Raises:
        MissingFileError: a path is not a folder. InvalidValueError: one holds no run.
    """
    if not paths:
        raise InvalidValueError("No run folder was given; expected at least one.")
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise MissingFileError(f"Run folder {str(path)!r} does not exist; make one with `robust-policies train`.")
        runs = _runs_in(path)
        if not runs:
            raise InvalidValueError(
                f"{str(path)!r} is not a run folder and holds none: a run folder has one of {', '.join(RUN_FILES)}. "
                "Make one with `robust-policies train`."
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in RUN_FILES)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Return a key that puts seed_2 before seed_10."""
    parts: list[tuple[int, int | str]] = []
    digits = "".join(c if c.isdigit() else f"\0{c}\0" for c in path.name).split("\0")
    for part in filter(None, digits):
        parts.append((0, int(part)) if part.isdigit() and part.isascii() else (1, part))
    return parts


def load_runs(folders: Sequence[Path], pictures: bool = True) -> list[Run]:
    """Return what can be shown of each folder; names are the folders', made unique by their parents'.

    Without `pictures` what only they show is not read: recordings, gains over time, training curves.
    """
    names = [folder.resolve().name for folder in folders]
    runs = []
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            name = f"{folder.resolve().parent.name}/{name}"
        runs.append(_load(folder, name, pictures))
    return runs


def _load(folder: Path, name: str, pictures: bool) -> Run:
    run = Run(folder, name, name, str(folder.resolve()))
    files = RunFolder(folder)
    # A run may have what is proven of its return in place of an evaluation.
    wanted = files.evaluation.exists() or not files.return_certificate.exists()
    evaluation = _try(run, lambda: _evaluation(files)) if wanted else None
    if evaluation is not None:
        run.evaluation = evaluation
        run.rows = _rows(run, evaluation)
        run.critical = _objects(evaluation, "critical_sizes")
        for failure in _objects(evaluation, "failures"):
            under = f" under {failure['perturbation']}" if failure.get("perturbation") else ""
            words = f"{failure.get('task')} was not evaluated{under}: {failure.get('reason')}"
            (run.asides if _secondary(evaluation, failure) else run.notes).append(words)
        for left in _objects(evaluation, "skipped"):
            words = f"{left.get('task')}: {left.get('perturbation')} was left out: {left.get('reason')}"
            (run.asides if _secondary(evaluation, left) else run.notes).append(words)
        around = evaluation.get("perturbations")
        if isinstance(around, list) and around:
            run.notes.append(
                f"evaluated inside wrappers, the first nearest to the plant: {', '.join(map(_wrapper, around))}"
            )
        if pictures:
            run.recordings = _try(run, lambda: _recordings(files.trajectories, evaluation)) or []
    run.certificate = _try(run, lambda: _certificate(files))
    if files.return_certificate.exists():
        run.returns = _try(run, lambda: _return_certificate(files.return_certificate))
    if files.smoothed_return.exists():
        run.smoothed = _try(run, lambda: _smoothed_return(files.smoothed_return))
    if files.loop.exists():
        run.loop = _try(run, lambda: read_loop(files.loop))
    if files.model_loop.exists():
        run.model_loop = _try(run, lambda: read_model_loop(files.model_loop))
    if pictures and files.tightness.exists():
        run.tightness = _try(run, lambda: _tightness(files))
    if files.provenance.exists():
        run.provenance = _try(run, files.read_provenance) or {}
    run.training = _try(run, lambda: training_curve(files)) if pictures else None
    _name_method(run, files)
    run.agreement = agreement(
        folder,
        run.certificate,
        run.evaluation or {},
        run.provenance,
        run.returns,
        run.smoothed,
        run.loop,
        run.model_loop,
    )
    return run


def _secondary(evaluation: dict[str, Any], item: dict[str, Any]) -> bool:
    """Return whether an item is of another task than the first."""
    tasks = evaluation.get("tasks")
    return isinstance(tasks, list) and item.get("task") in tasks[1:]


def _objects(evaluation: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the objects in a list of an evaluation, none where it is no list."""
    found = evaluation.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _try(run: Run, read: Any) -> Any:
    """Return what `read` returns, or None with a note that says why not."""
    try:
        return read()
    except (UserError, OSError, UnicodeDecodeError) as error:
        run.notes.append(str(error))
        return None


def _name_method(run: Run, files: RunFolder) -> None:
    """Set what the run is a training seed of: the evaluation's word for it, else the recipe without its seed."""
    evaluation = run.evaluation or {}
    seed = evaluation.get("training_seed", run.provenance.get("seed"))
    run.training_seed = seed if isinstance(seed, int) and not isinstance(seed, bool) else None
    method = evaluation.get("method")
    if isinstance(method, str) and method.strip():
        run.method, run.method_key = method.strip(), f"method {method.strip()}"
        return
    cell = evaluation.get("cell")
    if isinstance(cell, str) and cell and cell not in run.name:
        run.method = f"{cell} ({run.name})"
    try:
        recipe = read_yaml(files.recipe)
        if isinstance(recipe, dict) and len(recipe) > 2:
            recipe = {key: value for key, value in recipe.items() if key not in ("seed", "description")}
            text = json.dumps(recipe, sort_keys=True, default=str)
            run.method_key = f"recipe {hashlib.sha256(text.encode()).hexdigest()}"
    except UserError:
        return


def _evaluation(files: RunFolder) -> dict[str, Any]:
    content = files.read_evaluation()
    # Half a character (a lone surrogate) is valid JSON and cannot be drawn or written.
    return _whole_characters(content) if _HALF.search(files.evaluation.read_bytes()) else content


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    return value


def _rows(run: Run, evaluation: dict[str, Any]) -> list[Row]:
    """Return the measurements that can be read, the worst attacks among them as group "worst"."""
    given = list(evaluation["rows"])
    worst = evaluation.get("worst")
    if isinstance(worst, list):
        given += [{**item, "group": "worst", "perturbation": "worst"} for item in worst if isinstance(item, dict)]
    rows = [row for row in map(_row, given) if row is not None]
    if len(rows) < len(given):
        run.notes.append(f"{len(given) - len(rows)} of {len(given)} rows of evaluation.json could not be read")
    return rows


def _row(raw: Any) -> Row | None:
    """Return a row, None if it lacks what a row has or holds no finite numbers."""
    if not isinstance(raw, dict):
        return None
    try:
        returns = np.asarray(raw["returns"], dtype=np.float64)
        size, seed = float(raw["size"]), int(raw.get("seed") or 0)
        perturbation, task = str(raw["perturbation"]), str(raw["task"])
        point = tuple((str(key), float(value)) for key, value in (raw.get("point") or {}).items())
        gain = raw.get("measured_gain")
        gain = None if gain is None else float(gain)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    whole = math.isfinite(size) and all(math.isfinite(value) for _, value in point)
    if not whole or returns.ndim != 1 or not returns.size or not np.isfinite(returns).all():
        return None
    group, norm = str(raw.get("group") or "noise"), str(raw.get("norm") or "")
    gain = gain if gain is not None and math.isfinite(gain) and gain > 0 else None
    attack, unit = str(raw.get("attack") or ""), str(raw.get("unit") or "")
    return Row(task, group, perturbation, norm, size, point, seed, returns, attack, unit, gain)


def _recordings(path: Path, evaluation: dict[str, Any]) -> list[Recording]:
    index = evaluation.get("trajectories") or []
    if not isinstance(index, list) or not index:
        return []
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; the evaluation names trajectories in it.")
    found = []
    try:
        arrays = Npz(path)
        for item in index:
            key = str(item["key"])
            signals = {name: _signal(arrays, key, name) for name in SIGNALS}
            kept = {name: value for name, value in signals.items() if value is not None}
            what = (str(item["task"]), str(item.get("perturbation") or ""), str(item.get("norm") or ""))
            if kept:
                found.append(Recording(*what, float(item["size"]), kept))
    except (KeyError, TypeError, ValueError, OverflowError, EOFError, zipfile.BadZipFile) as error:
        what = f"{path} cannot be read ({error}); write it again with `robust-policies evaluate`."
        raise CorruptFileError(what) from error
    return found


def _signal(arrays: Npz, key: str, name: str) -> Array | None:
    """Return the array `name` of a recording, (time, episodes, n) or of rewards (time, episodes); None without one."""
    if f"{key}_{name}" not in arrays:
        return None
    value = np.asarray(arrays[f"{key}_{name}"], dtype=np.float64)
    return value if value.ndim == (2 if name == "rewards" else 3) and value.size else None


def _certificate(files: RunFolder) -> Certificate:
    try:
        return files.read_certificate()
    except OverflowError as error:
        raise CorruptFileError(
            f"{files.certificate} cannot be read ({error}); write it again with `certify`."
        ) from error


def _return_certificate(path: Path) -> ReturnCertificate:
    """Return the certificate of a return; raises CorruptFileError where a number of it is none."""
    found = ReturnCertificate.from_json(path)
    needed = [v for row in found.rows for v in (row.size, row.nominal, row.found, row.clipped_share)]
    allowed = [found.unclipped_up_to, found.gain, *(row.certified for row in found.rows)]
    _all_numbers(path, [*needed, *(value for value in allowed if value is not None)], "certify --return")
    return found


def _smoothed_return(path: Path) -> SmoothedReturn:
    """Return what is certified of a return behind noise; errors as `_return_certificate`."""
    found = SmoothedReturn.from_json(path)
    allowed = [value for row in found.rows for value in (row.mean, row.median, row.nine_of_ten) if value is not None]
    _all_numbers(path, [*(row.size for row in found.rows), *allowed], "certify --smooth")
    return found


def _all_numbers(path: Path, values: Sequence[Any], command: str) -> None:
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise CorruptFileError(f"{path} holds something else than numbers; write it again with `{command}`.")


def _tightness(files: RunFolder) -> tuple[Array, Array, float | None]:
    """Return (steps, gain found, proven gain or None)."""
    content, path = files.read_tightness(), files.tightness
    try:
        steps, gain = (np.asarray(content[key], dtype=np.float64) for key in ("steps", "gain"))
        proven = None if content.get("gamma_raw") is None else float(content["gamma_raw"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CorruptFileError(f"{path} has no steps and gains ({error}); write it again with `certify`.") from error
    if steps.ndim != 1 or steps.shape != gain.shape or not steps.size or not np.isfinite([steps, gain]).all():
        raise CorruptFileError(f"{path}: steps and gains are not two lists of as many numbers; write it again.")
    return steps, gain, proven if proven is not None and math.isfinite(proven) and proven > 0 else None


def _wrapper(item: Any) -> str:
    """Return an item of a list of perturbations as a reader writes it: ObservationDelay: 2."""
    if not isinstance(item, dict):
        return str(item)
    return ", ".join(f"{name}: {value}" for name, value in item.items()).replace("'", "")
