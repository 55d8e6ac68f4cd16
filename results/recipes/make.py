"""Train every recipe with several seeds and say whether it reaches its target, and when.

usage: OMP_NUM_THREADS=1 python -m results.recipes.make [--seeds 0 1 2] [--recipes NAME ...] [--runs FOLDER]

Writes recipes.json (a row a run) and README.md here and a few rows in the top README.md, after each run. Rows of
other recipes and seeds are kept, unless their recipe has changed since. A run that is complete in the runs' folder
is measured again, not trained again; with --seeds and no number only the tables are written.

The target is checked on the evaluations while training, the return is that of the deterministic policy that was kept,
in new episodes without perturbation. Means are over training seeds, none left out: below five seeds with the
least and the largest, from five on with their 95% interval by Student's t.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_policies.evaluation import certify_run
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.files import assets
from robust_policies.policies import load_policy
from robust_policies.sweep.table import interval, interval_text
from robust_policies.train import Recipe, load_recipe, open_run, train
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.target import outcome

EPISODES, EPISODE_SEED = 100, 12345
RESULTS = Path(__file__).resolve().parent
ROOT = RESULTS.parents[1]
IN_README = (
    "pendulum_r2dn_gamma6", "pendulum_lstm", "half_cheetah_r2dn", "quadrotor_planar_r2dn", "qube_servo_r2dn",
    "cartpole_youla_r2dn_apg",
)  # fmt: skip
"""One of each kind: with and without a bound, by PPO and by gradients, MuJoCo, and a closed loop."""
MARKS = ("<!-- results.recipes.make: begin -->\n", "<!-- results.recipes.make: end -->\n")
HEAD = (
    "| recipe | target: return, steps | reached | steps to target | CPU s to target | return | certified gain |\n"
    "|---|--:|--:|--:|--:|--:|--:|"
)
NOTE = (
    "Means over training seeds (least to largest; from five seeds on: [95% interval]). Reached: seeds whose "
    "evaluations came to the target in time; the steps "
    f"and CPU seconds (one thread) theirs. Return: {EPISODES} new episodes of the policy kept, in its training task. "
    "Certified gain: raw observation to raw action, the largest over seeds; contracting: stable, its gain not "
    "designed; closed loop: plant's linear model and policy are proven stable together; none: the cell is built "
    "without a bound."
)


def digest(recipe: Recipe) -> str:
    """Return a name of what a recipe sets and training depends on: not description, target, evaluation or seed."""
    content = recipe.model_dump(by_alias=True, exclude_unset=True)
    for key in ("description", "target", "evaluation", "seed"):
        content.pop(key, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def measure(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return one row: the recipe trained with one seed."""
    recipe = load_recipe(name, seed=seed)
    train(recipe, folder, resume=True)
    task = recipe.task
    found = run_episodes(
        load_policy(folder), task.id, "uniform", [0.0], EPISODES, EPISODE_SEED,
        env_kwargs=task.kwargs, perturbations=task.perturbations,
    )  # fmt: skip
    certificate, provenance = certify_run(folder), open_run(folder).read_provenance()
    return {
        "recipe": name,
        "seed": seed,
        "digest": digest(recipe),
        "return": float(np.mean(found.returns[0])),
        "median_return": float(np.median(found.returns[0])),
        "gamma_raw": certificate.gamma_raw,
        "status": certificate.status,
        "found": certificate.empirical_lower,
        "steps": provenance["num_timesteps"],
        "cpu_seconds": provenance["cpu_seconds"],
        "cpu": provenance["machine"]["cpu"],
        "evaluations": provenance["evaluations"],
    }


def with_interval(values: list[float], form: str) -> str:
    """Return the mean of the values and how far the seeds lie apart, as text."""
    return interval_text(interval(values), lambda value: format(value, form))


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the table's line about one recipe."""
    recipe = load_recipe(name)
    cells = [f"`{name}`", *["-"] * 4]
    if recipe.target is not None:
        outcomes = [outcome(recipe.target, Progress(evaluations=row["evaluations"])) for row in rows]
        reached = [found for found in outcomes if found is not None and found.reached]
        cells[1:3] = [f"{recipe.target.return_:g}, {recipe.target.steps:,}", f"{len(reached)} of {len(rows)}"]
        if reached:
            cells[3] = with_interval([found.reached_steps or 0 for found in reached], ",.0f")
            cells[4] = with_interval([found.reached_cpu_seconds or 0.0 for found in reached], ".0f")
    digits = ".2f" if abs(np.mean([row["return"] for row in rows])) < 10 else ".0f"
    cells.append(with_interval([row["return"] for row in rows], digits))
    gains = [row["gamma_raw"] for row in rows]
    if all(row["status"] == "PASS" for row in rows):
        designed = recipe.policy.gamma is not None and None not in gains
        shown = f"{max(gains):.4g}" if designed else "contracting"
        cells.append(shown if recipe.youla is None else "closed loop")
    else:
        cells.append("none")
    return "| " + " | ".join(cells) + " |"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, a line a recipe."""
    names = dict.fromkeys(row["recipe"] for row in rows)
    return "\n".join([HEAD, *(line(name, [row for row in rows if row["recipe"] == name]) for name in names)])


def write(rows: list[dict[str, Any]]) -> None:
    """Write the rows, the page and the README's part."""
    rows.sort(key=lambda row: (row["recipe"], row["seed"]))
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    (RESULTS / "recipes.json").write_text(text)
    measured = {row["recipe"] for row in rows}
    missing = ", ".join(f"`{name}`" for name in assets.recipe_names() if name not in measured)
    page = f"{table(rows)}\n\n{NOTE}\n" + (f"\nNot measured yet: {missing}.\n" if missing else "")
    few = f"{table([row for row in rows if row['recipe'] in IN_README])}\n\n{NOTE}\n"
    (RESULTS / "README.md").write_text(f"# What the recipes reach\n\nBy `python -m results.recipes.make`.\n\n{page}")
    readme = (ROOT / "README.md").read_text()
    before, rest = readme.split(MARKS[0])
    (ROOT / "README.md").write_text(f"{before}{MARKS[0]}{few}{MARKS[1]}{rest.split(MARKS[1])[1]}")


def kept() -> list[dict[str, Any]]:
    """Return the rows of results/recipes/recipes.json whose recipe is still the same."""
    path = RESULTS / "recipes.json"
    rows = json.loads(path.read_text()) if path.is_file() else []
    names = set(assets.recipe_names())
    return [row for row in rows if row["recipe"] in names and row.get("digest") == digest(load_recipe(row["recipe"]))]


def main() -> None:
    """Measure what is asked for; the tables are written after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=assets.recipe_names())
    parser.add_argument("--runs", type=Path, default=RESULTS / "runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = kept()
    write(rows)
    for seed in given.seeds:
        for name in given.recipes:
            row = measure(name, seed, given.runs / f"{name}_{seed}")
            rows = [old for old in rows if (old["recipe"], old["seed"]) != (name, seed)] + [row]
            write(rows)
            print({key: value for key, value in row.items() if key != "evaluations"}, flush=True)


if __name__ == "__main__":
    main()
