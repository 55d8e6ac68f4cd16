"""Read and check a task.yaml, and build its plant."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gymnasium.envs.registration import parse_env_id, register, registry
from gymnasium.error import Error
from pydantic import ValidationError

from robust_policies.envs.plant import Plant
from robust_policies.envs.registration import SINGLE, VECTOR
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UnknownNameError, UserError
from robust_policies.files import assets
from robust_policies.files.settings import one_line
from robust_policies.files.yaml_text import read_yaml

PLANTS = {
    "pendulum": "plants.pendulum:PendulumPlant",
    "cartpole": "plants.cartpole:CartPolePlant",
    "qube": "plants.qube:QubePlant",
    "maglev": "plants.maglev:MagLevPlant",
    "quadrotor_planar": "plants.quadrotor_planar:PlanarQuadrotorPlant",
    "quadrotor": "plants.quadrotor:QuadrotorPlant",
    "linear": "plants.linear:LinearPlant",
    "held_disturbance": "plants.held_disturbance:HeldDisturbancePlant",
    "mujoco": "mujoco.plant:MujocoPlant",
}
"""The plants of this package by the name that task.yaml gives them: module and class, loaded when one is used."""


def load_plant(task: str | Path, changes: Mapping[str, Any] | None = None) -> Plant:
    """Return the plant of a task: a name among the package's tasks, or the path of a folder that holds a task.yaml.

    `changes` are keys of the file with other values, such as the model of an identified plant.

    Raises `MissingFileError`, `CorruptFileError`, `UnknownNameError` (with the closest known name), `ShapeError` or
    `InvalidValueError`; every message names the file.
    """
    path = task_file(task)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} holds {type(content).__name__}; expected a mapping with the key 'plant'.")
    content = {**content, **(changes or {})}
    plant = plant_class(content.get("plant"), path)
    try:
        made = plant(plant.Task.model_validate(content), path.parent)
        unknown = next((name for name in made.task.randomize if name not in made.nominal()), None)
        if unknown is not None:
            raise UnknownNameError(f"randomize: {UnknownNameError.among('parameter', unknown, list(made.nominal()))}")
        return made
    except ValidationError as error:
        raise one_line(error, plant.Task, str(path)) from error
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def plant_class(name: Any, path: Path) -> type[Plant]:
    """Return the class that `plant:` of the task file at `path` names.

    A plain name is one of `PLANTS`; `file.py:Class` is a class in a Python file beside the task file, and
    `package.module:Class` one that can be imported: naming it there is what runs that code.
    """
    if not isinstance(name, str):
        raise InvalidValueError(f"{path}: plant is {name!r}; expected one of {', '.join(PLANTS)}, or file.py:Class.")
    place, separator, class_name = name.partition(":")
    if not separator:
        if name not in PLANTS:
            raise UnknownNameError(f"{path}: {UnknownNameError.among('plant', name, PLANTS)} Or file.py:Class.")
        module_name, class_name = PLANTS[name].split(":")
        return getattr(importlib.import_module(f"robust_policies.envs.{module_name}"), class_name)
    module = _module_beside(path.parent / place, path) if place.endswith(".py") else _module(place, path)
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Plant)):
        raise UnknownNameError(f"{path}: {place} has no class {class_name!r} that is a robust_policies.envs.Plant.")
    if inspect.isabstract(found) or not isinstance(getattr(found, "Task", None), type):
        lacks = ", ".join(sorted(found.__abstractmethods__)) or "Task, the model of its task.yaml"
        raise InvalidValueError(f"{path}: {class_name} in {place} is not a whole plant; it lacks {lacks}.")
    return found


def _module(name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingFileError(
            f"{path}: plant names the module {name!r}, which cannot be imported: {error}."
        ) from error
    # Somebody's code may also end the process, which is no way out of a wrong task file.
    except (Exception, SystemExit) as error:
        raise CorruptFileError(f"{path}: module {name!r} does not run: {type(error).__name__}: {error}.") from error


def _module_beside(file: Path, path: Path) -> ModuleType:
    """Return the module in `file`, under a name of its own, so that its classes can be pickled in this process."""
    if not file.is_file():
        raise MissingFileError(f"{path}: plant names {file.name}, which is not beside it; expected {file}.")
    name = f"robust_policies_task_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CorruptFileError(f"{path}: {file} is not a Python file that can be loaded.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise CorruptFileError(f"{path}: {file.name} does not run: {type(error).__name__}: {error}.") from error
    return module


def task_file(task: str | Path) -> Path:
    """Return the task.yaml that `task`, a name or a folder, means."""
    if not isinstance(task, (str, Path)):
        raise InvalidValueError(f"task is {task!r}; expected the name of a task or the path of its folder.")
    if isinstance(task, str) and "/" not in task and "\\" not in task and not Path(task).is_dir():
        return assets.task_folder(task) / "task.yaml"
    folder = Path(task)
    path = folder if folder.suffix in {".yaml", ".yml"} else folder / "task.yaml"
    if not path.is_file():
        known = ", ".join(assets.task_names())
        raise MissingFileError(f"{path} does not exist; expected a folder with a task.yaml, or one of {known}.")
    return path


def register_task(env_id: str, task: str | Path) -> str:
    """Register a folder with a task.yaml of your own under a Gymnasium id such as "me/HeavyPendulum-v0"; return the id.

    The id then works in `gymnasium.make` and `gymnasium.make_vec` of this process, as those of the package do. Raises
    what `load_plant` raises if the folder is not a task, and `InvalidValueError` for an id that is taken or no id.
    """
    try:
        parse_env_id(env_id)
    except (Error, TypeError) as error:
        raise InvalidValueError(f"env_id is {env_id!r}; expected such as 'me/HeavyPendulum-v0'.") from error
    if env_id in registry:
        raise InvalidValueError(f"env_id {env_id!r} is registered already; choose another name or version.")
    load_plant(task)
    folder = task_file(task).resolve().parent
    register(id=env_id, entry_point=SINGLE, vector_entry_point=VECTOR, kwargs={"task": str(folder)})
    return env_id
