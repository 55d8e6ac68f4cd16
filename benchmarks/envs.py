"""Environment steps per second: every task of ours, and what a user would take otherwise, measured in one run.

    OMP_NUM_THREADS=1 python benchmarks/envs.py [--device cuda] [--output benchmarks/envs.json] [--tasks pendulum]

Against ours stand Gymnasium's SyncVectorEnv of the same task (`Pendulum-v1`, `CartPole-v1`, the v5 MuJoCo tasks), its
vectorized `CartPoleVectorEnv`, and a bare `mujoco.rollout` of the same number of physics steps. Every figure is the
median of repeated timings; the sides alternate, so that a busy machine slows both. The cart-pole is timed compiled too;
`--compile` does so for every task. With `--tasks` the rows of the others stay as they are in the output file.

`--single` times single environments instead, by CPU time: ours from `gymnasium.make` (`ours_by_torch`: without the
program that takes its steps) beside Gymnasium's from `gymnasium.make`, in the same wrappers, a reset after every end.
"""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from mujoco import rollout

from robust_policies.envs import ENV_IDS, SB3VecEnv, TorchVectorEnv, load_plant
from robust_policies.files import assets

SIZES = (1, 64, 4096, 65536)
SYNC_SIZES = (1, 64)
MUJOCO = {
    "inverted_pendulum": "InvertedPendulum-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "reacher": "Reacher-v5",
    "hopper": "Hopper-v5",
    "half_cheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
}
GYMNASIUMS = {"pendulum": "Pendulum-v1", "cartpole": "CartPole-v1", **MUJOCO}
Step = Callable[[], object]
Clock = Callable[[], float]


def ours(task: str, size: int, device: str, **options: object) -> Step:
    env = TorchVectorEnv(task, size, device=device, **options)  # type: ignore[arg-type]  # options of any kind
    env.reset(seed=0)
    actions = itertools.cycle([torch.as_tensor(drawn, device=device) for drawn in drawn_actions(env)])
    return lambda: env.step(next(actions))


def drawn_actions(env: gymnasium.vector.VectorEnv) -> list[np.ndarray]:
    """Return random actions for eight steps, drawn beforehand: drawing them is not what is timed."""
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(8)]


def bridged(size: int, device: str) -> Step:
    env = SB3VecEnv(TorchVectorEnv("pendulum", size, device=device))
    env.reset()
    actions = itertools.cycle(drawn_actions(env.env))
    return lambda: env.step(next(actions))


def gymnasiums(env_id: str, size: int, mode: str) -> Step:
    env = gymnasium.make_vec(env_id, size, vectorization_mode=mode)
    env.reset(seed=0)
    actions = itertools.cycle(drawn_actions(env))
    return lambda: env.step(next(actions))


def single(env_id: str, by_torch: bool = False) -> Step:
    """Return a step of one environment, followed by a reset where an episode ends."""
    env = gymnasium.make(env_id)
    if by_torch:
        programs = vars(env.unwrapped)
        programs["_step_program"].given_up = programs["_start_program"].given_up = True
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = itertools.cycle([env.action_space.sample() for _ in range(64)])

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if terminated or truncated:
            env.reset()

    # Past the first steps and starts, which torch takes, and the traces of the others.
    for _ in range(5):
        env.reset()
    for _ in range(50):
        step()
    return step


def singles(task: str) -> dict[str, Step]:
    """Return what is timed side by side for one environment of a task."""
    ours_id = next(one for one in ENV_IDS if gymnasium.spec(one).kwargs["task"] == task)
    found = {"ours": single(ours_id), "ours_by_torch": single(ours_id, by_torch=True)}
    return found | ({"gymnasium": single(GYMNASIUMS[task])} if task in GYMNASIUMS else {})


def bare_rollout(task: str, size: int) -> Step:
    """Return the same physics steps by `mujoco.rollout` alone: no observation, reward, reset or time limit."""
    env = gymnasium.make(MUJOCO[task]).unwrapped
    model = env.model  # type: ignore[attr-defined]  # of a MuJoCo one
    data = [mujoco.MjData(model) for _ in range(torch.get_num_threads())]
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS
    start = np.zeros(mujoco.mj_stateSize(model, full))
    mujoco.mj_getState(model, data[0], start, full)
    states = np.repeat(start[None], size, 0)
    generator = np.random.default_rng(0)
    controls = np.repeat(
        generator.uniform(-1, 1, (size, 1, model.nu)) * model.actuator_ctrlrange[:, 1],
        env.frame_skip,  # type: ignore[attr-defined]  # of a MuJoCo one
        1,
    )

    def step() -> None:
        found: Any = rollout.rollout(model, data, states, controls, persistent_pool=True)[0]
        states[:] = found[:, -1]

    return step


def candidates(task: str, size: int, device: str, compiled: bool) -> dict[str, Step]:
    """Return what is timed side by side for one task and size."""
    found = {"ours": ours(task, size, device)}
    if task in MUJOCO and device == "cpu":
        found["mujoco_rollout"] = bare_rollout(task, size)
    elif task not in MUJOCO:
        found["ours_float32_state"] = ours(task, size, device, state_dtype="float32")
        if compiled or task == "cartpole":
            found["ours_compiled"] = ours(task, size, device, compile=True)
            found["ours_compiled_float32_state"] = ours(task, size, device, state_dtype="float32", compile=True)
    if task == "pendulum":
        found["sb3_bridge"] = bridged(size, device)
    if task in GYMNASIUMS and size in SYNC_SIZES:
        found["gymnasium_sync"] = gymnasiums(GYMNASIUMS[task], size, "sync")
    if task == "cartpole":
        found["gymnasium_vector"] = gymnasiums("CartPole-v1", size, "vector_entry_point")
    return found


def rates(
    found: dict[str, Step], size: int, device: str, repeats: int, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """Return the environment steps per second of each candidate: medians over `repeats` alternating timings."""

    def measure(step: Step, count: int) -> float:
        start = clock()
        for _ in range(count):
            step()
        if device != "cpu":
            torch.cuda.synchronize()
        return (clock() - start) / count

    counts = {}
    for name, step in found.items():
        measure(step, 3)
        counts[name] = max(2, int(seconds / measure(step, 2)))
    timings: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, step in found.items():
            timings[name].append(measure(step, counts[name]))
    return {name: size / statistics.median(values) for name, values in timings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tasks", nargs="+", default=assets.task_names())
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="a timing's length")
    parser.add_argument("--compile", action="store_true", help="time the compiled steps too")
    parser.add_argument("--single", action="store_true", help="time single environments instead")
    arguments = parser.parse_args()
    rows = []
    if arguments.single:
        print(f"{'task':<24} steps of one environment per CPU second")
        for task in arguments.tasks:
            rate = rates(singles(task), 1, "cpu", arguments.repeats, arguments.seconds, time.process_time)
            ratios = [f"ours / {name.removeprefix('ours_')} {rate['ours'] / rate[name]:.2f}" for name in [*rate][1:]]
            text = "  ".join(f"{name} {value:,.0f}" for name, value in rate.items())
            print(f"{task:<24} {text}  {'  '.join(ratios)}", flush=True)
        return
    print(f"{'task':<24} {'num_envs':>8}  environment steps per second")
    for task in arguments.tasks:
        physics = load_plant(task).kind == "mujoco"
        for size in arguments.sizes:
            if physics and size > 8192:
                continue
            found = candidates(task, size, arguments.device, arguments.compile)
            rate = rates(found, size, arguments.device, arguments.repeats, arguments.seconds)
            row: dict[str, object] = {"task": task, "num_envs": size}
            row |= {name: float(f"{value:.4g}") for name, value in rate.items()}
            others = [name for name in rate if not name.startswith(("ours", "sb3"))]
            for mine in (name for name in rate if name.startswith("ours")):
                ratio = f"{mine.removeprefix('ours').removeprefix('_')}_ratio_to".removeprefix("_")
                row |= {f"{ratio}_{name}": float(f"{rate[mine] / rate[name]:.3g}") for name in others}
            if "sb3_bridge" in rate:
                extra = 1e6 * (1 / rate["sb3_bridge"] - 1 / rate["ours"])
                row["bridge_extra_microseconds_per_env_step"] = float(f"{extra:.3g}")
            rows.append(row)
            text = "  ".join(f"{name} {value:,.0f}" for name, value in rate.items())
            print(f"{task:<24} {size:>8}  {text}", flush=True)
    if arguments.output:
        kept = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
        kept = [row for row in kept if row["task"] not in arguments.tasks]
        report = {
            "device": torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "gymnasium": gymnasium.__version__,
                "mujoco": mujoco.__version__,
            },
            "unit": "environment steps per second",
            "rows": sorted(kept + rows, key=lambda row: assets.task_names().index(row["task"])),
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
