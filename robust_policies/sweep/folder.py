"""The sweep folder: what the sweep is, what became of each trial, and what may be written into it when."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robust_policies.errors import CorruptFileError, InvalidValueError
from robust_policies.files.atomic import read_json, write_json
from robust_policies.files.lock import contents, held
from robust_policies.files.settings import flat
from robust_policies.files.versions import versions
from robust_policies.sweep.jobs import Ended
from robust_policies.sweep.table import INTERVAL, METRICS, read_metrics, settings, write_csv
from robust_policies.train import RunFolder, parse_recipe

SWEEP_SCHEMA = 1
# How a trial is described and how many there are does not touch those that exist.
_FREE = ("description", "seed")


class SweepFolder:
    """The files of one sweep, by name, and the rows of its table."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.plan = self.path / "sweep.json"
        self.table = self.path / "table.json"
        self.trials = self.path / "trials"
        self.logs = self.path / "logs"
        self.study = self.path / "search.db"
        self.rows: dict[str, dict[str, Any]] = {}

    @contextmanager
    def reserved(self, facts: Mapping[str, Any], resume: bool) -> Iterator[None]:
        """Keep the folder to this process for the block, begun with `facts`.

        Raises:
            InvalidValueError: another process has it, or as `begin`.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InvalidValueError(f"Output {str(self.path)!r} is a file; expected a folder, new or empty.")
        with ExitStack() as stack:
            with self._unwritable():
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(self.path, f"Sweep folder {str(self.path)!r}"))
            self.begin(facts, resume)
            yield

    def begin(self, facts: Mapping[str, Any], resume: bool) -> None:
        """Make the folder ready for a sweep described by `facts`: `recipe`, resolved, `keys` that are swept and more.

        Raises:
            InvalidValueError: the folder holds files and `resume` is off, or holds another sweep.
        """
        used = bool(contents(self.path))
        if used and not resume:
            raise InvalidValueError(
                f"Output folder {str(self.path)!r} is not empty; add --resume to continue the sweep in it, choose "
                "another with -o, or delete it."
            )
        if used and not self.plan.is_file():
            raise InvalidValueError(
                f"{str(self.path)!r} has no sweep.json, so there is no sweep to resume; choose another folder with -o."
            )
        if used:
            _same(read_json(self.plan, "sweep", SWEEP_SCHEMA), facts, self.path)
            self._read_rows()
        command = shlex.join(["robust-policies", *sys.argv[1:]])
        written = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"schema": SWEEP_SCHEMA, "command": command, "written": written, **facts, "versions": versions()}
        with self._unwritable():
            self.trials.mkdir(parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            write_json(self.plan, content)

    @contextmanager
    def _unwritable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InvalidValueError(
                f"Output folder {str(self.path)!r} cannot be written ({error.strerror}); choose another with -o."
            ) from error

    def _read_rows(self) -> None:
        if not self.table.is_file():
            return
        rows = read_json(self.table, "sweep table", SWEEP_SCHEMA).get("trials")
        needed = {"name", "seed", "setting", "status", "reason", "metrics"}
        if not isinstance(rows, list) or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
            raise CorruptFileError(
                f"{self.table} has no table of trials; delete it and use --resume: finished trials are read again."
            )
        self.rows = {row["name"]: row for row in rows}

    def is_done(self, name: str, evaluate: bool) -> bool:
        """Return whether the trial `name` needs no more work; with `evaluate` it must have been evaluated too."""
        row = self.rows.get(name)
        run = RunFolder(self.trials / name)
        complete = run.trained and (run.evaluation.is_file() or not evaluate)
        return row is not None and row["status"] == "done" and complete

    def record(self, seed: int, setting: Mapping[str, Any], ended: Ended) -> dict[str, Any]:
        """Return the row of a trial that ended, after writing all tables with it."""
        metrics = read_metrics(RunFolder(self.trials / ended.name)) if ended.status == "done" else {}
        row = {
            "name": ended.name,
            "seed": seed,
            "setting": dict(setting),
            "status": ended.status,
            "reason": ended.reason,
            "metrics": metrics,
        }
        self.rows[ended.name] = row
        self.write_tables()
        return row

    def write_tables(self) -> None:
        """Write table.json, trials.csv and settings.csv."""
        rows = list(self.rows.values())
        content = {
            "schema": SWEEP_SCHEMA,
            "metrics": METRICS,
            "interval": INTERVAL,
            "trials": rows,
            "settings": settings(rows),
        }
        write_json(self.table, content)
        write_csv(self.path, rows)

    def sort(self, names: Sequence[str]) -> None:
        """Put the rows into the order of `names`, others first: trials end in the order of their length."""
        order = {name: place for place, name in enumerate(names)}
        self.rows = dict(sorted(self.rows.items(), key=lambda item: order.get(item[0], -1)))


def _same(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Raise unless the sweep `new` is `old`, perhaps with more values, seeds or trials."""
    advice = "resume with the same command (more seeds, values or trials are welcome), or choose another folder with -o"
    if old.get("keys") != new["keys"]:
        raise InvalidValueError(
            f"Cannot resume {str(path)!r} with other keys: it swept {old.get('keys')} and now {new['keys']}; {advice}."
        )
    for name in new.keys() - {"recipe", "keys"}:
        if old.get(name) != new[name]:
            raise InvalidValueError(
                f"Cannot resume {str(path)!r}: {name} was {old.get(name)!r} and is now {new[name]!r}; {advice}."
            )
    free = {*_FREE, *new["keys"]}
    # Read as recipes: a default that was added since then is no change.
    before, after = (flat(parse_recipe(data.get("recipe"), str(path)).resolved()) for data in (old, new))
    for key in sorted(before.keys() | after.keys()):
        if key not in free and before.get(key) != after.get(key):
            raise InvalidValueError(
                f"Cannot resume {str(path)!r} with a changed recipe: {key} was {before.get(key)!r} and is now "
                f"{after.get(key)!r}; {advice}."
            )
