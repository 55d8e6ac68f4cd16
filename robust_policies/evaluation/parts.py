"""The parts of evaluations, measured by other processes, perhaps on other machines, before the rest is done here.

A part is one job of one policy in one task: a noise, an attack, a fault, a critical size. It is told all it needs as
JSON and reads the policy from its folder, which all machines have to see. What it measures goes into the folder's
journal, from which `evaluate_run` goes on; a part that failed is measured again there, and says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.envs.perturb import describe, parse
from robust_policies.errors import InvalidValueError, UserError
from robust_policies.evaluation.bench import Bench
from robust_policies.evaluation.journal import Journal
from robust_policies.evaluation.run import CRITICAL, Prepared, jobs_of, measured_with_incidents, prepared
from robust_policies.evaluation.suite import parse_suite
from robust_policies.policies import load_policy

Spread = Callable[[Callable[[Mapping[str, Any]], Any], Sequence[Mapping[str, Any]]], Iterator[tuple[int, Any]]]
"""Calls a function with JSON data in other processes; yields the place of each and what it returned, as they end.

What failed, or was lost with its process, is left out.
"""


@dataclass
class _Folder:
    ready: Prepared
    journal: Journal
    seconds: float = 0.0


def measure_apart(
    asked: Iterable[tuple[Path, Mapping[str, Any]]], spread: Spread, report: Callable[[int, int], None]
) -> dict[Path, float]:
    """Measure in other processes what is not in the journals of run folders yet; return the seconds of each.

    Args:
        asked: folders with arguments of `evaluate_run`. One that cannot be evaluated is left to that to say why.
        spread: calls a function elsewhere.
        report: called with how many parts are done and how many are known.
    """
    done = known = 0
    with ExitStack() as stack:
        folders: dict[Path, _Folder] = {}
        for path, options in asked:
            try:
                ready = prepared(path, **options)
                stack.enter_context(ready.run.held())
            except UserError:
                continue
            journal = Journal(ready.run.journal, ready.settings)
            stack.callback(journal.close)
            folders[path] = _Folder(ready, journal)
        # Attacks need the unperturbed episodes to be possible, critical sizes what the attacks found.
        for stage in (_is_nominal, _is_other, _is_critical):
            parts = [(path, *part) for path, folder in folders.items() for part in _missing(folder, stage)]
            known += len(parts)
            report(done, known)
            for place, (seconds, result) in spread(measured_part, [data for *_, data in parts]):
                path, key, _ = parts[place]
                folders[path].journal.add(key, result)
                folders[path].seconds += seconds
                done += 1
                report(done, known)
        return {path: folder.seconds for path, folder in folders.items()}


def _is_nominal(job: str) -> bool:
    return job == "nominal"


def _is_critical(job: str) -> bool:
    return job.startswith(CRITICAL)


def _is_other(job: str) -> bool:
    return not _is_nominal(job) and not _is_critical(job)


def _missing(folder: _Folder, stage: Callable[[str], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the journal's key and the data of every part of a stage that can be measured and is not."""
    finished = folder.journal.finished
    for task, bench in folder.ready.benches.items():
        if stage is not _is_nominal and f"{task} nominal" not in finished:
            continue
        done = {job: finished[f"{task} {job}"] for job, _ in jobs_of(bench, None) if f"{task} {job}" in finished}
        for job, run in jobs_of(bench, done):
            key = f"{task} {job}"
            if stage(job) and key not in finished and not isinstance(run, str):
                found = done.get(job.removeprefix(CRITICAL)) if _is_critical(job) else None
                yield key, _data(folder.ready, bench, job, found)


def _data(ready: Prepared, bench: Bench, job: str, found: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "folder": str(ready.run.path.resolve()),
        "policy_sha256": ready.facts["policy_sha256"],
        "task": bench.task,
        "env_kwargs": dict(bench.env_kwargs),
        "around": describe(bench.around),
        "suite": bench.suite.resolved(),
        "job": job,
        "found": found,
    }


def measured_part(data: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the seconds that a part took here, and what it measured.

    Raises:
        InvalidValueError: the folder holds another policy here than where the part comes from. Others as the job's.
    """
    began = time.perf_counter()
    policy = load_policy(data["folder"])
    if digest(array_hashes(policy.running_arrays())) != data["policy_sha256"]:
        raise InvalidValueError(f"{data['folder']} holds another policy on this machine; expected a shared folder.")
    suite = parse_suite(data["suite"], "suite")
    bench = Bench(policy, data["task"], data["env_kwargs"], parse(data["around"]), suite)
    job: str = data["job"]
    done = {job.removeprefix(CRITICAL): data["found"]} if data["found"] is not None else None
    run = next(run for name, run in jobs_of(bench, done) if name == job)
    assert not isinstance(run, str)
    result = measured_with_incidents(run)
    return time.perf_counter() - began, result
