"""Our R2DN beside the one in JAX (peers/jax_r2dn.py): seconds of a value and its gradients, in turns.

    python benchmarks/r2dn_beside_jax.py [--device cpu] [--sizes 0 1 2] [--seconds 5]

Both have the same contracting model, weights, inputs and loss, the sum of the squared outputs, and products of full
float32. JAX runs in a process of its own. On the CPU each has one thread; `taskset -c 0` pins both to the same core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
import torch
from cells import SIZES, Size
from sides import rounded
from torch import Tensor

from robust_policies.errors import UserError
from robust_policies.networks import R2DN
from robust_policies.networks.linalg import EPS

PEER = Path(__file__).parent / "peers" / "jax_r2dn.py"
ROUNDS = 5
THREAD = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
"""One thread for XLA."""


class PeerError(UserError):
    """The R2DN in JAX cannot run here, or gives other values."""


class Peer:
    """The process in JAX, ended with the block; it takes GPU memory only as it needs it."""

    def __init__(self, device: torch.device) -> None:
        if importlib.util.find_spec("jax") is None:
            raise PeerError("jax is not installed (the extra `peers`)")
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if device.type == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", **THREAD}
        self.process = subprocess.Popen(
            [sys.executable, str(PEER)], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.wanted = "cpu" if device.type == "cpu" else "gpu"

    def __enter__(self) -> Peer:
        try:
            self.head = self.answer()
            if self.head["platform"] != self.wanted:
                raise PeerError(f"JAX runs on {self.head['platform']} here; wanted is {self.wanted}")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def ask(self, line: str) -> dict[str, Any]:
        """Return what it answers to a line."""
        assert self.process.stdin is not None
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError as error:
            raise PeerError("JAX's R2DN has ended; its reason stands above") from error
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise PeerError("JAX's R2DN has ended; its reason stands above")
        return json.loads(line)


def made(size: Size) -> R2DN:
    """Return a contracting R2DN with random weights and biases, regularized as the published one is."""
    cell = R2DN(size.inputs, size.state, size.outputs, size.features, size.hidden, eps=EPS)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if parameter.ndim == 1 and name.split(".")[-1] not in ("p", "a"):
                parameter.normal_(std=0.1)
    return cell


def flax_named(cell: R2DN) -> dict[str, np.ndarray]:
    """Return a cell's parameters as `from_flax` and the peer name them."""
    named = {}
    for key, value in cell.named_parameters():
        inside = key.removeprefix("network.")
        name = key if inside == key else f"network/layers_{inside.replace('.', '/')}"
        named[name] = value.detach().cpu().numpy()
    return named


def ours(cell: R2DN, inputs: Tensor) -> Callable[[], Tensor]:
    """Return a call that gives the value () and makes the gradients by the parameters anew."""
    parameters = list(cell.parameters())

    def both() -> Tensor:
        value = cell(inputs)[0].square().sum()
        torch.autograd.grad(value, parameters)
        return value.detach()

    return both


def seconds_of(call: Callable[[], Tensor], count: int, device: torch.device) -> float:
    """Return the seconds a call, of `count` calls, until the device has done them."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / count


def beside(peer: Peer, size: Size, device: torch.device, seconds: float) -> dict[str, Any]:
    """Return the median milliseconds of both sides, each timed for about `seconds`, and how far their values differ."""
    torch.manual_seed(0)
    cell, inputs = made(size).to(device), torch.randn(size.time, size.batch, size.inputs)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cell.npz"
        np.savez(path, inputs=inputs.numpy(), **{f"param/{key}": value for key, value in flax_named(cell).items()})  # pyright: ignore[reportArgumentType]
        head = peer.ask(str(path))
    call = ours(cell, inputs.to(device))
    value = float(call())
    if not math.isclose(value, head["value"], rel_tol=1e-3):
        raise PeerError(f"The two give {value} and {head['value']}; expected the same to rounding")
    timings: dict[str, Callable[[int], float]] = {
        "r2dn": lambda count: seconds_of(call, count, device),
        "jax": lambda count: peer.ask(str(count))["seconds"],
    }
    counts = {}
    for name, timing in timings.items():
        timing(3)
        counts[name] = max(1, int(seconds / ROUNDS / max(timing(1), 1e-6)))
    found = [{name: timing(counts[name]) for name, timing in timings.items()} for _ in range(ROUNDS)]
    middle = {name: 1e3 * statistics.median(one[name] for one in found) for name in timings}
    return {
        "name": size.name, "time": size.time, "batch": size.batch,
        **{f"{name}_ms": rounded(one, 4) for name, one in middle.items()},
        "jax_ratio_to_r2dn": rounded(middle["jax"] / middle["r2dn"], 3),
        "jax_compile_seconds": rounded(head["compile_seconds"], 3), **peer.head,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 1, 2], help="which of cells.SIZES")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, a side and size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    with Peer(device) as peer:
        for size in (SIZES[k] for k in arguments.sizes):
            print(json.dumps(beside(peer, size, device, arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
