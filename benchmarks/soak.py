"""A training of the pendulum for hours, and once more with kills: the same numbers, flat memory, a certificate.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--steps 1e9] [--kills 20] [--seed 0] [--folder results/soak]
        [--set KEY=VALUE ...] [--output benchmarks/soak.json]

Trains the recipe pendulum_r2dn_gamma6 for so many environment steps twice, each time in a process of its own. `whole`
is left alone, and the memory of its process is read all the while. `killed` is ended by SIGKILL at random points, some
seconds after a random checkpoint, and continued each time. Then:

- no weight of either is NaN or infinite;
- memory is flat: the median of the last quarter of the readings of `whole` after its first checkpoint is at most 2%
  above that of the second quarter (kernels are compiled before, and caches are full then);
- the gain of both policies is proven, and the proof holds when it is made again from the files;
- policy, optimizer, environments and random generators of the last checkpoints are the same, bit for bit.

Exit status 1 where one of these fails. What is interrupted goes on with the same command. Linux only: memory is read
from /proc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from robust_policies.evaluation import certify_run
from robust_policies.evaluation.certify import check_run
from robust_policies.files.atomic import write_json
from robust_policies.files.tensors import read_tensors
from robust_policies.train import load_recipe, train
from robust_policies.train.run.checkpoints import checkpoints_in
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.provenance import machine

RECIPE = "pendulum_r2dn_gamma6"
FLAT = 1.02
_CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def settings(steps: int, seed: int, changes: list[str]) -> list[str]:
    """Return the assignments of a soak: a checkpoint every hundredth, an evaluation every fiftieth of its steps."""
    own = {"algorithm.total_steps": steps, "checkpoints.every": steps // 100, "checkpoints.evaluate_every": steps // 50}
    return [*(f"{key}={value}" for key, value in own.items()), f"seed={seed}", *changes]


def begun(folder: Path, assignments: list[str]) -> None:
    """Train or go on, in a process made for it."""
    torch.set_num_threads(1)
    train(load_recipe(RECIPE, assignments), folder, resume=True)


def anonymous_bytes(process: int) -> int:
    """Return the memory of a process that is no file's and no other's."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/status has no RssAnon")


def steps_of(folder: Path) -> int:
    """Return the steps of the newest checkpoint."""
    found = checkpoints_in(folder / "checkpoints")
    return int(found[-1].name.removeprefix("step_")) if found else 0


def carried_on(folder: Path, assignments: list[str], watch: Callable[[BaseProcess], bool]) -> bool:
    """Train on in a process until it ends or `watch` says that it was killed; return whether it is done."""
    process = _CONTEXT.Process(target=begun, args=(folder, assignments))
    process.start()
    while process.exitcode is None:
        if watch(process):
            process.join()
            return False
        process.join(0.05)
    if process.exitcode != 0:
        raise SystemExit(f"error: the training in {folder} ended with status {process.exitcode}; see above.")
    return True


def whole(folder: Path, assignments: list[str], notes: Path) -> list[tuple[float, int]]:
    """Return readings of (seconds, bytes) of the last uninterrupted process, from its first checkpoint to the end."""
    readings: list[tuple[float, int]] = []
    began, before = time.monotonic(), steps_of(folder)

    def watch(process: BaseProcess) -> bool:
        now = time.monotonic() - began
        # A machine that has no compiled kernels compiles first.
        if steps_of(folder) == before:
            return False
        if not readings or now - readings[-1][0] > max(0.2, now / 1000):
            try:
                readings.append((now, anonymous_bytes(process.pid or 0)))
            except OSError:
                return False
        return False

    if RunFolder(folder).trained and notes.is_file():
        return [(seconds, size) for seconds, size in json.loads(notes.read_text())]
    carried_on(folder, assignments, watch)
    write_json(notes, readings)
    return readings


def killed(folder: Path, assignments: list[str], kills: int, steps: int, seed: int, notes: Path) -> list[int]:
    """Return after how many steps, of the checkpoint before, each kill came."""
    draw = random.Random(seed)
    places = sorted(draw.randrange(steps * 95 // 100) for _ in range(kills))
    done: list[int] = json.loads(notes.read_text()) if notes.is_file() else []
    if RunFolder(folder).trained:
        return done
    seen = {"steps": -1, "since": time.monotonic(), "gap": 0.0, "wait": 0.0}

    def watch(process: BaseProcess) -> bool:
        now, at = time.monotonic(), steps_of(folder)
        if at != seen["steps"]:
            # What passes before the first checkpoint is mostly the loading of libraries.
            gap = now - seen["since"] if seen["steps"] > 0 else 0.0
            seen.update(steps=at, gap=gap, since=now, wait=draw.random() * gap)
        if len(done) == kills or at < places[len(done)] or now - seen["since"] < seen["wait"]:
            return False
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            done.append(at)
            write_json(notes, done)
            return True
        return False

    while not carried_on(folder, assignments, watch):
        # The next one comes a while after the process has begun.
        seen.update(since=time.monotonic(), wait=draw.random() * seen["gap"])
    return done


def end_of(folder: Path) -> dict[str, Any]:
    """Return all that a training ends with that is a number and no time."""
    last = checkpoints_in(folder / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    progress = {name: value for name, value in state["progress"].items() if not name.endswith("seconds")}
    progress["evaluations"] = [(steps, mean) for steps, _, mean in progress["evaluations"]]
    return {
        "policy": (folder / "policy.safetensors").read_bytes(),
        "training": (last / "training.safetensors").read_bytes(),
        "random": state["random"],
        "progress": progress,
    }


def finite(folder: Path) -> bool:
    """Return whether all numbers of the last checkpoint are finite."""
    tensors = read_tensors(checkpoints_in(folder / "checkpoints")[-1] / "training.safetensors")
    return all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())


def soak(folder: Path, steps: int, kills: int, seed: int, changes: list[str]) -> dict[str, Any]:
    """Return what came of a soak in `folder`, or of going on with it."""
    if sys.platform == "linux":
        _CONTEXT.set_forkserver_preload(["soak", "robust_policies.train.runner"])
    assignments = settings(steps, seed, changes)
    folder.mkdir(parents=True, exist_ok=True)
    one, other = folder / "whole", folder / "killed"
    began = time.monotonic()
    readings = whole(one, assignments, folder / "memory.json")
    seconds = time.monotonic() - began
    places = killed(other, assignments, kills, steps, seed, folder / "kills.json")
    certificate = certify_run(one)
    proven = certificate.status == "PASS" and not check_run(one)
    quarter = max(1, len(readings) // 4)
    sizes = [size for _, size in readings] or [0]
    second, last = (statistics.median(part) for part in (sizes[quarter : 2 * quarter] or sizes, sizes[-quarter:]))
    provenance = json.loads((one / "provenance.json").read_text())
    first, then = end_of(one), end_of(other)
    return {
        "recipe": RECIPE,
        "settings": assignments,
        "steps": first["progress"]["num_timesteps"],
        "kills": places,
        "seconds_of_whole": round(seconds, 1),
        "cpu_seconds_of_whole": provenance["cpu_seconds"],
        "best_mean_return": provenance["best_mean_reward"],
        "finite": finite(one) and finite(other),
        "memory": {"readings": len(sizes), "second_quarter": second, "last_quarter": last, "largest": max(sizes)},
        "flat": 0 < last <= FLAT * second,
        "certificate": {"status": certificate.status, "gamma": certificate.gamma_raw, "confirmed": proven},
        "same": {name: first[name] == then[name] for name in first},
        "machine": machine(),
    }


def held(found: dict[str, Any], kills: int) -> bool:
    """Return whether all that a soak asks for is so."""
    same = all(found["same"].values()) and len(found["kills"]) == kills
    return same and found["finite"] and found["flat"] and found["certificate"]["confirmed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=1e9)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/soak"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    found = soak(given.folder, int(given.steps), given.kills, given.seed, given.set)
    text = json.dumps(found, indent=1)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n")
    if not held(found, given.kills):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
