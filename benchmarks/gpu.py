"""Everything that a GPU is for, timed on one, beside what a user would take otherwise on the same machine.

    python benchmarks/gpu.py [--output benchmarks/gpu.json] [--parts envs mujoco cells training jax jax_cells attacks]

`envs`: steps per second of pendulum and cart-pole with 4,096 to 1,048,576 environments: call by call, compiled
(`compile=True`), and the plant's step alone replayed as a CUDA graph. `mujoco`: the MuJoCo tasks by MuJoCo-Warp in
8,192 worlds, against MuJoCo's C on this machine's cores. `cells`: forward and backward of R2DN and REN against
torch.nn.LSTM (cuDNN's) of as many parameters, milliseconds. `training`: TensorRecurrentPPO with 4,096 and 65,536
environments, with rollout and update as a CUDA graph each and call by call. `jax`: the loop of
benchmarks/peers/jax_ppo.py with as many. `jax_cells`: forward and backward of the contracting R2DN against that of
benchmarks/peers/jax_r2dn.py, at the sizes of `cells`. `attacks`: attacked and smoothed steps per second.

Every part has a limit of time, 370 seconds together, and stands in the file with `seconds` and the most GPU memory that
PyTorch held; one that cannot run says why (`skipped`), and the others go on. `--device cpu --tiny` runs all of it on
small sizes, which shows that it runs and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from cells import Size, recurrent_of_equal_size
from cells import count as parameters_of
from gymnasium import spaces
from r2dn_beside_jax import Peer, beside
from sides import on_device, rounded, timed
from torch import Tensor, nn

from envs import MUJOCO, drawn_actions  # pyright: ignore[reportAttributeAccessIssue]  # the folder of tasks is no module
from robust_policies.envs import TorchVectorEnv
from robust_policies.errors import UserError
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.files.atomic import write_json
from robust_policies.graphs import Graph, Place
from robust_policies.networks import R2DN, REN, Lipschitz
from robust_policies.policies import DeployedPolicy, smoothed_return
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling

PENDULUM = "robust_policies/Pendulum-v0"
LIMITS = {"envs": 70, "mujoco": 60, "cells": 50, "training": 80, "jax": 45, "jax_cells": 30, "attacks": 35}
"""Seconds a part may take."""
_over = {"at": math.inf}
"""When the time of the present part is over."""
CELLS = (
    Size("nx10 nv100 4x140", 10, 100, (140,) * 4, 200, 64),
    Size("nx75 nv75 3x87", 75, 75, (87,) * 3, 256, 64),
    Size("nx8 nv16 2x16, a policy", 8, 16, (16,) * 2, 64, 1024),
)
JAX = "import sys, jax_ppo as p; p.ENVS, p.MINIBATCH = {envs}, 16 * {envs}; sys.argv = ['', '--updates', '1']; p.main()"


class SkippedError(Exception):
    """A part, or a row of one, that cannot run here."""


def waited(device: torch.device) -> float:
    """Return the time, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the median seconds of a call, over five timings of together about `seconds`."""
    for _ in range(3):
        call()
    began = waited(device)
    call()
    each = max(waited(device) - began, 1e-6)
    count, found = max(1, int(seconds / 5 / each)), []
    for _ in range(5):
        began = waited(device)
        for _ in range(count):
            call()
        found.append((waited(device) - began) / count)
    return statistics.median(found)


def tried(make: Callable[[], Any]) -> Any:
    """Return what is made, or why it is not; nothing is begun when the time of the part is over."""
    try:
        if time.monotonic() >= _over["at"]:
            late()
        return make()
    except (SkippedError, UserError) as error:
        return {"skipped": str(error)}
    except (RuntimeError, MemoryError, ImportError) as error:
        return {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}


def stepping(env: TorchVectorEnv) -> Callable[[], object]:
    """Return steps with random actions whose values nobody looks at."""
    env.reset(seed=0)
    env.trusts_actions = True
    sample = torch.as_tensor(drawn_actions(env)[0], device=env.device)
    return lambda: env.step(sample)


def graphed(env: TorchVectorEnv) -> Callable[[], object]:
    """Return the plant's step alone, without noise, resets and limits, replayed as a CUDA graph."""
    if env.device.type != "cuda":
        raise SkippedError("a CUDA graph needs a CUDA device")
    env.reset(seed=0)
    params, held = env.prepared, {"state": env.state}
    action = torch.zeros(env.num_envs, env.plant.action_size, dtype=held["state"].dtype, device=env.device)

    def advanced() -> None:
        with torch.no_grad():
            held["state"] = env.plant.advance(held["state"], action, params)

    graph = Graph("A step", advanced, lambda: {"state": Place(held, "state")}, lambda: None, env.device)
    for _ in range(3):
        graph()
    if graph.why_not is not None:
        raise SkippedError(graph.why_not)
    return graph


def envs(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    kinds: dict[str, Callable[[str, int], Callable[[], object]]] = {
        "eager": lambda task, size: stepping(TorchVectorEnv(task, size, device=device)),
        "compiled": lambda task, size: stepping(TorchVectorEnv(task, size, device=device, compile=True)),
        "graph": lambda task, size: graphed(TorchVectorEnv(task, size, device=device)),
    }
    if tiny:  # a compiler takes half a minute
        del kinds["compiled"]
    rows = []
    for task in ("pendulum", "cartpole"):
        for size in (8,) if tiny else (4096, 65536, 1048576):
            row: dict[str, Any] = {"task": task, "num_envs": size}
            for kind, make in kinds.items():
                row[kind] = tried(lambda: rounded(size / seconds_of(make(task, size), device, 0.01 if tiny else 1), 4))  # noqa: B023
            rows.append(row)
    return rows


def mujoco(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    if device.type != "cuda" and not tiny:
        raise SkippedError("MuJoCo-Warp runs on a CUDA device")
    rows = []
    for task in ("inverted_pendulum",) if tiny else MUJOCO:
        size = 2 if tiny else 8192

        def rate(backend: str, where: torch.device) -> float:
            env = TorchVectorEnv(task, size, device=where, backend=backend)  # noqa: B023
            try:
                return rounded(size / seconds_of(stepping(env), where, 0.01 if tiny else 2), 4)  # noqa: B023
            finally:
                env.close()

        row: dict[str, Any] = {"task": task, "num_envs": size, "cores": torch.get_num_threads()}
        row["warp"] = (
            tried(lambda: rate("warp", device))
            if device.type == "cuda"
            else {"skipped": "MuJoCo-Warp runs on a CUDA device"}
        )
        row["c"] = tried(lambda: rate("c", torch.device("cpu")))
        if isinstance(row["warp"], float) and isinstance(row["c"], float):
            row["ratio"] = rounded(row["warp"] / row["c"], 3)
        rows.append(row)
    return rows


def cell_sizes(tiny: bool) -> tuple[Size, ...]:
    return (Size("tiny", 2, 3, (3,), 4, 2),) if tiny else CELLS


def cells(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    rows = []
    for size in cell_sizes(tiny):
        guarantee = Lipschitz(5.0)
        shape = (size.inputs, size.state, size.outputs, size.features)
        r2dn = R2DN(*shape, size.hidden, guarantee=guarantee)
        made: dict[str, nn.Module] = {
            "r2dn": r2dn,
            "ren": REN(*shape, guarantee=guarantee),
            "lstm": recurrent_of_equal_size(nn.LSTM, size.inputs, parameters_of(r2dn)),
        }
        row: dict[str, Any] = {"name": size.name, "time": size.time, "batch": size.batch}
        inputs = torch.randn(size.time, size.batch, size.inputs, device=device)
        for name, module in made.items():
            module.to(device)

            def both(module: nn.Module = module) -> None:
                outputs: Tensor = module(inputs)[0]  # noqa: B023
                outputs.square().mean().backward()

            row[f"{name}_ms"] = tried(lambda: rounded(1e3 * seconds_of(both, device, 0.01 if tiny else 2), 4))
        for name in ("r2dn", "ren"):
            if isinstance(row[f"{name}_ms"], float) and isinstance(row["lstm_ms"], float):
                row[f"{name}_ratio_to_lstm"] = rounded(row[f"{name}_ms"] / row["lstm_ms"], 3)
        rows.append(row)
    return rows


def training(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    rows = []
    for size in (4,) if tiny else (4096, 65536):
        steps = 8 if tiny else 64
        for graphs in ("auto", "never"):
            side = partial(on_device, "r2dn", size, str(device), steps, graphs)
            # Two rounds are played as they are and the third is recorded.
            found = tried(lambda: timed({"r2dn": side}, 1 if tiny else 3, 1 if tiny else 3))  # noqa: B023
            rows.append({"num_envs": size, "n_steps": steps, "graphs": graphs, **found.get("r2dn", found)})
    return rows


def jax(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    if importlib.util.find_spec("jax") is None or importlib.util.find_spec("optax") is None:
        raise SkippedError("jax and optax are not installed (the extra `peers`)")
    return [{"num_envs": size, **tried(lambda: peer(device, size))} for size in ((8,) if tiny else (4096, 65536))]  # noqa: B023


def peer(device: torch.device, size: int) -> dict[str, Any]:
    """Return what JAX's loop says of each of three updates, with the seconds of the wall until it did."""
    # A JAX without CUDA ends with its reason, and is not timed on the CPU.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu" if device.type == "cpu" else "cuda"}
    began, said = time.perf_counter(), []
    with subprocess.Popen(
        [sys.executable, "-c", JAX.format(envs=size)], cwd=Path(__file__).parent / "peers", env=environment,
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            compiled = json.loads(process.stdout.readline() or "{}")
            compiled["seconds"] = rounded(time.perf_counter() - began, 4)
            for _ in range(3):
                began = time.perf_counter()
                process.stdin.write("\n")
                process.stdin.flush()
                row = json.loads(process.stdout.readline() or "{}")
                wall = time.perf_counter() - began
                said.append({**row, "seconds": rounded(wall, 4), "steps_per_second": rounded(row["steps"] / wall, 4)})
        except (KeyError, BrokenPipeError) as error:
            raise SkippedError("JAX's loop ended before it was done; its reason stands above") from error
        finally:
            process.kill()
    return {"compiled": compiled, "updates": said}


def jax_cells(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    with Peer(device) as process:
        return [
            {"name": size.name, **tried(lambda: beside(process, size, device, 0.01 if tiny else 1))}  # noqa: B023
            for size in cell_sizes(tiny)
        ]


def policy_on(device: torch.device) -> DeployedPolicy:
    torch.manual_seed(0)
    space = gymnasium.spec(PENDULUM).make().observation_space
    actor = Actor(
        ScaledCell(R2DN(3, 8, 1, 16, (16, 16), guarantee=Lipschitz(4.0)), Scaling(3)), MeanHead(1, 1, False, 1.0)
    )
    return DeployedPolicy(actor, space, spaces.Box(-2.0, 2.0, (1,))).to(device)


def attacks(device: torch.device, tiny: bool) -> list[dict[str, Any]]:
    policy, rows = policy_on(device), []
    count, steps = (2, 4) if tiny else (1024, 200)
    for name in ("random", "mad_pgd", "sequence_pgd", "closed_loop_pgd"):

        def attacked(name: str = name) -> float:
            began = waited(device)
            played = run_episodes(policy, PENDULUM, name, [0.1], count, 0, max_steps=steps)
            assert np.isfinite(played.returns).all()
            return rounded(count * steps / (waited(device) - began), 4)

        rows.append({"name": name, "episodes": count, "steps": steps, "steps_per_second": tried(attacked)})

    def smoothed() -> float:
        began, episodes = waited(device), 100 if tiny else 4096
        smoothed_return(policy, PENDULUM, 0.1, [0.05], episodes, 0.9, max_steps=steps)
        return rounded(2 * episodes * steps / (waited(device) - began), 4)

    rows.append({"name": "smoothing", "steps": steps, "steps_per_second": tried(smoothed)})
    return rows


PARTS: dict[str, Callable[[torch.device, bool], list[dict[str, Any]]]] = {
    "envs": envs, "mujoco": mujoco, "cells": cells, "training": training, "jax": jax, "jax_cells": jax_cells,
    "attacks": attacks,
}  # fmt: skip


def late(*_: object) -> None:
    raise SkippedError("its time was over")


def part(name: str, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Return the rows of a part with what it took, or why there are none."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    signal.signal(signal.SIGALRM, late)
    _over["at"] = time.monotonic() + LIMITS[name]
    # Whoever is interrupted says so in its row; the rows after it are not begun.
    signal.alarm(LIMITS[name])
    try:
        rows = tried(lambda: PARTS[name](device, tiny))
    finally:
        signal.alarm(0)
        _over["at"] = math.inf
    found: dict[str, Any] = rows if isinstance(rows, dict) else {"rows": rows}
    found["seconds"] = rounded(time.perf_counter() - began, 3)
    if device.type == "cuda":
        found["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small sizes: whether it runs, not how fast")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(0, f"Nothing was measured: PyTorch {torch.__version__} sees no CUDA device.\n")
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "tiny": arguments.tiny,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
    }
    for name in arguments.parts:
        report[name] = part(name, device, arguments.tiny)
        print(name, json.dumps(report[name]), flush=True)
        if arguments.output:
            write_json(arguments.output, report)


if __name__ == "__main__":
    main()
