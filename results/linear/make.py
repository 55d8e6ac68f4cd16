"""Train the linear tasks by analytic policy gradients, beside their linear-quadratic optimum: results/linear/README.md.

usage: OMP_NUM_THREADS=1 python -m results.linear.make [--seeds 0 1 2] [--set KEY=VALUE ...]

The cost per step in the long run is that of steps 400 to 2,000 of 64 episodes; the task states the least that any
controller reaches which sees the outputs up to now (LQG) or the state (LQR), both made from the plant's model.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_policies.envs.plants.linear import LinearPlant, LinearTask
from robust_policies.train import load_recipe
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.apg.run import make_actor, task_plant
from robust_policies.train.recipe.apg import ApgSection

RESULTS = Path(__file__).resolve().parent
RECIPES = tuple(
    f"{task}_r2dn_apg" for task in ("double_integrator", "mass_spring_damper", "aircraft_pitch", "dc_motor")
)
SETTLED, END, EPISODES = 400, 2000, 64


def long_run_cost(algorithm: AnalyticPolicyGradient) -> float:
    """Return the mean cost per step after the start is forgotten."""
    costs = []
    for steps in (SETTLED, END):
        algorithm.limit = steps
        costs.append(-algorithm.evaluate(EPISODES, seed=12345)[0])
    return (costs[1] - costs[0]) / (END - SETTLED)


def measure(name: str, changes: list[str], seed: int) -> dict[str, Any]:
    """Return one row: the recipe with `changes`, trained with one seed."""
    recipe = load_recipe(name, changes, seed)
    assert isinstance(recipe.algorithm, ApgSection)
    plant, limit = task_plant(recipe)
    assert isinstance(plant, LinearPlant) and isinstance(plant.task, LinearTask) and plant.task.optimum is not None
    optimum = plant.task.optimum
    actor = make_actor(recipe, plant, "cpu")
    algorithm = AnalyticPolicyGradient(plant, actor, recipe.algorithm, recipe.task.num_envs, seed, limit)
    began, updates = time.process_time(), -(-recipe.algorithm.total_steps // algorithm.steps_per_update)
    for k in range(updates):
        algorithm.update(1.0 - k / updates)
    seconds, cost = time.process_time() - began, long_run_cost(algorithm)
    return {"recipe": name, "seed": seed, "cost": cost, "lqg": optimum.lqg, "lqr": optimum.lqr, "cpu_seconds": seconds}


def main() -> None:
    """Measure what is asked for; the table is written after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in RECIPES:
        for seed in arguments.seeds:
            rows.append(measure(name, arguments.set, seed))
            print(rows[-1], flush=True)
            (RESULTS / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
            (RESULTS / "README.md").write_text(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a page, a line a recipe: the mean over seeds and the worst seed."""
    lines = [
        "# The linear tasks by analytic policy gradients\n",
        f"By `python -m results.linear.make`, which explains the columns; torch {torch.__version__}, one thread.\n",
        "| recipe | seeds | cost per step | LQG | over LQG | worst seed over LQG | LQR | CPU seconds a run |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        found = [row for row in rows if row["recipe"] == name]
        ratios, seconds = [row["cost"] / row["lqg"] for row in found], [row["cpu_seconds"] for row in found]
        cells = [name, len(found), f"{np.mean([row['cost'] for row in found]):.4g}", f"{found[0]['lqg']:.4g}"]
        cells += [f"{np.mean(ratios):.3f}", f"{max(ratios):.3f}", f"{found[0]['lqr']:.4g}", f"{np.median(seconds):.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
