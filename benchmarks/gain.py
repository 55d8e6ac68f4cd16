"""How much of a proven gain the search finds, on random Lipschitz cells, beside its parts alone.

The cells have nu = ny = 2, nx = 8, nv = 16 (R2DN: hidden 2x16), ReLU, gamma = 5; "weight scale s" is their initial draw
(Xavier normal matrices, p = |X|, zero biases) with every free parameter multiplied by e^s. The ratio is the gain found
over T = 50 steps divided by gamma. Run `python benchmarks/gain.py [--seeds N] [--output FILE.json]`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from robust_policies.certificates import empirical_gain
from robust_policies.certificates.gain_search import evaluate, generated_bases, running_map
from robust_policies.networks import R2DN, REN, Cell, Lipschitz

GAMMA, STEPS, SCALES = 5.0, 50, (0.0, 1.0, 3.0)
# Mean ratios of a search of the same kind on random RENs, at these scales.
REFERENCE = {0.0: 0.52, 1.0: 0.90, 3.0: 0.98}


def random_cell(kind: type[REN] | type[R2DN], scale: float, seed: int) -> Cell:
    torch.manual_seed(seed)
    hidden: dict[str, Any] = {"hidden_sizes": (16, 16)} if kind is R2DN else {}
    cell = kind(2, 8, 2, features=16, activation="relu", guarantee=Lipschitz(GAMMA), **hidden).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(math.exp(scale))
    return cell


def random_secants(cell: Cell, seed: int, count: int = 4096) -> float:
    """Return the largest gain of random pairs: the bases of the search, differences of log-spaced sizes."""
    generator = torch.Generator().manual_seed(seed)
    base = generated_bases(STEPS, count, cell.input_size, generator)
    size = 10 ** (-3 + 4 * torch.rand(1, count, 1, generator=generator, dtype=torch.float64))
    delta = size * torch.randn(base.shape, generator=generator, dtype=torch.float64)
    return float(evaluate(running_map(cell), base, delta).gain.max())


SEARCHES: dict[str, Callable[[Cell, int], float]] = {
    "whole search": lambda cell, seed: empirical_gain(cell, STEPS, seed).gain,
    "random secants": random_secants,
    "power iteration": lambda cell, seed: empirical_gain(cell, STEPS, seed, adam_iterations=0).gain,
    "Adam": lambda cell, seed: empirical_gain(cell, STEPS, seed, power_iterations=0).gain,
}


def measure(kind: type[REN] | type[R2DN], scale: float, seeds: int) -> list[dict[str, object]]:
    """Return one record a search: ratios of all seeds, their mean with a 95% bootstrap interval, CPU seconds."""
    ratios: dict[str, list[float]] = {name: [] for name in SEARCHES}
    seconds: dict[str, list[float]] = {name: [] for name in SEARCHES}
    for seed in range(seeds):
        cell = random_cell(kind, scale, seed)
        for name, found in SEARCHES.items():
            begin = time.process_time()
            ratios[name].append(found(cell, seed) / GAMMA)
            seconds[name].append(time.process_time() - begin)
    records: list[dict[str, object]] = []
    for name, values in ratios.items():
        interval = stats.bootstrap((values,), np.mean, rng=0, method="percentile").confidence_interval
        records.append({
            "cell": kind.name, "weight_scale": scale, "search": name, "mean": float(np.mean(values)),
            "low": float(interval.low), "high": float(interval.high), "smallest": min(values), "largest": max(values),
            "cpu_seconds": float(np.median(seconds[name])), "ratios": values,
        })  # fmt: skip
        print(f"{kind.name:5} scale {scale:g}  {name:16} {records[-1]['mean']:.3f} [{interval.low:.3f}, "
              f"{interval.high:.3f}]  {records[-1]['cpu_seconds']:.2f} s", flush=True)  # fmt: skip
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = [record for kind in (REN, R2DN) for scale in SCALES for record in measure(kind, scale, arguments.seeds)]
    content = {
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__, "seeds": arguments.seeds,
        "gamma": GAMMA, "steps": STEPS, "reference_ren": REFERENCE, "records": records,
    }  # fmt: skip
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
