"""The run folder: its names, its provenance, and what may be written into it when."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from robust_policies.certificates import Certificate
from robust_policies.envs.incidents import collected
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError
from robust_policies.files.atomic import output_folder, read_json, remove_leftovers, write_atomic, write_json
from robust_policies.files.lock import contents, held
from robust_policies.files.settings import flat
from robust_policies.files.versions import versions
from robust_policies.files.yaml_text import read_yaml
from robust_policies.train.recipe.recipe import Recipe, parse_recipe
from robust_policies.train.run.provenance import git_state, machine

RUN_SCHEMA = 1
EVALUATION_SCHEMA = 2
TIGHTNESS_SCHEMA = 1
LOOP_SCHEMA = 1
# A training seed in the name of a run folder.
_SEED = re.compile(r"(^|[-_., ]+)(seed[-_=]?|s)\d+$|^\d+$|^seed[-_=]?\d+[-_., ]+", re.IGNORECASE)
_NOT_OF_TRAINING = ("description", "evaluation", "target")


class RunFolder:
    """The files of one training run, by name, and what they say."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.provenance = self.path / "provenance.json"
        self.policy_json = self.path / "policy.json"
        self.policy_safetensors = self.path / "policy.safetensors"
        self.policy_zip = self.path / "policy.zip"
        self.imitation = self.path / "imitation.json"
        self.closed_loop = self.path / "closed_loop.json"
        self.certificate = self.path / "certificate.json"
        self.return_certificate = self.path / "return_certificate.json"
        self.smoothed_return = self.path / "smoothed_return.json"
        self.limits = self.path / "limits.yaml"
        self.loop = self.path / "loop.json"
        self.model_loop = self.path / "model_loop.json"
        self.model_loop_proof = self.path / "model_loop.npz"
        self.witness = self.path / "witness.npz"
        self.tightness = self.path / "tightness.json"
        self.evaluation = self.path / "evaluation.json"
        self.evaluation_csv = self.path / "evaluation.csv"
        self.trajectories = self.path / "trajectories.npz"
        self.journal = self.path / "evaluation.partial.jsonl"
        self.report = self.path / "report.html"
        self.videos = self.path / "videos"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best"
        self.incidents: list[str] = []
        """What went wrong in the simulation since the folder was reserved (`envs.incidents`)."""

    @property
    def trained(self) -> bool:
        """Whether its training has finished."""
        return self.policy_json.is_file() and self.policy_safetensors.is_file()

    @property
    def method(self) -> str:
        """Its name without the training seed: runs of one method differ in the seed alone."""
        path = self.path.resolve()
        return _SEED.sub("", path.name) or path.parent.name

    def policy_at(self, steps: int) -> Path:
        """Return the folder of the policy as it was evaluated after `steps`, with `checkpoints.policies`."""
        return self.checkpoints / "policies" / f"step_{steps:012d}"

    def read_recipe(self) -> Recipe:
        """Return the resolved recipe that the folder was made with."""
        return parse_recipe(read_yaml(self.recipe), str(self.recipe))

    def read_provenance(self) -> dict[str, Any]:
        """Return provenance.json; raise `SchemaError` if a newer version wrote it."""
        return read_json(self.provenance, "provenance", RUN_SCHEMA)

    def read_certificate(self) -> Certificate:
        """Return certificate.json; raise `UserError` if it is missing, broken or of a newer version."""
        return Certificate.from_json(self.certificate)

    def read_tightness(self) -> dict[str, Any]:
        """Return tightness.json; raise `UserError` if it is missing, broken or of a newer version."""
        return read_json(self.tightness, "tightness", TIGHTNESS_SCHEMA)

    def read_evaluation(self) -> dict[str, Any]:
        """Return evaluation.json; raise `UserError` if it is missing, broken or of a newer version."""
        content = read_json(self.evaluation, "evaluation", EVALUATION_SCHEMA, _parsed)
        if not isinstance(content.get("rows"), list):
            raise CorruptFileError(
                f"{self.evaluation} has no table of rows; write it again with `robust-policies evaluate {self.path}`."
            )
        return content

    @contextmanager
    def reserved(self, recipe: Recipe, resume: bool) -> Iterator[bool]:
        """Keep the folder to this process while it trains `recipe` into it; yield whether a run is being continued.

        Raises:
            InvalidValueError: another process trains into the folder, or as `begin`; nothing was touched then.
        """
        self._no_file()
        with ExitStack() as stack:
            with output_folder(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self.held())
                self.incidents = stack.enter_context(collected())
            yield self.begin(recipe, resume)

    def _no_file(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InvalidValueError(f"Output {str(self.path)!r} is a file; expected a folder, new or empty.")

    def held(self) -> AbstractContextManager[None]:
        """Keep the folder to this process for the block; raises `InvalidValueError` if another one has it."""
        return held(self.path, f"Run folder {str(self.path)!r}")

    def _can_be_written(self) -> None:
        """Raise `InvalidValueError` where no file can be made: a training would say so hours later."""
        there = self.path.absolute()
        while not there.exists():
            there = there.parent
        with output_folder(self.path):
            os.rmdir(tempfile.mkdtemp(dir=there, prefix="."))

    def continues(self, recipe: Recipe, resume: bool) -> bool:
        """Return whether training `recipe` here would continue an earlier run; nothing stays written.

        Raises:
            InvalidValueError: the folder holds files and `resume` is off, or holds a run of another recipe.
        """
        self._no_file()
        self._can_be_written()
        used = self.path.is_dir() and bool(contents(self.path))
        if used and not resume:
            raise InvalidValueError(
                f"Output folder {str(self.path)!r} is not empty; add --resume to continue the run in it, "
                "choose another with -o, or delete it."
            )
        if used:
            if not self.recipe.is_file():
                raise InvalidValueError(
                    f"{str(self.path)!r} has no recipe.yaml, so there is no run to resume; choose another "
                    "folder with -o."
                )
            if self.provenance.is_file():
                self.read_provenance()
            _same_recipe(self.read_recipe(), recipe, self.path)
        return used

    def begin(self, recipe: Recipe, resume: bool) -> bool:
        """Make the folder ready for training `recipe`; return whether an earlier run is being continued.

        Raises:
            InvalidValueError: the folder holds files and `resume` is off, or holds a run of another recipe.
        """
        if self.continues(recipe, resume):
            remove_leftovers(self.checkpoints)
            return True
        with output_folder(self.path):
            write_atomic(self.recipe, lambda file: file.write(recipe.to_yaml().encode()))
        return False

    def write_provenance(self, **facts: Any) -> None:
        """Write provenance.json: `facts` beside the command, versions, commit and machine."""
        content = {
            "schema": RUN_SCHEMA,
            "command": shlex.join(["robust-policies", *sys.argv[1:]]),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
            "incidents": self.incidents,
            "versions": versions(),
            **git_state(),
            "machine": machine(),
        }
        write_json(self.provenance, content)


def open_run(path: str | Path) -> RunFolder:
    """Return the run folder at `path` after checking that it is one, of a schema this version reads.

    Raises:
        MissingFileError: no such folder, or its training has not finished.
        SchemaError: a newer version of this package wrote it.
    """
    run = RunFolder(path)
    if not run.path.is_dir():
        raise MissingFileError(
            f"Run folder {str(path)!r} does not exist; make one with: robust-policies train RECIPE -o {path}"
        )
    if run.provenance.is_file():
        run.read_provenance()
    if run.recipe.is_file():
        run.read_recipe()
    if not run.trained:
        hint = (
            "its training has not finished: continue it with --resume"
            if run.recipe.is_file()
            else "it is no run folder"
        )
        raise MissingFileError(f"Run folder {str(path)!r} has no policy.json and policy.safetensors; {hint}.")
    return run


def _parsed(content: bytes) -> Any:
    """Return JSON as Python's own parser reads it, in a third of its time; what is refused that one reads again."""
    try:
        return from_json(content)
    except ValueError:
        return json.loads(content)


def _same_recipe(old: Recipe, new: Recipe, path: Path) -> None:
    before, after = flat(old.resolved()), flat(new.resolved())
    # How a finished policy is evaluated, and what is expected of it, does not touch its training.
    changed = sorted(
        key
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key) and key.partition(".")[0] not in _NOT_OF_TRAINING
    )
    if changed:
        key = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise InvalidValueError(
            f"Cannot resume {str(path)!r} with a changed recipe: {key} was {before.get(key)!r} and is now "
            f"{after.get(key)!r}{more}; resume with the same recipe, or train into another folder with -o."
        )
