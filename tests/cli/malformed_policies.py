"""Malformed policy files and run folders."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from malformed_base import NAN, RUN, Case, copied, leaves, spoilt, spoilt_text
from malformed_recipes import RECIPES
from safetensors.numpy import load_file, save_file

from robust_policies.files.yaml_text import dump_yaml


def _reader(random_: random.Random) -> list[str]:
    return random_.choice(
        [
            ["certify", RUN],
            ["evaluate", RUN],
            ["enjoy", RUN, "--render", "none", "--episodes", "1"],
            ["export", RUN],
            ["export", RUN, "-o", "out"],
            ["imitate", RUN, "--task", "robust_policies/Pendulum-v0"],
        ]
    )


def _bytes(random_: random.Random, data: bytes) -> tuple[str, bytes]:
    """Return what is wrong and a binary file in place of one that is right."""
    length = len(data)
    ways = {
        "cut off": data[: random_.randrange(length)],
        "empty": b"",
        "text": b"hello\n",
        "zeros": bytes(length),
        "a header as long as it goes": b"\xff" * 8 + data[8:],
        "more behind it": data + b"more",
        "a header that is no JSON": data[:8] + b"x" * 40 + data[48:],
        "a bit": data[: (at := random_.randrange(length))] + bytes([data[at] ^ 0x40]) + data[at + 1 :],
        "an HTML page": b"<!doctype html><html></html>",
        "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    }
    name = random_.choice(sorted(ways))
    return name, ways[name]


def weights(random_: random.Random, base: Path) -> Case:
    """Return a command that reads malformed weights."""
    path = base / "policy.safetensors"
    described = random_.random() < 0.7
    if random_.random() < 0.4:
        what, content = _bytes(random_, path.read_bytes())
        # Another number is as good as the one that was there, but for the hash.
        described = described and what != "a bit"

        def write(folder: Path) -> None:
            (copied(base, folder) / path.name).write_bytes(content)
            described and _hash(folder / RUN)

        return Case(f"weights: {what}, hash {described}", _reader(random_), write)
    arrays = load_file(path)
    name = random_.choice(sorted(arrays))
    array = arrays[name]
    changed: dict[str, Any] = {
        "missing": None,
        "of another shape": np.concatenate([array.reshape(-1), np.zeros(1, array.dtype)]),
        "of another rank": array[None],
        "float64": array.astype(np.float64),
        "int64": array.astype(np.int64),
        "float16": array.astype(np.float16),
        "NaN": np.full_like(array, np.nan),
        "infinite": np.full_like(array, np.inf),
        "empty": array.reshape(-1)[:0],
        "under another name": None,
    }
    what = random_.choice(sorted(changed))

    def write_arrays(folder: Path) -> None:
        run = copied(base, folder)
        new = {key: value for key, value in arrays.items() if key != name}
        if changed[what] is not None:
            new[name] = changed[what]
        elif what == "under another name":
            new[name + "_"] = array
        save_file(new, run / path.name)
        _hash(run)

    return Case(f"weights: {name} {what}", _reader(random_), write_arrays)


def description(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a malformed policy.json."""
    content = json.loads((base / "policy.json").read_text())
    way = random_.random()
    if way < 0.2:
        name, data = _bytes(random_, (base / "policy.json").read_bytes())
        what = f"policy.json: {name}"
        if name in ("more behind it", "a bit", "cut off"):
            data = data[: len(data) // 2]
    else:
        # Bounds may be any number, and these entries have defaults.
        keys = [
            (path, value)
            for path, value in leaves(content)
            if path[0] != "version"
            and path[-1] != "eps"
            and not (path[0].endswith("space") and isinstance(value, int | float))
        ]
        path, value = random_.choice(keys)
        at: Any = content
        for key in path[:-1]:
            at = at[key]
        if (
            way < 0.4
            and isinstance(path[-1], str)
            and path[-1] not in ("eps", "init", "linear_output", "activation", "raw_observations")
        ):
            del at[path[-1]]
            what = f"policy.json without {path}"
        else:
            at[path[-1]] = _other(random_, value)
            what = f"policy.json: {path} {at[path[-1]]!r:.60}"
        data = json.dumps(content).encode()
    return Case(what, _reader(random_), lambda folder: (copied(base, folder) / "policy.json").write_bytes(data))


def _other(random_: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return random_.choice(["perhaps", 5, None, [], {}])
    if isinstance(value, int | float):
        return random_.choice(["text", NAN, None, [1], {"a": 1}, -7, 10**30])
    return spoilt(random_, value) if not isinstance(value, str) else random_.choice([5, [], {}, "nonsense", ""])


def _hash(run: Path) -> None:
    """Let the description know the weights as they are, so that they are read further than that."""
    content = json.loads((run / "policy.json").read_text())
    content["weights"]["sha256"] = hashlib.sha256((run / "policy.safetensors").read_bytes()).hexdigest()
    (run / "policy.json").write_text(json.dumps(content))


def run_folder(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a run folder with a file that is broken, missing, or a folder."""
    name, commands = random_.choice(
        [
            ("recipe.yaml", [["certify", RUN], ["evaluate", RUN], ["export", RUN], ["enjoy", RUN, "--render", "none"]]),
            ("recipe.yaml", [["imitate", RUN], ["train", "pendulum_gru", "--resume", "-o", RUN]]),
            ("provenance.json", [["certify", RUN], ["evaluate", RUN], ["export", RUN], ["enjoy", RUN]]),
            ("certificate.json", [["report", RUN], ["report", RUN, "-o", "page.html"], ["certify", "--check", RUN]]),
            ("policy.json", [["certify", RUN], ["evaluate", RUN], ["export", RUN], ["enjoy", RUN]]),
            ("policy.safetensors", [["certify", RUN], ["evaluate", RUN], ["export", RUN], ["enjoy", RUN]]),
        ]
    )
    arguments = random_.choice(commands)
    way = random_.choice(["missing", "folder", "text"] if not name.startswith("policy") else ["missing", "folder"])
    if name in ("recipe.yaml", "provenance.json") and way in ("missing", "folder"):
        # Folders without them are policies, which is enough.
        way = "text"
    what, content = way, None
    if way == "text" and name == "recipe.yaml":
        what, content = spoilt_text(random_, dump_yaml(RECIPES["pendulum_r2dn_gamma6"]))
        content = b"" if content is None else content
    elif way == "text":
        what, content = random_.choice(
            [("text", b"hello"), ("empty", b""), ("a list", b"[]"), ("no schema", b"{}"),
             ("schema", b'{"schema": "1"}'),
             ("binary", bytes(range(256))), ("nested", b"[" * 100_000), ("schema 99", b'{"schema": 99}'),
             ("null", b"null"), ("NaN", b'{"schema": NaN}'), ("bool", b'{"schema": true}'),
             ("UTF-16", "{}".encode("utf-16")),
             ("digits", b'{"schema": ' + b"1" * 5000 + b"}")]
        )  # fmt: skip

    def write(folder: Path) -> None:
        path = copied(base, folder) / name
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)

    return Case(f"{name}: {what}", arguments, write, verdict="--check" in arguments)


def certificate(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a certificate.json with an entry that is wrong."""
    content = json.loads((base / "certificate.json").read_text())
    keys = [one for one in leaves(content) if one[0][0] in ("schema", "status")]
    path, value = random_.choice(keys)
    at: Any = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = _other(random_, value)
    command = random_.choice([["report", RUN], ["report", RUN, "-o", "page.html"]])
    data = json.dumps(content).encode()
    return Case(
        f"certificate.json: {path} {at[path[-1]]!r:.60}",
        command,
        lambda folder: (copied(base, folder) / "certificate.json").write_bytes(data),
    )
