"""Time runs of one long sequence in chunks side by side against the compiled scan, before and after training.

Run `OMP_NUM_THREADS=1 python benchmarks/parallel.py [--time 4096] [--updates 0 200] [--output FILE.json]`: medians of
the CPU time of one thread, in turns. The cell is trained to follow a resonant nonlinear filter; h1 is the H-infinity
norm of its linear part from phi's output to phi's input. "Loops" are those alone: the scan's, and all that 32 pieces
take; without parametrization and PyTorch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robust_policies.control.norms import StateSpace, hinf_norm
from robust_policies.networks import R2DN, Cell, Lipschitz, rows
from robust_policies.networks.parallel import Chunks
from robust_policies.networks.whole_run import arrays_of

MODES = ("scan", "chunks", "auto")
PIECES = 32


def filtered(inputs: Tensor) -> Tensor:
    """Return what the cell is to follow, (time, batch, 1) of inputs (time, batch, 1): a spring that stiffens."""
    position = speed = torch.zeros_like(inputs[0])
    found = []
    for u in inputs:
        speed = 0.98 * speed + 0.1 * (u - position - 0.3 * position**3).clamp(-3, 3)
        position = position + 0.1 * speed
        found.append(position)
    return torch.stack(found)


def trained(cell: Cell, updates: int) -> Cell:
    """Train a cell in place on sequences of 128 steps and return it."""
    optimizer = torch.optim.Adam(cell.parameters(), lr=5e-3)
    for _ in range(updates):
        inputs = torch.randn(16, 32, 1).repeat_interleave(8, 0)
        loss = (cell(inputs)[0] - filtered(inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return cell


def loop_norm(cell: R2DN) -> float:
    """Return h1."""
    e = cell.explicit64()
    A, B, C = (one.detach().numpy() for one in (e.A, e.B1, e.C1))
    return hinf_norm(StateSpace(A, B, C, np.zeros((len(C), B.shape[1]))))


def loops(cell: R2DN, inputs: Tensor, repeats: int) -> dict[str, float]:
    """Return medians of the loops alone, in milliseconds: the scan's, and all that the pieces take."""
    sizes, kind = cell.step_sizes(), rows.kind_of(cell.activation.name, np.dtype(np.float32))
    with torch.no_grad():
        F = rows.flat(*arrays_of(cell.collapsed(cell.explicit()))).numpy()
    u, x = inputs.numpy(), np.zeros((1, sizes.nx), np.float32)
    way = Chunks(PIECES, 1e-6)
    ways = {
        "scan": lambda: rows.forward(kind, sizes, F, u, x, None),
        "chunks": lambda: way.forward(kind, sizes, F, u, x, None),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3 * repeats):
        for name, run in ways.items():
            begin = time.process_time()
            run()
            found[name].append(1e3 * (time.process_time() - begin))
    return {f"{name}_loop_ms": statistics.median(values) for name, values in found.items()} | {"rounds": way.rounds}


def measure(cell: Cell, inputs: Tensor, repeats: int) -> dict[str, float]:
    """Return medians of forward and of forward and backward, in milliseconds, and what chunks differ by."""
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        scan, chunks = (cell(inputs, parallel=mode)[0] for mode in ("scan", "chunks"))
    for repeat in range(repeats + 1):
        for mode in MODES:
            begin = time.process_time()
            with torch.no_grad():
                cell(inputs, parallel=mode)
            middle = time.process_time()
            if mode == "scan" and repeat:
                with torch.no_grad():
                    cell.explicit()
                found.setdefault("arrays_ms", []).append(1e3 * (time.process_time() - middle))
                middle, begin = time.process_time(), begin + time.process_time() - middle
            cell(inputs, parallel=mode)[0].square().mean().backward()
            end = time.process_time()
            cell.zero_grad()
            if repeat:
                found.setdefault(f"{mode}_forward_ms", []).append(1e3 * (middle - begin))
                found.setdefault(f"{mode}_both_ms", []).append(1e3 * (end - middle))
    record = {name: statistics.median(values) for name, values in found.items()}
    return {**record, "difference": float((scan - chunks).abs().max() / scan.abs().max())}


def main() -> None:
    """Print one row a cell and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", type=int, nargs="*", default=[4096])
    parser.add_argument("--updates", type=int, nargs="*", default=[0, 200], help="of training before the measurement")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    print("milliseconds: scan, chunks, auto of forward, then of forward and backward; arrays; difference;")
    print("loops: scan, all runs of the pieces; how often these ran")
    for name, state, options in (
        ("long memory, rate 0.99", 8, {"rate": 0.99, "init": "long_memory"}),
        ("long memory, rate 0.999", 16, {"rate": 0.999, "init": "long_memory"}),
        ("random, gain 5, rate 0.95", 8, {"rate": 0.95, "guarantee": Lipschitz(5.0)}),
    ):
        torch.manual_seed(0)
        cell, done = R2DN(1, state, 1, features=16, hidden_sizes=(16, 16), **options), 0
        for updates in sorted(given.updates):
            trained(cell, updates - done)
            done = updates
            for steps in given.time:
                inputs = torch.randn(steps // 8, 1, 1).repeat_interleave(8, 0)
                record = measure(cell, inputs, given.repeats) | loops(cell, inputs, given.repeats)
                h1 = loop_norm(cell)
                records.append({"cell": name, "updates": updates, "time": steps, "h1": h1, **record})
                times = [f"{record[f'{mode}_{what}_ms']:8.2f}" for what in ("forward", "both") for mode in MODES]
                times += [f"{record['arrays_ms']:8.2f}  {record['difference']:.0e}"]
                times += [f"{record[f'{name}_loop_ms']:8.2f}" for name in ("scan", "chunks")]
                times.append(f"{record['rounds']:6.1f}")
                print(f"{name:26s}{updates:6d}{steps:7d}{h1:6.2f}{''.join(times)}")
    if given.output:
        given.output.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
