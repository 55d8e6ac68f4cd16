"""Runs of the studies in results/: what is finished is not made again, what was interrupted goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_policies.errors import InvalidValueError
from robust_policies.policies import save_policy
from robust_policies.train import RunFolder, load_recipe, train
from robust_policies.train.apg.run import ApgRun
from robust_policies.train.recipe.apg import ApgSection


def finished(folder: Path) -> bool:
    """Return whether a folder holds a finished training."""
    run = RunFolder(folder)
    return run.provenance.is_file() and run.policy_json.is_file()


def train_missing(recipe: str, changes: Sequence[str], seed: int, folder: Path) -> None:
    """Train a recipe with changes and a seed unless that is done."""
    if finished(folder):
        return
    result = train(load_recipe(recipe, list(changes), seed), folder, resume=folder.exists())
    print(f"{folder}: {result.num_timesteps} steps, {result.seconds:.0f} s, best {result.best_reward}", flush=True)


def base_run(recipe: str, changes: Sequence[str], folder: Path) -> None:
    """Write a run folder of the base controller of a Youla recipe: its Youla parameter before training, which is 0."""
    untrained = load_recipe(recipe, list(changes))
    if not isinstance(untrained.algorithm, ApgSection):
        raise InvalidValueError(f"Recipe {recipe} is not of apg, whose policy before training does nothing.")
    save_policy(ApgRun(untrained, "cpu").algorithm.deployed(), folder)
    (folder / "recipe.yaml").write_text(untrained.to_yaml())
