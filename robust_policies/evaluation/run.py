"""Evaluating and certifying a run folder: evaluation.json, certificate.json and the witness."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robust_policies import checks
from robust_policies.certificates.certificate import versions
from robust_policies.certificates.files import read_json, write_json
from robust_policies.envs.perturb import describe, parse
from robust_policies.envs.registration import ENV_IDS
from robust_policies.errors import CorruptFileError, InvalidValueError, RobustPoliciesError
from robust_policies.evaluation.rollout import run_episodes
from robust_policies.evaluation.statistics import summary
from robust_policies.evaluation.suites import suite_named
from robust_policies.policies import load_policy

SCHEMA = 1
PENDULUM_TWINS = ("robust_policies/Pendulum-v0", "Pendulum-v1")
Progress = Callable[[float, str], None]


def evaluate_run(
    folder: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    suite: str = "quick",
    sizes: Sequence[float] | None = None,
    episodes: int | None = None,
    seeds: Sequence[int] | None = None,
    perturbations: Any = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the evaluation of the policy in a run folder, also written to its evaluation.json.

    Args:
        folder: the run folder, or one that holds policy.json and policy.safetensors.
        tasks: Gymnasium ids; None: the recipe's (for the pendulum ours and Gymnasium's).
        suite: "quick" or "standard".
        sizes: perturbation sizes in the observation's units; None: the suite's.
        episodes: number for each size and seed; None: the suite's.
        seeds: evaluation seeds; None: the suite's.
        perturbations: wrappers around every task, a short list such as [{"ObservationDelay": 2}]; None: the recipe's
            (its evaluation's, else its task's, and then around the recipe's own task only).
        progress: called with the fraction done and what is being done.

    One row for each task, perturbation, size and seed. A task that fails is listed under "failures" with the reason and
    the others are still evaluated.

    Raises:
        MissingFileError, CorruptFileError, SchemaError: the policy cannot be read. UserError: all tasks failed.
    """
    folder = Path(folder)
    policy = load_policy(folder)
    chosen = suite_named(suite)
    sizes = [checks.finite_float("a perturbation size", s, at_least=0.0) for s in (sizes or chosen.sizes)]
    sizes = sorted(set(sizes) | {0.0})
    episodes = checks.positive_int("episodes", chosen.episodes if episodes is None else episodes)
    seeds = [checks.positive_int("a seed", seed, minimum=0) for seed in (chosen.seeds if seeds is None else seeds)]
    if not seeds:
        raise InvalidValueError("No seed was given; expected at least one.")
    wrappers = None if perturbations is None else describe(parse(perturbations))
    recipe_task, env_kwargs, own_wrappers = _recipe_task(folder)
    tasks = list(tasks or _default_tasks(recipe_task))
    jobs = [(task, kind, seed) for task in tasks for kind in chosen.perturbations for seed in seeds]
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    last: RobustPoliciesError | None = None
    begun = time.perf_counter()
    for number, (task, kind, seed) in enumerate(jobs):
        if progress is not None:
            progress(number / len(jobs), f"{task} {kind}")
        if any(failure["task"] == task for failure in failures):
            continue
        kwargs = env_kwargs if task == recipe_task else {}
        around = wrappers if wrappers is not None else own_wrappers if task == recipe_task else []
        try:
            found = run_episodes(
                policy,
                task,
                kind,
                sizes,
                episodes,
                seed,
                env_kwargs=kwargs,
                budget=chosen.budget(),
                perturbations=around,
            )
            rows += [
                {
                    "policy": folder.resolve().name, "task": task, "perturbation": kind, "attack": found.attack,
                    "size": size, "seed": seed, "episodes": episodes, **summary(returns), "returns": returns.tolist(),
                }
                for size, returns in zip(sizes, found.returns, strict=True)
            ]  # fmt: skip
        except RobustPoliciesError as error:
            last = error
            failures.append({"task": task, "perturbation": kind, "reason": str(error)})
    if not rows and last is not None:
        raise last
    listed = own_wrappers if wrappers is None else wrappers
    content = {
        "schema": SCHEMA, "policy": folder.resolve().name, "cell": policy.cell.name, "suite": suite, "tasks": tasks,
        "perturbations": listed, "sizes": sizes, "episodes": episodes, "seeds": seeds, "rows": rows,
        "failures": failures,
        "attack_budget": chosen.model_dump(include={"gradient_steps", "window", "deviation_steps", "horizon"}),
        "seconds": round(time.perf_counter() - begun, 1), "versions": versions(),
    }  # fmt: skip
    write_json(folder / "evaluation.json", content)
    if progress is not None:
        progress(1.0, "done")
    return content


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """Return evaluation.json of a run folder; raises MissingFileError, CorruptFileError, SchemaError."""
    path = Path(folder) / "evaluation.json"
    content = read_json(path, "evaluation", SCHEMA)
    needed = {"task", "perturbation", "size", "returns"}
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise CorruptFileError(f"{path} has no table of rows; write it again with `robust-policies evaluate {folder}`.")
    return content


def pooled(rows: Sequence[dict[str, Any]], task: str, kind: str) -> dict[str, np.ndarray]:
    """Return {"size", "mean", "low", "high"} of a task and perturbation over all seeds' episodes, by size."""
    by_size: dict[float, list[float]] = {}
    for row in rows:
        if row["task"] == task and row["perturbation"] == kind:
            by_size.setdefault(float(row["size"]), []).extend(row["returns"])
    sizes = sorted(by_size)
    found = [summary(by_size[size]) for size in sizes]
    return {"size": np.array(sizes), **{key: np.array([f[key] for f in found]) for key in ("mean", "low", "high")}}


def _recipe_task(folder: Path) -> tuple[str | None, dict[str, Any], list[Any]]:
    """Return the recipe's task, its options and the wrappers it is evaluated in."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return None, {}, []
    try:
        content = yaml.safe_load(path.read_text())
        task = content["task"]
        wrappers = (content.get("evaluation") or {}).get("perturbations")
        around = task.get("perturbations") or [] if wrappers is None else wrappers
        return str(task["id"]), dict(task.get("kwargs") or {}), describe(parse(around))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptFileError(f"{path} does not name a task ({error}); expected a resolved recipe.") from error


def _default_tasks(recipe_task: str | None) -> list[str]:
    if recipe_task is None:
        raise InvalidValueError(
            f"No task was given and the folder has no recipe.yaml; name tasks, such as {ENV_IDS[0]}."
        )
    return list(PENDULUM_TWINS) if recipe_task in PENDULUM_TWINS else [recipe_task]
