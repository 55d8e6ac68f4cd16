"""Training, with its updates: ours and what a user would take otherwise, in one run.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--output benchmarks/training.json]
        [--parts numpy device growth learning jax gpu] [--rounds 5] [--seeds 5] [--limit 240]
        [--base PATH] [--sides NAME ...]

`numpy`: sb3-contrib's RecurrentPPO with its own LSTM policy of 256 units on eight of Gymnasium's Pendulum-v1, against
the same algorithm with the cells of this package and the same hyperparameters (sb3-contrib's defaults); the LSTM's
critic is a second LSTM, as upstream's, the others' a memoryless one, and `own_critic` has a second R2DN.
`device`: TensorRecurrentPPO on our pendulum, with sb3-contrib's default n_steps, n_epochs and number of minibatches.
`growth`: how the update's time grows with environments, steps, nx, nv and hidden width (slopes in log-log scale); draws
docs/images/growth.png too.
`learning`: seconds and environment steps until the mean return of 100 test episodes is -200, over several seeds.
`jax`: TensorRecurrentPPO with a GRU and an R2DN beside the same algorithm in JAX (peers/jax_ppo.py), where jax and
optax are installed (`pip install 'robust-policies[peers]'`).
`gpu`: TensorRecurrentPPO with 4,096 and 65,536 environments, where CUDA is available.
`base`: this tree against another checkout of the project, at PATH: steps per CPU second of TensorRecurrentPPO (128
environments, 64 steps, ten epochs of minibatches of 2,048; nx 8 of R2DN and REN, 16 of LSTM and GRU), of sb3-contrib's
RecurrentPPO, of analytic policy gradients and of imitation, calls of a cell's parametrization with its derivative, and
peak memory with 4,096 environments x 64 steps; `--sides` for some of these alone.
`curves`: mean returns of TensorRecurrentPPO while it learns the pendulum, five seeds, by this tree and by that at PATH.
The sides of `numpy` and `device` are timed in turns, so that a busy machine slows all of them, over `rounds` rollouts
and updates each; their ratios are of seconds of this process' CPU, one thread. A part is written once it is done, and
the parts that are not asked for stay in the file as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import sb3_contrib
import stable_baselines3
import torch
from against import MEMORY, SIDES, against, curves
from beside_jax import beside_jax
from growth import FIGURE, draw, growth
from learning import learning
from sb3_contrib import RecurrentPPO
from sides import on_device, policy_options, rounded, timed
from stable_baselines3.common.env_util import make_vec_env

from robust_policies.policies import RecurrentCellPolicy

PARTS = ("numpy", "device", "growth", "learning", "jax", "gpu", "base", "curves")
GPU_SIZES = (4096, 65536)


def stock() -> RecurrentPPO:
    return RecurrentPPO("MlpLstmPolicy", make_vec_env("Pendulum-v1", 8, seed=0), device="cpu", seed=0)


def stock_with(cell: str, critic: str | None = None) -> RecurrentPPO:
    env = make_vec_env("Pendulum-v1", 8, seed=0)
    return RecurrentPPO(RecurrentCellPolicy, env, policy_kwargs=policy_options(cell, critic), device="cpu", seed=0)


def rates(parts: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each side of the parts `numpy` and `device`, with its ratio to sb3-contrib's LSTM."""
    makers: dict[str, Callable[[], RecurrentPPO]] = {"sb3_contrib_lstm": stock}
    if "numpy" in parts:
        makers |= {f"numpy_{cell}": lambda cell=cell: stock_with(cell) for cell in ("lstm", "r2dn", "ren")}
        makers["numpy_r2dn_own_critic"] = lambda: stock_with("r2dn", "own")
    if "device" in parts:
        cells = ("r2dn", "ren", "mlp", "lbdn")
        makers |= {f"tensor_{cell}_1024_envs": lambda cell=cell: on_device(cell, 1024, "cpu") for cell in cells}
    found = timed(makers, rounds)
    base = found["sb3_contrib_lstm"]["steps_per_cpu_second"]
    rows = []
    for name, row in found.items():
        ratio = rounded(row["steps_per_cpu_second"] / base, 3)
        rows.append({"name": name, **row, "ratio_to_sb3_contrib_lstm": ratio})
        phases = "  ".join(f"{key} {value:.0%}" for key, value in row["shares_of_time"].items())
        print(f"{name:<28} {row['steps_per_cpu_second']:>12,.0f}  x{ratio:<8g} {phases}", flush=True)
    return rows


def on_gpu(rounds: int) -> dict[str, Any]:
    """Return the steps per second with learning on a GPU, or why there are none."""
    if not torch.cuda.is_available():
        return {"skipped": f"no CUDA device is available to torch {torch.__version__}"}
    makers: dict[str, Callable[[], RecurrentPPO]] = {
        f"tensor_r2dn_{size}_envs": lambda size=size: on_device("r2dn", size, "cuda") for size in GPU_SIZES
    }
    rows = [{"name": name, **row} for name, row in timed(makers, rounds).items()]
    return {"device": torch.cuda.get_device_name(), "rows": rows}


def circumstances() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [rounded(load, 3) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
            "stable_baselines3": stable_baselines3.__version__,
            "sb3_contrib": sb3_contrib.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-2]))
    parser.add_argument("--base", type=Path, help="the other checkout of the part base")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, *MEMORY], help="of the part base, in place of all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5, help="of the part learning")
    parser.add_argument("--stock-seeds", type=int, default=5, help="of sb3-contrib's side in the part learning")
    parser.add_argument("--limit", type=float, default=240.0, help="CPU seconds after which learning is given up")
    arguments = parser.parse_args()
    parts, rounds, output = arguments.parts, arguments.rounds, arguments.output
    todo: dict[str, Callable[[], Any]] = {}
    if {"numpy", "device"} & set(parts):
        todo["rates"] = lambda: rates(parts, rounds)
    if "growth" in parts:
        todo["growth"] = lambda: growth("cpu", rounds)
    if "learning" in parts:
        todo["learning"] = lambda: learning("cpu", arguments.seeds, arguments.limit, arguments.stock_seeds)
    if "jax" in parts:
        todo["jax"] = lambda: beside_jax(rounds)
    if "gpu" in parts:
        todo["gpu"] = lambda: on_gpu(rounds)
    if "base" in parts:
        if arguments.base is None:
            parser.error("the part base needs --base PATH")
        todo["base"] = lambda: against(arguments.base, rounds, arguments.sides)
    if "curves" in parts:
        if arguments.base is None:
            parser.error("the part curves needs --base PATH")
        todo["curves"] = lambda: curves(arguments.base)
    report = json.loads(output.read_text()) if output and output.is_file() else {}
    for name, measure in todo.items():
        before = circumstances()
        report[name] = {"found": measure(), "circumstances": before | {"load_average_after": os.getloadavg()[0]}}
        if output:
            output.write_text(json.dumps(report, indent=1) + "\n")
    if output and "growth" in todo:
        draw(report["growth"]["found"], FIGURE)
    if not output:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
