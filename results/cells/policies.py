"""Policies of the compared cells for the pendulum whose speed is not measured: what each earns, and its gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results.cells.study import CELLS, TIME
from results.training import finished
from robust_policies.certificates import empirical_gain
from robust_policies.errors import NotCertifiableError
from robust_policies.policies import load_policy
from robust_policies.train import RunFolder, parse_recipe, train
from robust_policies.train.recipe.recipe import Recipe

TASK = "robust_policies/PendulumNoVelocity-v0"
STEPS, EPISODES = 393216, 64


def recipe_of(name: str, seed: int, steps: int = STEPS) -> Recipe:
    """Return the recipe of one training: that of pendulum_no_velocity_r2dn with another cell and a value of the moment.

    The value sees no speed either, which slows learning; with it updates are compiled for most cells.
    """
    entry = CELLS[name]
    bound = {} if entry.gamma is None else {"gamma": entry.gamma}
    return parse_recipe(
        {
            "description": f"Pendulum without a measurement of its speed, {entry.title}",
            "seed": seed,
            "task": {"id": TASK, "num_envs": 128},
            "policy": {"cell": entry.cell, **entry.options, **bound, "action_scale": 2.0, "critic": "mlp"},
            "algorithm": {
                **{"name": "tensor_ppo", "total_steps": steps, "n_steps": 64, "batch_size": 1024, "n_epochs": 10},
                **{"discount": 0.95, "gae_lambda": 0.95, "learning_rate": "lin_2e-3", "spread_episodes": True},
            },
            "checkpoints": {
                **{"every": 10 * steps, "evaluate_every": max(steps // 4, 1), "evaluate_episodes": EPISODES},
                **{"certify_every": 0, "keep": "last"},
            },
        },
        "results/cells",
    )


def learn(name: str, seed: int, folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """Return what a policy of a cell earned while it learnt, the gain that is proven of it and the largest found.

    Gains are from the observation to the torque in N m. The training in `folder` goes on where it was stopped.
    """
    if not finished(folder):
        train(recipe_of(name, seed, steps), folder, resume=folder.exists())
    provenance, policy = RunFolder(folder).read_provenance(), load_policy(folder)
    try:
        gain = policy.certificate().gamma_raw
    except NotCertifiableError:
        gain = None
    evaluations = [[done, mean] for done, _, mean in provenance["evaluations"]]
    return {
        "evaluations": evaluations,
        "return": evaluations[-1][1],
        "train_seconds": provenance["cpu_seconds"],
        "gain": gain,
        "found_gain": empirical_gain(policy, TIME, seed, batch=8, power_iterations=8, adam_iterations=30).gain,
    }
