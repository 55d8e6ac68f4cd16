"""Find the tasks (`envs/`) and the recipes (`train/`), in a checkout and in an installed wheel alike.

In a wheel both folders lie inside the package as `_tasks` and `_recipes`; in a checkout they lie beside it.
"""

from __future__ import annotations

from pathlib import Path

from robust_policies.errors import InvalidValueError, MissingFileError, UnknownNameError

_PACKAGE = Path(__file__).resolve().parents[1]


def _folder(packed: str, beside: str) -> Path:
    for folder in (_PACKAGE / packed, _PACKAGE.parent / beside):
        if folder.is_dir():
            return folder
    raise MissingFileError(
        f"Neither {packed}/ in the package nor {beside}/ beside it exists; reinstall robust-policies."
    )


def tasks_folder() -> Path:
    """Return the folder that holds one folder a task."""
    return _folder("_tasks", "envs")


def recipes_folder() -> Path:
    """Return the folder that holds the recipes."""
    return _folder("_recipes", "train")


def task_names() -> list[str]:
    """Return the names of all tasks that come with the package, sorted."""
    return sorted(path.parent.name for path in tasks_folder().glob("*/task.yaml"))


def task_folder(name: str) -> Path:
    """Return the folder of the task `name`; raise `UnknownNameError` if there is none."""
    folder = tasks_folder() / name
    if not (folder / "task.yaml").is_file():
        raise UnknownNameError.among("task", name, task_names())
    return folder


def recipe_names() -> list[str]:
    """Return the names of all recipes that come with the package, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def recipe_path(name: str | Path) -> Path:
    """Return the path of a recipe given as a file (`train/pendulum_r2dn.yaml`) or by its bare name.

    A path that does not exist in the working directory but names a recipe of the package finds that one, so that
    `robust-policies train train/pendulum_r2dn.yaml` works from any directory.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = recipes_folder() / f"{path.stem}.yaml"
    if packaged.is_file() and (path.parent == Path(".") or path.parent.name == "train"):
        return packaged
    if path.suffix in {".yaml", ".yml"} and path.parent not in {Path("."), Path("train")}:
        raise MissingFileError(
            f"Recipe file {str(path)!r} does not exist; `robust-policies list recipes` names those of the package."
        )
    if path.is_dir():
        raise InvalidValueError(f"Recipe {str(path)!r} is a folder; expected a YAML file, or a name (`list recipes`).")
    raise UnknownNameError.among("recipe", str(name), recipe_names())
