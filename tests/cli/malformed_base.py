"""One malformed input, and what every kind of file can be spoilt with."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
RUN = "run"


@dataclass(frozen=True)
class Case:
    """What is wrong, and the command that reads it; `write` puts files into the working folder before."""

    what: str
    arguments: list[str]
    write: Callable[[Path], object] = lambda folder: None
    verdict: bool = False
    """Status 1 is an answer too: the command says what differs."""


# What is no YAML, or no mapping, or YAML that a reader of settings has no use for.
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "a comment alone": b"# nothing\n",
    "a number": b"5\n",
    "text": b"hello world\n",
    "a list": b"- 1\n- 2\n",
    "null": b"null\n",
    "an open bracket": b"task: [1, 2\n",
    "a tab": b"task:\n\tid: x\n",
    "binary": bytes(range(256)),
    "not UTF-8": b"description: \xff\xfe\n",
    "a NUL": b"description: a\x00b\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a tag that runs code": b"!!python/object/apply:os.system ['true']\n",
    "an unknown alias": b"task: *nothing\n",
    "a list as key": b"? [a, b]\n: 1\n",
    "a mapping as key": b"? {a: b}\n: 1\n",
    "a number as key": b"1: 2\n",
    "null as key": b"null: 2\n",
    "a date that is none": b"description: 2020-13-45\n",
    "a number by tag that is none": b"seed: !!int abc\n",
    "a float by tag that is none": b"seed: !!float abc\n",
    "binary by tag that is none": b"description: !!binary '@@@'\n",
    "an integer of base 2 without digits": b"seed: 0b_\n",
    "a bool by tag that is none": b"seed: !!bool abc\n",
    "a merge of a number": b"<<: 5\n",
    "deeply nested": b"task: " + b"[" * 3000,
    "deeply nested and closed": b"task: " + b"[" * 3000 + b"]" * 3000 + b"\n",
    "a list that holds itself": b"task: &a [*a]\n",
    "a mapping that holds itself": b"task: &a {id: *a}\n",
    "an integer of 5000 digits": b"seed: " + b"9" * 5000 + b"\n",
    "JSON cut off": b'{"task": {"id": ',
    "a BOM and nothing": b"\xef\xbb\xbf",
}
# Spoils a file that was right; the text is added to it.
ADDED: dict[str, str] = {
    "a date that is none": "\ndescription2: 2020-13-45\n",
    "an unknown key": "\nnonsense: 1\n",
    "a number as key": "\n7: 1\n",
    "null as key": "\n~: 1\n",
    "a list as key": "\n? [a]\n: 1\n",
    "a bracket": "\n]\n",
    "a tag": "\nx: !!python/name:os.system\n",
}


def put(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        if isinstance(data, dict) and not isinstance(data.get(key), dict | list):
            data[key] = {}
        data = data[key]
    data[path[-1]] = value


def misspelt(random_: random.Random, key: str) -> str:
    at = random_.randrange(len(key))
    return random_.choice([key[:at] + key[at + 1 :] + "x", key + "s_", key.upper() + "_", key[:at] + "é" + key[at:]])


def spoilt_text(random_: random.Random, text: str) -> tuple[str, bytes | None]:
    """Return what is wrong and the bytes of a file in place of one that is right; None: a folder."""
    way = random_.randrange(6)
    if way == 0:
        return "a folder", None
    if way == 1:
        name = random_.choice(sorted(ADDED))
        return f"added {name}", (text + ADDED[name]).encode()
    if way == 2:
        lines = text.splitlines()
        top = [line for line in lines if line[:1].isalpha() and ":" in line]
        return "a key twice", (text + "\n" + random_.choice(top).split(":")[0] + ": 1\n").encode()
    name = random_.choice(sorted(TEXTS))
    return name, TEXTS[name]


def write_file(path: Path, content: bytes | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    found = [(path, data)] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += leaves(value, (*path, key))
    return found


def spoilt(random_: random.Random, value: Any) -> Any:
    """Return something of another kind or size than a value."""
    if isinstance(value, bool):
        return random_.choice(["perhaps", 5, None, [True], {}])
    if isinstance(value, int | float):
        return random_.choice(["text", NAN, INF, -INF, None, [value], {"a": 1}, HUGE, [], "1 + "])
    if isinstance(value, str):
        return random_.choice([5, None, [], {"a": 1}, NAN])
    if isinstance(value, list):
        return random_.choice([5, "text", {"a": 1}, [*value, [[None]]], [None] * len(value), [[]], [NAN] * len(value)])
    return random_.choice([5, "text", [1], {"nonsense": 1}, {1: 2}, {None: 1}])


def copied(base: Path, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder / RUN))
