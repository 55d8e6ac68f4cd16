"""How many environments fit into the memory there is: measured by two small trainings in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from robust_policies.train.recipe.recipe import Recipe

# Environments of the two trainings: enough that what each needs stands out of what the libraries do.
_FEW, _MANY = 512, 4096
_SECONDS = 300.0
# Of the free memory: the rest is for what the small ones do not show.
_SHARE = 0.9
# Bytes of a step: one observation and action, the reward, value, log-probability, advantage and return.
_LEAST = 7 * 4


def said_of_fitting(recipe: Recipe, device: str) -> str:
    """Return a sentence about how many environments fit where too many were asked for, "" where that is not known.

    It takes seconds: one update with few environments and one with more are made in a process of their own, and its
    largest memory after each is read, or on a GPU what PyTorch took of its memory.
    """
    if recipe.algorithm.name not in ("tensor_ppo", "recurrent_ppo"):
        return ""
    step = max(1, (recipe.algorithm.batch_size or 0) // recipe.algorithm.n_steps)
    counts = [-(-count // step) * step for count in (_FEW, _MANY)]
    known = device.startswith("cuda") or (device == "cpu" and sys.platform == "linux")
    if recipe.task.num_envs <= counts[1] or not known:
        return ""
    command = [sys.executable, "-m", "robust_policies.train.in_memory"]
    data = json.dumps({"recipe": recipe.resolved(), "counts": counts, "device": device})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=data, text=True, capture_output=True, timeout=_SECONDS, env=environment, check=True
        )
        few, many = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return ""
    each, free = (many - few) / (counts[1] - counts[0]), available(device)
    # The libraries' own memory is taken already, by the process that asks.
    fits = int(_SHARE * free / each) // step * step if each > 0 else 0
    if fits <= 0:
        return ""
    return (
        f" About {fits} environments would fit: {free / 2**30:.3g} GiB are free and {each / 2**10:.3g} KiB each needs."
    )


def refuse_what_cannot_fit(recipe: Recipe, count: int, device: str) -> None:
    """Raise `MemoryError` where a rollout's numbers alone, of `count` environments, are more than there is.

    Without rollouts they are those of one step.

    Linux promises more memory than it has, and ends a process that uses it without a word.
    """
    least = count * getattr(recipe.algorithm, "n_steps", 1) * _LEAST
    if device == "cpu" and sys.platform == "linux" and 0 < available(device) < least:
        raise MemoryError(f"you tried to allocate {least} bytes")


def available(device: str) -> int:
    """Return the bytes of memory that could be had now: the machine's and this process' control group's, or a GPU's."""
    if device.startswith("cuda"):
        # What this process holds there is given back when it ends.
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    found = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdigit():
        found.append(int(limit[0]) - int(used[0]))
    return min(found, default=0)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
