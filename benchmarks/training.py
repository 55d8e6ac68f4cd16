"""Environment steps per second of training, with its updates: ours and what a user would take otherwise, in one run.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--device cuda] [--output benchmarks/training.json]
        [--parts numpy device growth learning] [--sizes 1024 4096] [--limit 600]

`numpy`: sb3-contrib's RecurrentPPO with its own LSTM policy of 256 units on eight of Gymnasium's Pendulum-v1, against
the same algorithm with the cells of this package and the same hyperparameters (sb3-contrib's defaults); the LSTM's
critic is a second LSTM, as upstream's, the others' a memoryless one, and `own_critic` has a second R2DN.
`device`: TensorRecurrentPPO on our pendulum, with sb3-contrib's default n_steps, n_epochs and number of minibatches.
`growth`: how the update's time grows with environments, steps, nx, nv and hidden width (slopes in log-log scale).
`learning`: seconds and environment steps until the mean return of 100 test episodes is -200, over several seeds.
Every rate is the median of repeated timings; the sides alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from robust_policies.envs.sb3 import make_sb3_vec_env
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
TARGET = -200.0


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


def stock() -> RecurrentPPO:
    return RecurrentPPO("MlpLstmPolicy", make_vec_env("Pendulum-v1", 8, seed=0), device="cpu", seed=0)


def stock_with(cell: str, critic: str | None = None) -> RecurrentPPO:
    env = make_vec_env("Pendulum-v1", 8, seed=0)
    return RecurrentPPO(RecurrentCellPolicy, env, policy_kwargs=policy_options(cell, critic), device="cpu", seed=0)


def on_device(cell: str, num_envs: int, device: str, n_steps: int = 128, **options: Any) -> TensorRecurrentPPO:
    return TensorRecurrentPPO(
        RecurrentCellPolicy,
        make_sb3_vec_env(PENDULUM, num_envs, seed=0, device=device),
        n_steps=n_steps,
        batch_size=n_steps * num_envs // math.gcd(MINIBATCHES, num_envs),
        policy_kwargs=policy_options(cell, **options),
        device=device,
        seed=0,
    )


def timed(makers: dict[str, Callable[[], RecurrentPPO]], repeats: int) -> dict[str, dict[str, Any]]:
    """Return environment steps per second and the shares of the phases: medians over alternating timings."""
    models = {name: make() for name, make in makers.items()}
    rates: dict[str, list[float]] = {name: [] for name in models}
    shares: dict[str, dict[str, float]] = {}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            steps, phases = model.n_steps * model.n_envs, Phases()
            before = dict(getattr(model, "seconds", {}))
            began = time.perf_counter()
            model.learn(steps, phases, reset_num_timesteps=repeat == 0)
            if model.device.type != "cpu":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            inner = {key: value - before[key] for key, value in getattr(model, "seconds", {}).items()}
            # The first round warms up.
            if repeat:
                rates[name].append(steps / seconds)
                shares[name] = {key: value / seconds for key, value in (inner or phases.seconds).items()}
    return {
        name: {
            "steps_per_second": rounded(statistics.median(values), 4),
            "shares_of_time": {key: rounded(value, 3) for key, value in shares[name].items()},
        }
        for name, values in rates.items()
    }


def rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def rates(parts: list[str], sizes: list[int], device: str, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each side of the parts `numpy` and `device`, with its ratio to sb3-contrib's LSTM."""
    makers: dict[str, Callable[[], RecurrentPPO]] = {"sb3_contrib_lstm": stock}
    if "numpy" in parts:
        makers |= {f"numpy_{cell}": lambda cell=cell: stock_with(cell) for cell in ("lstm", "r2dn", "ren")}
        makers["numpy_r2dn_own_critic"] = lambda: stock_with("r2dn", "own")
    if "device" in parts:
        for size in sizes:
            cells = ("r2dn", "ren", "mlp", "lbdn") if size == sizes[0] else ("r2dn",)
            makers |= {
                f"tensor_{cell}_{size}_envs": lambda cell=cell, size=size: on_device(cell, size, device)
                for cell in cells
            }
    found = timed(makers, repeats)
    base = found["sb3_contrib_lstm"]["steps_per_second"]
    rows = []
    for name, row in found.items():
        rows.append({"name": name, **row, "ratio_to_sb3_contrib_lstm": rounded(row["steps_per_second"] / base, 3)})
        phases = "  ".join(f"{key} {value:.0%}" for key, value in row["shares_of_time"].items())
        print(f"{name:<28} {row['steps_per_second']:>12,.0f}  x{rows[-1]['ratio_to_sb3_contrib_lstm']:<8g} {phases}")
    return rows


def growth(device: str, repeats: int) -> dict[str, Any]:
    """Return the seconds of one update for growing sizes, and the slope of log seconds over log size."""
    # Its environments and steps by keyword, the rest goes to the cell.
    studies: dict[str, list[dict[str, Any]]] = {
        "num_envs": [{"num_envs": size} for size in (64, 256, 1024, 4096)],
        "n_steps": [{"n_steps": size} for size in (32, 64, 128, 256)],
        "nx": [{"state_size": size} for size in (8, 16, 32, 64)],
        "nv": [{"features": size} for size in (16, 32, 64, 128)],
        "hidden": [{"hidden_sizes": (size, size)} for size in (16, 32, 64, 128)],
    }
    report: dict[str, Any] = {}
    for name, cases in studies.items():
        makers = {}
        for case in cases:
            options = {"num_envs": 256, "n_steps": 64, **case}
            size = options.get(name, next(iter(case.values())))
            size = size[0] if isinstance(size, tuple) else size
            makers[str(size)] = lambda options=options: on_device("r2dn", device=device, **options)
        found = timed(makers, repeats)
        seconds = {}
        for size, row in found.items():
            case = cases[list(makers).index(size)]
            samples = case.get("num_envs", 256) * case.get("n_steps", 64)
            seconds[size] = rounded(samples / row["steps_per_second"] * row["shares_of_time"]["update"], 3)
        slope = np.polyfit(np.log([float(size) for size in seconds]), np.log(list(seconds.values())), 1)[0]
        report[name] = {"seconds_of_an_update": seconds, "log_log_slope": rounded(float(slope), 2)}
        print(f"{name:<10} slope {slope:5.2f}  {seconds}", flush=True)
    return report


class Reached(BaseCallback):
    """Stops when the mean return of 100 test episodes is above `TARGET` or `limit` seconds are over.

    It looks before the rollouts, at most every `every` environment steps; the time of looking is not counted.
    """

    def __init__(self, every: int, limit: float, device: str) -> None:
        super().__init__()
        self.every, self.limit = every, limit
        self.env = make_sb3_vec_env(PENDULUM, 100, device=device)
        self.last, self.paused, self.seconds, self.found = 0, 0.0, 0.0, -math.inf
        self.began = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self.last < self.every:
            return
        began = time.perf_counter()
        self.last, self.seconds = self.num_timesteps, began - self.began - self.paused
        self.env.seed(1_000_003)
        self.found = float(np.mean(evaluate_policy(self.model, self.env, 100, warn=False)[0]))
        self.paused += time.perf_counter() - began

    def _on_step(self) -> bool:
        return self.found < TARGET and time.perf_counter() - self.began - self.paused < self.limit


def learners(device: str) -> dict[str, tuple[Callable[[int], RecurrentPPO], int]]:
    """Return how to make each side of the part `learning` for a seed, and after how many steps to look at it."""

    def ours(num_envs: int, n_steps: int, minibatches: int, n_epochs: int, seed: int) -> RecurrentPPO:
        return TensorRecurrentPPO(
            RecurrentCellPolicy,
            make_sb3_vec_env(PENDULUM, num_envs, seed=seed, device=device),
            n_steps=n_steps,
            batch_size=n_steps * num_envs // minibatches,
            n_epochs=n_epochs,
            gamma=0.9,
            learning_rate=2e-3,
            normalize_reward=True,
            spread_episodes=True,
            policy_kwargs=policy_options("r2dn", gamma=6.0) | {"action_scale": 2.0},
            device=device,
            seed=seed,
        )

    def tuned(seed: int) -> RecurrentPPO:
        env = VecNormalize(make_sb3_vec_env(PENDULUM, 32, seed=seed), norm_obs=False, gamma=0.9)
        policy = policy_options("r2dn", gamma=6.0) | {"action_scale": 2.0}
        return RecurrentPPO(RecurrentCellPolicy, env, n_steps=200, batch_size=1600, gamma=0.9, learning_rate=1e-3,
                            policy_kwargs=policy, device="cpu", seed=seed)  # fmt: skip

    def upstream(seed: int) -> RecurrentPPO:
        env = VecNormalize(make_vec_env("Pendulum-v1", 8, seed=seed), norm_obs=False, gamma=0.9)
        return RecurrentPPO("MlpLstmPolicy", env, gamma=0.9, learning_rate=1e-3, device="cpu", seed=seed)

    return {
        "tensor_r2dn_128_envs": (lambda seed: ours(128, 32, 4, 10, seed), 4 * 128 * 32),
        "tensor_r2dn_1024_envs": (lambda seed: ours(1024, 32, 8, 5, seed), 2 * 1024 * 32),
        "sb3_contrib_with_r2dn_32_envs": (tuned, 6400),
        "sb3_contrib_lstm_8_envs": (upstream, 8192),
    }


def learning(device: str, seeds: int, limit: float) -> list[dict[str, Any]]:
    """Return seconds and environment steps until `TARGET` for each side and seed; None where `limit` came first."""
    rows = []
    for seed in range(seeds):
        for name, (make, every) in learners(device).items():
            reached = Reached(every, limit, device)
            model = make(seed)
            reached.began = time.perf_counter()
            model.learn(100_000_000, reached)
            done = reached.found >= TARGET
            row = {"name": name, "seed": seed, "seconds": rounded(reached.seconds, 3) if done else None,
                   "steps": reached.last if done else None, "steps_done": model.num_timesteps,
                   "last_mean_return": rounded(reached.found, 4)}  # fmt: skip
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["numpy", "device", "growth", "learning"]
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024], help="environments of the part device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5, help="of the part learning")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which learning is given up")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
            "stable_baselines3": stable_baselines3.__version__,
            "sb3_contrib": sb3_contrib.__version__,
        },
        "unit": "environment steps per second",
    }
    if {"numpy", "device"} & set(arguments.parts):
        report["rows"] = rates(arguments.parts, arguments.sizes, arguments.device, arguments.repeats)
    if "growth" in arguments.parts:
        report["growth"] = growth(arguments.device, arguments.repeats)
    if "learning" in arguments.parts:
        report["learning"] = learning(arguments.device, arguments.seeds, arguments.limit)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
