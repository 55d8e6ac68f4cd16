"""Read and check a task.yaml, and build its plant."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from robust_policies import assets
from robust_policies.envs.linear import LinearPlant
from robust_policies.envs.pendulum import PendulumPlant
from robust_policies.envs.plant import Plant
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UnknownNameError, UserError

PLANTS: dict[str, type[Plant]] = {plant.kind: plant for plant in (PendulumPlant, LinearPlant)}


def load_plant(task: str | Path) -> Plant:
    """Return the plant of a task: a name among the package's tasks, or the path of a folder that holds a task.yaml.

    Raises `MissingFileError`, `CorruptFileError`, `UnknownNameError` (with the closest known name), `ShapeError` or
    `InvalidValueError`; every message names the file.
    """
    path = task_file(task)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} holds {type(content).__name__}; expected a mapping with the key 'plant'.")
    kind = content.get("plant")
    if kind not in PLANTS:
        raise UnknownNameError(f"{path}: {UnknownNameError.among('plant', str(kind), PLANTS)}")
    plant = PLANTS[kind]
    try:
        return plant(plant.Task.model_validate(content))
    except ValidationError as error:
        raise _explain(path, plant.Task, error) from error
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def task_file(task: str | Path) -> Path:
    """Return the task.yaml that `task`, a name or a folder, means."""
    if isinstance(task, str) and "/" not in task and "\\" not in task and not Path(task).is_dir():
        return assets.task_folder(task) / "task.yaml"
    folder = Path(task)
    path = folder if folder.suffix in {".yaml", ".yml"} else folder / "task.yaml"
    if not path.is_file():
        known = ", ".join(assets.task_names())
        raise MissingFileError(f"{path} does not exist; expected a folder with a task.yaml, or one of {known}.")
    return path


def _explain(path: Path, model: type[BaseModel], error: ValidationError) -> UserError:
    """Return our error for the first thing that pydantic found wrong."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known(model, first["loc"][:-1])
        units = ", ".join(f"{name} [{unit}]" if unit else name for name, unit in known.items())
        where = ".".join(str(part) for part in first["loc"][:-1]) or "the file"
        hint = UnknownNameError.among("parameter", str(first["loc"][-1]), known)
        return UnknownNameError(f"{path}: in {where}: {str(hint).split(' Known:')[0]} Known: {units}.")
    if first["type"] == "missing":
        return InvalidValueError(f"{path}: {place} is missing; expected a value for it.")
    return InvalidValueError(f"{path}: {place} is {first['input']!r}; {first['msg'][0].lower()}{first['msg'][1:]}.")


def _known(model: type[BaseModel], place: tuple[Any, ...]) -> dict[str, str]:
    """Return the keys that the section at `place` may hold, with their units."""
    section: Any = model
    for part in place:
        annotation = section.model_fields[part].annotation
        choices = (annotation, *get_args(annotation))
        section = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel))
    return {
        field.alias or name: str((field.json_schema_extra or {}).get("unit", ""))
        for name, field in section.model_fields.items()
    }
