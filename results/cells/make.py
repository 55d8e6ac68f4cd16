"""Every cell beside the others: what it can express, what is proven of it, what it costs.

    OMP_NUM_THREADS=1 python -m results.cells.make                                   # whatever is missing, the page
    OMP_NUM_THREADS=1 python -m results.cells.make --only policy --seeds 3           # policies of one more seed
    OMP_NUM_THREADS=1 python -m results.cells.make --cells nemon --seeds 5 6 --only speed
    OMP_NUM_THREADS=1 python -m results.cells.make --only page                       # from results/cells/cells.json

Runs lie in results/cells/runs/CELL/seed=N; what is finished is not made again, what was interrupted goes on, and
several processes may share the cells (each with its own).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from results.cells.policies import STEPS, learn
from results.cells.study import CELLS, TARGETS, UPDATES, fit
from results.cells.tables import write_page
from robust_policies.files.atomic import read_json, write_atomic, write_json

RESULTS = Path(__file__).resolve().parent
PARTS = (*TARGETS, "policy")


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--only", choices=[*PARTS, "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for name in given.cells:
            folder = given.runs / name / f"seed={seed}"
            for target in TARGETS:
                if given.only in (None, target):
                    fit_missing(name, target, seed, folder)
            if given.only in (None, "policy"):
                learn_missing(name, seed, folder)
    path = RESULTS / "cells.json"
    rows = merged(read_json(path, "results", 1)["rows"] if path.is_file() else [], collected(given.runs))
    text = json.dumps({"schema": 1, "rows": rows}, allow_nan=False, indent=1) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))
    write_page(rows, RESULTS)


def fit_missing(name: str, target: str, seed: int, folder: Path, updates: int = UPDATES) -> None:
    """Write TARGET.json into a folder unless it is there."""
    done = folder / f"{target}.json"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    row = fit(name, target, seed, updates)
    write_json(done, {"schema": 1, **row})
    print(f"{name}, {target}, seed {seed}: {row['error']:.3f} in {row['train_seconds']:.1f} s of CPU", flush=True)


def learn_missing(name: str, seed: int, folder: Path, steps: int = STEPS) -> None:
    """Write policy.json into a folder unless it is there."""
    done = folder / "policy.json"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    row = learn(name, seed, folder / "policy", steps)
    write_json(done, {"schema": 1, **row})
    print(f"{name}, policy, seed {seed}: {row['return']:.0f} in {row['train_seconds']:.1f} s of CPU", flush=True)


def merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of both, a cell and seed each; where both have a part it is that of `now`."""
    found = {(row["cell"], row["seed"]): row for row in before}
    for row in now:
        key = (row["cell"], row["seed"])
        found[key] = {**found.get(key, {}), **row}
    return sorted(found.values(), key=lambda row: (list(CELLS).index(row["cell"]), row["seed"]))


def collected(runs: Path) -> list[dict[str, Any]]:
    """Return a row for each cell and seed that is there: what its fits and its policy gave."""
    rows = []
    for name in CELLS:
        for path in sorted((runs / name).glob("seed=*"), key=lambda path: int(path.name.partition("=")[2])):
            parts = {
                key: read_json(path / f"{key}.json", "measurement", 1)
                for key in PARTS
                if (path / f"{key}.json").is_file()
            }
            for part in parts.values():
                part.pop("schema")
            if parts:
                rows.append({"cell": name, "seed": int(path.name.partition("=")[2]), **parts})
    return rows


if __name__ == "__main__":
    main()
