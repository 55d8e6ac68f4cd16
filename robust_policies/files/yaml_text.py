"""YAML as people expect it: 1e-3 is a number, a key given twice is an error, mistakes come with their line."""

from __future__ import annotations

import contextlib
import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError

# YAML 1.1, which PyYAML follows, reads 1e-3 (no dot) as text; YAML 1.2 and everybody else read a number.
_FLOAT = re.compile(
    r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)


class _Dialect:
    """YAML 1.2's floats, and no duplicate keys, for a loader of PyYAML's."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        # Of the loader that this stands before.
        return super().construct_mapping(node, deep)  # pyright: ignore[reportAttributeAccessIssue]


class _Loader(_Dialect, yaml.SafeLoader):
    """In Python: its messages say what was expected."""


_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _FastLoader(_Dialect, _FAST):
    """In C, six times as fast, where PyYAML was built with it."""


for _loader in (_Loader, _FastLoader):
    _loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
# The C loader calls itself for what is nested and has no limit; nothing is nested deeper than it has such characters.
_NESTS, _DEEP = re.compile(r"[\[{?:-]"), 1000


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes lists of numbers on one line."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


# PyYAML lets through what Python says of a date such as 2020-13-45, of `!!int abc`, of `!!bool abc`, of a number of
# thousands of digits, and of a list a thousand levels deep.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_SHOWN = 100


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is no value of its tag"
    mark = getattr(error, "problem_mark", None)
    text = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {text}" if mark else text


def _loaded(text: str) -> Any:
    # Recipes and tasks are read again and again, and reading takes ten times as long as copying.
    return copy.deepcopy(_read(text))


@lru_cache(maxsize=64)
def _read(text: str) -> Any:
    data = _parsed(text)
    if _holds_itself(data, set(), set()):
        raise ValueError("a list or mapping holds itself")
    return data


def _parsed(text: str) -> Any:
    if len(text) <= _DEEP or len(_NESTS.findall(text)) <= _DEEP:
        # What it refuses is read again for the message.
        with contextlib.suppress(*_NOT_YAML):
            return yaml.load(text, Loader=_FastLoader)
    return yaml.load(text, Loader=_Loader)


def _holds_itself(value: Any, within: set[int], seen: set[int]) -> bool:
    """Return whether an alias leads back to what holds it; nobody who reads settings expects that."""
    if not isinstance(value, dict | list) or id(value) in seen:
        return False
    if id(value) in within:
        return True
    within.add(id(value))
    entries = value.values() if isinstance(value, dict) else value
    found = any(_holds_itself(entry, within, seen) for entry in entries)
    within.discard(id(value))
    seen.add(id(value))
    return found


def read_yaml(path: str | Path) -> Any:
    """Return the data in a YAML file; raise `MissingFileError`, or `CorruptFileError` with the line of the mistake."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(f"File {str(path)!r} does not exist.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise CorruptFileError(f"File {str(path)!r} cannot be read as text: {error}.") from error
    try:
        return _loaded(text)
    except _NOT_YAML as error:
        raise CorruptFileError(f"File {str(path)!r} is not YAML, {_problem(error)}.") from error


def parse_yaml(text: str, where: str) -> Any:
    """Return what `text` means in YAML (`4`, `1e-3`, `[32, 32]`, `null`, `relu`); `where` begins the error's line."""
    try:
        return _loaded(text)
    except _NOT_YAML as error:
        given = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
        raise InvalidValueError(f"{where} was given {given}, which is not YAML, {_problem(error)}.") from error


def dump_yaml(data: Any) -> str:
    """Return `data` as YAML text, keys in the given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
