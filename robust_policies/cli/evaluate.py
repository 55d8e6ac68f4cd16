"""The work behind `robust-policies evaluate`: several run folders, one after the other or side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from robust_policies.envs.batch import spec_of
from robust_policies.errors import RobustPoliciesError
from robust_policies.evaluation.effect import effect
from robust_policies.evaluation.run import evaluate_run, resolved_suite
from robust_policies.evaluation.table import MONITORED
from robust_policies.files import numbers
from robust_policies.train import open_run

Report = Callable[[float, str], None]


class _Outcome(NamedTuple):
    """What became of a folder."""

    lines: list[str]
    problems: list[str]
    status: int


def evaluate_folders(
    folders: Sequence[Path], given: Mapping[str, Any], jobs: int | None, address: str | None = None
) -> int:
    """Return the exit status after evaluating all folders: 0, or that of the first problem.

    Args:
        folders: run folders.
        given: arguments of `evaluate_run` that were asked for; the rest is each recipe's.
        jobs: folders evaluated at the same time, each in a process of its own with one thread; with an address, parts
            of them. None: one folder, or as many parts as the cluster has CPUs.
        address: of a Ray cluster that measures the parts.

    Raises:
        UserError: what was asked for is wrong. RobustPoliciesError: the only folder cannot be evaluated.
    """
    # What is wrong for every folder is said once, before any of them.
    names = ("suite", "sizes", "episodes", "seeds", "attacks")
    resolved_suite(**{name: given[name] for name in names if name in given})
    for name in given.get("tasks", ()):
        spec_of(name)
    if len(folders) == 1:
        open_run(folders[0])
    console = Console()
    outcomes: list[_Outcome] = []
    spent = {} if address is None else _on_cluster(folders, given, jobs, address, console)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=float(len(folders)))

        def report(done: float, text: str) -> None:
            bar.update(task, completed=len(outcomes) + done, description=f"evaluating {text}")

        parallel = address is None and (jobs or 1) > 1 and len(folders) > 1
        turns = _side_by_side(folders, given, jobs or 1) if parallel else _in_turn(folders, given, report, spent)
        for outcome in turns:
            outcomes.append(outcome)
            report(0.0, "")
            for line in outcome.lines:
                print(line)
            for line in outcome.problems:
                print(line, file=sys.stderr)
            sys.stdout.flush()
    return next((outcome.status for outcome in outcomes if outcome.status), 0)


def _on_cluster(
    folders: Sequence[Path], given: Mapping[str, Any], jobs: int | None, address: str, console: Console
) -> dict[Path, float]:
    """Return the seconds of each folder's parts, after a Ray cluster has measured what is not in its journal."""
    from robust_policies.evaluation.parts import measure_apart
    from robust_policies.sweep.ray_parts import RayParts

    asked = []
    for folder in folders:
        # What is wrong with one is said when its turn comes.
        with contextlib.suppress(RobustPoliciesError):
            asked.append((folder, {**_options(folder, given), **given}))
    spread = RayParts(address, jobs)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("measuring parts", total=None)
            return measure_apart(asked, spread, lambda done, known: bar.update(task, completed=done, total=known))
    finally:
        spread.close()


def _in_turn(
    folders: Sequence[Path], given: Mapping[str, Any], report: Report, spent: Mapping[Path, float]
) -> Iterator[_Outcome]:
    for folder in folders:
        try:
            yield _evaluated(folder, given, report, spent.get(folder, 0.0))
        except RobustPoliciesError as error:
            if len(folders) == 1:
                raise
            yield _Outcome([], [f"error: {folder}: {error}"], error.exit_status)


def _side_by_side(folders: Sequence[Path], given: Mapping[str, Any], jobs: int) -> Iterator[_Outcome]:
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        # Loaded once, for all.
        context.set_forkserver_preload([__name__, "robust_policies.evaluation.run"])
    # A thread each: the processes would take the cores from one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(min(jobs, len(folders)), mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(_apart, folder, dict(given)) for folder in folders]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _apart(folder: Path, given: Mapping[str, Any]) -> _Outcome:
    """Return the outcome in a process of its own; the journal keeps what an interruption ends."""
    try:
        return _evaluated(folder, given, None)
    except RobustPoliciesError as error:
        return _Outcome([], [f"error: {folder}: {error}"], error.exit_status)
    except KeyboardInterrupt:
        return _Outcome([], [f"error: {folder}: interrupted"], 1)


def _options(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `evaluate_run` that a folder's recipe has, where others are given."""
    run = open_run(folder)
    if not run.recipe.is_file():
        return {}
    section = run.read_recipe().evaluation
    options: dict[str, Any] = {"tasks": section.tasks or None}
    if "suite" not in given:
        options |= {"suite": section.suite, "sizes": section.sizes}
        options |= {"episodes": section.episodes, "seeds": section.seeds}
    return options


def _evaluated(folder: Path, given: Mapping[str, Any], report: Report | None, spent: float = 0.0) -> _Outcome:
    options, run = _options(folder, given), open_run(folder)
    found = evaluate_run(folder, **{**options, **given}, progress=report, spent=spent)
    problems = [
        f"Not evaluated: {failure['task']} {failure['perturbation']}: {failure['reason']}"
        for failure in found["failures"]
    ]
    lines = [
        f"Left out: {skipped['task']} {skipped['perturbation']}: {skipped['reason']}" for skipped in found["skipped"]
    ]
    lines += [line for task in found["tasks"] for line in _returns(found, task)]
    lines.append(f"Evaluated in {found['seconds']:.0f} s: {run.evaluation}")
    return _Outcome(lines, problems, 1 if problems else 0)


def _returns(found: Mapping[str, Any], task: str) -> Iterator[str]:
    """Yield what a reader wants to know at once: the return without and with the worst attack."""
    rows = [row for row in found["rows"] if row["task"] == task and row["size"] == 0.0]
    first = [row for row in rows if row["perturbation"] == rows[0]["perturbation"] and row["norm"] == rows[0]["norm"]]
    returns = [value for row in first for value in row["returns"]]
    if returns:
        mean = numbers.shown(sum(returns) / len(returns))
        yield f"{task}: mean return {mean} over {len(returns)} episodes, unperturbed"
    for name, what in zip(MONITORED, ("the estimate was outside its region", "an input was at its limit"), strict=True):
        counts = [count for row in first for count in row.get(name, ())]
        steps = sum(length for row in first for length in row["lengths"])
        if counts:
            within = sum(count > 0 for count in counts)
            yield f"{task}: {what} in {sum(counts)} of {steps} steps ({within} of {len(counts)} episodes), unperturbed"
    for one in [one for one in found["worst"] if one["task"] == task][-1:]:
        what = f"the strongest attack found ({one['attack']}, {one['norm']}, size {one['size']:g})"
        nothing = bool(returns) and effect(np.asarray(returns), np.asarray(one["returns"])).nothing
        does = ", which does nothing that can be told from chance" if nothing else ""
        yield f"{task}: mean return {numbers.shown(one['mean'])} under {what}{does}"
