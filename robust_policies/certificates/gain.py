"""Lower bounds of the incremental l2 gain: two input sequences that show it, in float64.

A value found is a fact about the two sequences; how far it lies below a proven bound says that the bound is loose or
the search weak, never which of the two.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies import checks
from robust_policies.certificates.files import write_atomic
from robust_policies.errors import CorruptFileError, DivergedError, MissingFileError

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GainResult:
    """The largest gain found and the two input sequences (time, nu) float64 that show it, from equal initial states."""

    gain: float
    inputs_a: np.ndarray
    inputs_b: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Return `path` after writing the witness there as npz, whole or not at all."""
        arrays = {"inputs_a": self.inputs_a, "inputs_b": self.inputs_b, "gain": np.float64(self.gain)}
        return write_atomic(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> GainResult:
        """Return the witness in `path`; raises MissingFileError, CorruptFileError."""
        if not Path(path).is_file():
            raise MissingFileError(f"{path} does not exist; expected a witness written by `certify`.")
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(float(file["gain"]), file["inputs_a"], file["inputs_b"])
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise CorruptFileError(f"{path} is not a witness ({error}); write it again with `certify`.") from error


def running_map(model: Any) -> tuple[Run, int]:
    """Return (inputs (time, batch, nu) float64 -> outputs, nu) of a cell, an actor or a policy with an actor.

    The explicit arrays are those that run, upcast exactly, not recomputed in float64.
    """
    actor = getattr(model, "actor", model)
    cell = actor.cell if hasattr(actor, "cell") else actor
    with torch.no_grad():
        explicit = _upcast(cell.explicit())
    double = copy.deepcopy(actor).to(device="cpu", dtype=torch.float64).eval().requires_grad_(False)
    if double is not actor and not hasattr(double, "cell"):

        def run_cell(inputs: Tensor) -> Tensor:
            return double.run(explicit, inputs, double.initial_state(inputs.shape[1]), None)[0]

        return run_cell, cell.input_size

    def run_actor(inputs: Tensor) -> Tensor:
        scaled = double.body.scaling(double.normalized(inputs))
        return double.head(double.cell.run(explicit, scaled, double.cell.initial_state(inputs.shape[1]), None)[0])

    return run_actor, cell.input_size


def empirical_gain(
    model: Any,
    steps: int = 50,
    seed: int = 0,
    *,
    batch: int = 32,
    power_iterations: int = 15,
    adam_iterations: int = 150,
    bases: Any = None,
    input_scale: Any = None,
) -> GainResult:
    """Return the largest incremental l2 gain over `steps` steps that a search finds for a cell, actor or policy.

    Power iteration on the linearization along base sequences (noise, steps and sinusoids of log-spaced sizes, and the
    recorded `bases` (time, n, nu) if given), Adam on base and difference for the log secant gain, power iteration.
    `input_scale` (nu,) multiplies the generated bases.

    Raises:
        DivergedError: the model's outputs are not finite.
    """
    steps, batch = checks.positive_int("steps", steps), checks.positive_int("batch", batch)
    run, nu = running_map(model)
    generator = torch.Generator().manual_seed(seed)
    base = _bases(steps, batch, nu, generator)
    if input_scale is not None:
        base = base * torch.as_tensor(np.asarray(input_scale), dtype=torch.float64)
    if bases is not None:
        recorded = torch.as_tensor(bases, dtype=torch.float64)[:steps]
        checks.shape("bases", recorded, (steps, None, nu))
        base = torch.cat((recorded, base), dim=1)
    delta = torch.randn(base.shape, generator=generator, dtype=torch.float64)
    delta = _power(run, base, delta, power_iterations)
    best = _better(run, base, delta, None)
    base, delta = _adam(run, base, delta * 0.1, adam_iterations)
    best = _better(run, base, delta, best)
    best = _better(run, base, _power(run, base, delta, power_iterations), best)
    return best


def secant_gain(model: Any, inputs_a: np.ndarray, inputs_b: np.ndarray) -> float:
    """Return |y_a - y_b| / |u_a - u_b| in float64 for two input sequences (time, nu)."""
    run, nu = running_map(model)
    pair = torch.as_tensor(np.stack([inputs_a, inputs_b], axis=1), dtype=torch.float64)
    checks.shape("inputs", pair, (None, 2, nu))
    with torch.no_grad():
        outputs = run(pair)
    difference = float((pair[:, 0] - pair[:, 1]).norm())
    return float((outputs[:, 0] - outputs[:, 1]).norm()) / difference if difference > 0 else 0.0


def _bases(steps: int, batch: int, nu: int, generator: torch.Generator) -> Tensor:
    size = torch.logspace(-2, 1.5, batch, dtype=torch.float64).reshape(1, batch, 1)
    noise = torch.randn(steps, batch, nu, generator=generator, dtype=torch.float64)
    time = torch.arange(steps, dtype=torch.float64).reshape(-1, 1, 1)
    frequency = math.pi * torch.rand(1, batch, nu, generator=generator, dtype=torch.float64)
    wave = torch.sin(frequency * time + noise[:1])
    kind = torch.arange(batch).reshape(1, batch, 1) % 3
    return size * torch.where(kind == 0, noise, torch.where(kind == 1, noise[:1].expand_as(noise), wave))


def _norm(value: Tensor) -> Tensor:
    return value.square().sum(dim=(0, 2), keepdim=True).sqrt()


def _power(run: Run, base: Tensor, delta: Tensor, iterations: int) -> Tensor:
    """Return differences (small) along the leading right singular vectors of the linearization at `base`."""
    small = 1e-4
    delta = delta / _norm(delta).clamp(min=1e-300)
    for _ in range(iterations):
        with torch.no_grad():
            tangent = (run(base + small * delta) - run(base - small * delta)) / (2 * small)
        point = base.clone().requires_grad_(True)
        (pulled,) = torch.autograd.grad(run(point), point, tangent)
        size = _norm(pulled)
        delta = torch.where(size > 1e-200, pulled / size.clamp(min=1e-300), delta)
    return small * delta


def _adam(run: Run, base: Tensor, delta: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return the bases and differences after ascending the log secant gain of each sample, the best of each kept."""
    # A difference as large as the base is where saturations and kinks can still be crossed.
    size = (0.1 * _norm(base)).clamp(min=1e-2)
    direction = (delta / _norm(delta).clamp(min=1e-300)).clone().requires_grad_(True)
    log_size = size.log().clone().requires_grad_(True)
    point = base.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([
        {"params": [point], "lr": 0.03}, {"params": [direction], "lr": 0.02}, {"params": [log_size], "lr": 0.05}
    ])  # fmt: skip
    best = torch.full_like(size, -math.inf)
    kept = base.clone(), delta.clone()
    for _ in range(iterations):
        step = direction / _norm(direction) * log_size.clamp(-12, 6).exp()
        change = run(point + 0.5 * step) - run(point - 0.5 * step)
        value = (_norm(change).clamp(min=1e-300) / _norm(step)).log()
        better = (value > best).detach()
        best = torch.where(better, value.detach(), best)
        kept = torch.where(better, point.detach(), kept[0]), torch.where(better, step.detach(), kept[1])
        optimizer.zero_grad()
        (-value.sum()).backward()
        optimizer.step()
    return kept


def _better(run: Run, base: Tensor, delta: Tensor, best: GainResult | None) -> GainResult:
    a, b = base + 0.5 * delta, base - 0.5 * delta
    with torch.no_grad():
        change = run(a) - run(b)
    if not bool(torch.isfinite(change).all()):
        raise DivergedError("The outputs are NaN or infinite for finite inputs; the network is broken, train it again.")
    gains = (_norm(change) / _norm(a - b).clamp(min=1e-300)).flatten()
    index = int(gains.argmax())
    if best is not None and best.gain >= float(gains[index]):
        return best
    return GainResult(float(gains[index]), a[:, index].numpy().copy(), b[:, index].numpy().copy())


def _upcast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    if hasattr(value, "_fields"):
        return type(value)(*(_upcast(part) for part in value))
    if isinstance(value, tuple | list):
        return tuple(_upcast(part) for part in value)
    return value
