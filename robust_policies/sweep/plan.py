"""Which trials a sweep consists of: the product of grids and seeds, each with a name that stays the same."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_policies.errors import InvalidValueError
from robust_policies.files.yaml_text import parse_yaml
from robust_policies.train import Recipe, load_recipe

_LONGEST_LABEL = 32


@dataclass(frozen=True)
class Trial:
    """One training: a setting of the swept keys and a seed.

    Attributes:
        name: of its folder; a function of keys, values and seed alone.
        seed: of the recipe.
        setting: {swept key: value}.
        recipe: what is trained.
    """

    name: str
    seed: int
    setting: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Assignments:
    """What `--set` says: fixed assignments, and for each swept key the texts of its values."""

    fixed: list[str]
    grid: dict[str, list[str]]


def split_values(text: str) -> list[str]:
    """Return the values in `text` separated by commas outside of brackets and quotes, without blanks around them."""
    parts, depth, quote, part = [], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and (depth or not part.strip()):
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            parts.append(part.strip())
            part = ""
            continue
        part += letter
    return [*parts, part.strip()]


def read_assignments(given: Sequence[str]) -> Assignments:
    """Return `--set`'s assignments sorted into fixed ones and grids.

    Raises:
        InvalidValueError: an assignment without a key, an empty or repeated value, a swept key given twice, or `seed`
            among the swept keys.
    """
    fixed: list[str] = []
    grid: dict[str, list[str]] = {}
    seen: set[str] = set()
    for assignment in given:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not key:
            raise InvalidValueError(
                f"--set was given {assignment!r}; expected KEY=VALUE or KEY=A,B,C, such as policy.gamma=4,6."
            )
        values = split_values(text)
        if key in grid or (key in seen and len(values) > 1):
            raise InvalidValueError(f"--set names {key} twice; give all its values at once: {key}=A,B,C.")
        seen.add(key)
        if len(values) == 1:
            fixed.append(assignment)
            continue
        if key == "seed":
            raise InvalidValueError(f"--set was given {assignment!r}; expected the seeds in --seeds {text.strip()}.")
        _distinct(key, values, f"--set {key}")
        grid[key] = values
    return Assignments(fixed, grid)


def _distinct(key: str, values: list[str], where: str) -> None:
    known: dict[str, str] = {}
    for value in values:
        if not value:
            raise InvalidValueError(f"{where} has an empty value among {values}; expected {key}=A,B,C.")
        meaning = meaning_of(value, where)
        if meaning in known:
            raise InvalidValueError(
                f"{where} has the value {known[meaning]} twice ({known[meaning]!r} and {value!r}); give each once."
            )
        known[meaning] = value


def meaning_of(text: str, where: str) -> str:
    """Return the same text for values that mean the same, such as `4` and `4.0`."""
    value = parse_yaml(text, where)
    return repr(float(value)) if isinstance(value, int) and not isinstance(value, bool) else repr(value)


def plan_trials(recipe: str | Path, given: Sequence[str], seeds: Sequence[int] | None) -> list[Trial]:
    """Return the trials of a sweep, all seeds of a setting one after another.

    Args:
        recipe: file or name.
        given: `KEY=VALUE` (the same for all trials) and `KEY=A,B,C` (one setting for each; several make the product).
        seeds: None: the recipe's own.

    Raises:
        UserError: the recipe, a key or a value is wrong; the message names it.
    """
    assignments = read_assignments(given)
    chosen = checked_seeds(seeds, load_recipe(recipe, assignments.fixed).seed)
    trials = []
    for texts in itertools.product(*assignments.grid.values()):
        pairs = dict(zip(assignments.grid, texts, strict=True))
        overrides = [*assignments.fixed, *(f"{key}={text}" for key, text in pairs.items())]
        setting = {key: parse_yaml(text, f"--set {key}") for key, text in pairs.items()}
        trials += [
            Trial(trial_name(pairs, seed), seed, setting, load_recipe(recipe, overrides, seed)) for seed in chosen
        ]
    names = [trial.name for trial in trials]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidValueError(f"Two trials would be named {twice!r}; write the values in --set so that they differ.")
    return trials


def checked_seeds(seeds: Sequence[int] | None, default: int) -> list[int]:
    """Return the seeds, or `default` alone for None; raise `InvalidValueError` for one that is there twice."""
    chosen = [default] if seeds is None else list(seeds)
    twice = next((seed for seed in chosen if chosen.count(seed) > 1), None)
    if twice is not None:
        raise InvalidValueError(f"--seeds names {twice} twice; expected each seed once, such as 0-9.")
    return chosen


def trial_name(pairs: Mapping[str, str], seed: int) -> str:
    """Return the folder name of a setting (texts by key) and a seed: `gamma=4_hidden_sizes=16x16_seed=0`."""
    labels = {key: key.rpartition(".")[2] for key in pairs}
    short = list(labels.values())
    parts = [f"{labels[key] if short.count(labels[key]) == 1 else key}={_label(text)}" for key, text in pairs.items()]
    return "_".join([*parts, f"seed={seed}"])


def _label(text: str) -> str:
    """Return a value as part of a file name; what does not fit one is told apart by a hash."""
    listed = re.sub(r"\s*,\s*", "x", text.strip().removeprefix("[").removesuffix("]").strip())
    label = re.sub(r"[^A-Za-z0-9.+-]+", "-", listed).strip("-")
    if label == listed and len(label) <= _LONGEST_LABEL:
        return label
    return f"{label[:_LONGEST_LABEL]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
