"""Records from files: CSV, NPZ, MAT and Parquet, with columns by name, into experiments of one sample time."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    NonFiniteError,
    UnknownNameError,
)
from robust_policies.identification.records import Array, Experiment

_TIMES = ("time", "t", "Time", "timestamp")
# A clock's step may be off by this share of it before it is a jump.
_JITTER = 0.01


@dataclass(frozen=True)
class Columns:
    """Which columns of a file mean what.

    Attributes:
        inputs, outputs: names; of an array of k columns, NAME.0 to NAME.(k-1), or NAME for all of them.
        time: of the time in seconds; None: `time`, `t` or `timestamp` where the file has one, else there is none.
        experiment: a column whose value tells experiments apart; None: each file is one.
        sample_time: in seconds; None: that of the time column.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    time: str | None = None
    experiment: str | None = None
    sample_time: float | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """What was read: experiments, the names of their channels, and the sample time in seconds."""

    experiments: tuple[Experiment, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sample_time: float


def read_data(paths: Sequence[str | Path], columns: Columns) -> Data:
    """Return the experiments in files, or in all files of a known kind in folders.

    Raises:
        MissingFileError: a file is not there, or a folder has no data.
        CorruptFileError: a file cannot be read as what its name says.
        UnknownNameError: a column is not there; the message names the closest.
        NonFiniteError: a column or the time holds NaN or infinity.
        InvalidValueError: the time jumps, or there is no sample time.
    """
    if not columns.inputs or not columns.outputs:
        raise InvalidValueError("No inputs or no outputs were named; give --inputs a,b and --outputs c.")
    twice = set(columns.inputs) & set(columns.outputs)
    if twice:
        raise InvalidValueError(f"{sorted(twice)[0]!r} is an input and an output; name it once.")
    found: list[Experiment] = []
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    sample_time = columns.sample_time
    for path in _files(paths):
        table = _table(path)
        here = tuple(_expanded(path, table, given) for given in (columns.inputs, columns.outputs))
        if names is not None and here != names:
            raise InvalidValueError(f"{path} has other columns than the files before it: {here} and {names}.")
        names = (here[0], here[1])
        for name, rows in _experiments(path, table, columns.experiment):
            part = {key: table[key][rows] for key in (*here[0], *here[1])}
            where = name if columns.experiment is None else f"{path.name}, experiment {name}"
            _finite(path, part, rows)
            sample_time = _sample_time(path, where, table, rows, columns.time, sample_time)
            found.append(
                Experiment(
                    name, np.column_stack([part[k] for k in here[0]]), np.column_stack([part[k] for k in here[1]])
                )
            )
    assert names is not None
    if sample_time is None:
        raise InvalidValueError("There is no sample time: the data has no time column; give --sample-time SECONDS.")
    doubled = {one.name for one in found if sum(other.name == one.name for other in found) > 1}
    if doubled:
        raise InvalidValueError(f"Two experiments are called {sorted(doubled)[0]!r}; rename one of the files.")
    return Data(tuple(found), *names, sample_time)


def _files(paths: Sequence[str | Path]) -> list[Path]:
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
            if not inside:
                raise MissingFileError(f"Folder {str(path)!r} holds no data; expected files {', '.join(READERS)}.")
            found += inside
        elif not path.is_file():
            raise MissingFileError(
                f"Data {str(path)!r} does not exist; expected a file {', '.join(READERS)}, or a folder."
            )
        else:
            found.append(path)
    if not found:
        raise InvalidValueError("No data was given; name a file or a folder.")
    return found


def _table(path: Path) -> dict[str, np.ndarray]:
    """Return the one-dimensional columns of a file by name, all of one length where they belong together."""
    kind = path.suffix.lower()
    if kind not in READERS:
        raise InvalidValueError(f"{path} is of the kind {kind!r}; expected one of {', '.join(READERS)}.")
    found: dict[str, np.ndarray] = {}
    for name, value in READERS[kind](path).items():
        value: Any = np.asarray(value)
        if value.ndim == 2 and 1 in value.shape:
            value = value.reshape(-1)
        if value.ndim == 1:
            found[name] = value
        elif value.ndim == 2:
            # Records are longer than they have channels.
            value = value.T if value.shape[0] < value.shape[1] else value
            found |= {f"{name}.{k}": column for k, column in enumerate(value.T)}
    return found


def _expanded(path: Path, table: Mapping[str, np.ndarray], names: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns, those of an array of several in place of its own."""
    found: list[str] = []
    for name in names:
        parts = [key for key in table if key.startswith(f"{name}.") and key[len(name) + 1 :].isdigit()]
        if name not in table and not parts:
            raise UnknownNameError(f"{path}: {UnknownNameError.among('column', name, table)}")
        found += [name] if name in table else parts
    return tuple(found)


def _experiments(path: Path, table: Mapping[str, np.ndarray], column: str | None) -> list[tuple[str, slice]]:
    """Return the name and the rows of each experiment in a file: runs of equal values of `column`."""
    if column is None:
        return [(path.stem, slice(None))]
    if column not in table:
        raise UnknownNameError(f"{path}: {UnknownNameError.among('column', column, table)}")
    values = table[column].astype(str)
    ends = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    found = [(str(values[a]).removesuffix(".0"), slice(a, b)) for a, b in pairwise(ends)]
    if len({name for name, _ in found}) < len(found):
        raise InvalidValueError(f"{path}: the rows of one value of {column!r} are not together; sort the file by it.")
    return found


def _finite(path: Path, part: dict[str, np.ndarray], rows: slice) -> None:
    lengths = {key: len(value) for key, value in part.items()}
    if len(set(lengths.values())) > 1:
        longest, shortest = max(lengths, key=lambda key: lengths[key]), min(lengths, key=lambda key: lengths[key])
        raise InvalidValueError(
            f"{path}: {longest!r} has {lengths[longest]} samples and {shortest!r} {lengths[shortest]}; expected equal."
        )
    for key, value in part.items():
        try:
            part[key] = number = value.astype(np.float64)
        except (ValueError, TypeError) as error:
            raise CorruptFileError(f"{path}: column {key!r} does not hold numbers ({error}).") from error
        bad = np.flatnonzero(~np.isfinite(number))
        if len(bad):
            first = bad[0] + (rows.start or 0)
            raise NonFiniteError(
                f"{path}: column {key!r} holds {len(bad)} NaN or infinite value(s), the first in row {first} (from 0); "
                "cut the record there into two files, or fill the gap."
            )


def _sample_time(
    path: Path, where: str, table: Mapping[str, np.ndarray], rows: slice, column: str | None, expected: float | None
) -> float | None:
    """Return the sample time, that of the time column where there is one; raises where time jumps."""
    if column is not None and column not in table:
        raise UnknownNameError(f"{path}: {UnknownNameError.among('column', column, table)}")
    column = column or next((name for name in _TIMES if name in table), None)
    if column is None:
        return expected
    try:
        times = table[column][rows].astype(np.float64)
    except (ValueError, TypeError) as error:
        raise CorruptFileError(f"{path}: the time column {column!r} does not hold numbers ({error}).") from error
    gaps, steps = np.flatnonzero(~np.isfinite(times)), np.diff(times)
    if len(gaps):
        row = int(gaps[0]) + (rows.start or 0)
        raise NonFiniteError(
            f"{where}: the time column {column!r} holds NaN or infinity in row {row} (from 0); fill it."
        )
    if not len(steps):
        return expected
    # Differences of rounded times: nine digits are what a clock shows.
    usual = float(f"{np.median(steps):.9g}")
    if not usual > 0:
        raise InvalidValueError(f"{where}: the time column {column!r} does not grow; name another with --time.")
    bad = np.flatnonzero(~(np.abs(steps - usual) <= _JITTER * usual))
    if len(bad):
        row = int(bad[0]) + (rows.start or 0)
        raise InvalidValueError(
            f"{where}: time jumps by {steps[bad[0]]:g} s after row {row} (from 0) where the step is {usual:g} s, at "
            f"{len(bad)} place(s); cut the record there into experiments."
        )
    if expected is not None and abs(usual - expected) > _JITTER * expected:
        raise InvalidValueError(
            f"{where}: the time column steps by {usual:g} s; expected {expected:g} s, as given or before."
        )
    return usual if expected is None else expected


def _csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max((",", ";", "\t"), key=first.count)
            names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
            rows = list(csv.reader(file, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorruptFileError(f"{path} cannot be read as CSV ({error}).") from error
    if not names or all(_is_number(name) for name in names):
        raise CorruptFileError(f"{path} has no line of column names; write one as its first line.")
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise CorruptFileError(f"{path} has two columns {twice[0]!r}; name them apart in its first line.")
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise CorruptFileError(f"{path}: line {number} has {len(row)} entries; expected {len(names)}.")
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return {name: _as_numbers(column) for name, column in zip(names, columns, strict=True)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_numbers(column: Sequence[str]) -> np.ndarray:
    """Return a column as float64 where it is numbers (an empty entry is NaN), else as text."""
    try:
        return np.array([float(entry) if entry.strip() else np.nan for entry in column])
    except ValueError:
        return np.array([entry.strip() for entry in column])


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise CorruptFileError(f"{path} cannot be read as NPZ without pickle ({error}).") from error


def _mat(path: Path) -> dict[str, np.ndarray]:
    try:
        found = loadmat(path)
    except NotImplementedError as error:
        raise CorruptFileError(f"{path} is a MAT file of version 7.3 (HDF5); save it with -v7.") from error
    except Exception as error:  # SciPy lets through whatever its parser runs into
        raise CorruptFileError(f"{path} cannot be read as a MAT file ({type(error).__name__}: {error}).") from error
    return {name: value for name, value in found.items() if not name.startswith("__") and value.dtype.kind in "fiub"}


def _parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InvalidValueError(
            f"{path} needs pyarrow; install robust-policies[identify], or save it as CSV."
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
        return {name: table.column(name).to_numpy() for name in table.column_names}
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptFileError(f"{path} cannot be read as Parquet ({error}).") from error


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".csv": _csv,
    ".npz": _npz,
    ".mat": _mat,
    ".parquet": _parquet,
}
"""What reads a file by the end of its name: named arrays (time,) or (time, k)."""


def stacked(experiments: Sequence[Experiment], part: str) -> Array:
    """Return the `part` ("inputs" or "outputs") of experiments one after another, (time, channels)."""
    return np.concatenate([getattr(one, part) for one in experiments])
