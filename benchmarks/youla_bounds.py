"""The gain of random closed loops with a Youla parameter: three upper bounds and what a search finds below them.

Plants with 1 to 4 states, 1 to 3 inputs and outputs, spectral radius 0.5 to 1.2, random LQG weights; the Youla
parameter is a random R2DN (3 states, 4 neurons, hidden 8, ReLU) of gain gQ between normalised signals. B1 is the
triangle bound, B2 the D-scaled one, B3 that of the closed loop's own matrices. The semidefinite programs are a second
way to B2 and B3. Run `python benchmarks/youla_bounds.py [--plants N] [--output FILE.json]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from robust_policies.certificates import empirical_gain
from robust_policies.control import youla
from robust_policies.control.closed_loop import ClosedLoop
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign, design
from robust_policies.control.semidefinite import least_gain
from robust_policies.networks import R2DN, Lipschitz

GAINS = (0.5, 2.0, 5.0)


def random_loop(seed: int) -> tuple[LinearModel, LQGDesign]:
    rng = np.random.default_rng(seed)
    n, m, p = rng.integers(1, 5), rng.integers(1, 4), rng.integers(1, 4)
    A, B, C = rng.normal(size=(n, n)), rng.normal(size=(n, m)), rng.normal(size=(p, n))
    A *= rng.uniform(0.5, 1.2) / np.abs(np.linalg.eigvals(A)).max()
    roots = (rng.normal(size=(size, size)) for size in (n, m, n, p))
    Q, R, W, V = (root @ root.T + 0.3 * np.eye(len(root)) for root in roots)
    model = LinearModel(A, B, C)
    return model, design(model, Q, R, W, V, "current" if seed % 2 else "predictor")


def measure(seed: int) -> dict[str, object]:
    model, gains = random_loop(seed)
    gain = GAINS[seed % len(GAINS)]
    torch.manual_seed(seed)
    cell = R2DN(model.p, 3, model.m, 4, (8,), guarantee=Lipschitz(gain), rate=0.95).double()
    q, ell = youla.parameter_matrices(cell)
    scales = youla.normalisation(gains, model)
    start = time.process_time()
    bounds = youla.bounds(model, gains, gain, q=q, ell=ell, scales=scales)
    seconds = time.process_time() - start
    loop = ClosedLoop(model, gains, cell, scales)
    found = empirical_gain(loop, steps=40, seed=seed, batch=6, power_iterations=10, adam_iterations=20)
    closed = bounds.closed_loop
    assert closed is not None
    return {
        "seed": seed, "gQ": gain, "T0": bounds.T0.gain, "B1": bounds.triangle.gain, "B2": bounds.scaled.gain,
        "B3": closed.gain, "found": found.gain, "seconds": seconds,
        "proven": bounds.triangle.proven and bounds.scaled.proven and closed.proven,
        "B3_by_sdp": least_gain(loop.matrices, ell),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plants", type=int, default=100)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    records = []
    for seed in range(arguments.plants):
        records.append(measure(seed))
        print(json.dumps(records[-1]), flush=True)
    columns = {name: np.array([record[name] for record in records]) for name in records[0]}
    ordered = (columns["found"] <= columns["B3"] * (1 + 1e-9)) & (columns["B3"] <= columns["B2"] * (1 + 1e-5))
    ordered &= columns["B2"] <= columns["B1"] * (1 + 1e-5)
    summary = {
        "plants": len(records),
        "ordered": int(ordered.sum()),
        "proven": int(columns["proven"].sum()),
        "median found / B3": float(np.median(columns["found"] / columns["B3"])),
        "median B3 / B2": float(np.median(columns["B3"] / columns["B2"])),
        "median B2 / B1": float(np.median(columns["B2"] / columns["B1"])),
        "largest |B3 by sdp / B3 - 1|": float(np.abs(columns["B3_by_sdp"] / columns["B3"] - 1).max()),
        "median CPU seconds of the bounds": float(np.median(columns["seconds"])),
        "machine": platform.machine(),
    }
    print(json.dumps(summary, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps({"summary": summary, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
