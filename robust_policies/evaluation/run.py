"""Evaluating a run folder: evaluation.json, evaluation.csv and trajectories.npz."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.envs.incidents import collected
from robust_policies.envs.perturb import Spec, describe, parse
from robust_policies.envs.registration import ENV_IDS
from robust_policies.errors import InvalidValueError, RobustPoliciesError
from robust_policies.evaluation.attacks import why_not
from robust_policies.evaluation.bench import Bench, Part, measurement, recording
from robust_policies.evaluation.faults import (
    grid_names,
    measure_fault,
    measure_grid,
    measure_noise,
    measure_nominal,
    unsuited,
)
from robust_policies.evaluation.journal import Journal
from robust_policies.evaluation.suite import AttackEntry, Suite, suite_named
from robust_policies.evaluation.table import (
    failed_episodes,
    rows_of,
    worst_rows,
    write_csv,
    write_trajectories,
)
from robust_policies.evaluation.task_numbers import task_numbers
from robust_policies.evaluation.tuning import measure_attack, measure_critical
from robust_policies.files.atomic import write_json
from robust_policies.files.versions import versions
from robust_policies.policies import load_policy
from robust_policies.policies.observations import measured as can_be_off
from robust_policies.policies.storage import stored_task
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.folder import EVALUATION_SCHEMA, RunFolder

Progress = Callable[[float, str], None]
Job = Callable[[], dict[str, Any]] | str
"""What measures, or why that is not done in a task."""
CRITICAL = "critical size, "
"""How the names of those jobs begin that start from what others found."""
_EXACT = "its observations are choices, which are not off by a little"


@dataclass(frozen=True)
class Notes:
    """What was not measured and why: because it failed, or because it does not suit the task."""

    failures: list[dict[str, str]]
    skipped: list[dict[str, str]]


def evaluate_run(
    folder: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    suite: str | Suite = "quick",
    sizes: Sequence[float] | None = None,
    episodes: int | None = None,
    seeds: Sequence[int] | None = None,
    attacks: Sequence[str] | None = None,
    perturbations: Any = None,
    progress: Progress | None = None,
    spent: float = 0.0,
) -> dict[str, Any]:
    """Return the evaluation of the policy in a run folder, also written into it.

    Files: evaluation.json (rows with statistics), evaluation.csv (one line an episode), trajectories.npz. While it runs
    evaluation.partial.jsonl keeps every finished part; an interrupted evaluation called again goes on from there.

    Args:
        folder: the run folder, or one that holds policy.json and policy.safetensors.
        tasks: Gymnasium ids; None: the recipe's (of its evaluation, else its own), or the policy's own.
        suite: a name in `SUITES`, the path of a YAML file, or a suite.
        sizes: perturbation sizes in the observation's units; None: the suite's.
        episodes: number for each size and seed; None: the suite's.
        seeds: evaluation seeds; None: the suite's.
        attacks: names of attacks in place of the suite's; None: those.
        perturbations: wrappers around every task, a short list such as [{"ObservationDelay": 2}]; None: the recipe's
            (its evaluation's, else its task's, and then around the recipe's own task only).
        progress: called with the fraction done and what is being done.
        spent: seconds that parts in the journal took elsewhere, which count in "seconds".

    A part that fails is listed under "failures" with the reason and the others are still evaluated; one that does not
    suit a task (a disturbance of a plant without such an input) under "skipped".

    Raises:
        MissingFileError, CorruptFileError, SchemaError: the policy cannot be read. UserError: a setting is wrong.
        RobustPoliciesError: everything failed; nothing is written then.
    """
    ready = prepared(folder, tasks, suite, sizes, episodes, seeds, attacks, perturbations)
    run, begun = ready.run, time.perf_counter()
    with run.held():
        journal = Journal(run.journal, ready.settings)
        try:
            measured, notes = _measure(ready.benches, journal, progress)
        finally:
            journal.close()
        content = _assembled(run, ready.facts, measured, notes, spent + time.perf_counter() - begun)
        write_json(run.evaluation, content)
        journal.delete()
    if progress is not None:
        progress(1.0, "done")
    return content


@dataclass(frozen=True)
class Prepared:
    """An evaluation that can begin.

    Attributes:
        run: the folder.
        benches: by task.
        settings: all that decides the results.
        facts: what evaluation.json says besides them.
    """

    run: RunFolder
    benches: dict[str, Bench]
    settings: dict[str, Any]
    facts: dict[str, Any]


def prepared(
    folder: str | Path,
    tasks: Sequence[str] | None = None,
    suite: str | Suite = "quick",
    sizes: Sequence[float] | None = None,
    episodes: int | None = None,
    seeds: Sequence[int] | None = None,
    attacks: Sequence[str] | None = None,
    perturbations: Any = None,
) -> Prepared:
    """Return an evaluation before its beginning; arguments and errors as `evaluate_run`."""
    run = RunFolder(folder)
    policy, recipe = load_policy(run.path), _recipe_of(run)
    chosen = resolved_suite(suite, sizes, episodes, seeds, attacks)
    own = _wrappers_of(recipe)
    wrappers = None if perturbations is None else parse(perturbations)
    home = _task_of(recipe, run.path)
    tasks = list(tasks or _tasks_of(recipe, home))
    benches: dict[str, Bench] = {}
    for task in tasks:
        # What the recipe says of its own task is not said of another.
        options, around = (home[1], own) if home is not None and task == home[0] else ({}, [])
        benches[task] = Bench(policy, task, options, around if wrappers is None else wrappers, chosen)
    hashes = array_hashes(policy.running_arrays())
    settings = {
        "suite": chosen.resolved(),
        "arrays": hashes,
        "versions": versions(),
        "tasks": {task: [bench.env_kwargs, describe(bench.around)] for task, bench in benches.items()},
    }
    facts = {
        "policy": run.path.resolve().name,
        "method": run.method,
        "training_seed": None if recipe is None else recipe.seed,
        "policy_sha256": digest(hashes),
        "task_numbers": {task: task_numbers(task, bench.env_kwargs) for task, bench in benches.items()},
        "cell": policy.cell.name,
        "suite": str(suite) if not isinstance(suite, Suite) else "own",
        "suite_resolved": chosen.resolved(),
        "tasks": tasks,
        "perturbations": describe(own if wrappers is None else wrappers),
        "sizes": list(chosen.sizes),
        "episodes": chosen.episodes,
        "seeds": list(chosen.seeds),
    }
    return Prepared(run, benches, settings, facts)


def resolved_suite(
    suite: str | Suite = "quick",
    sizes: Sequence[float] | None = None,
    episodes: int | None = None,
    seeds: Sequence[int] | None = None,
    attacks: Sequence[str] | None = None,
) -> Suite:
    """Return a suite with what is given in place of its own; arguments and errors as `evaluate_run`."""
    chosen = suite if isinstance(suite, Suite) else suite_named(suite)
    if sizes is not None:
        # Sizes that were asked for hold for every attack, whatever the suite had for one of them.
        own = [{**entry.model_dump(), "sizes": None} for entry in chosen.attacks]
        chosen = chosen.changed(sizes=list(sizes), attacks=own)
    chosen = chosen.changed(episodes=episodes, seeds=None if seeds is None else list(seeds))
    return chosen if attacks is None else chosen.only_attacks(list(attacks))


def _measure(
    benches: dict[str, Bench], journal: Journal, progress: Progress | None
) -> tuple[dict[str, dict[str, Any]], Notes]:
    """Return {task: {job: result}} and what was not measured; raise the last error if nothing was."""
    measured: dict[str, dict[str, Any]] = {task: {} for task in benches}
    notes = Notes([], [])
    last: RobustPoliciesError | None = None
    count = sum(len(list(jobs_of(bench, None))) for bench in benches.values())
    number = 0
    for task, bench in benches.items():
        for job, run in jobs_of(bench, measured[task]):
            if progress is not None:
                progress(number / count, f"{task} {job}")
            number += 1
            if isinstance(run, str):
                notes.skipped.append({"task": task, "perturbation": job, "reason": run})
                continue
            key = f"{task} {job}"
            try:
                if key not in journal.finished:
                    journal.add(key, measured_with_incidents(run))
            except RobustPoliciesError as error:
                last = error
                notes.failures.append({"task": task, "perturbation": job, "reason": str(error)})
                if job == "nominal":
                    break
                continue
            measured[task][job] = result = journal.finished[key]
            said = [failed_episodes(one) for one in result.get("rows", [])] + result.get("incidents", [])
            notes.failures.extend({"task": task, "perturbation": job, "reason": reason} for reason in said if reason)
    if last is not None and not any(measured.values()):
        raise last
    return measured, notes


def measured_with_incidents(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a job measures, and what went wrong in the simulation meanwhile."""
    with collected() as incidents:
        result = run()
    return {**result, "incidents": incidents} if incidents else result


def jobs_of(bench: Bench, done: dict[str, Any] | None) -> Iterator[tuple[str, Job]]:
    """Yield (name, function) of what is measured in a task, in order; a reason in place of what does not suit it.

    Later ones use what earlier ones left in `done`; None: all are yielded.
    """
    suite = bench.suite
    nominal: list[tuple[Part, Part]] = []

    def unperturbed() -> tuple[Part, Part]:
        if not nominal:
            nominal.append(measure_nominal(bench))
        return nominal[0]

    yield "nominal", lambda: _nominal(unperturbed()[0], suite.record)
    exact = None if can_be_off(bench.policy.observation_space).any() else _EXACT
    for name in suite.noise:
        yield name, exact or (lambda name=name: measure_noise(bench, name))
    for entry in suite.attacks:
        reason = exact or why_not(entry.name, bench.task, bench.env_kwargs)
        yield _job_of(entry), reason or (lambda e=entry: measure_attack(bench, e, unperturbed(), _shown(suite)))
    for group, entries in (("fault", suite.faults), ("disturbance", suite.disturbances)):
        for entry in entries:
            reason = unsuited(bench, entry)
            yield f"{group} {entry.shown}", reason or (lambda e=entry, g=group: measure_fault(bench, e, g))
    for entry in suite.parameters:
        names = grid_names(bench, entry)
        if names is None:
            yield "parameters", f"{bench.task} does not name parameters to vary; give x and y"
        else:
            yield f"parameters {', '.join(names)}", lambda e=entry, n=names: measure_grid(bench, e, n)
    for entry in suite.attacks:
        job = _job_of(entry)
        searched = entry.shown in suite.critical.attacks and max(entry.sizes or suite.sizes) > 0
        if searched and (done is None or job in done):
            found = {} if done is None else done[job]
            yield f"{CRITICAL}{job}", lambda e=entry, f=found: {"critical": [measure_critical(bench, e, f)]}


def _job_of(entry: AttackEntry) -> str:
    return f"{entry.shown} ({entry.norm})"


def _nominal(part: Part, record: int) -> dict[str, Any]:
    labels = {"group": "noise", "perturbation": "none", "attack": "", "norm": "", "unit": "", "point": {}, "size": 0.0}
    packed = [{"perturbation": "none", "norm": "", "size": 0.0, "npz": recording(part, 0)}] if record else []
    return {"rows": [measurement(part, 0, **labels)], "recordings": packed}


def _shown(suite: Suite) -> list[float]:
    """Return the sizes at which trajectories are kept: one in the middle and the largest."""
    sizes = [size for size in suite.sizes if size > 0]
    return [sizes[(len(sizes) - 1) // 2], sizes[-1]] if sizes else []


def _assembled(
    run: RunFolder, facts: dict[str, Any], measured: dict[str, dict[str, Any]], notes: Notes, seconds: float
) -> dict[str, Any]:
    """Return the content of evaluation.json after writing the files beside it."""
    measurements, rows, tuning, critical, worst, recordings = [], [], [], [], [], []
    for task, jobs in measured.items():
        found = [one for result in jobs.values() for one in result.get("rows", [])]
        # The unperturbed episodes are part of every curve; on their own they count only where there is none.
        if any(one["group"] in ("noise", "attack") and one["perturbation"] != "none" for one in found):
            found = [one for one in found if one["perturbation"] != "none"]
        measurements += [(task, one) for one in found]
        here = [row for one in found for row in rows_of(facts["policy"], task, one)]
        tuned = [{"task": task, **one} for result in jobs.values() for one in result.get("tuning", [])]
        lost = worst_rows(task, here, tuned)
        kept = {(one["attack"], one["norm"], one["size"]) for one in lost} | {("none", "", 0.0)}
        recordings += [
            {"task": task, **one}
            for result in jobs.values()
            for one in result.get("recordings", [])
            if (one["perturbation"], one["norm"], one["size"]) in kept
        ]
        critical += [{"task": task, **one} for result in jobs.values() for one in result.get("critical", [])]
        rows, tuning, worst = rows + here, tuning + tuned, worst + lost
    write_csv(run.evaluation_csv, facts, measurements)
    index = write_trajectories(run.trajectories, recordings)
    return {
        "schema": EVALUATION_SCHEMA,
        **facts,
        "rows": rows,
        "worst": worst,
        "critical_sizes": critical,
        "tuning": tuning,
        "trajectories": index,
        "failures": notes.failures,
        "skipped": notes.skipped,
        "seconds": round(seconds, 1),
        "versions": versions(),
    }


def _recipe_of(run: RunFolder) -> Recipe | None:
    return run.read_recipe() if run.recipe.is_file() else None


def _task_of(recipe: Recipe | None, folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Return the id and the options of the recipe's task, or of the one that the policy was saved with."""
    return stored_task(folder) if recipe is None else (recipe.task.id, dict(recipe.task.kwargs))


def _tasks_of(recipe: Recipe | None, home: tuple[str, dict[str, Any]] | None) -> list[str]:
    if home is None:
        raise InvalidValueError(
            "No task was given, the folder has no recipe.yaml and its policy was saved without task=ID; name tasks, "
            f"such as {ENV_IDS[0]}."
        )
    return (recipe.evaluation.tasks if recipe is not None else []) or [home[0]]


def _wrappers_of(recipe: Recipe | None) -> list[Spec]:
    """Return what is around the recipe's task while it is evaluated."""
    if recipe is None:
        return []
    own = recipe.evaluation.perturbations
    return parse(recipe.task.perturbations if own is None else own)
