"""Malformed recipes."""

import copy
import random
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from malformed_base import INF, NAN, Case, misspelt, put, spoilt_text, write_file
from pydantic import BaseModel

from robust_policies.files.assets import recipes_folder
from robust_policies.files.settings import fields
from robust_policies.files.yaml_text import dump_yaml, read_yaml
from robust_policies.train.recipe.recipe import ALGORITHMS, Recipe


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
                           [{"ObservationDelay": {"nonsense": 1}}], [{"ObservationDelay": 10**30}],
                           ["ObservationDelay"]],
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
    # A default is right, whatever its type says.
    return random_.choice([value for value in values if value is not None or field.default is not None])


def recipe(random_: random.Random, base: Path) -> Case:
    """Return a command that reads a malformed recipe."""
    name = random_.choice(sorted(RECIPES))
    data = copy.deepcopy(RECIPES[name])
    section = ALGORITHMS[data["algorithm"].get("name", "recurrent_ppo")]
    keys = [(path, field) for path, field in _keys(Recipe[section]) if "youla" not in path or "youla" in data]
    way, content = random_.random(), None
    if way < 0.15:
        what, content = spoilt_text(random_, dump_yaml(data))
    elif way < 0.25:
        path = random_.choice([("task",), ("algorithm",), ("task", "id")])
        at: Any = data
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]
        what, content = f"without {path}", dump_yaml(data).encode()
    elif way < 0.4:
        path, _ = random_.choice([(path, field) for path, field in keys if "kwargs" not in path])
        wrong = (*path[:-1], misspelt(random_, path[-1]))
        put(data, wrong, 1)
        what, content = f"key {wrong}", dump_yaml(data).encode()
    else:
        path, field = random_.choice(keys)
        value = _wrong(random_, ".".join(path), field)
        if random_.random() < 0.2 and "\n" not in (written := dump_yaml(value).replace("\n...", "").strip()):
            command = "sweep" if path[0] not in ("policy", "task", "youla", "algorithm") else "train"
            return Case(
                f"{name}: --set {path} {value!r}",
                [command, "recipe.yaml", "--set", f"{'.'.join(path)}={written}", "-o", "out"],
                lambda folder: write_file(folder / "recipe.yaml", dump_yaml(data).encode()),
            )
        put(data, path, value)
        what, content = f"{path} {value!r:.80}", dump_yaml(data).encode()
    commands = [["train", "recipe.yaml"], ["train", "recipe.yaml", "-o", "out"], ["sweep", "recipe.yaml"]]
    # Whether a policy fits its task is found where the first trial makes it.
    command = random_.choice(commands[: 2 if way >= 0.4 else 3])
    return Case(f"{name}: {what}", command, lambda folder: write_file(folder / "recipe.yaml", content))


RECIPES = _recipes()
