"""What the benchmarks of training compare, and how a side is timed."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback

from robust_policies.envs.bridges.sb3 import make_sb3_vec_env
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.train import TensorRecurrentPPO

PENDULUM = "robust_policies/Pendulum-v0"
CELLS: dict[str, dict[str, Any]] = {
    "lstm": {"state_size": 512},
    "r2dn": {"state_size": 8, "features": 16, "hidden_sizes": (16, 16)},
    "ren": {"state_size": 8, "features": 16},
    "mlp": {"hidden_sizes": (64, 64)},
    "lbdn": {"hidden_sizes": (64, 64), "gamma": 10.0},
}
MINIBATCHES = 8


class Phases(BaseCallback):
    """Seconds spent in rollouts and in updates."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = {"rollout": 0.0, "update": 0.0}
        self._at = 0.0

    def _pass(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._at
        self._at = now

    def _on_training_start(self) -> None:
        self._at = time.perf_counter()
        self._first = True

    def _on_rollout_start(self) -> None:
        if not self._first:
            self._pass("update")
        self._first = False

    def _on_rollout_end(self) -> None:
        self._pass("rollout")

    def _on_training_end(self) -> None:
        self._pass("update")

    def _on_step(self) -> bool:
        return True


def policy_options(cell: str, critic: str | None = None, **options: Any) -> dict[str, Any]:
    return {
        "cell": cell,
        "cell_kwargs": CELLS[cell] | options,
        "critic": critic or ("own" if cell == "lstm" else "mlp"),
    }


def on_device(
    cell: str, num_envs: int, device: str, n_steps: int = 128, graphs: str = "auto", **options: Any
) -> TensorRecurrentPPO:
    return TensorRecurrentPPO(
        RecurrentCellPolicy,
        make_sb3_vec_env(PENDULUM, num_envs, seed=0, device=device),
        n_steps=n_steps,
        batch_size=n_steps * num_envs // math.gcd(MINIBATCHES, num_envs),
        policy_kwargs=policy_options(cell, **options),
        device=device,
        graphs=graphs,
        seed=0,
    )


def timed(makers: dict[str, Callable[[], RecurrentPPO]], rounds: int, warm: int = 1) -> dict[str, dict[str, Any]]:
    """Return environment steps per second, of the wall and of the CPU, and the shares of the phases.

    Each round is a rollout and its update, of one side after another, so that a busy machine slows all sides; the first
    `warm` of them warm up. Sums over the others, no medians: sb3-contrib's update is far faster after rollouts without
    a new episode.
    """
    models = {name: make() for name, make in makers.items()}
    totals: dict[str, Counter] = {name: Counter() for name in models}
    for this in range(rounds + warm):
        for name, model in models.items():
            steps, phases = model.n_steps * model.n_envs, Phases()
            before = dict(getattr(model, "seconds", {}))
            wall, cpu = time.perf_counter(), time.process_time()
            model.learn(steps, phases, reset_num_timesteps=this == 0)
            if model.device.type != "cpu":
                torch.cuda.synchronize()
            spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "steps": steps}
            inner = {key: value - before[key] for key, value in getattr(model, "seconds", {}).items()}
            if this >= warm:
                totals[name].update(spent | (inner or phases.seconds))
    return {
        name: {
            "steps_per_second": rounded(total["steps"] / total["wall"], 4),
            "steps_per_cpu_second": rounded(total["steps"] / total["cpu"], 4),
            "shares_of_time": {
                key: rounded(value / total["wall"], 3)
                for key, value in total.items()
                if key not in ("wall", "cpu", "steps")
            },
        }
        for name, total in totals.items()
    }


def rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
