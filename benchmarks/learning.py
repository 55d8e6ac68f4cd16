"""Time and steps until a pendulum is swung up, by several algorithms: the part `learning` of training.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
from sb3_contrib import RecurrentPPO
from sides import PENDULUM, policy_options, rounded
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from robust_policies.envs.bridges.sb3 import make_sb3_vec_env
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.train import TensorRecurrentPPO

TARGET = -200.0
EPISODES = 100
SAME: dict[str, Any] = {"n_steps": 200, "batch_size": 400, "gamma": 0.9, "learning_rate": 1e-3, "device": "cpu"}
"""Of both sides with NumPy environments. Discount and rate are RL Zoo's for the pendulum (ppo_lstm), whose batches of
128 would cost sb3-contrib's side more time. That side also has the Zoo's generalized state-dependent exploration."""
R2DN = policy_options("r2dn", gamma=6.0) | {"action_scale": 2.0}


class Reached(BaseCallback):
    """Stops when the mean return of 100 test episodes is above `TARGET` or `limit` seconds of the CPU are over.

    It looks before the rollouts, at most every `every` environment steps; the time of looking is not counted.
    """

    def __init__(self, every: int, limit: float, device: str) -> None:
        super().__init__()
        self.every, self.limit = every, limit
        self.env = make_sb3_vec_env(PENDULUM, EPISODES, device=device)
        self.last, self.found = 0, -math.inf
        self.paused, self.spent, self.began = np.zeros(2), np.zeros(2), now()

    def _on_rollout_start(self) -> None:
        began = now()
        self.spent = began - self.began - self.paused
        over = self.spent[1] >= self.limit
        if self.num_timesteps and (over or self.num_timesteps - self.last >= self.every):
            self.last = self.num_timesteps
            self.env.seed(1_000_003)
            self.found = float(np.mean(evaluate_policy(self.model, self.env, EPISODES, warn=False)[0]))
            self.paused += now() - began

    def _on_step(self) -> bool:
        return self.found < TARGET and self.spent[1] < self.limit


def now() -> np.ndarray:
    """Return seconds on the wall and of this process' CPU time."""
    return np.array([time.perf_counter(), time.process_time()])


def learners(device: str) -> dict[str, tuple[Callable[[int], RecurrentPPO], int]]:
    """Return how to make each side for a seed, and after how many steps to look at it."""

    def tensor(num_envs: int, n_steps: int, minibatches: int, n_epochs: int, seed: int) -> RecurrentPPO:
        env = make_sb3_vec_env(PENDULUM, num_envs, seed=seed, device=device)
        return TensorRecurrentPPO(
            RecurrentCellPolicy, env, n_steps=n_steps, batch_size=n_steps * num_envs // minibatches, n_epochs=n_epochs,
            gamma=0.9, learning_rate=2e-3, normalize_reward=True, spread_episodes=True, policy_kwargs=R2DN,
            device=device, seed=seed,
        )  # fmt: skip

    def gymnasium(seed: int) -> VecNormalize:
        return VecNormalize(make_vec_env("Pendulum-v1", 8, seed=seed), norm_obs=False, gamma=0.9)

    def ours(seed: int) -> RecurrentPPO:
        return RecurrentPPO(RecurrentCellPolicy, gymnasium(seed), seed=seed, policy_kwargs=R2DN, **SAME)

    def upstream(seed: int) -> RecurrentPPO:
        return RecurrentPPO("MlpLstmPolicy", gymnasium(seed), seed=seed, use_sde=True, sde_sample_freq=4, **SAME)

    return {
        "sb3_contrib_lstm_8_numpy_envs": (upstream, 1600),
        "r2dn_8_numpy_envs": (ours, 1600),
        "tensor_r2dn_128_envs": (lambda seed: tensor(128, 32, 4, 10, seed), 4 * 128 * 32),
        "tensor_r2dn_1024_envs": (lambda seed: tensor(1024, 32, 8, 5, seed), 2 * 1024 * 32),
    }


def learning(device: str, seeds: int, limit: float, stock_seeds: int) -> dict[str, Any]:
    """Return seconds and environment steps until `TARGET` for each side and seed, and their means with intervals.

    A run that has not come there after `limit` seconds of the CPU has None for both.
    """
    rows: list[dict[str, Any]] = []
    for name, (make, every) in learners(device).items():
        for seed in range(stock_seeds if name.startswith("sb3_contrib") else seeds):
            reached, model = Reached(every, limit, device), make(seed)
            reached.began = now()
            model.learn(100_000_000, reached)
            wall, cpu = (rounded(float(value), 3) for value in reached.spent)
            done = reached.found >= TARGET
            row = {
                "name": name,
                "seed": seed,
                "reached": done,
                "wall_seconds": wall,
                "cpu_seconds": cpu,
                "steps": reached.last,
                "last_mean_return": rounded(reached.found, 4),
            }
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {"target": TARGET, "limit_cpu_seconds": limit, "runs": rows, "summary": summary(rows)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row a side: how many runs came there, and where all did the means with 95% t intervals over seeds."""
    found = []
    for name in dict.fromkeys(row["name"] for row in rows):
        runs = [row for row in rows if row["name"] == name]
        line: dict[str, Any] = {"name": name, "seeds": len(runs), "reached": sum(row["reached"] for row in runs)}
        if line["reached"] == len(runs):
            for key in ("wall_seconds", "cpu_seconds", "steps"):
                line[key] = interval([float(row[key]) for row in runs])
        found.append(line)
    return found


def interval(values: list[float]) -> list[float]:
    """Return the mean and the bounds of its 95% t interval, rounded; the mean alone of a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return [rounded(mean, 3)]
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return [rounded(value, 3) for value in (mean, mean - half, mean + half)]
