"""The certified return of policies trained for it, beside LQG, LSTM and others, on plants that are known.

    OMP_NUM_THREADS=1 python -m results.certified.make                     # whatever is missing, then the page
    OMP_NUM_THREADS=1 python -m results.certified.make --tasks dc_motor --seeds 5 6 --only train
    OMP_NUM_THREADS=1 python -m results.certified.make --only page         # from results/certified/results.json

Runs lie in results/certified/runs/TASK/METHOD/seed=N; what is finished is not made again, what was interrupted goes on.
A run's measurements are in its folder, so several processes may share the seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from results.certified.measure import measure_run
from results.certified.study import STUDIES
from results.certified.tables import write_page
from results.training import base_run, train_missing
from robust_policies.files.atomic import read_json, write_atomic

RESULTS = Path(__file__).resolve().parent


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--only", choices=["train", "measure", "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for name in given.tasks:
            for method in STUDIES[name].methods():
                folder = given.runs / name / method / f"seed={seed}"
                if given.only in (None, "train"):
                    _train(name, method, seed, folder, given.runs)
                if given.only in (None, "measure") and (folder / "policy.json").is_file():
                    measure_run(STUDIES[name], method, folder, given.runs)
    if given.only in (None, "page"):
        rows = collected(given.runs)
        path = RESULTS / "results.json"
        if rows:
            text = json.dumps({"schema": 1, "tasks": rows}, allow_nan=False, indent=1) + "\n"
            write_atomic(path, lambda file: file.write(text.encode()))
        write_page(read_json(path, "results", 1)["tasks"], RESULTS)


def _train(name: str, method: str, seed: int, folder: Path, runs: Path) -> None:
    recipe, changes = STUDIES[name].recipe(method, runs)
    if method != "lqg":
        train_missing(recipe, changes, seed, folder)
    elif seed == 0 and not (folder / "policy.json").is_file():
        # Nothing is trained, so the seeds are alike.
        base_run(recipe, changes, folder)


def collected(runs: Path) -> dict[str, list[dict[str, object]]]:
    """Return the rows of all runs that are measured, by task."""
    found: dict[str, list[dict[str, object]]] = {}
    for name, study in STUDIES.items():
        for method in study.methods():
            for path in sorted((runs / name).glob(f"{method}/seed=*/measured.json")):
                row = read_json(path, "measurement", 1)
                row.pop("schema")
                found.setdefault(name, []).append(row)
    return found


if __name__ == "__main__":
    main()
