"""The process in which `train.run.fitting` measures what a recipe needs."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from robust_policies.train.recipe.recipe import Recipe, parse_recipe
from robust_policies.train.runner import train


def main() -> None:
    """Print the largest memory of this process, in bytes, after one update each of the counts on standard input."""
    given = json.loads(sys.stdin.read())
    device: str = given["device"]
    torch.set_num_threads(1)
    found = []
    for count in given["counts"]:
        with tempfile.TemporaryDirectory() as scratch:
            train(one_update(parse_recipe(given["recipe"], "recipe"), count), Path(scratch) / "run", device=device)
        found.append(_largest(device))
    print(json.dumps(found))


def _largest(device: str) -> int:
    """Return the largest memory of this process in bytes, on a GPU what PyTorch took there.

    What getrusage says begins with that of its parent.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def one_update(recipe: Recipe, count: int) -> Recipe:
    """Return a recipe of recurrent PPO with `count` environments, a single update and a single epoch of it."""
    algorithm: Any = recipe.algorithm
    never = {"every": 2**62, "evaluate_every": 2**62, "evaluate_episodes": 1, "certify_every": 0, "policies": False}
    return recipe.model_copy(
        update={
            "task": recipe.task.model_copy(update={"num_envs": count}),
            "algorithm": algorithm.model_copy(update={"total_steps": count * algorithm.n_steps, "n_epochs": 1}),
            "checkpoints": recipe.checkpoints.model_copy(update={**never, "stop_at_reward": None}),
            "target": None,
        }
    )


if __name__ == "__main__":
    main()
