"""Observers of a reaction-diffusion process, an R2DN and a REN at the sizes of the R2DN paper, by its protocol.

    OMP_NUM_THREADS=1 python -m results.observers.make                     # whatever is missing, the page
    OMP_NUM_THREADS=1 python -m results.observers.make --methods ren --epochs 40
    python -m results.observers.make --only page                            # from observers.json

Runs lie in results/observers/runs/METHOD/seed=N: curve.json, an entry an epoch, the observer of the last one, and a
checkpoint after each epoch, from which an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results.observers.process import free_run, samples_of, simulated
from results.observers.tables import write_page
from robust_policies.files.atomic import read_json, write_atomic, write_json
from robust_policies.identification import IdentifiedModel, LearnedObserver, ObserverTraining, fit_observer

RESULTS = Path(__file__).resolve().parent
STEPS, TEST_STEPS, CHUNKS = 100_000, 2001, 200
# The paper's own training; in the others one thing is changed.
PUBLISHED: dict[str, Any] = {"decay": "plateau", "norm": "plain", "order": "consecutive"}
RANDOM: dict[str, Any] = {**PUBLISHED, "decay": "cosine", "order": "random"}
SHAPES: dict[str, dict[str, Any]] = {
    "r2dn": {"features": 50, "hidden_sizes": (96,) * 4, "activation": "relu"},
    "ren": {"features": 200, "activation": "relu"},
}
METHODS: dict[str, dict[str, Any]] = {
    "r2dn": {"cell": "r2dn", "rate": 1.0, "epochs": 200, "training": PUBLISHED},
    "ren": {"cell": "ren", "rate": 1.0, "epochs": 200, "training": PUBLISHED},
    "r2dn_cosine": {"cell": "r2dn", "rate": 1.0, "epochs": 100, "training": {**PUBLISHED, "decay": "cosine"}},
    "ren_cosine": {"cell": "ren", "rate": 1.0, "epochs": 100, "training": {**PUBLISHED, "decay": "cosine"}},
    "r2dn_random": {"cell": "r2dn", "rate": 1.0, "epochs": 100, "training": RANDOM},
    "ren_random": {"cell": "ren", "rate": 1.0, "epochs": 100, "training": RANDOM},
    "r2dn_rate": {"cell": "r2dn", "rate": 0.98, "epochs": 15, "training": {**PUBLISHED, "decay": "cosine"}},
}


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, help="in place of each method's own")
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--only", choices=["train", "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.only != "page":
        for seed in given.seeds:
            for method in given.methods:
                fit(method, seed, given.epochs or METHODS[method]["epochs"], given.runs / method / f"seed={seed}")
    if given.only != "train":
        path = RESULTS / "observers.json"
        stored = {_key(run): run for run in (read_json(path, "results", 1)["runs"] if path.is_file() else [])}
        stored |= {_key(run): run for run in collected(given.runs)}
        content = {"schema": 1, "runs": [stored[key] for key in sorted(stored)]}
        text = json.dumps(content, allow_nan=False, indent=1) + "\n"
        write_atomic(path, lambda file: file.write(text.encode()))
        write_page(content, RESULTS)


def _key(run: dict[str, Any]) -> tuple[int, int]:
    return list(METHODS).index(run["method"]), run["seed"]


def collected(runs: Path) -> list[dict[str, Any]]:
    """Return the curve of each run: method, seed, epochs, parameters and a row an epoch."""
    found = []
    for method in METHODS:
        for path in sorted(runs.glob(f"{method}/seed=*/curve.json")):
            curve = read_json(path, "curve", 1)
            del curve["schema"]
            found.append({"method": method, "seed": int(path.parent.name.removeprefix("seed=")), **curve})
    return found


def fit(method: str, seed: int, epochs: int, folder: Path) -> None:
    """Learn one observer into a folder, unless it is there with as many epochs; one that was interrupted goes on."""
    path, how = folder / "curve.json", METHODS[method]
    if path.is_file() and read_json(path, "curve", 1)["epochs"] >= epochs:
        return
    samples = samples_of(STEPS, seed)
    batch = round(len(samples.states) / CHUNKS)
    training = ObserverTraining(epochs=epochs, batch=batch, seed=seed, **how["training"])
    test = simulated(TEST_STEPS, 1.0, 0.5, 1000 + seed)
    checkpoint = folder / "checkpoint.safetensors"
    known = read_json(path, "curve", 1) if path.is_file() and checkpoint.is_file() else {}
    # Along a cosine every epoch depends on how many there will be.
    if training.decay == "cosine" and known.get("planned") != epochs:
        known = {}
    if not known:
        checkpoint.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = known.get("rows", [])
    begun, away = time.process_time(), 0.0
    before = {row["epoch"]: row["cpu_seconds"] for row in rows}
    first: int | None = None

    def each(epoch: int, loss: float, model: IdentifiedModel) -> None:
        nonlocal away, first
        at = time.process_time()
        first = epoch if first is None else first
        del rows[epoch - 1 :]
        row = {"epoch": epoch, "loss": loss, "cpu_seconds": before.get(first - 1, 0.0) + at - begun - away}
        if epoch <= 5 or epoch % 5 == 0 or epoch == epochs:
            observer = LearnedObserver(model, 2, (0.0,) * samples.states.shape[1])
            row |= free_run(observer, *test)
            observer.save(folder)
        rows.append(row)
        parameters = sum(p.numel() for p in model.parameters())
        write_json(path, {"schema": 1, "epochs": epoch, "planned": epochs, "parameters": parameters, "rows": rows})
        print(method, seed, json.dumps(row), flush=True)
        away += time.process_time() - at

    start = np.zeros(samples.states.shape[1])
    options = {**SHAPES[how["cell"]], "init": "long_memory"}
    more: dict[str, Any] = {"start": start.tolist(), "scaled": False, "each": each, "checkpoint": checkpoint}
    fit_observer(samples, how["cell"], how["rate"], options, training, **more)


if __name__ == "__main__":
    main()
