"""Doyle's counter-example: what a controller with an R2DN added to it costs in the long run, beside the optimum.

usage: OMP_NUM_THREADS=1 python -m results.youla.doyle [--seeds 0 1 2 3 4] [--bases predictor published]

Trains `doyle_lqg_youla_r2dn_apg` with each seed into results/youla/runs/; writes results/youla/doyle.json and doyle.md.
What is learned is added to one of two controllers: the best in predictor form, as the recipe has it, or the published
base controller, with four times the steps. The cost per step is of stationary operation: the policy and the optimal
controller run in the same 512 plants with the same noise for 12,000 steps (the slowest mode decays by 0.99968 a step)
and then 4,000 that count; the exact cost of the optimal controller plus the mean difference, with a 95% t interval over
plants. Linear controllers' costs solve a Lyapunov equation. An interrupted training is continued; what is measured is
not measured again.

Source: J. C. Doyle, "Guaranteed margins for LQG regulators" (IEEE TAC 1978); envs/doyle_lqg/README.md has the numbers
and the controllers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

from robust_policies.control import lqg
from robust_policies.control.linearize import linearize_plant
from robust_policies.envs.gradient import transition
from robust_policies.envs.plant import Plant
from robust_policies.envs.task import load_plant
from robust_policies.evaluation import certify_run
from robust_policies.policies import load_policy
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.youla.policy import YoulaCell, YoulaPolicy
from robust_policies.train import load_recipe, open_run, train
from robust_policies.train.apg.run import base_controller, make_actor, task_plant
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.recipe import Recipe

RESULTS = Path(__file__).resolve().parent
RECIPE = "doyle_lqg_youla_r2dn_apg"
PLANTS, SETTLE, STEPS = 512, 12_000, 4_000
BASES = {
    "predictor": [],
    "published": [
        "youla.weights={Q: [1000.0, 1000.0], W: [[0.001, 0.001], [0.001, 0.001]]}",
        "policy.observation_scale=[1.5]",  # its observer expects less noise than there is
        "algorithm.learning_rate=cos_5e-3",
        "algorithm.total_steps=49152000",
    ],
}


NAMES = {
    "predictor": "the best in predictor form",
    "published": "the published base controller",
    "optimum": "the optimum",
}


def costs(plant: Plant, policies: list[DeployedPolicy], seed: int = 2026) -> np.ndarray:
    """Return the mean cost per step (policies, plants) after settling, all with the same noise."""
    params = plant.prepare(plant.nominal())
    generator = torch.Generator().manual_seed(seed)
    states = [torch.zeros(PLANTS, plant.state_size, dtype=torch.float64) for _ in policies]
    memories = [policy.cell.initial_state(PLANTS) for policy in policies]
    total = torch.zeros(len(policies), PLANTS, dtype=torch.float64)

    def drawn(size: int) -> torch.Tensor:
        return torch.randn(PLANTS, size, generator=generator, dtype=torch.float64)

    observations = [plant.observe(state, params, drawn(plant.measurement_noise_size)) for state in states]
    with torch.no_grad():
        for t in range(SETTLE + STEPS):
            process, measurement = drawn(plant.process_noise_size), drawn(plant.measurement_noise_size)
            for i, policy in enumerate(policies):
                action, memories[i] = policy.actor.step(observations[i], memories[i])
                after = transition(plant, states[i], action, params, process, measurement)
                states[i], observations[i] = after.state, after.observation
                if t >= SETTLE:
                    total[i] -= after.reward
    return (total / STEPS).numpy()


def _recipe(changes: list[str]) -> Recipe[ApgSection]:
    recipe = load_recipe(RECIPE, changes, 0)
    assert isinstance(recipe.algorithm, ApgSection)
    return recipe


def optimal() -> YoulaPolicy:
    """Return the optimal controller: the design for the task's own cost and noise, to which nothing is added."""
    recipe = _recipe(["youla.weights={}", "youla.estimator=current"])
    cell = make_actor(recipe, task_plant(recipe)[0], "cpu").cell
    assert isinstance(cell, YoulaCell)  # its Youla parameter gives zero before training
    return YoulaPolicy.of_cell(cell)


def _task_weights() -> list[Any]:
    model = linearize_plant(load_plant("doyle_lqg"))
    return [model.A, model.B, model.C, model.Q, model.R, model.W, model.V]


def base_cost(changes: list[str]) -> float:
    """Return the cost per step of the base controller alone."""
    base = base_controller(_recipe(changes))
    assert base is not None
    design = base.design
    gain = design.M if design.estimator == "current" else design.L
    return lqg.stationary_cost(*_task_weights(), K=design.K, gain=gain, estimator=design.estimator)  # fmt: skip


def measure(base: str, seed: int, optimum: float) -> dict[str, Any]:
    """Return the row of one training."""
    folder = RESULTS / "runs" / f"doyle_{base}_s{seed}"
    path = folder / "measured.json"
    if path.is_file():
        return json.loads(path.read_text())
    train(load_recipe(RECIPE, BASES[base], seed), folder, resume=folder.is_dir())
    learned, best = costs(load_plant("doyle_lqg"), [load_policy(folder), optimal()])
    difference = learned - best
    half = scipy.stats.t.ppf(0.975, PLANTS - 1) * scipy.stats.sem(difference)
    certificate = certify_run(folder)
    row = {
        "base": base,
        "seed": seed,
        "cost": optimum + float(difference.mean()),
        "half_width": float(half),
        "excess": float(difference.mean()) / optimum,
        "simulated_optimum": float(best.mean()),
        "certificate": certificate.status,
        "rate": certificate.rate,
        "steps": open_run(folder).read_provenance()["num_timesteps"],
        "cpu_seconds": open_run(folder).read_provenance().get("cpu_seconds"),
    }
    path.write_text(json.dumps(row, indent=1))
    return row


def table(linear: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """Return costs as Markdown, a line a controller."""
    least = linear["optimum"]
    lines = ["| controller | cost a step | above the optimum | certificate, proven rate |", "|---|--:|--:|--:|"]
    for name, cost in linear.items():
        lines.append(f"| {NAMES[name]} | {cost:,.1f} | {100 * (cost / least - 1):.2f}% | |")
    for row in rows:
        within = 100 * row["half_width"] / least
        rate = "" if row["rate"] is None else f", {row['rate']:.6f}"
        lines.append(
            f"| {NAMES[row['base']]} and R2DN, seed {row['seed']} | {row['cost']:,.1f} "
            f"| {100 * row['excess']:.2f}% ± {within:.2f}% | {row['certificate']}{rate} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for; the table is written after each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--bases", nargs="+", choices=list(BASES), default=list(BASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    linear = {base: base_cost(changes) for base, changes in BASES.items()}
    linear["optimum"] = lqg.stationary_cost_lqg(*_task_weights())
    for base in arguments.bases:
        for seed in arguments.seeds:
            print(measure(base, seed, linear["optimum"]), flush=True)
            found = sorted((RESULTS / "runs").glob("doyle_*/measured.json"))
            rows = sorted((json.loads(path.read_text()) for path in found), key=lambda row: (row["base"], row["seed"]))
            text = (
                "# Doyle's counter-example, an R2DN added to a controller\n\nBy `python -m results.youla.doyle`, which "
            )
            text += f"explains the rows; torch {torch.__version__}, one thread.\n\n{table(linear, rows)}\n"
            (RESULTS / "doyle.md").write_text(text)
            (RESULTS / "doyle.json").write_text(json.dumps({"linear": linear, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
