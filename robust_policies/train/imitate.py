"""Learning from a teacher in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_policies.envs.batch import make_one, spec_of
from robust_policies.errors import InvalidValueError
from robust_policies.train.compose import suggested_policy
from robust_policies.train.recipe.gail import GailSection
from robust_policies.train.recipe.imitation import GIVEN, LQG, ImitationSection
from robust_policies.train.recipe.recipe import Recipe, parse_recipe, set_value
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.job import TrainResult
from robust_policies.train.run.progress import Reporter
from robust_policies.train.run.stop import StopRequest
from robust_policies.train.runner import train

GAIL = "gail"
# Each cell has options of its own; these are what a small one needs.
_SIZES: dict[str, dict[str, Any]] = {
    "r2dn": {"state_size": 8, "features": 8, "hidden_sizes": [16]},
    "ren": {"state_size": 8, "features": 16},
    "nemon": {"state_size": 8, "features": 16},
    "l2ru": {"state_size": 16, "features": 8},
    "convex": {"state_size": 16},
    "lipschitz_rnn": {"state_size": 16},
    "lstm": {"state_size": 16},
    "gru": {"state_size": 16},
    "mlp": {"hidden_sizes": [32, 32]},
    "lbdn": {"hidden_sizes": [32, 32]},
}


def imitate(
    teacher: Any,
    task: str | Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    *,
    gamma: float | None = None,
    method: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    reporter: Reporter | None = None,
    stop: StopRequest | None = None,
    **sections: Mapping[str, Any],
) -> TrainResult:
    """Return the result of learning to do what a teacher does, into a run folder like that of `train`.

    Args:
        teacher: "lqg" (the design of the task's linear model), the path of a run folder or policy.json, a policy of
            this package, or any object with Stable-Baselines3's `predict`.
        task: the Gymnasium id, or a recipe's `task` section; None: that of the teacher's run folder.
        folder: the run folder, new or empty, or with `resume` one to go on with; None: results/TASK_imitation.
        gamma: bound on the incremental l2 gain of the student's cell, between scaled signals; None: contraction alone.
            Without observation and action scales, as in the default, it is that from raw observation to raw action.
        method: "dagger" (the default), "bc" (behaviour cloning) or "gail" (adversarial imitation: PPO with a learnt
            reward; the teacher may then be the folder of a Minari data set too).
        seed: of everything random.
        device: `cpu`, `cuda` or `cuda:N`.
        resume: go on from the last checkpoint, with the numbers of a run that was not interrupted.
        reporter: shows progress.
        stop: as of `train`.
        sections: other sections of a recipe, such as policy={"state_size": 4}, where the default is a small R2DN, and
            algorithm={"rounds": 20}, see `ImitationSection` and `GailSection`.

    Raises:
        As `train`.
    """
    named = isinstance(teacher, str | Path)
    recipe = imitation_recipe(str(teacher) if named else GIVEN, task, sections, gamma=gamma, method=method, seed=seed)
    target = default_folder(recipe) if folder is None else folder
    own = None if named else teacher
    return train(recipe, target, device=device, resume=resume, reporter=reporter, teacher=own, stop=stop)


def imitation_recipe(
    teacher: str,
    task: str | Mapping[str, Any] | None,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    assignments: Sequence[str] = (),
    *,
    gamma: float | None = None,
    method: str | None = None,
    seed: int = 0,
) -> Recipe[ImitationSection] | Recipe[GailSection]:
    """Return the recipe of learning from `teacher`, with defaults for what is not given.

    Args:
        teacher: what a recipe's algorithm.teacher may be.
        task: as of `imitate`.
        sections: of the recipe.
        assignments: such as "policy.state_size=4", applied last.
        gamma: policy.gamma, which bounds the policy's whole gain where no scale is set.
        method: algorithm.method, or "gail" for the algorithm of that name.
        seed: of the recipe.

    Raises:
        UserError: a key or value is wrong, or no task is known.
    """
    section = {"id": task} if isinstance(task, str) else _task_of(teacher) if task is None else task
    data: dict[str, Any] = {name: dict(content) for name, content in (sections or {}).items()}
    gail = method == GAIL or data.get("algorithm", {}).get("name") == GAIL
    data |= {"description": f"Imitation of {teacher}", "seed": seed}
    data["task"] = dict(section) if gail else {"num_envs": 16, **section}
    data["algorithm"] = {"name": GAIL if gail else "imitation", "teacher": teacher, **data.get("algorithm", {})}
    if method is not None and not gail:
        data["algorithm"]["method"] = method
    data["policy"] = {**data.get("policy", {}), **({} if gamma is None else {"gamma": gamma})}
    for assignment in assignments:
        set_value(data, assignment)
    cell = data["policy"].setdefault("cell", "r2dn")
    data["policy"] = {**_SIZES.get(cell, {}), **(_for_ppo(data["task"], cell) if gail else {}), **data["policy"]}
    recipe = parse_recipe(data, "imitate")
    if not isinstance(recipe.algorithm, ImitationSection | GailSection):
        name = recipe.algorithm.name
        raise InvalidValueError(f"algorithm.name is {name!r}; expected 'imitation' or 'gail', as of `imitate`.")
    return recipe


def _for_ppo(task: Mapping[str, Any], cell: str) -> dict[str, Any]:
    """Return scales and exploration that a task's spaces suggest, and a value without a memory."""
    env_id = str(task.get("id"))
    spec_of(env_id)
    env = make_one(env_id, task.get("kwargs"))
    try:
        suggested = suggested_policy("tensor_ppo", cell, None, env)
    finally:
        env.close()
    kept = ("observation_scale", "observation_offset", "action_scale", "log_std_init")
    return {"critic": "mlp"} | {name: suggested[name] for name in kept if name in suggested}


def default_folder(recipe: Recipe) -> Path:
    """Return results/TASK_imitation."""
    return Path("results") / f"{recipe.task.id.rpartition('/')[2].rpartition(':')[2]}_imitation"


def _task_of(teacher: str) -> dict[str, Any]:
    run = RunFolder(teacher)
    if teacher == LQG or not run.recipe.is_file():
        what = f"teacher {teacher!r}" if teacher != GIVEN else "a teacher that is an object"
        raise InvalidValueError(f"No task was given for {what}, whose recipe would name one; give its Gymnasium id.")
    task = run.read_recipe().task
    return {"id": task.id, "kwargs": task.kwargs, "perturbations": task.perturbations}
