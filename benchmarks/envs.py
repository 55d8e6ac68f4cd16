"""Environment steps per second: ours against Gymnasium's SyncVectorEnv of Pendulum-v1, measured in one run.

    OMP_NUM_THREADS=1 python benchmarks/envs.py [--device cpu] [--output benchmarks/envs.json]

Every figure is the median of repeated timings; the two sides alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import torch

from robust_policies.envs import SB3VecEnv, TorchVectorEnv

SIZES = (1, 64, 4096, 65536)
GYMNASIUM_SIZES = (1, 64, 4096)


def ours(size: int, device: str, task: str = "pendulum", state_dtype: str = "float64") -> Callable[[], object]:
    env = TorchVectorEnv(task, size, device=device, state_dtype=state_dtype)
    env.reset(seed=0)
    actions = torch.zeros((size, env.plant.action_size), device=device)
    return lambda: env.step(actions)


def bridged(size: int, device: str) -> Callable[[], object]:
    env = SB3VecEnv(TorchVectorEnv("pendulum", size, device=device))
    env.reset()
    actions = np.zeros((size, 1), np.float32)
    return lambda: env.step(actions)


def gymnasiums(size: int) -> Callable[[], object]:
    env = gymnasium.make_vec("Pendulum-v1", size, vectorization_mode="sync")
    env.reset(seed=0)
    actions = np.zeros((size, 1), np.float32)
    return lambda: env.step(actions)


def rates(
    candidates: dict[str, Callable[[], object]], size: int, device: str, repeats: int, seconds: float
) -> dict[str, float]:
    """Return the environment steps per second of each candidate: medians over `repeats` alternating timings."""

    def measure(step: Callable[[], object], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            step()
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    counts = {}
    for name, step in candidates.items():
        measure(step, 3)
        counts[name] = max(3, int(seconds / measure(step, 3)))
    timings: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, step in candidates.items():
            timings[name].append(measure(step, counts[name]))
    return {name: size / statistics.median(values) for name, values in timings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="a timing's length")
    arguments = parser.parse_args()
    report: dict[str, object] = {
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
        "unit": "environment steps per second",
    }
    titles = ("Pendulum", "float32", "Linear", "SB3 bridge", "Gymnasium")
    print(f"{'num_envs':>8} " + " ".join(f"{title:>12}" for title in titles) + f" {'ratio':>7}")
    for size in SIZES:
        candidates = {
            "pendulum": ours(size, arguments.device),
            "pendulum_float32_state": ours(size, arguments.device, state_dtype="float32"),
            "linear": ours(size, arguments.device, "linear"),
            "pendulum_sb3_bridge": bridged(size, arguments.device),
        }
        if size in GYMNASIUM_SIZES:
            candidates["gymnasium_sync_pendulum"] = gymnasiums(size)
        rate = rates(candidates, size, arguments.device, arguments.repeats, arguments.seconds)
        extra = 1e6 * (1 / rate["pendulum_sb3_bridge"] - 1 / rate["pendulum"])
        row: dict[str, float] = {**rate, "bridge_extra_microseconds_per_env_step": extra}
        theirs = rate.get("gymnasium_sync_pendulum")
        if theirs:
            row["ratio_to_gymnasium"] = rate["pendulum"] / theirs
        report[str(size)] = {name: float(f"{value:.4g}") for name, value in row.items()}
        columns = [*list(rate.values())[:4], theirs or float("nan"), row.get("ratio_to_gymnasium", float("nan"))]
        print(f"{size:>8} " + " ".join(f"{value:>12,.0f}" for value in columns[:5]) + f" {columns[5]:>7.2f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
