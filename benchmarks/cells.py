"""Time every cell against torch.nn.LSTM and GRU of equal parameter count: medians of the CPU time of one thread.

Run `python benchmarks/cells.py [--repeats N] [--output FILE.json]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies.networks import L2RU, R2DN, REN, Cell, Lipschitz, NemonCell, make_cell


@dataclass(frozen=True)
class Size:
    """One row of the comparison: shapes of the R2DN and of the data."""

    name: str
    state: int
    features: int
    hidden: tuple[int, ...]
    time: int
    batch: int
    inputs: int = 3
    outputs: int = 2


SIZES = (
    Size("nx10 nv100 4x140", 10, 100, (140,) * 4, 200, 64),
    Size("nx75 nv75 3x87", 75, 75, (87,) * 3, 256, 64),
    Size("nx8 nv16 2x16", 8, 16, (16,) * 2, 128, 8),
    Size("long nx16 nv16 2x16", 16, 16, (16,) * 2, 128, 1),
    Size("long nx16 nv16 2x16", 16, 16, (16,) * 2, 1024, 1),
    Size("long nx16 nv16 2x16", 16, 16, (16,) * 2, 8192, 1),
    Size("nx8 nv16 2x16", 8, 16, (16,) * 2, 128, 64),
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def recurrent_of_equal_size(kind: type[nn.LSTM] | type[nn.GRU], inputs: int, target: int) -> nn.RNNBase:
    """Return the single-layer recurrent network whose parameter count is closest to `target`."""
    gates = 4 if kind is nn.LSTM else 3
    hidden = min(range(1, 2000), key=lambda h: abs(gates * h * (h + inputs + 2) - target))
    return kind(inputs, hidden)


def per_step(cell: Cell) -> Callable[[Tensor], Tensor]:
    return lambda u: cell.unroll(cell.explicit(), u, cell.initial_state(u.shape[1]), None)[0]


def contenders(size: Size, ren: bool) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    shape = (size.inputs, size.state, size.outputs, size.features)
    contracting = R2DN(*shape, size.hidden)
    cells: dict[str, Cell] = {
        "R2DN": contracting,
        "R2DN Lipschitz": R2DN(*shape, size.hidden, guarantee=Lipschitz(2.0)),
    }
    if ren:
        cells["REN"] = REN(*shape)
    if size.state % 4 == 0:
        cells["nemon"] = NemonCell(*shape)
        cells["L2RU"] = L2RU(*shape)
        for name in ("convex", "lipschitz_rnn"):
            cells[name] = make_cell(name, size.inputs, size.outputs, state_size=size.state)
    found: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {}
    for name, cell in cells.items():
        found[name] = (cell, lambda u, cell=cell: cell(u)[0])
        if not size.name.startswith("long"):
            found[f"{name}, step by step"] = (cell, per_step(cell))
    for kind in (nn.LSTM, nn.GRU):
        core = recurrent_of_equal_size(kind, size.inputs, count(contracting))
        found[f"torch {kind.__name__}"] = (core, lambda u, core=core: core(u)[0])
    return found


def measure(size: Size, repeats: int, ren: bool, named: Sequence[str] = ()) -> list[dict[str, float | str]]:
    """Return one record a contender, of those that are `named` if any: medians in ms and ratios to the LSTM's."""
    torch.manual_seed(0)
    inputs = torch.randn(size.time, size.batch, size.inputs)
    networks = contenders(size, ren)
    if named:
        networks = {name: one for name, one in networks.items() if name.split(",")[0] in (*named, "torch LSTM")}
    forward: dict[str, list[float]] = {name: [] for name in networks}
    both: dict[str, list[float]] = {name: [] for name in networks}
    for repeat in range(repeats + 1):
        for name, (module, call) in networks.items():
            with torch.no_grad():
                begin = time.process_time()
                call(inputs)
                middle = time.process_time()
            call(inputs).square().mean().backward()
            end = time.process_time()
            module.zero_grad()
            if repeat:
                forward[name].append(1e3 * (middle - begin))
                both[name].append(1e3 * (end - middle))
    base_forward = statistics.median(forward["torch LSTM"])
    base_both = statistics.median(both["torch LSTM"])
    records: list[dict[str, float | str]] = []
    for name, (module, _) in networks.items():
        f, b = statistics.median(forward[name]), statistics.median(both[name])
        record = {"network": name, "parameters": count(module), "forward_ms": f, "forward_ratio": f / base_forward}
        records.append({**record, "forward_backward_ms": b, "forward_backward_ratio": b / base_both})
    return records


def merged(kept: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return the tables that are kept with the rows found in place of theirs; the LSTM's row stays."""
    for size, records in found.items():
        new = {row["network"]: row for row in records if row["network"] != "torch LSTM"}
        old = [row for row in kept.get(size, []) if row["network"] not in new]
        kept[size] = [*old, *new.values()]
    return kept


def main() -> None:
    """Print one table a size and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-ren", action="store_true", help="leave the REN out; it is slow at 100 neurons")
    parser.add_argument("--sizes", type=int, nargs="*", default=range(len(SIZES)), help="which sizes, by index")
    parser.add_argument("--networks", nargs="*", default=[], help="which networks, beside the LSTM; their rows replace")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = {}
    for size in (SIZES[k] for k in arguments.sizes):
        records = measure(size, arguments.repeats, not arguments.no_ren, arguments.networks)
        tables[f"{size.name}, T {size.time}, batch {size.batch}"] = records
        print(f"\n{size.name}, T {size.time}, batch {size.batch}: median of {arguments.repeats}, one thread")
        print(f"{'network':<30}{'parameters':>11}{'forward':>12}{'/LSTM':>7}{'fwd+bwd':>12}{'/LSTM':>7}")
        for r in records:
            print(
                f"{r['network']:<30}{r['parameters']:>11}{r['forward_ms']:>9.1f} ms{r['forward_ratio']:>7.2f}"
                f"{r['forward_backward_ms']:>9.1f} ms{r['forward_backward_ratio']:>7.2f}"
            )
    if arguments.output:
        if arguments.networks and arguments.output.is_file():
            tables = merged(json.loads(arguments.output.read_text())["sizes"], tables)
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
        arguments.output.write_text(json.dumps({"machine": machine, "sizes": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
