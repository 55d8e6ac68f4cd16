"""Models of measured benchmarks: contracting, of bounded gain and plain ones, beside a linear one.

    OMP_NUM_THREADS=1 python -m results.identification.make --data FOLDER   # whatever is missing, the page
    OMP_NUM_THREADS=1 python -m results.identification.make --data FOLDER --seeds 3 4 --methods r2dn
    OMP_NUM_THREADS=1 python -m results.identification.make --data FOLDER --benchmarks coupled_drives
    python -m results.identification.make --only page                        # from the files of rows

The folder holds silverbox.npz, coupled_drives.npz and wiener_hammerstein.npz, or some of them (see README.md for where
they are from); they are no part of this repository. Runs lie in results/identification/runs/BENCHMARK/METHOD/seed=N;
what is finished is not made again, what was interrupted goes on. Stored rows of other runs stay.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from results.identification.benchmarks import BENCHMARKS, files_of
from results.identification.tables import write_page
from robust_policies.files.atomic import read_json, write_atomic
from robust_policies.identification import IdentificationFolder, identify, parse_settings

RESULTS = Path(__file__).resolve().parent


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(3)))
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--updates", type=int, help="in place of each method's own")
    parser.add_argument("--only", choices=["train", "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only != "page":
        if given.data is None:
            parser.error("--data is needed: the folder of silverbox.npz and the others")
        for seed in given.seeds:
            for name in given.benchmarks:
                for method in BENCHMARKS[name].methods:
                    if given.methods is None or method in given.methods:
                        fit(name, given.data, method, seed, given.runs / name, given.updates)
    if given.only != "train":
        for name in given.benchmarks:
            path = RESULTS / f"{name}.json"
            stored = read_json(path, "results", 1)["rows"] if path.is_file() else []
            if rows := merged(name, stored, collected(name, given.runs / name)):
                text = json.dumps({"schema": 1, "rows": rows}, allow_nan=False, indent=1) + "\n"
                write_atomic(path, lambda file, text=text: file.write(text.encode()))
        write_page(RESULTS)


def fit(name: str, data: Path, method: str, seed: int, runs: Path, updates: int | None) -> None:
    """Identify one model into runs/METHOD/seed=N, unless it is there."""
    folder, benchmark = runs / method / f"seed={seed}", BENCHMARKS[name]
    if IdentificationFolder(folder).result.is_file():
        return
    cell = dict(benchmark.methods[method])
    steps = updates or cell.pop("updates", benchmark.updates)
    cell.pop("updates", None)
    settings = parse_settings(
        {
            "seed": seed,
            "data": {
                "files": files_of(name, data, runs / "data"),
                "inputs": ["u"],
                "outputs": ["y"],
                "sample_time": benchmark.sample_time,
                "washout": benchmark.washout,
                **benchmark.pieces,
            },
            "cell": cell,
            "algorithm": {"total_steps": steps, "patience": None, **benchmark.algorithm},
            "keep": {"evaluate_every": max(1, min(125, steps)), "every": 500},
        },
        method,
    )
    identify(settings, folder, page=False, resume=folder.is_dir())
    print(f"{name}, {method}, seed {seed}: {folder}", flush=True)


def collected(name: str, runs: Path) -> list[dict[str, Any]]:
    """Return a row of each model: method, seed, errors by record, what is proven, CPU seconds; and the linear one's."""
    rows: list[dict[str, Any]] = []
    for method in BENCHMARKS[name].methods:
        for path in sorted(runs.glob(f"{method}/seed=*/identification.json")):
            run = IdentificationFolder(path.parent)
            result, certificate = run.read_result(), read_json(run.certificate, "certificate", 1)
            row = {
                "method": method,
                "seed": int(path.parent.name.removeprefix("seed=")),
                "parameters": result["parameters"],
                "updates": run.read_settings().algorithm.total_steps,
                "cpu_seconds": run.read_provenance()["cpu_seconds"],
                "rate": certificate["rate"],
                "gain": certificate["gamma_raw"],
                "errors": [one["scores"]["model"] for one in result["records"] if one["part"] == "test"],
            }
            rows.append(row)
            linear = [one["scores"].get("linear") for one in result["records"] if one["part"] == "test"]
            if all(linear) and not any(one["method"] == "linear" for one in rows):
                rows.insert(0, {"method": "linear", "seed": 0, "note": result["baseline"], "errors": linear})
    return rows


def merged(name: str, stored: list[dict[str, Any]], made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the stored rows with those of new runs in place of theirs, in the order of methods and seeds."""
    rows = {(row["method"], row["seed"]): row for row in (*stored, *made)}
    order = ["linear", *BENCHMARKS[name].methods]
    return [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]


if __name__ == "__main__":
    main()
