"""One clear line out of pydantic's validation errors."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from robust_policies.errors import InvalidValueError, UnknownNameError, UserError

# What people type who know the key under another name.
_OTHER_NAMES = {
    "algorithm.gamma": "algorithm.discount",
    "algorithm.total_timesteps": "algorithm.total_steps",
    "algorithm.n_timesteps": "algorithm.total_steps",
    "algorithm.lr": "algorithm.learning_rate",
    "algorithm.norm_reward": "algorithm.normalize_reward",
    "task.n_envs": "task.num_envs",
    "policy.lipschitz": "policy.gamma",
    "n_envs": "task.num_envs",
    "env": "task.id",
    "env_id": "task.id",
}


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _section(field: Any) -> type[BaseModel] | None:
    """Return the class of a section, of one that may be left out too; None for a value."""
    for kind in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    paths = []
    for name, field in _fields(model).items():
        paths.append(prefix + name)
        section = _section(field)
        if section is not None:
            paths.extend(_paths(section, f"{prefix}{name}."))
    return paths


def _at(model: type[BaseModel], keys: tuple[Any, ...]) -> Any:
    """Return the pydantic field under `keys`, or None."""
    field = None
    for key in keys:
        field = _fields(model).get(str(key))
        if field is None:
            return None
        model = _section(field) or model
    return field


def _suggestion(path: str, known: list[str]) -> str | None:
    if path in _OTHER_NAMES:
        return _OTHER_NAMES[path]
    section, _, key = path.rpartition(".")
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    for names in (siblings, known):
        close = difflib.get_close_matches(path, names, n=1, cutoff=0.75)
        if close:
            return close[0]
    close = difflib.get_close_matches(key, leaves, n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def _expected(field: Any, message: str) -> str:
    """Return what the field wants, from its annotation and pydantic's own words."""
    words = message.removeprefix("Value error, ").removeprefix("Input should be ")
    if field is not None and typing.get_origin(field.annotation) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(field.annotation))
    return words.removeprefix("expected ").removesuffix(".")


def one_line(error: ValidationError, model: type[BaseModel], source: str) -> UserError:
    """Return the error that names the first mistake: path of the key, what was given, what is expected.

    Unknown keys come first, since a misspelt key often causes a missing one.
    """
    details = sorted(error.errors(include_url=False), key=lambda entry: entry["type"] != "extra_forbidden")
    first = details[0]
    # A union such as `float | str` reports each member; their names are not part of the key's path.
    location = _location(model, first["loc"])
    path = ".".join(map(str, location))
    more = len({entry["loc"][:2] for entry in details}) - 1
    tail = f" (and {more} more mistake{'s' if more > 1 else ''})" if more else ""
    known = _paths(model)
    if first["type"] == "extra_forbidden":
        meant = _suggestion(path, known)
        section = path.rpartition(".")[0]
        here = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
        hint = f" Did you mean {meant!r}?" if meant else ""
        return UnknownNameError(
            f"{source}: unknown key {path!r}.{hint} Known{f' in {section}' if section else ''}: "
            f"{', '.join(here)}.{tail}"
        )
    if first["type"] == "missing":
        return InvalidValueError(f"{source}: the key {path!r} is missing; add it.{tail}")
    if not path:
        return InvalidValueError(f"{source}: {_expected(None, first['msg'])}.{tail}")
    field = _at(model, location)
    expected = _expected(field, first["msg"])
    if first["type"] == "model_type":
        names = [name.rpartition(".")[2] for name in known if name.startswith(f"{path}.")]
        expected = f"a section with the keys {', '.join(names)}"
    elif field is not None and first["loc"] != location:
        expected = _union(field, expected)
    return InvalidValueError(f"{source}: {path} is {first['input']!r}; expected {expected}.{tail}")


def _location(model: type[BaseModel], loc: tuple[Any, ...]) -> tuple[Any, ...]:
    found: tuple[Any, ...] = ()
    for key in loc:
        field = _at(model, found)
        if isinstance(key, int) or not found or (field is not None and _section(field) is not None):
            found = (*found, key)
    return found


def _union(field: Any, expected: str) -> str:
    members = [getattr(m, "__name__", str(m)) for m in typing.get_args(field.annotation) if m is not type(None)]
    words = {"float": "a number", "str": "text", "list": "a list of numbers", "int": "a whole number"}
    return " or ".join(words.get(name.split("[")[0], name) for name in members) if len(members) > 1 else expected


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {path: value}, such as {"policy.gamma": 4.0}."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


class Strict(BaseModel):
    """Strict types, no unknown keys: a recipe that parses means what it says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
