"""Acceptance limits: what is required of a run folder, from text or a file, and whether it is met."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from robust_policies.errors import InvalidValueError
from robust_policies.evaluation.quantities import Asked, asked_for, number
from robust_policies.evaluation.readings import read
from robust_policies.evaluation.report.load import Run, find_runs, load_runs
from robust_policies.files import numbers
from robust_policies.files.settings import Section, one_line
from robust_policies.files.yaml_text import read_yaml

SCHEMA = 1
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_SAME = {"≤": "<=", "≥": ">="}
_REQUIREMENT = re.compile(r"\s*([^<>=!≤≥]*?)\s*([<>=!≤≥]+)\s*([^<>=!≤≥]*?)\s*")
_EXPECTED = "expected NAME[@SIZE] OP NUMBER, such as 'gamma <= 12' or 'certified_return@0.1 >= -8'"


@dataclass(frozen=True)
class Requirement:
    """A limit on one number of a run folder; `label` is what a safety case calls it."""

    asked: Asked
    operator: str
    limit: float
    label: str = ""

    def __str__(self) -> str:
        return f"{self.asked} {self.operator} {self.limit:.15g}"


@dataclass(frozen=True)
class Outcome:
    """Whether a requirement is met: its value, or the reason why there is none."""

    requirement: Requirement
    value: float | None
    reason: str = ""

    @property
    def met(self) -> bool:
        """Whether there is a value, and it is within the limit."""
        one = self.requirement
        return self.value is not None and OPERATORS[one.operator](self.value, one.limit)

    @property
    def margin(self) -> float | None:
        """How far the value is within its limit, negative outside; None without a value."""
        if self.value is None:
            return None
        apart = self.requirement.limit - self.value
        return apart if self.requirement.operator.startswith("<") else -apart

    @property
    def shown(self) -> tuple[str, str, str]:
        """The value, the limit and the margin as a reader sees them; bounds and margins on their safe side."""
        one = self.requirement
        limit = f"{one.operator} {one.limit:.15g}"
        if self.value is None or self.margin is None:
            return "-", limit, "-"
        return one.asked.quantity.shown(self.value), limit, numbers.lower(self.margin)


class _Limit(Section):
    """One requirement with a label."""

    require: str = Field(description="NAME[@SIZE] OP NUMBER")
    label: str = ""


class _Limits(Section):
    """A file of limits."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    description: str = ""
    task: str | None = Field(default=None, description="that returns are of; the first evaluated one if not given")
    require: tuple[str | _Limit, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Limits:
    """Requirements, and the task that their returns are of (None: the first that was evaluated)."""

    requirements: tuple[Requirement, ...]
    task: str | None = None


def requirement(text: str, where: str = "--require", label: str = "") -> Requirement:
    """Return what `text` requires, such as `gamma <= 12`; `where` begins an error's line.

    Raises:
        UnknownNameError: no such quantity. InvalidValueError: not of that form.
    """
    found = _REQUIREMENT.fullmatch(text)
    if found is None:
        raise InvalidValueError(f"{where} was given {text!r}; {_EXPECTED}.")
    name, sign, limit = found.groups()
    sign = _SAME.get(sign, sign)
    if sign not in OPERATORS:
        raise InvalidValueError(
            f"{where} was given {text!r}; expected one of {', '.join(OPERATORS)} in place of {sign}."
        )
    return Requirement(asked_for(name, where), sign, number(limit, f"{where}: the limit of {name}"), label)


def read_limits(path: str | Path) -> Limits:
    """Return what a YAML file requires.

    Raises:
        MissingFileError, CorruptFileError: no such file, or no YAML. UserError: a key is wrong, or as `requirement`.
    """
    return parse_limits(read_yaml(path), str(path))


def parse_limits(data: Any, source: str) -> Limits:
    """Return what `data` of a file requires; raises as `read_limits`, `source` beginning the error's line."""
    if not isinstance(data, dict):
        raise InvalidValueError(f"{source} holds no keys; expected require: [gamma <= 12, ...].")
    try:
        known = _Limits.model_validate(data)
    except ValidationError as error:
        raise one_line(error, _Limits, source) from error
    entries = [_Limit(require=one) if isinstance(one, str) else one for one in known.require]
    return Limits(tuple(requirement(one.require, source, one.label) for one in entries), known.task)


def check_limits(
    folder: str | Path, require: Sequence[str] = (), limits: str | Path | None = None, task: str | None = None
) -> list[Outcome]:
    """Return whether a run folder meets each requirement; what is missing or not confirmed is not met.

    Args:
        folder: the run folder.
        require: such as "gamma <= 12" and "certified_return@0.1 >= -8".
        limits: a YAML file of further ones.
        task: that returns are of; None: the file's, else the first that was evaluated.

    Raises:
        UserError: as `requirement`, `read_limits` and `report.load.find_runs`.
    """
    known = Limits(()) if limits is None else read_limits(limits)
    wanted = Limits((*known.requirements, *map(requirement, require)), task or known.task)
    [run] = load_runs(find_runs([Path(folder)])[:1], pictures=False)
    return judge(run, wanted)


def judge(run: Run, limits: Limits) -> list[Outcome]:
    """Return whether a run folder meets each requirement; what is missing or not confirmed is not met."""
    outcomes = []
    for one in limits.requirements:
        reading = read(run, one.asked, limits.task)
        outcomes.append(Outcome(one, reading.value, "" if reading.value is not None else reading.reason))
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return how many of them are met."""
    met = sum(outcome.met for outcome in outcomes)
    return f"{met} of {len(outcomes)} requirement{'s' * (len(outcomes) != 1)} met"
