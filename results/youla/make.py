"""Stabilisation through the Youla innovation beside direct policies: training, measurements and their page.

    OMP_NUM_THREADS=1 python -m results.youla.make               # whatever is missing, then the page (some hours)
    OMP_NUM_THREADS=1 python -m results.youla.make --tasks qube --seeds 5 6 --only train
    OMP_NUM_THREADS=1 python -m results.youla.make --only page   # from results/youla/stabilisation.json

Runs lie in results/youla/runs/TASK/METHOD/seed=N; what is finished is not made again, what was interrupted goes on.
Every run is of a recipe that ships; the policy of every evaluation while training is kept and measured too.
The page holds every run that is measured in the runs' folder, and without one what the last one wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from results.training import base_run, train_missing
from results.youla.measure import Case, measure_run
from results.youla.tables import write_page
from robust_policies.files.atomic import read_json, write_atomic
from robust_policies.train import load_recipe

RESULTS = Path(__file__).resolve().parent
CASES = {
    "qube": Case(
        task="robust_policies/QubeServo-v0",
        recipes={"youla_r2dn": "qube_servo_youla_r2dn_apg", "r2dn": "qube_servo_r2dn", "lstm": "qube_servo_lstm"},
        best=0.0,
        held=1000.0,
        sizes=(0.015, 0.025, 0.04, 0.06, 0.09, 0.13),
        delays=(1, 2, 3),
        parameters=("pendulum_length", "pendulum_mass", "torque_constant"),
    ),
    "cartpole": Case(
        task="robust_policies/CartPoleContinuous-v0",
        recipes={"youla_r2dn": "cartpole_youla_r2dn_apg", "r2dn": "cartpole_r2dn_apg", "lstm": "cartpole_lstm_apg"},
        best=500.0,
        held=25.0,
        sizes=(0.03, 0.06, 0.1, 0.15, 0.22, 0.32),
        delays=(1, 2, 3, 4),
        parameters=("length", "masspole", "masscart"),
    ),
}
# Base controllers alone: with the weights of the Youla recipe, and with the default ones.
BASES = {"base": [], "base_default": ["youla.weights={}", "youla.region=[]"]}
EVALUATIONS = 20


def train_run(recipe: str, seed: int, folder: Path) -> None:
    """Train a recipe with a seed unless that is done, and keep the policy of every evaluation."""
    every = load_recipe(recipe).algorithm.total_steps // EVALUATIONS
    changes = ["checkpoints.policies=true", "checkpoints.certify_every=0", f"checkpoints.evaluate_every={every}"]
    train_missing(recipe, changes, seed, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--only", choices=["train", "evaluate", "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        for task in given.tasks:
            for method, recipe in CASES[task].recipes.items():
                folder = given.runs / task / method / f"seed={seed}"
                if given.only in (None, "train"):
                    train_run(recipe, seed, folder)
    if given.only in (None, "evaluate"):
        for task in given.tasks:
            evaluate(task, given.runs / task)
    if given.only != "train":
        write_page(CASES, read_json(RESULTS / "stabilisation.json", "results", 1)["tasks"], RESULTS)


def evaluate(task: str, folder: Path) -> None:
    """Measure the base controllers and every finished run of a task, and store the rows."""
    case, rows = CASES[task], []
    for name, changes in BASES.items():
        base = folder / name / "seed=0"
        if not (base / "recipe.yaml").is_file():
            base_run(case.recipes["youla_r2dn"], changes, base)
        rows.append(measure_run(case, name, base))
    for method in case.recipes:
        for run in sorted(folder.glob(f"{method}/seed=*"), key=lambda path: int(path.name.partition("=")[2])):
            if (run / "provenance.json").is_file():
                rows.append(measure_run(case, method, run))
                print(f"{run}: measured", flush=True)
    path = RESULTS / "stabilisation.json"
    stored = read_json(path, "results", 1)["tasks"] if path.is_file() else {}
    text = json.dumps({"schema": 1, "tasks": {**stored, task: rows}}, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
