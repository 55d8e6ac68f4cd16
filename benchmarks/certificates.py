"""CPU seconds of proofs on one thread, and the proven gains, of untrained models of several sizes.

Run `python benchmarks/certificates.py [--repeats N] [--output FILE.json]`.

`given P` is the proof alone, with the metric that the cell's parametrization has; `verify` also computes that metric
and the bounds of phi's layers; `least gain` searches all metrics and multipliers for the chain's smallest gain.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_policies.certificates import verify, verify_arrays, verify_chain
from robust_policies.certificates.layers import layers_bound, norm_product
from robust_policies.certificates.lmi import matrices
from robust_policies.certificates.multipliers import LipschitzMultiplier, SlopeMultiplier
from robust_policies.networks import R2DN, REN, Cell, Lipschitz, make_cell

GAMMA = 3.0
CELLS = (("r2dn", 16, 32), ("r2dn", 24, 64), ("r2dn", 32, 128), ("r2dn", 64, 256), ("ren", 16, 32), ("ren", 64, 256))
PERCEPTRONS = ((32, 32), (64, 64), (128, 128))
NAMES = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")
LARGEST_SEARCH = 24


def cpu_seconds(repeats: int, run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the median CPU time of `run()` and what it returned last."""
    times, result = [], None
    for _ in range(repeats):
        begin = time.process_time()
        result = run()
        times.append(time.process_time() - begin)
    return statistics.median(times), result


def recurrent(kind: str, nx: int, nv: int, repeats: int) -> dict[str, Any]:
    """Return one row about an R2DN or REN in float32 with 8 inputs, 4 outputs and a designed gain."""
    torch.manual_seed(0)
    cell: Cell
    if kind == "r2dn":
        cell = R2DN(8, nx, 4, features=nv, hidden_sizes=(nv, nv), guarantee=Lipschitz(GAMMA))
    else:
        cell = REN(8, nx, 4, features=nv, guarantee=Lipschitz(GAMMA))
    explicit: Any = cell.explicit()
    arrays = [getattr(explicit, name).detach().double().numpy() for name in NAMES]
    model = matrices(*arrays, D11=explicit.D11.detach().double().numpy() if isinstance(cell, REN) else None)
    P = cell.metric().numpy()
    family = SlopeMultiplier(nv) if isinstance(cell, REN) else LipschitzMultiplier(nv, layers_bound(explicit.layers))
    theta = cell.multiplier().numpy() if isinstance(cell, REN) else np.ones(1)
    given, proof = cpu_seconds(
        repeats, lambda: verify_arrays(model, rate=1.0, gamma=GAMMA, family=family, P=P, theta=theta)
    )
    whole, found = cpu_seconds(repeats, lambda: verify(cell))
    row = {"model": f"{kind} nx{nx} nv{nv}", "status": proof.status, "gain": found.gamma, "given P [s]": given,
           "verify [s]": whole}  # fmt: skip
    if nx <= LARGEST_SEARCH:
        seconds, least = cpu_seconds(1, lambda: verify_chain(cell, inputs=np.ones(8), outputs=np.ones(4)))
        row |= {"least gain": least, "least gain [s]": seconds}
    return row


def perceptron(hidden: tuple[int, ...]) -> dict[str, Any]:
    """Return one row about a tanh perceptron with 8 inputs and 4 outputs, as torch initialises it."""
    torch.manual_seed(0)
    cell = make_cell("mlp", 8, 4, hidden_sizes=hidden)
    seconds, found = cpu_seconds(1, lambda: verify(cell))
    with torch.no_grad():
        product = norm_product([weight.detach().double().numpy() for weight in cell.explicit().weights])
    name = "mlp " + "x".join(map(str, hidden))
    return {"model": name, "status": found.status, "gain": found.gamma, "product of norms": product,
            "verify [s]": seconds}  # fmt: skip


def main() -> None:
    """Measure and print, and write the JSON file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [recurrent(*cell, options.repeats) for cell in CELLS] + [perceptron(hidden) for hidden in PERCEPTRONS]
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.output is not None:
        content = {
            "command": f"OMP_NUM_THREADS=1 python benchmarks/certificates.py --repeats {options.repeats}",
            "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "rows": rows,
        }  # fmt: skip
        options.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
