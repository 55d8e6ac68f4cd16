"""Models of the Silverbox benchmark: contracting, of bounded gain and plain ones, beside a linear one.

    OMP_NUM_THREADS=1 python -m results.identification.make --data silverbox.npz     # whatever is missing, the page
    OMP_NUM_THREADS=1 python -m results.identification.make --data silverbox.npz --seeds 3 4 --methods r2dn
    python -m results.identification.make --only page                                  # from silverbox.json

The file holds `u` and `y`, the 131,072 samples of SNLS80mV (see README.md for where they are from); it is no part of
this repository. Runs lie in results/identification/runs/METHOD/seed=N; what is finished is not made again, what was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from results.identification.tables import write_page
from robust_policies.files.atomic import read_json, write_atomic
from robust_policies.identification import IdentificationFolder, identify, parse_settings

RESULTS = Path(__file__).resolve().parent
# Samples of the official split (nonlinear-benchmarks 1.0.1): the multisine's first 75% to learn from, 60 of them to fit
# and 15 to choose by, the rest and the arrow to test on; the arrow's first 32,000 stay in the range of the training.
PIECES = {
    "train": ["[40650:92700]"],
    "validation": ["[92700:105712]"],
    "test": ["[105712:127400]", "[100:32100]", "[100:40575]"],
}
SAMPLE_TIME = 2**14 / 1e7
METHODS: dict[str, dict[str, Any]] = {
    "r2dn": {"name": "r2dn", "features": 24},
    "r2dn_long": {"name": "r2dn", "features": 24},
    "r2dn_gain30": {"name": "r2dn", "features": 24, "gamma": 30.0},
    "ren": {"name": "ren", "features": 24},
    "lstm": {"name": "lstm", "state_size": 32},
}
UPDATES: dict[str, int] = {"r2dn_long": 4000}
"""Of a method, in place of `--updates`."""


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(3)))
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--updates", type=int, default=2500)
    parser.add_argument("--only", choices=["train", "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only != "page":
        if given.data is None:
            parser.error("--data is needed: the path of silverbox.npz with u and y")
        for seed in given.seeds:
            for method in given.methods:
                updates = UPDATES[method] if method in UPDATES else given.updates
                fit(given.data, method, seed, given.runs / method / f"seed={seed}", updates)
    if given.only != "train":
        path = RESULTS / "silverbox.json"
        rows = collected(given.runs)
        if rows:
            text = json.dumps({"schema": 1, "rows": rows}, allow_nan=False, indent=1) + "\n"
            write_atomic(path, lambda file: file.write(text.encode()))
        write_page(read_json(path, "results", 1), RESULTS)


def fit(data: Path, method: str, seed: int, folder: Path, updates: int) -> None:
    """Identify one model into a folder, unless it is there."""
    if IdentificationFolder(folder).result.is_file():
        return
    settings = parse_settings(
        {
            "seed": seed,
            "data": {
                "files": [str(data)],
                "inputs": ["u"],
                "outputs": ["y"],
                "sample_time": SAMPLE_TIME,
                "washout": 50,
                **PIECES,
            },
            "cell": METHODS[method],
            "algorithm": {"total_steps": updates, "window": 512, "patience": None},
            "keep": {"evaluate_every": max(1, min(125, updates)), "every": 500},
        },
        method,
    )
    identify(settings, folder, page=False, resume=folder.is_dir())
    print(f"{method}, seed {seed}: {folder}", flush=True)


def collected(runs: Path) -> list[dict[str, Any]]:
    """Return a row of each model: method, seed, errors by record, what is proven, CPU seconds; and the linear one's."""
    rows: list[dict[str, Any]] = []
    for method in METHODS:
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


if __name__ == "__main__":
    main()
