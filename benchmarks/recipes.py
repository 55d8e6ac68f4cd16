"""Train every recipe with several seeds and write what each reaches: results/recipes.md and results/recipes.json.

usage: OMP_NUM_THREADS=1 python benchmarks/recipes.py [--seeds 0 1 2] [--recipes NAME ...] [--runs results/recipes]

A run that is already complete in the runs' folder is measured again, not trained again. The return is that of the
deterministic policy without perturbation, in Gymnasium's own Pendulum-v1 for the pendulum.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

from robust_policies import assets
from robust_policies.evaluation import certify_run
from robust_policies.evaluation.rollout import run_episodes
from robust_policies.policies import load_policy
from robust_policies.train import load_recipe, open_run, train

EPISODES = 100
RESULTS = Path(__file__).resolve().parent.parent / "results"


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return one row: the recipe trained with one seed."""
    recipe = load_recipe(name, seed=seed)
    if not (folder / "policy.json").is_file():
        train(recipe, folder, resume=folder.is_dir())
    task = recipe.evaluation.tasks[-1]
    returns = run_episodes(load_policy(folder), task, "uniform", [0.0], EPISODES, 12345).returns[0]
    certificate = certify_run(folder)
    provenance = open_run(folder).read_provenance()
    return {
        "recipe": name,
        "seed": seed,
        "task": task,
        "steps": recipe.algorithm.total_steps,
        "return": float(np.mean(returns)),
        "gamma_raw": certificate.gamma_raw,
        "status": certificate.status,
        "found": certificate.empirical_lower,
        "training_seconds": provenance["training_seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, a line a recipe: mean over seeds and its 95% t interval."""
    lines = [
        "| recipe | task | steps | seeds | return (95% interval over seeds) | worst seed "
        "| proven gain | found gain | training, s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["recipe"] for row in rows):
        found = [row for row in rows if row["recipe"] == name]
        returns = [row["return"] for row in found]
        mean, interval = float(np.mean(returns)), ""
        if len(returns) > 1:
            half = scipy.stats.t.ppf(0.975, len(returns) - 1) * scipy.stats.sem(returns)
            interval = f" [{mean - half:.1f}, {mean + half:.1f}]"
        proven = [row["gamma_raw"] for row in found]
        gain = "none" if None in proven else f"{max(proven):.4g}"
        cells = [name, found[0]["task"], found[0]["steps"], len(found), f"{mean:.1f}{interval}", f"{min(returns):.1f}"]
        seconds = float(np.median([row["training_seconds"] for row in found]))
        cells += [gain, f"{max(row['found'] for row in found):.4g}", f"{seconds:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for; the tables are written after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=assets.recipe_names())
    parser.add_argument("--runs", type=Path, default=RESULTS / "recipes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for name in given.recipes:
            rows.append(measure(name, seed, given.runs / f"{name}_{seed}"))
            rows.sort(key=lambda row: (row["recipe"], row["seed"]))
            (RESULTS / "recipes.json").write_text(json.dumps(rows, indent=1) + "\n")
            note = f"By `python benchmarks/recipes.py`: {EPISODES} episodes each, gains are the largest over seeds."
            (RESULTS / "recipes.md").write_text(f"# What the recipes reach\n\n{note}\n\n{table(rows)}\n")
            print(rows[[(row["recipe"], row["seed"]) for row in rows].index((name, seed))], flush=True)


if __name__ == "__main__":
    main()
