"""Evaluating a run folder: evaluation.json, evaluation.csv and trajectories.npz."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_policies.certificates.certificate import array_hashes, versions
from robust_policies.envs.perturb import Spec, describe, parse
from robust_policies.envs.registration import ENV_IDS
from robust_policies.errors import CorruptFileError, InvalidValueError, RobustPoliciesError
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
    SCHEMA,
    failed_episodes,
    rows_of,
    worst_rows,
    write_csv,
    write_trajectories,
)
from robust_policies.evaluation.tuning import measure_attack, measure_critical
from robust_policies.files.atomic import write_json
from robust_policies.files.lock import held
from robust_policies.files.yaml_text import read_yaml
from robust_policies.policies import load_policy
from robust_policies.policies.observations import measured

PENDULUM_TWINS = ("robust_policies/Pendulum-v0", "Pendulum-v1")
PARTIAL = "evaluation.partial.jsonl"
Progress = Callable[[float, str], None]
Job = Callable[[], dict[str, Any]] | str
"""What measures, or why that is not done in a task."""
_EXACT = "its observations are choices, which are not off by a little"
_SEED = re.compile(r"(^|[-_., ]+)(seed[-_=]?|s)\d+$|^\d+$|^seed[-_=]?\d+[-_., ]+", re.IGNORECASE)


@dataclass(frozen=True)
class _Origin:
    """What the recipe of a run folder says about its evaluation."""

    task: str | None
    env_kwargs: dict[str, Any]
    wrappers: list[Spec]
    training_seed: int | None


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
) -> dict[str, Any]:
    """Return the evaluation of the policy in a run folder, also written into it.

    Files: evaluation.json (rows with statistics), evaluation.csv (one line an episode), trajectories.npz. While it runs
    evaluation.partial.jsonl keeps every finished part; an interrupted evaluation called again goes on from there.

    Args:
        folder: the run folder, or one that holds policy.json and policy.safetensors.
        tasks: Gymnasium ids; None: the recipe's (for the pendulum ours and Gymnasium's).
        suite: a name in `SUITES`, the path of a YAML file, or a suite.
        sizes: perturbation sizes in the observation's units; None: the suite's.
        episodes: number for each size and seed; None: the suite's.
        seeds: evaluation seeds; None: the suite's.
        attacks: names of attacks in place of the suite's; None: those.
        perturbations: wrappers around every task, a short list such as [{"ObservationDelay": 2}]; None: the recipe's
            (its evaluation's, else its task's, and then around the recipe's own task only).
        progress: called with the fraction done and what is being done.

    A part that fails is listed under "failures" with the reason and the others are still evaluated; one that does not
    suit a task (a disturbance of a plant without such an input) under "skipped".

    Raises:
        MissingFileError, CorruptFileError, SchemaError: the policy cannot be read. UserError: a setting is wrong.
        RobustPoliciesError: everything failed; nothing is written then.
    """
    folder = Path(folder)
    policy = load_policy(folder)
    chosen = resolved_suite(suite, sizes, episodes, seeds, attacks)
    wrappers = None if perturbations is None else parse(perturbations)
    origin = _origin(folder)
    tasks = list(tasks or _default_tasks(origin.task))
    benches = {
        task: Bench(
            policy, task, origin.env_kwargs if task == origin.task else {},
            wrappers if wrappers is not None else origin.wrappers if task == origin.task else [], chosen,
        )
        for task in tasks
    }  # fmt: skip
    settings = {
        "suite": chosen.resolved(), "arrays": array_hashes(policy.running_arrays()), "versions": versions(),
        "tasks": {task: [bench.env_kwargs, describe(bench.around)] for task, bench in benches.items()},
    }  # fmt: skip
    method, listed = method_of(folder), describe(origin.wrappers if wrappers is None else wrappers)
    facts = {
        "policy": folder.resolve().name, "method": method, "training_seed": origin.training_seed,
        "cell": policy.cell.name, "suite": str(suite) if not isinstance(suite, Suite) else "own",
        "suite_resolved": chosen.resolved(), "tasks": tasks, "perturbations": listed, "sizes": list(chosen.sizes),
        "episodes": chosen.episodes, "seeds": list(chosen.seeds),
    }  # fmt: skip
    begun = time.perf_counter()
    with held(folder, f"Run folder {str(folder)!r}"):
        journal = Journal(folder / PARTIAL, settings)
        try:
            found, notes = _measure(benches, journal, progress)
        finally:
            journal.close()
        content = _assembled(folder, facts, found, notes, time.perf_counter() - begun)
        write_json(folder / "evaluation.json", content)
        journal.delete()
    if progress is not None:
        progress(1.0, "done")
    return content


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
    count = sum(len(list(_jobs(bench, None))) for bench in benches.values())
    number = 0
    for task, bench in benches.items():
        for job, run in _jobs(bench, measured[task]):
            if progress is not None:
                progress(number / count, f"{task} {job}")
            number += 1
            if isinstance(run, str):
                notes.skipped.append({"task": task, "perturbation": job, "reason": run})
                continue
            key = f"{task} {job}"
            try:
                if key not in journal.finished:
                    journal.add(key, run())
            except RobustPoliciesError as error:
                last = error
                notes.failures.append({"task": task, "perturbation": job, "reason": str(error)})
                if job == "nominal":
                    break
                continue
            measured[task][job] = result = journal.finished[key]
            said = [failed_episodes(one) for one in result.get("rows", [])]
            notes.failures.extend({"task": task, "perturbation": job, "reason": reason} for reason in said if reason)
    if last is not None and not any(measured.values()):
        raise last
    return measured, notes


def _jobs(bench: Bench, done: dict[str, Any] | None) -> Iterator[tuple[str, Job]]:
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
    exact = None if measured(bench.policy.observation_space).any() else _EXACT
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
            yield f"critical size, {job}", lambda e=entry, f=found: {"critical": [measure_critical(bench, e, f)]}


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
    folder: Path, facts: dict[str, Any], measured: dict[str, dict[str, Any]], notes: Notes, seconds: float
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
    write_csv(folder / "evaluation.csv", facts, measurements)
    index = write_trajectories(folder / "trajectories.npz", recordings)
    return {
        "schema": SCHEMA, **facts, "rows": rows, "worst": worst, "critical_sizes": critical, "tuning": tuning,
        "trajectories": index, "failures": notes.failures, "skipped": notes.skipped, "seconds": round(seconds, 1),
        "versions": versions(),
    }  # fmt: skip


def method_of(folder: Path) -> str:
    """Return the name of the run folder without its training seed; runs of one method differ in the seed alone."""
    path = folder.resolve()
    return _SEED.sub("", path.name) or path.parent.name


def _origin(folder: Path) -> _Origin:
    path = folder / "recipe.yaml"
    if not path.is_file():
        return _Origin(None, {}, [], None)
    content = read_yaml(path)
    try:
        task, seed = content["task"], content.get("seed")
        wrappers = (content.get("evaluation") or {}).get("perturbations")
        around = task.get("perturbations") or [] if wrappers is None else wrappers
        return _Origin(str(task["id"]), dict(task.get("kwargs") or {}), parse(around), seed)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptFileError(f"{path} does not name a task ({error}); expected a resolved recipe.") from error


def _default_tasks(recipe_task: str | None) -> list[str]:
    if recipe_task is None:
        raise InvalidValueError(
            f"No task was given and the folder has no recipe.yaml; name tasks, such as {ENV_IDS[0]}."
        )
    return list(PENDULUM_TWINS) if recipe_task in PENDULUM_TWINS else [recipe_task]
