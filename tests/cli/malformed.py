"""Malformed recipes, task folders, policy files, run folders and command lines, made from a seed and a number."""

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import typer
from pydantic import BaseModel
from safetensors.numpy import load_file, save_file

from robust_policies.cli.app import app
from robust_policies.files.assets import recipes_folder, tasks_folder
from robust_policies.files.settings import fields
from robust_policies.files.yaml_text import dump_yaml, read_yaml
from robust_policies.train.recipe.recipe import ALGORITHMS, Recipe

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


def make(seed: int, number: int, base: Path) -> Case:
    """Return a case: the same for the same numbers. `base` is a run folder that is right."""
    random_ = random.Random(f"{seed} {number}")
    maker = MAKERS[number % len(MAKERS)]
    return maker(random_, base)


# Recipes


def _recipes() -> dict[str, dict[str, Any]]:
    small = {"cell": "r2dn", "state_size": 3, "features": 3, "hidden_sizes": [4]}
    found = {}
    for name in (
        "pendulum_r2dn_gamma6",
        "pendulum_r2dn_adversarial",
        "double_integrator_r2dn_apg",
        "cartpole_youla_r2dn_apg",
        "youla_example_ren_apg",
    ):
        data = read_yaml(recipes_folder() / f"{name}.yaml")
        data["task"]["num_envs"] = 4
        data["algorithm"] |= {"n_steps": 8, "batch_size": 8} if "n_steps" in data["algorithm"] else {}
        found[name] = data
    found["imitation"] = {
        "task": {"id": "robust_policies/DoubleIntegrator-v0", "num_envs": 4},
        "policy": small,
        "algorithm": {"name": "imitation", "teacher": "lqg"},
    }
    return found


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _choices(get_args(kind)[0])
    if get_origin(kind) in {Union, UnionType}:
        return [one for member in get_args(kind) for one in _choices(member)]
    return [kind]


def _keys(section: type[BaseModel], prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found = []
    for name, field in fields(section).items():
        path = (*prefix, name)
        found.append((path, field))
        for kind in _choices(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _keys(kind, path)
    return found


# Names that are looked up, or numbers that must fit others, and what they are not.
_NAMES: dict[str, list[Any]] = {
    "task.id": ["nonsense", "", " ", "robust_policies/Pendulum-v99", "nonsense:Pendulum-v1", ":", "a:b:c", "../x", "/"],
    "task.kwargs": [{"nonsense": 1}, {"task": "nowhere/at/all"}, {"max_episode_steps": -1}, {"task": 5}, {"task": None},
                    {"max_episode_steps": "x"}, {"max_episode_steps": NAN}, {"task": [1]}],
    "task.perturbations": [["Nonsense"], [{"ObservationDelay": "x"}], [{"ObservationDelay": -1}], [5], [None], [[]],
                           [{"ObservationDelay": 1, "b": 2}], [{"ObservationDelay": NAN}], [{1: 2}], [{}],
                           [{"ObservationDelay": {"nonsense": 1}}], [{"ObservationDelay": 10**30}], ["ObservationDelay"]],
    "evaluation.perturbations": [["Nonsense"], [{"ObservationDelay": "x"}], [5], [{"ObservationDelay": 1.5}]],
    "evaluation.suite": ["nonsense", "", "nowhere.yaml", "."],
    "evaluation.tasks": [["nonsense"], [""], [5], [None]],
    "evaluation.sizes": [[-1], ["a"], [NAN], [INF], [[1]]],
    "evaluation.seeds": [[], [-1], ["a"], [1.5], [2**70], [None]],
    "policy.cell": ["nonsense", "", "R2DN!", "os"],
    "policy.hidden_sizes": [[0], [-3], [1.5], ["a"], [None], [True], [[4]]],
    "policy.activation": ["nonsense", "", "torch.relu"],
    "policy.observation_scale": [[], [1.0] * 50, [0.0], [-1.0], ["a"], [NAN], [INF], [1e400]],
    "policy.observation_offset": [[], [1.0] * 50, ["a"], [NAN], [INF]],
    "policy.action_scale": [0.0, [], [1.0] * 50, [0.0], ["a"], [NAN], -1.0],
    "policy.action_offset": [[], [1.0] * 50, ["a"], [NAN], [INF]],
    "policy.critic_kwargs": [{"nonsense": 1}, {"state_size": -1}, {"hidden_sizes": "a"}],
    "algorithm.name": ["nonsense", "", "ppo", "PPO"],
    "algorithm.learning_rate": ["fast", "lin_", "lin_-1", 0.0, -1.0, "lin_nan", "lin_inf", "cos_", "_"],
    "algorithm.clip_range": ["fast", "lin_x", 0.0, "lin_nan"],
    "algorithm.betas": [[], [0.9], [0.9, 1.0], [0.9, -1], ["a", "b"], [NAN, 0.9]],
    "algorithm.critic_sizes": [[], [0], [-1], ["a"], [1.5]],
    "algorithm.batch_size": [10**30],
    "algorithm.teacher": ["nowhere", "", ".", "policy.json"],
}  # fmt: skip


def _wrong(random_: random.Random, path: str, field: Any) -> Any:
    """Return a value that the key cannot have."""
    if path in _NAMES and random_.random() < 0.6:
        return random_.choice(_NAMES[path])
    choices = _choices(field.annotation)
    kinds = {get_origin(kind) or kind for kind in choices}
    mapping = any(kind is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)) for kind in kinds)
    listed = list in kinds or tuple in kinds
    values: list[Any] = [] if mapping else [{"a": 1}]
    values += [5, "text", [1], True] if mapping else []
    values += [5, "text", ["a", {}], [[[1]]]] if listed and float not in kinds and str not in kinds else []
    values += [] if listed else [[1], [], [[1, 2], [3]]]
    values += [] if type(None) in kinds else [None]
    if str in kinds and float not in kinds:
        values += [5, 1.5, True, NAN]
    if bool in kinds:
        values += ["perhaps", 3, 0.5]
    if float in kinds or int in kinds:
        values += ["text", "", NAN, INF, -INF]
        limits = [note for note in field.metadata if hasattr(note, "ge") or hasattr(note, "gt")]
        values += [-1, -1e300 if float in kinds else -(10**30)] if limits else []
        values += [True] if bool not in kinds else []
    if int in kinds and float not in kinds:
        values += [1.5, 1e-3, "1.5"]
    if Literal in kinds:
        values += ["text", 3, NAN]
    return random_.choice(values)


def _put(data: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        if isinstance(data, dict) and not isinstance(data.get(key), dict | list):
            data[key] = {}
        data = data[key]
    data[path[-1]] = value


def _misspelt(random_: random.Random, key: str) -> str:
    at = random_.randrange(len(key))
    return random_.choice([key[:at] + key[at + 1 :] + "x", key + "s_", key.upper() + "_", key[:at] + "é" + key[at:]])


def _text(random_: random.Random, text: str) -> tuple[str, bytes | None]:
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


def _file(path: Path, content: bytes | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def recipe(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a malformed recipe."""
    name = random_.choice(sorted(RECIPES))
    data = copy.deepcopy(RECIPES[name])
    section = ALGORITHMS[data["algorithm"].get("name", "recurrent_ppo")]
    keys = [(path, field) for path, field in _keys(Recipe[section]) if "youla" not in path or "youla" in data]
    way, content = random_.random(), None
    if way < 0.15:
        what, content = _text(random_, dump_yaml(data))
    elif way < 0.25:
        path = random_.choice([("task",), ("algorithm",), ("task", "id")])
        at: Any = data
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]
        what, content = f"without {path}", dump_yaml(data).encode()
    elif way < 0.4:
        path, _ = random_.choice([(path, field) for path, field in keys if "kwargs" not in path])
        wrong = (*path[:-1], _misspelt(random_, path[-1]))
        _put(data, wrong, 1)
        what, content = f"key {wrong}", dump_yaml(data).encode()
    else:
        path, field = random_.choice(keys)
        value = _wrong(random_, ".".join(path), field)
        if random_.random() < 0.2 and "\n" not in (written := dump_yaml(value).replace("\n...", "").strip()):
            command = "sweep" if path[0] not in ("policy", "task", "youla", "algorithm") else "train"
            return Case(
                f"{name}: --set {path} {value!r}",
                [command, "recipe.yaml", "--set", f"{'.'.join(path)}={written}", "-o", "out"],
                lambda folder: _file(folder / "recipe.yaml", dump_yaml(data).encode()),
            )
        _put(data, path, value)
        what, content = f"{path} {value!r:.80}", dump_yaml(data).encode()
    commands = [["train", "recipe.yaml"], ["train", "recipe.yaml", "-o", "out"], ["sweep", "recipe.yaml"]]
    # Whether a policy fits its task is found where the first trial makes it.
    command = random_.choice(commands[: 2 if way >= 0.4 else 3])
    return Case(f"{name}: {what}", command, lambda folder: _file(folder / "recipe.yaml", content))


# Task folders


def _leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    found = [(path, data)] if path else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += _leaves(value, (*path, key))
    return found


def _spoilt(random_: random.Random, value: Any) -> Any:
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


# Their commands take the least time.
_TASKS = {
    "double_integrator": "DoubleIntegrator", "pendulum": "Pendulum", "cartpole": "CartPole", "youla_example":
    "YoulaExample", "qube_servo": "QubeServo", "inverted_pendulum": "InvertedPendulum", "maglev": "MagLev",
    "quadrotor_planar": "QuadrotorPlanar", "hopper": "Hopper", "mass_spring_damper": "MassSpringDamper",
}  # fmt: skip
_PLANTS = {
    "a class that is not there": ("plant.py:Nothing", "x = 1\n"),
    "a class that is no plant": ("plant.py:Thing", "class Thing:\n    pass\n"),
    "code that raises": ("plant.py:Thing", "raise RuntimeError('no\\nway')\n"),
    "code that ends the process": ("plant.py:Thing", "raise SystemExit(3)\n"),
    "code that is no Python": ("plant.py:Thing", "class :\n"),
    "code of bytes": ("plant.py:Thing", "\x00\x01"),
    "no file": ("nowhere.py:Thing", None),
    "no module": ("nowhere.at.all:Thing", None),
    "nothing before the colon": (":Thing", None),
    "a module's name that is none": ("..:Thing", None),
    "nothing after the colon": ("plant.py:", "x = 1\n"),
    "a class without methods": (
        "plant.py:Thing",
        "from robust_policies.envs.plant import Plant, TaskFile\nclass Thing(Plant):\n    Task = TaskFile\n",
    ),
    "a class without a task": (
        "plant.py:Thing",
        "from robust_policies.envs.plant import Plant\nclass Thing(Plant):\n    pass\n",
    ),
}


def task(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a malformed task folder."""
    name = random_.choice(sorted(_TASKS))
    data = read_yaml(tasks_folder() / name / "task.yaml")
    way, code = random_.random(), None
    if way < 0.2:
        what, content = _text(random_, dump_yaml(data))
    elif way < 0.3:
        key = random_.choice([key for key in data if key in ("plant", "schema", "time_step", "max_episode_steps")])
        del data[key]
        what, content = f"without {key}", dump_yaml(data).encode()
    elif way < 0.4:
        what = random_.choice(sorted(_PLANTS))
        data["plant"], code = _PLANTS[what]
        content = dump_yaml(data).encode()
    elif way < 0.5:
        path, value = random_.choice([(p, v) for p, v in _leaves(data) if isinstance(p[-1], str)])
        wrong = (*path[:-1], _misspelt(random_, path[-1]))
        _put(data, wrong, value)
        what, content = f"key {wrong}", dump_yaml(data).encode()
    else:
        path, value = random_.choice([one for one in _leaves(data) if one[0] != ("description",)])
        wrong = _spoilt(random_, value)
        _put(data, path, wrong)
        what, content = f"{path} {wrong!r:.80}", dump_yaml(data).encode()

    def write(folder: Path) -> None:
        _file(folder / "mine" / "task.yaml", content)
        if code is not None:
            (folder / "mine" / "plant.py").write_text(code)
        data = {"task": {"id": f"robust_policies/{_TASKS[name]}-v0", "num_envs": 2, "kwargs": {"task": "mine"}}}
        data |= {"algorithm": {"total_steps": 100, "n_steps": 8, "batch_size": 8}}
        (folder / "recipe.yaml").write_text(dump_yaml(data))

    given = ["--set", "task.kwargs.task=mine"]
    command = random_.choice(
        [
            ["train", "recipe.yaml", "-o", "out"],
            ["train", "recipe.yaml", "--set", "algorithm={name: apg, total_steps: 100}"],
            ["imitate", "lqg", "--task", f"robust_policies/{_TASKS[name]}-v0", *given],
        ]
    )
    return Case(f"task {name}: {what}", command, write)


# Policy files


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

        def write(folder: Path) -> None:
            (_copied(base, folder) / path.name).write_bytes(content)
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
        run = _copied(base, folder)
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
            for path, value in _leaves(content)
            if path[0] != "version" and not (path[0].endswith("space") and isinstance(value, int | float))
        ]
        path, value = random_.choice(keys)
        at: Any = content
        for key in path[:-1]:
            at = at[key]
        if way < 0.4 and isinstance(path[-1], str) and path[-1] not in ("eps", "init", "raw_observations"):
            del at[path[-1]]
            what = f"policy.json without {path}"
        else:
            at[path[-1]] = _other(random_, value)
            what = f"policy.json: {path} {at[path[-1]]!r:.60}"
        data = json.dumps(content).encode()
    return Case(what, _reader(random_), lambda folder: (_copied(base, folder) / "policy.json").write_bytes(data))


def _other(random_: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return random_.choice(["perhaps", 5, None, [], {}])
    if isinstance(value, int | float):
        return random_.choice(["text", NAN, None, [1], {"a": 1}, -7, 10**30])
    return _spoilt(random_, value) if not isinstance(value, str) else random_.choice([5, [], {}, "nonsense", ""])


def _copied(base: Path, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder / RUN))


def _hash(run: Path) -> None:
    """Let the description know the weights as they are, so that they are read further than that."""
    content = json.loads((run / "policy.json").read_text())
    content["weights"]["sha256"] = hashlib.sha256((run / "policy.safetensors").read_bytes()).hexdigest()
    (run / "policy.json").write_text(json.dumps(content))


# Run folders


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
        what, content = _text(random_, dump_yaml(RECIPES["pendulum_r2dn_gamma6"]))
        content = b"" if content is None else content
    elif way == "text":
        what, content = random_.choice(
            [("text", b"hello"), ("empty", b""), ("a list", b"[]"), ("no schema", b"{}"), ("schema", b'{"schema": "1"}'),
             ("binary", bytes(range(256))), ("nested", b"[" * 100_000), ("schema 99", b'{"schema": 99}'),
             ("null", b"null"), ("NaN", b'{"schema": NaN}'), ("bool", b'{"schema": true}'), ("UTF-16", "{}".encode("utf-16")),
             ("digits", b'{"schema": ' + b"1" * 5000 + b"}")]
        )  # fmt: skip

    def write(folder: Path) -> None:
        path = _copied(base, folder) / name
        path.unlink()
        if way == "folder":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)

    return Case(f"{name}: {what}", arguments, write, verdict="--check" in arguments)


def certificate(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a certificate.json with an entry that is wrong."""
    content = json.loads((base / "certificate.json").read_text())
    keys = [one for one in _leaves(content) if one[0][0] in ("schema", "status")]
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
        lambda folder: (_copied(base, folder) / "certificate.json").write_bytes(data),
    )


# Command lines

_RIGHT = {
    "train": ["pendulum_gru"], "sweep": ["pendulum_gru"], "imitate": ["lqg", "--task", "robust_policies/Linear-v0"],
    "certify": [RUN], "evaluate": [RUN], "report": [RUN], "export": [RUN], "enjoy": [RUN, "--render", "none"],
    "list": ["envs"],
}  # fmt: skip
_WRONG: dict[str, list[str]] = {
    "--seed": ["one", "-1", "1.5", "", "nan", "99999999999999999999", "2147483648"],
    "--seeds": ["", "a", "3-1", "1,,2", "-1", "0-", "1.5", "1,1", "nan", "0-99999999999999999999"],
    "--device": ["gpu", "", "cuda:99", "cuda:", "cuda:x", "cpu:x", "mps!", "meta"],
    "--threads": ["0", "-1", "x", "1.5", "99999999999999999999"],
    "--set": ["", "=", "a", "policy.gamma", "=4", ".=1", "policy..gamma=4", "policy.gamma=[", "nonsense=1", "seed=x",
              "policy=5", "task.id.x=1", "policy.gamma=2020-13-45", "policy.gamma=*a", "policy.gamma=" + "[" * 2000,
              "policy.gamma=!!int x", "seed=" + "9" * 5000, "policy.gamma=.nan", "policy.gamma=a: b: c"],
    "--search": ["", "a", "policy.gamma=", "policy.gamma=5..1", "policy.gamma=a..b", "policy.gamma=log:0..1", "seed=0..3",
                 "policy.gamma=nan..1", "policy.gamma=1..inf", "nonsense=1..2", "policy.gamma=1", "policy.gamma=1..2..3",
                 "policy.gamma=" + "1,1"],
    "--jobs": ["0", "-1", "x", ""],
    "--trials": ["0", "x", "3"],
    "--objective": ["nonsense", "worst", ""],
    "--prune": [None],
    "--address": ["nonsense:port", "http://"],
    "--weights": ["", "a", "1,,2", "nan,1,1", "inf,1,1", "0,1,1", "-1,1,1", "1,2", "1" + ",1" * 40],
    "--suite": ["nonsense", "", "nowhere.yaml", ".", RUN],
    "--sizes": ["", "a", "-1", "nan", "inf", "1,,2", "0..3"],
    "--episodes": ["0", "-1", "x", "1.5"],
    "--task": ["nonsense", "", "nowhere/at/all", "robust_policies/Pendulum-v99", "nonsense:x", ":", "robust_policies/HalfCheetah-v0", RUN],
    "--env": ["nonsense", "nowhere/at/all", "robust_policies/Pendulum-v99", "nonsense:x", ":", "robust_policies/HalfCheetah-v0", RUN, "."],
    "--attack": ["nonsense", "", "PGD!"],
    "--perturb": ["", "nonsense", "[", "[Nonsense]", "[ObservationDelay: x]", "[ObservationDelay: -1]", "5",
                  "[ObservationDelay: 2020-13-45]", "[" * 2000, "[ObservationDelay: .nan]", "[[]]", "*a", "[1: 2]", "!!int x"],
    "--format": ["pickle", "", "onnx", "safetensor"],
    "--render": ["vidoe", "", "Human!"],
    "--gamma": ["x", "0", "-1", "nan", "inf", ""],
    "--method": ["nonsense", ""],
    "--output": ["file.txt", "file.txt/x", "/proc/nowhere/x"],
    "--check": [None],
}  # fmt: skip


def options(random_: random.Random, base: Path) -> Case:
    """Return a command line that is malformed."""
    command = random_.choice(sorted(_RIGHT))
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    own = [option for parameter in known.params for option in parameter.opts if option in _WRONG]
    takes = {option for p in known.params for option in (*p.opts, *p.secondary_opts) if p.param_type_name == "option"}
    right, way = list(_RIGHT[command]), random_.random()
    folder = "nowhere" if random_.random() < 0.3 else RUN
    if way < 0.2:
        name = random_.choice(["--nonsense", "-q", "--se", "---", "--set-", "--out put", "--é", "-", "--seed="])
        given = [*right, name] if random_.random() < 0.5 else [name, *right]
        if name == "-":
            given = ["certify", "nowhere"] if command == "evaluate" else [*right, name, name, name]
    elif way < 0.3:
        given = random_.choice(
            [[], ["", "", ""], ["nowhere/at/all"], ["--", "--help"], ["x" * 5000], ["a\nb"], ["file.txt"]]
        )
    elif way < 0.4:
        valued = sorted(takes & set(_WRONG) - {"--prune", "--check"})
        given = [*right, random_.choice(valued)] if valued else ["nonsense"]
    elif not own:
        given = random_.choice([["nonsense"], [""], ["envs", "more"], ["ENV"], ["--", "-x"]])
    else:
        option = random_.choice(own)
        value = random_.choice(_WRONG[option])
        if option == "--task" and value in (RUN, "nowhere/at/all") and command != "imitate":
            value = "nonsense"
        given = [*right, option] if value is None else [*right, option, value]
        if option == "--check":
            given += ["--weights", "1,1,1"]
        if option == "--search" and "--set" in own and random_.random() < 0.3:
            given += ["--objective", "nonsense"]
    given = [folder if argument == RUN else argument for argument in given]
    if command == "report" and RUN in given and "--output" not in given and len(given) == 1:
        given = ["nowhere"]

    def write(target: Path) -> None:
        _copied(base, target)
        (target / "file.txt").write_text("hello\n")

    return Case(f"options: {command}", [command, *given], write)


RECIPES = _recipes()
MAKERS = (recipe, task, weights, description, run_folder, options, recipe, task, certificate, options)
