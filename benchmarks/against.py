"""Training by this tree against that by another checkout: the part `base` of training.py.

Each side runs in a process of its own, `python against.py NAME`, which trains a round for every line that it reads and
answers with the CPU seconds and the number of environment steps of it. Both sides take the first round for warming up;
in the others they alternate. For the part `curves` both sides train from the same seeds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from sides import CELLS, PENDULUM, policy_options, rounded
from stable_baselines3.common.env_util import make_vec_env

from robust_policies.envs import arguments
from robust_policies.envs.bridges.sb3 import make_sb3_vec_env
from robust_policies.envs.task import load_plant
from robust_policies.evaluation.statistics import mean_interval
from robust_policies.networks import Lipschitz, make_cell
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.train import TensorRecurrentPPO, load_recipe
from robust_policies.train.actor import new_actor
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.imitation.run import ImitationRun
from robust_policies.train.recipe.imitation import ImitationSection
from robust_policies.train.recipe.recipe import Recipe

PENDULUM_SEEDS = 5
HERE = Path(__file__).resolve()
Train = Callable[[], int]
"""Trains a round and returns its environment steps."""


def learns(model: Any) -> Train:
    def train() -> int:
        model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
        return model.n_steps * model.n_envs

    return train


def tensor(cell: str, envs: int = 128, minibatch: int = 2048, epochs: int = 10) -> Train:
    sizes = {**CELLS, "lstm": {"state_size": 16}, "gru": {"state_size": 16}}
    return learns(TensorRecurrentPPO(
        RecurrentCellPolicy, make_sb3_vec_env(PENDULUM, envs, seed=0), n_steps=64, batch_size=minibatch, device="cpu",
        n_epochs=epochs, seed=0, policy_kwargs={"cell": cell, "cell_kwargs": sizes[cell], "critic": "mlp"},
    ))  # fmt: skip


def numpy_r2dn() -> Train:
    env = make_vec_env("Pendulum-v1", 8, seed=0)
    return learns(RecurrentPPO(RecurrentCellPolicy, env, policy_kwargs=policy_options("r2dn"), device="cpu", seed=0))


def apg() -> Train:
    recipe, plant = load_recipe("pendulum_r2dn_apg"), load_plant("pendulum")
    space = arguments.spaces(plant, torch.float32)[1]
    actor = new_actor(recipe.policy, plant.observation_size, space, recipe.seed)
    learner = AnalyticPolicyGradient(plant, actor, recipe.algorithm, recipe.task.num_envs, recipe.seed)

    def train() -> int:
        for _ in range(20):
            learner.update(1.0)
        return 20 * learner.steps_per_update

    return train


def imitation() -> Train:
    learner = ImitationRun(Recipe[ImitationSection].model_validate({
        "task": {"id": "robust_policies/DoubleIntegrator-v0", "num_envs": 64},
        "policy": {"cell": "r2dn", "state_size": 8, "features": 16, "hidden_sizes": [16, 16]},
        "algorithm": {"name": "imitation", "rounds": 50},
    }), "cpu", 0).learning  # fmt: skip

    def train() -> int:
        learner.round()
        return learner.horizon * learner.stage.count

    return train


class _Ones(torch.autograd.Function):
    """A scalar whose gradient with respect to every entry of what it is made of is one."""

    @staticmethod
    def forward(ctx: Any, *arrays: torch.Tensor) -> torch.Tensor:
        ctx.grads = tuple(torch.ones_like(array) for array in arrays)
        return arrays[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        return ctx.grads


def explicit(name: str) -> Train:
    torch.manual_seed(0)
    cell = make_cell(name, 3, 2, **CELLS[name], guarantee=Lipschitz(6.0))
    parameters = list(cell.parameters())

    def train() -> int:
        for _ in range(400):
            arrays = cell.explicit()
            found = (*arrays, *(one for layer in getattr(arrays, "layers", ()) for one in layer))
            made = [one for one in found if isinstance(one, torch.Tensor) and not one.is_leaf]
            torch.autograd.grad(_Ones.apply(*made), parameters, allow_unused=True)
        return 400

    return train


SIDES: dict[str, Callable[[], Train]] = {
    **{f"explicit_{cell}": lambda cell=cell: explicit(cell) for cell in ("r2dn", "ren")},
    **{f"tensor_{cell}": lambda cell=cell: tensor(cell) for cell in ("r2dn", "ren", "lstm", "gru", "mlp")},
    "numpy_r2dn": numpy_r2dn,
    "apg": apg,
    "imitation": imitation,
}


def curve(seed: int) -> Train:
    model = TensorRecurrentPPO(
        RecurrentCellPolicy, make_sb3_vec_env(PENDULUM, 128, seed=seed), n_steps=64, batch_size=2048, device="cpu",
        n_epochs=10, gamma=0.9, learning_rate=1e-3, normalize_reward=True, spread_episodes=True, seed=seed,
        policy_kwargs={"cell": "r2dn", "cell_kwargs": {**CELLS["r2dn"], "gamma": 6.0}, "critic": "mlp"},
    )  # fmt: skip
    step = learns(model)

    def train() -> int:
        found = step()
        # What `main` answers with beside the steps.
        episodes = model.ep_info_buffer or []
        train.value = sum(one["r"] for one in episodes) / max(1, len(episodes))
        return found

    return train


CURVE_POINTS = (10, 20, 30, 40)
CURVES: dict[str, Callable[[], Train]] = {
    f"curve_{seed}": lambda seed=seed: curve(seed) for seed in range(PENDULUM_SEEDS)
}
MEMORY: dict[str, Callable[[], Train]] = {
    "memory_1_minibatch": lambda: tensor("r2dn", 4096, 4096 * 64),
    "memory_8_minibatches": lambda: tensor("r2dn", 4096, 4096 * 8),
}
MEMORY_ROUNDS = 6
"""Memory grows over the first rounds, by what the allocator cannot use again."""


class Side:
    """A process that trains by the package in `root`."""

    def __init__(self, root: Path, name: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", str(HERE), name]
        self.process = subprocess.Popen(
            command, env=environment, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def round(self) -> dict[str, float]:
        """Return what one round took."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def against(base: Path, rounds: int, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return a row for each side (of these names): what it takes by the package in `base`, by this one, the ratio."""
    roots = {"base": base.resolve(), "here": HERE.parents[1]}
    rows: list[dict[str, Any]] = []
    for name in names or (*SIDES, *MEMORY):
        sides = {key: Side(root, name) for key, root in roots.items()}
        found = [
            {key: side.round() for key, side in sides.items()}
            for _ in range(MEMORY_ROUNDS if name in MEMORY else rounds + 1)
        ]
        for side in sides.values():
            side.close()
        row: dict[str, Any] = {"name": name}
        for key in roots:
            if name in MEMORY:
                row[key] = rounded(found[-1][key]["peak"], 3)
            else:
                steps, spent = (sum(one[key][what] for one in found[1:]) for what in ("steps", "cpu"))
                row[key] = rounded(steps / spent, 4)
        row["unit"] = "MiB at the peak" if name in MEMORY else "steps per CPU second"
        row["unit"] = "calls per CPU second" if name.startswith("explicit") else row["unit"]
        row["ratio"] = rounded(row["here"] / row["base"], 3)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def curves(base: Path) -> list[dict[str, Any]]:
    """Return a row for each point of the learning curves: both sides' mean returns over seeds, with 95% intervals."""
    found: dict[str, list[list[float]]] = {}
    for key, root in {"base": base.resolve(), "here": HERE.parents[1]}.items():
        sides = [Side(root, name) for name in CURVES]
        found[key] = [[side.round()["value"] for _ in range(max(CURVE_POINTS))] for side in sides]
        for side in sides:
            side.close()
    rows = []
    for point in CURVE_POINTS:
        row: dict[str, Any] = {"steps": point * 64 * 128}
        for key, values in found.items():
            interval = mean_interval([one[point - 1] for one in values])
            row[key] = [rounded(float(number), 4) for number in (interval.value, interval.low, interval.high)]
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    train = (SIDES | MEMORY | CURVES)[sys.argv[1]]()
    answers, sys.stdout = sys.stdout, sys.stderr
    for _ in sys.stdin:
        began = time.process_time()
        steps = train()
        spent = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {"steps": steps, "cpu": spent, "peak": peak, "value": getattr(train, "value", None)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
