"""One step of an exported policy: as C, as one NumPy file and by onnxruntime, beside the runtime and PyTorch.

    OMP_NUM_THREADS=1 python benchmarks/deploy.py DIR... [--output JSON] [--calls 3000] [--episodes 10]

All are called in turns of 100, so that a busy machine slows all; times are of this process' CPU, microseconds a step.
C runs its turns in a loop of C, called once a turn. What is not installed is left out. With the package ziglang the C
file is also compiled for a Cortex-M4, and the bytes of its code and constants are stated.

Then each acts in the loop with the tasks that the run's recipe is evaluated on, from the same seeds, C as a shared
library: the mean return of each, and by how much an episode's return differs from PyTorch's at most.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.envs.batch import make_one
from robust_policies.export import export_policy, parity
from robust_policies.export.record import record
from robust_policies.policies import load_policy
from robust_policies.runtime import load
from robust_policies.train import open_run

TURN = 100
LOOP = """
#include "policy.h"
void turn(policy_state *state, const float *observation, float *action, int count)
{
    int i;
    for (i = 0; i < count; i++) {
        policy_step(state, observation, action);
    }
}
"""
CORTEX = ("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4", "-Os", "-std=c99", "-ffp-contract=off")
# Of a board's own library, of which an object file needs the declarations alone.
DECLARED = (
    "".join(f"float {name}(float x);\n" for name in ("fabsf", "tanhf", "expf", "expm1f", "log1pf", "rintf"))
    + "#define INFINITY __builtin_inff()\n"
)


def sides(folder: Path, made: Path) -> dict[str, Callable[[], Any]]:
    """Return a call of one step of each side; C's takes a whole turn."""
    running, policy = load(folder), load_policy(folder)
    program = record(running)
    observation = np.zeros((1, program.observations), np.float32)
    found: dict[str, Callable[[], Any]] = {}
    for format in ("c", "numpy", "onnx"):
        if format == "onnx" and importlib.util.find_spec("onnxruntime") is None:
            continue
        export_policy(folder, format, made / format)
    if shutil.which("cc"):
        (made / "c" / "turn.c").write_text(LOOP)
        sources = [str(made / "c" / name) for name in ("policy.c", "turn.c")]
        command = ["cc", *parity.COMPILE, "-shared", "-fPIC", *sources, "-o", str(made / "turn.so"), "-lm"]
        subprocess.run(command, check=True)
        library, number = ctypes.CDLL(str(made / "turn.so")), ctypes.c_float
        struct, action = (number * max(program.states, 1))(), (number * program.actions)()
        given = (number * program.observations)()
        found["c"] = lambda: library.turn(struct, given, action, TURN)
    for format in ("numpy", "onnx"):
        step = parity.running(format, made / format, program)[0] if (made / format).is_dir() else None
        if step is not None:
            found[format] = _held(step, observation, np.zeros((1, program.states), np.float32))
    first = np.zeros(policy.observation_space.shape or (), np.float32)
    found["runtime"], found["torch"] = _predicting(running, first), _predicting(policy, first)
    return found


def _held(step: Any, observation: np.ndarray, state: np.ndarray) -> Callable[[], None]:
    held = [state]

    def call() -> None:
        held[0] = step(observation, held[0])[1]

    return call


def _predicting(policy: Any, observation: np.ndarray) -> Callable[[], None]:
    held: list[Any] = [None]

    def call() -> None:
        held[0] = policy.predict(observation, held[0])[1]

    return call


def measured(called: dict[str, Callable[[], Any]], count: int) -> dict[str, dict[str, float]]:
    """Return percentiles over the turns of each side's mean microseconds of CPU time a step."""
    times: dict[str, list[float]] = {name: [] for name in called}
    for turn in range(count // TURN + 1):
        for name, call in called.items():
            before = time.process_time_ns()
            for _ in range(1 if name == "c" else TURN):
                call()
            # The first turn warms up.
            if turn:
                times[name].append((time.process_time_ns() - before) / 1e3 / TURN)
    return {name: {f"p{q}": float(np.percentile(found, q)) for q in (50, 99)} for name, found in times.items()}


def loops(folder: Path, made: Path, episodes: int) -> dict[str, Any]:
    """Return, by task and side, the mean return and the largest difference of an episode's from PyTorch's."""
    recipe, running = open_run(folder).read_recipe(), load(folder)
    program, players = record(running), {"torch": load_policy(folder), "runtime": running}
    steps = {format: parity.running(format, made / format, program)[0] for format in ("c", "numpy", "onnx")}
    report: dict[str, Any] = {}
    for task in recipe.evaluation.tasks or [recipe.task.id]:
        env, returns = make_one(task, recipe.task.kwargs if task == recipe.task.id else {}), {}
        for name, player in players.items():
            returns[name] = [_return(env, player.predict, None, seed) for seed in range(episodes)]
        for name, step in steps.items():
            if step is not None:
                called, start = _called(step, running, program), np.zeros((1, program.states), program.kind)
                returns[name] = [_return(env, called, start, seed) for seed in range(episodes)]
        env.close()
        exact = np.array(returns["torch"])
        report[task] = {
            name: {"mean": float(np.mean(found)), "off": float(np.abs(np.array(found) - exact).max())}
            for name, found in returns.items()
        }
    return report


def _called(step: Any, running: Any, program: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    def call(observation: Any, state: Any) -> tuple[Any, Any]:
        rows = running.observation_space.read(observation, np.dtype(np.float64))[0]
        action, state = step(rows.astype(program.kind), state)
        return np.asarray(action[0]).reshape(running.action_space.shape), state

    return call


def _return(env: Any, act: Callable[[Any, Any], tuple[Any, Any]], state: Any, seed: int) -> float:
    (observation, _), total, done = env.reset(seed=seed), 0.0, False
    while not done:
        action, state = act(observation, state)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
    return total


def cortex(folder: Path) -> dict[str, Any] | None:
    """Return the bytes of policy.c's sections for a Cortex-M4, None where ziglang or `size` is not installed."""
    if importlib.util.find_spec("ziglang") is None or not shutil.which("size"):
        return None
    (folder / "math.h").write_text(DECLARED)
    command = [sys.executable, "-m", "ziglang", "cc", *CORTEX, "-I", str(folder), "-c", str(folder / "policy.c")]
    done = subprocess.run([*command, "-o", str(folder / "policy.o")], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[0]}
    text = subprocess.run(["size", "-A", str(folder / "policy.o")], capture_output=True, text=True).stdout
    parts = [line.split() for line in text.splitlines() if line.startswith((".text", ".rodata", ".data", ".bss"))]
    sizes: dict[str, int] = {}
    for name, size, _ in parts:
        section = "." + name.split(".")[1]
        sizes[section] = sizes.get(section, 0) + int(size)
    return {"compiler": "clang of ziglang, " + " ".join(CORTEX[:4]), "bytes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--episodes", type=int, default=10)
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    for folder in arguments.folders:
        with tempfile.TemporaryDirectory() as built:
            made = Path(built)
            report[folder.name] = {"microseconds": measured(sides(folder, made), arguments.calls)}
            entry = json.loads((made / "c" / "parity.json").read_text())
            report[folder.name] |= {"cost": entry["cost"], "parity": entry["random"]}
            rounding = json.loads((made / "c" / "certificate.json").read_text()).get("rounding")
            report[folder.name] |= {"rounding_bound": rounding and rounding["bound"]}
            report[folder.name] |= {"in_the_loop": loops(folder, made, arguments.episodes)}
            report[folder.name] |= {"cortex_m4": cortex(made / "c")}
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
