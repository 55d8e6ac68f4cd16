"""The search space: which values of which keys a search may try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robust_policies.errors import InvalidValueError, UserError
from robust_policies.sweep.plan import meaning_of, split_values

_EXPECTED = "KEY=LOW..HIGH, KEY=log:LOW..HIGH or KEY=A,B,C, such as algorithm.learning_rate=log:1e-4..1e-2"
Accepts = Callable[[str], object]


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: uniform in the logarithm; `whole`: integers only."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class Choice:
    """One of several values, as they are written."""

    texts: tuple[str, ...]


Space = dict[str, Range | Choice]


def read_space(given: Sequence[str], accepts: Accepts) -> Space:
    """Return {key: what may be tried} for `--search`'s assignments.

    Args:
        given: `key=3..12`, `key=log:1e-4..1e-2` or `key=a,b,c`.
        accepts: called with an assignment `key=value`; raises a `UserError` if the recipe does not take it. Both ends
            of a range and all choices must be accepted; a key that refuses the middle of a range is one of integers.

    Raises:
        UserError: the message names the key.
    """
    space: Space = {}
    for assignment in given:
        key, separator, text = assignment.partition("=")
        key, text = key.strip(), text.strip()
        if not separator or not key or not text:
            raise InvalidValueError(f"--search was given {assignment!r}; expected {_EXPECTED}.")
        if key in space:
            raise InvalidValueError(f"--search names {key} twice; expected each key once.")
        if key == "seed":
            raise InvalidValueError("--search was given 'seed'; a search tries settings, and --seeds is for seeds.")
        space[key] = _range(key, text, accepts) if ".." in text else _choice(key, text, accepts)
    return space


def _choice(key: str, text: str, accepts: Accepts) -> Choice:
    values = split_values(text)
    meanings = [meaning_of(value, f"--search {key}") for value in values]
    if len(values) < 2 or not all(values) or len(set(meanings)) < len(values):
        raise InvalidValueError(
            f"--search {key} was given {text!r}; expected a range LOW..HIGH or at least two different values A,B."
        )
    for value in values:
        accepts(f"{key}={value}")
    return Choice(tuple(values))


def _range(key: str, text: str, accepts: Accepts) -> Range:
    log = text.startswith("log:")
    ends = text.removeprefix("log:").split("..")
    try:
        low, high = map(float, ends)
    except ValueError as error:
        raise InvalidValueError(f"--search {key} was given {text!r}; expected {_EXPECTED}.") from error
    if not low < high or not abs(high - low) < float("inf") or (log and low <= 0):
        wanted = "0 < LOW < HIGH, as it is a logarithmic range" if log else "LOW < HIGH"
        raise InvalidValueError(f"--search {key} was given {text!r}; expected {wanted}.")
    for end in ends:
        accepts(f"{key}={end}")
    whole = low.is_integer() and high.is_integer() and not _takes(accepts, f"{key}={low + (high - low) / 3.1:.6f}")
    return Range(low, high, log, whole)


def _takes(accepts: Accepts, assignment: str) -> bool:
    try:
        accepts(assignment)
    except UserError:
        return False
    return True


def as_text(value: Any) -> str:
    """Return a suggested value as it would stand behind `--set KEY=`."""
    return value if isinstance(value, str) else repr(value)
