"""What every file of settings is read into, and one clear line out of pydantic's validation errors."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from robust_policies.errors import InvalidValueError, UnknownNameError, UserError


class Section(BaseModel):
    """Named settings: no unknown keys, nothing infinite; a whole number, or text that is a number, is a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = fields(cls)
        return {key: whole(value, known[key].annotation) if key in known else value for key, value in data.items()}


class Strict(Section):
    """Strict types too: a recipe that parses means what it says."""

    model_config = ConfigDict(strict=True)


def whole(value: Any, kind: Any) -> Any:
    """Return `value` with whole numbers that were written as 1e5 or 2.0 as ints where `kind` has ints and no floats."""
    choices = list(_choices(kind))
    if isinstance(value, float):
        return int(value) if int in choices and float not in choices and value.is_integer() else value
    if isinstance(value, list):
        return [whole(entry, _inside(choices, index)) for index, entry in enumerate(value)]
    if isinstance(value, dict) and not any(map(_is_section, choices)):
        return {key: whole(entry, _inside(choices, key)) for key, entry in value.items()}
    return value


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


def units(section: type[BaseModel]) -> dict[str, str]:
    """Return the unit that a section states for each of its keys, "" where it states none."""
    found = {}
    for key, field in fields(section).items():
        extra = field.json_schema_extra
        found[key] = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
    return found


def fields(section: type[BaseModel]) -> dict[str, Any]:
    """Return pydantic's fields of a section by the keys that a file uses."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def one_line(error: ValidationError, model: type[BaseModel], source: str) -> UserError:
    """Return the error that names the first mistake: path of the key, what was given, what is expected.

    Unknown keys come first, since a misspelt key often causes a missing one. What a `UserError` of a validator of our
    own says is kept word for word.
    """
    details = sorted(error.errors(include_url=False), key=lambda entry: entry["type"] != "extra_forbidden")
    first = details[0]
    place = _place(model, first["loc"])
    path = ".".join(map(str, place.keys))
    more = len({entry["loc"][:2] for entry in details}) - 1
    tail = f" (and {more} more mistake{'s' if more > 1 else ''})" if more else ""
    if first["type"] == "extra_forbidden":
        meant = _suggestion(path, _paths(model, place.keys))
        hint = f" Did you mean {meant!r}?" if meant else ""
        section = path.rpartition(".")[0]
        where = f"Known in {section}" if section else "Known"
        return UnknownNameError(f"{source}: unknown key {path!r}.{hint} {where}: {_listed(place.section)}.{tail}")
    if first["type"] == "missing":
        wanted = place.field.description if place.field is not None and place.field.description else "a value for it"
        return InvalidValueError(f"{source}: {path} is missing; expected {wanted}.{tail}")
    own = (first.get("ctx") or {}).get("error")
    words = str(own).rstrip(".") if isinstance(own, ValueError) else _words(first["msg"])
    if isinstance(own, UserError) or (isinstance(own, ValueError) and not words.startswith("expected ")) or not path:
        kind = type(own) if isinstance(own, UserError) else InvalidValueError
        return kind(f"{source}: {path + ': ' if path and not words.startswith(path) else ''}{words}.{tail}")
    expected = words.removeprefix("expected ")
    if first["type"] in {"model_type", "model_attributes_type"}:
        expected = f"a section with the keys {_listed(place.section)}"
    elif get_origin(place.kind) is Literal:
        expected = "one of " + ", ".join(map(str, get_args(place.kind)))
    elif place.tagged:
        expected = _union(place.field, expected)
    return InvalidValueError(f"{source}: {path} is {first['input']!r}; expected {expected}.{tail}")


class _Place(NamedTuple):
    """Where an error is."""

    keys: tuple[Any, ...]
    """As a user would write them."""
    kind: Any
    """The type that is expected there."""
    field: Any
    """Pydantic's field that holds it, None in an unknown one."""
    section: type[BaseModel]
    """That has the field."""
    tagged: bool
    """Whether pydantic tried the members of a union such as `float | str` one by one."""


def _place(model: type[BaseModel], loc: tuple[Any, ...]) -> _Place:
    """Return where pydantic's `loc` is; what it says of the members of a union is no part of a key's path."""
    at = _Place((), model, None, model, False)
    for key in loc:
        choices = list(_choices(at.kind))
        section = next((one for one in choices if _is_section(one) and key in fields(one)), None)
        inner = _inside(choices, key)
        if section is not None:
            field = fields(section)[key]
            at = _Place((*at.keys, key), field.annotation, field, section, False)
        elif inner is not None:
            at = at._replace(keys=(*at.keys, key), kind=inner)
        elif (member := _member(choices, key)) is not None:
            at = at._replace(kind=member, tagged=True)
        elif any(map(_is_section, choices)):
            at = _Place((*at.keys, key), None, None, next(filter(_is_section, choices)), False)
        else:
            at = at._replace(tagged=True)
    # What is no mapping where a section is expected.
    within = next(filter(_is_section, _choices(at.kind)), None) if at.kind is not None else None
    return at if within is None else at._replace(section=within)


def _member(choices: list[Any], key: Any) -> Any:
    """Return the member of a union of sections and others that pydantic names `key`, None if there is none."""
    return next((one for one in choices if len(choices) > 1 and getattr(one, "__name__", "") == key), None)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _choices(kind: Any) -> Iterator[Any]:
    """Yield the members of a union, or the type itself."""
    if get_origin(kind) is Annotated:
        yield from _choices(get_args(kind)[0])
    elif get_origin(kind) in {Union, types.UnionType}:
        for member in get_args(kind):
            yield from _choices(member)
    else:
        yield kind


def _inside(choices: list[Any], key: Any) -> Any:
    """Return the type of the value under `key` in a mapping or list among `choices`, None if there is none."""
    for kind in choices:
        origin, inner = get_origin(kind) or kind, get_args(kind)
        if isinstance(key, str) and isinstance(origin, type) and issubclass(origin, Mapping):
            return inner[1] if inner else Any
        if isinstance(key, int) and origin in {list, tuple}:
            return inner[key] if origin is tuple and key < len(inner) and ... not in inner else (*inner, Any)[0]
    return None


def _paths(model: type[BaseModel], along: tuple[Any, ...] = (), prefix: str = "") -> list[str]:
    """Return the paths of all keys; of mappings and lists of sections, those that lie `along` the given path."""
    paths = []
    for name, field in fields(model).items():
        paths.append(prefix + name)
        rest, kind, start = (along[1:] if along[:1] == (name,) else ()), field.annotation, f"{prefix}{name}."
        while kind is not None:
            choices = list(_choices(kind))
            section = next(filter(_is_section, choices), None)
            if section is not None:
                paths.extend(_paths(section, rest, start))
                break
            kind, start, rest = (
                _inside(choices, rest[0]) if rest else None,
                f"{start}{rest[0]}." if rest else "",
                rest[1:],
            )
    return paths


def _listed(section: type[BaseModel]) -> str:
    return ", ".join(f"{name} [{unit}]" if unit else name for name, unit in units(section).items())


def _suggestion(path: str, known: list[str]) -> str | None:
    if path in _OTHER_NAMES:
        return _OTHER_NAMES[path]
    section, _, key = path.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    # A short key among its own section's first: whole paths are alike through what they share.
    close = difflib.get_close_matches(key, siblings, n=1)
    if close:
        return siblings[close[0]]
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    if close:
        return close[0]
    close = difflib.get_close_matches(key, leaves, n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def _words(message: str) -> str:
    """Return pydantic's own words about what is expected as we say it."""
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ").removesuffix(".")
    message = re.sub("^(Input should (be )?|[A-Z][a-z]+ should have )", "", message)
    message = message[:1].lower() + message[1:]
    return message if message.startswith("expected ") else f"expected {message}"


def _union(field: Any, expected: str) -> str:
    kinds = [m for m in get_args(field.annotation) if m is not type(None)]
    members = [", ".join(map(str, get_args(m))) if get_origin(m) is Literal else getattr(m, "__name__", str(m))
               for m in kinds]  # fmt: skip
    words = {"float": "a finite number", "str": "text", "list": "a list of numbers", "int": "a whole number"}
    return " or ".join(words.get(name.split("[")[0], name) for name in members) if len(members) > 1 else expected


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as {path: value}, such as {"policy.gamma": 4.0}."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
