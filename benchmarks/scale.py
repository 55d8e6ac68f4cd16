"""The parts that a sweep with its evaluations is made of, measured; and what many of them cost, on paper.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--folder results/scale] [--output benchmarks/scale.json]
        [--parts training evaluation ray] [--suite paper] [--tasks 200]

`training`: CPU seconds of the recipe pendulum_r2dn_gamma6 in its own task, and of its certificate.
`evaluation`: CPU seconds of each part of its evaluation by `--suite`, as a cluster measures them.
`ray`: a cluster on this machine (extra `sweep`): seconds until it answers, until each of two processes has loaded the
libraries, and of an empty part after that, with the data that a part of the evaluation has.

    python benchmarks/scale.py --plan benchmarks/scale.json [--policies 1000] [--cores 16]

measures nothing: it places the measured parts of so many policies on 1, 10 and 100 machines of so many cores, each
part where a core is free first (trainings, then each stage of the evaluations after the one before), and prints a table
of the hours and from how many machines on more do not help. That the cores are as fast as the measured one and that the
machines share a file system that costs nothing is assumed, not measured.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from robust_policies.evaluation import certify_run
from robust_policies.evaluation.parts import measure_apart, measured_part
from robust_policies.evaluation.run import CRITICAL
from robust_policies.files.atomic import write_json
from robust_policies.train import RunFolder, load_recipe, train
from robust_policies.train.run.provenance import machine

RECIPE = "pendulum_r2dn_gamma6"
PARTS = ("training", "evaluation", "ray")
MACHINES = (1, 10, 100)


def training(folder: Path) -> dict[str, Any]:
    """Return CPU seconds of one training and of its certificate."""
    run = RunFolder(folder)
    if not run.trained:
        train(load_recipe(RECIPE), folder, resume=True)
    began = time.process_time()
    certify_run(folder)
    spent = time.process_time() - began
    provenance = run.read_provenance()
    return {"cpu_seconds": provenance["cpu_seconds"], "certificate_cpu_seconds": round(spent, 2)}


def evaluation(folder: Path, suite: str) -> dict[str, Any]:
    """Return CPU seconds of every part of an evaluation in the recipe's own task, by stage."""
    seconds: dict[str, float] = {}

    def spread(function: Any, items: Any) -> Any:
        for place, data in enumerate(items):
            began = time.process_time()
            found = function(data)
            seconds[data["job"]] = round(time.process_time() - began, 3)
            print(f"{data['job']:<50} {seconds[data['job']]:>9.2f} s", flush=True)
            yield place, found

    RunFolder(folder).journal.unlink(missing_ok=True)
    task = RunFolder(folder).read_recipe().task.id
    measure_apart([(folder, {"suite": suite, "tasks": [task]})], spread, lambda *_: None)
    RunFolder(folder).journal.unlink(missing_ok=True)
    return {"suite": suite, "task": task, "cpu_seconds": seconds}


def empty(data: Mapping[str, Any]) -> int:
    """Return which process this is, after loading what a part needs."""
    assert callable(measured_part) and data["suite"]
    return os.getpid()


def ray(count: int) -> dict[str, Any]:
    """Return wall seconds of a cluster's beginning and of empty parts."""
    from robust_policies.evaluation.suite import suite_named
    from robust_policies.sweep.ray_parts import RayParts

    began = time.perf_counter()
    parts = RayParts("local", 2)
    started = time.perf_counter() - began
    try:
        data = {"suite": suite_named("paper").resolved(), "found": None}
        began = time.perf_counter()
        known: set[int] = set()
        while len(known) < 2:
            known |= {process for _, process in parts(empty, [data] * 2)}
        loaded = time.perf_counter() - began
        began, cpu = time.perf_counter(), time.process_time()
        done = sum(1 for _ in parts(empty, [data] * count))
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    finally:
        parts.close()
    return {
        "start_seconds": round(started, 2),
        "loading_seconds": round(loaded, 2),
        "parts": done,
        "seconds_a_part": round(wall / done, 5),
        "driver_cpu_seconds_a_part": round(cpu / done, 5),
    }


def placed(stages: Iterable[list[float]], cores: int, floor: float) -> float:
    """Return the seconds of stages, one after the other, of parts that begin where a core is free first.

    Args:
        stages: lengths of their parts, s.
        cores: how many parts run at a time.
        floor: the least time between the beginnings of two parts, s: what the process that hands them out needs.
    """
    now = 0.0
    for stage in stages:
        free = [now] * min(cores, max(len(stage), 1))
        given, end = now, now
        for seconds in sorted(stage, reverse=True):
            given = max(given + floor, heapq.heappop(free))
            end = max(end, given + seconds)
            heapq.heappush(free, given + seconds)
        now = end
    return now


def stages_of(found: Mapping[str, Any], policies: int) -> list[list[float]]:
    """Return the seconds of all parts of so many policies, stage by stage: trainings, then those of `measure_apart`."""
    jobs = found["evaluation"]["cpu_seconds"]
    trained = found["training"]["cpu_seconds"] + found["training"]["certificate_cpu_seconds"]
    kinds = [
        [seconds for job, seconds in jobs.items() if job == "nominal"],
        [seconds for job, seconds in jobs.items() if job != "nominal" and not job.startswith(CRITICAL)],
        [seconds for job, seconds in jobs.items() if job.startswith(CRITICAL)],
    ]
    return [[trained] * policies, *(kind * policies for kind in kinds)]


def plan(found: Mapping[str, Any], policies: int, cores: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return for each number of machines the hours that `policies` cost; and how many machines are too many, and why.

    That is the least number with which all takes at most 5% longer than with any number of them. Where Ray was not
    measured it takes no time.
    """
    ray = found.get("ray", {})
    overhead, loading = ray.get("driver_cpu_seconds_a_part", 0.0), ray.get("loading_seconds", 0.0)
    stages = stages_of(found, policies)
    parts, work = sum(map(len, stages)), sum(map(sum, stages))

    def seconds_of(machines: int) -> float:
        # A process of each core loads the libraries once.
        return loading + placed(stages, machines * cores, overhead)

    rows = []
    for machines in MACHINES:
        seconds = seconds_of(machines)
        busy = work / seconds / machines / cores
        rows.append({"machines": machines, "cores": machines * cores, "hours": seconds / 3600, "busy": busy})
    most = -(-max(map(len, stages)) // cores)
    least, low, high = seconds_of(most), 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seconds_of(middle) <= 1.05 * least else (middle, high)
    chain = sum(max(stage, default=0.0) for stage in stages)
    end = {
        "parts": parts, "cpu_hours": work / 3600, "enough_machines": high, "least_hours": least / 3600,
        "chain_seconds": chain, "handing_out_seconds": overhead * parts if ray else None,
    }  # fmt: skip
    return rows, end


def said(rows: Iterable[Mapping[str, Any]], end: Mapping[str, Any], policies: int) -> str:
    """Return a plan as a table and a sentence about its end, in Markdown."""
    lines = ["| machines | cores | hours | cores busy |", "|--:|--:|--:|--:|"]
    handing = end["handing_out_seconds"]
    rest = "; Ray's own time is not in it" if handing is None else f" and handing out all parts {handing / 60:.3g}"
    lines += [f"| {row['machines']:,} | {row['cores']:,} | {row['hours']:.3g} | {row['busy']:.0%} |" for row in rows]
    return "\n".join(lines) + (
        f"\n\n{policies:,} policies are {end['cpu_hours']:.3g} CPU hours in {end['parts']:,} parts. From "
        f"{end['enough_machines']:,} machines on, more of them save less than 5%: {60 * end['least_hours']:.3g} minutes"
        f" are left, of which the longest part of each stage, one after the other, takes "
        f"{end['chain_seconds'] / 60:.3g}{rest}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("results/scale"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--suite", default="paper")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--cores", type=int, default=16)
    given = parser.parse_args()
    if given.plan is not None:
        print(said(*plan(json.loads(given.plan.read_text()), given.policies, given.cores), given.policies))
        return
    torch.set_num_threads(1)
    output: Path | None = given.output
    content: dict[str, Any] = {} if output is None or not output.is_file() else json.loads(output.read_text())
    content["machine"] = machine()
    for part in given.parts:
        work = {"training": lambda: training(given.folder), "evaluation": lambda: evaluation(given.folder, given.suite)}
        content[part] = work.get(part, lambda: ray(given.tasks))()
        print(part, json.dumps(content[part]), flush=True)
        if given.output is not None:
            write_json(given.output, content)


if __name__ == "__main__":
    main()
