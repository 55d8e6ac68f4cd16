"""Learning from a teacher in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_policies.errors import InvalidValueError
from robust_policies.train.folder import RunFolder
from robust_policies.train.imitation_recipe import GIVEN, LQG, ImitationRecipe
from robust_policies.train.progress import Reporter
from robust_policies.train.recipe import Recipe, parse_recipe, set_value
from robust_policies.train.runner import TrainResult, train

DEFAULT_POLICY = {"cell": "r2dn", "state_size": 8, "features": 8, "hidden_sizes": [16]}
# Each cell has options of its own; these are what a small one needs.
_SIZES = {
    "ren": {"state_size": 8, "features": 16}, "lstm": {"state_size": 16}, "gru": {"state_size": 16},
    "mlp": {"hidden_sizes": [32, 32]}, "lbdn": {"hidden_sizes": [32, 32]},
}  # fmt: skip


def imitate(
    teacher: Any,
    task: str | None = None,
    folder: str | Path | None = None,
    *,
    gamma: float | None = None,
    policy: Mapping[str, Any] | None = None,
    algorithm: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Return the result of learning to do what a teacher does, into a run folder like that of `train`.

    Args:
        teacher: "lqg" (the design of the task's linear model), the path of a run folder or policy.json, a policy of
            this package, or any object with Stable-Baselines3's `predict`.
        task: the Gymnasium id; None: that of the teacher's run folder.
        folder: the run folder, new or empty, or with `resume` one to go on with; None: results/TASK_imitation.
        gamma: the student's certified gain, from raw observation to raw action; None: contraction alone.
        policy: keys of a recipe's `policy` section; the default cell is a small R2DN.
        algorithm: keys of a recipe's `algorithm` section, see `ImitationSection`.
        seed: of everything random.
        device: `cpu`, `cuda` or `cuda:N`.
        resume: go on from the last checkpoint, with the numbers of a run that was not interrupted.
        reporter: shows progress.

    Raises:
        As `train`.
    """
    named = isinstance(teacher, str | Path)
    assignments = {**{f"policy.{key}": value for key, value in (policy or {}).items()},
                   **{f"algorithm.{key}": value for key, value in (algorithm or {}).items()}}  # fmt: skip
    recipe = imitation_recipe(str(teacher) if named else GIVEN, task, assignments, gamma=gamma, seed=seed)
    target = default_folder(recipe) if folder is None else folder
    return train(recipe, target, device=device, resume=resume, reporter=reporter, teacher=None if named else teacher)


def imitation_recipe(
    teacher: str,
    task: str | None,
    assignments: Mapping[str, Any] | list[str],
    *,
    gamma: float | None = None,
    method: str | None = None,
    seed: int = 0,
) -> ImitationRecipe:
    """Return the recipe of learning from `teacher`, with defaults for what is not given.

    Args:
        teacher: what a recipe's algorithm.teacher may be.
        task: the Gymnasium id; None: that of the teacher's run folder, with its options.
        assignments: keys such as "policy.state_size" with values, or texts such as "policy.state_size=4".
        gamma: policy.gamma, which bounds the policy's whole gain where no scale is set.
        method: algorithm.method.
        seed: of the recipe.

    Raises:
        UserError: a key or value is wrong, or no task is known.
    """
    section = {"id": task, "num_envs": 16} if task is not None else _task_of(teacher)
    data: dict[str, Any] = {
        "description": f"Imitation of {teacher}", "seed": seed, "task": section,
        "policy": {}, "algorithm": {"name": "imitation", "teacher": teacher},
    }  # fmt: skip
    if gamma is not None:
        data["policy"]["gamma"] = gamma
    if method is not None:
        data["algorithm"]["method"] = method
    if isinstance(assignments, Mapping):
        for key, value in assignments.items():
            part, _, name = key.partition(".")
            data[part][name] = value
    else:
        for assignment in assignments:
            set_value(data, assignment)
    cell = data["policy"].get("cell", DEFAULT_POLICY["cell"])
    data["policy"] = {**(_SIZES.get(cell, {}) if cell != DEFAULT_POLICY["cell"] else DEFAULT_POLICY), **data["policy"]}
    recipe = parse_recipe(data, "imitate")
    if not isinstance(recipe, ImitationRecipe):
        raise InvalidValueError(f"algorithm.name is {recipe.algorithm.name!r}; expected 'imitation', as of `imitate`.")
    return recipe


def default_folder(recipe: Recipe) -> Path:
    """Return results/TASK_imitation."""
    return Path("results") / f"{recipe.task.id.rpartition('/')[2].rpartition(':')[2]}_imitation"


def _task_of(teacher: str) -> dict[str, Any]:
    run = RunFolder(teacher)
    if teacher == LQG or not run.recipe.is_file():
        what = f"teacher {teacher!r}" if teacher != GIVEN else "a teacher that is an object"
        raise InvalidValueError(f"No task was given for {what}, whose recipe would name one; give its Gymnasium id.")
    task = run.read_recipe().task
    return {"num_envs": 16, "id": task.id, "kwargs": task.kwargs, "perturbations": task.perturbations}
