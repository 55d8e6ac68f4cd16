"""Stabilisation through the Youla innovation beside direct policies: training, evaluation and the page of both.

    OMP_NUM_THREADS=1 python benchmarks/youla.py               # whatever is missing, then the page (some hours)
    OMP_NUM_THREADS=1 python benchmarks/youla.py --tasks qube --seeds 0 1 --only train
    OMP_NUM_THREADS=1 python benchmarks/youla.py --only page   # from the rows in results/youla/*.json

Runs lie in results/youla/runs/TASK/METHOD/seed=N; what is finished is not made again, what was interrupted goes on.
Every run is of a recipe that ships; the policy of every evaluation on the way is kept, and looked at afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from youla_measure import Case, base_policy, measured, stability
from youla_tables import write_page

from robust_policies.certificates.files import read_json, write_json
from robust_policies.train import RunFolder, load_recipe, train

RESULTS = Path(__file__).resolve().parent.parent / "results" / "youla"
BASE = "base"
CASES = {
    "qube": Case(
        task="robust_policies/QubeServo-v0",
        recipes={"youla_r2dn": "qube_servo_youla_r2dn", "r2dn": "qube_servo_r2dn", "lstm": "qube_servo_lstm"},
        best=0.0,
        held=1000.0,
        sizes=(0.02, 0.03, 0.045, 0.065, 0.09, 0.13, 0.18, 0.26),
        delays=(1, 2, 3, 4, 5, 6),
        parameters=("pendulum_length", "pendulum_mass", "torque_constant"),
    ),
    "cartpole": Case(
        task="robust_policies/CartPoleContinuous-v0",
        recipes={"youla_r2dn": "cartpole_youla_r2dn", "r2dn": "cartpole_r2dn", "lstm": "cartpole_lstm"},
        best=500.0,
        held=25.0,
        sizes=(0.03, 0.06, 0.09, 0.13, 0.18, 0.25, 0.35, 0.5),
        delays=(1, 2, 3, 4, 5, 6),
        parameters=("length", "masspole", "masscart"),
    ),
}
OVERRIDES = ["checkpoints.policies=true", "checkpoints.certify_every=0"]


def train_missing(recipe: str, seed: int, folder: Path) -> None:
    """Train a recipe with a seed unless that is done."""
    run = RunFolder(folder)
    if run.provenance.is_file() and run.policy_json.is_file():
        return
    result = train(load_recipe(recipe, OVERRIDES, seed), folder, resume=folder.exists())
    print(f"{folder}: {result.num_timesteps} steps, {result.seconds:.0f} s, best {result.best_reward}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=["youla_r2dn", "r2dn", "lstm", BASE])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    parser.add_argument("--only", choices=["train", "evaluate", "page"])
    given = parser.parse_args()
    torch.set_num_threads(1)
