"""One decision of a saved policy, by `robust_policies.runtime` and by the PyTorch policy, and the time to the first.

    OMP_NUM_THREADS=1 python benchmarks/predict.py DIR [--output benchmarks/predict.json] [--calls 10000]

Both are called in turns of 1,000, so that a busy machine slows both; the first calls of a turn, which find the other
side's data in the processor's caches, are not timed: calls are back to back. Times are of this process' CPU. The
first action is timed in new processes: CPU seconds from the start of Python on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.policies import load_policy
from robust_policies.runtime import load

# Calls of one side in a turn: not timed, and timed.
WARM, BLOCK = 50, 1000
FIRST = {
    "runtime": "from robust_policies.runtime import load; import numpy, sys; "
    "load(sys.argv[1]).predict(numpy.zeros(int(sys.argv[2]), 'float32'))",
    "torch": "from robust_policies.policies import load_policy; import numpy, sys; "
    "load_policy(sys.argv[1]).predict(numpy.zeros(int(sys.argv[2]), 'float32'))",
}


def calls(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Return percentiles of the microseconds of CPU time of one call of each side."""
    sides: dict[str, Any] = {"runtime": load(folder), "torch": load_policy(folder)}
    observation = np.zeros(sides["torch"].observation_space.shape, np.float32)
    times: dict[str, list[int]] = {name: [] for name in sides}
    states: dict[str, Any] = dict.fromkeys(sides)
    for _ in range(-(-count // BLOCK)):
        for name, policy in sides.items():
            for number in range(WARM + BLOCK):
                before = time.process_time_ns()
                _, states[name] = policy.predict(observation, states[name])
                if number >= WARM:
                    times[name].append(time.process_time_ns() - before)
    return {name: {f"p{q}": float(np.percentile(found, q)) / 1e3 for q in (50, 99)} for name, found in times.items()}


def first(folder: Path, name: str, size: int) -> float:
    """Return the least CPU seconds of three processes that start, load and act once."""
    found = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", FIRST[name], str(folder), str(size)], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--calls", type=int, default=10000)
    arguments = parser.parse_args()
    size = int(np.prod(load_policy(arguments.folder).observation_space.shape or ()))
    report = {
        "microseconds": calls(arguments.folder, arguments.calls),
        "first_action_seconds": {name: first(arguments.folder, name, size) for name in FIRST},
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
