"""Lower bounds of what a small error at every step does to an output: two input sequences that show it, in float64.

Along a base sequence the worst small perturbation needs no search: with g = d y_i(T) / d u, one backward pass,
u_t,l +- size units_l sign(g_t,l) / 2 changes y_i(T) by size sum |g_t,l| units_l, and no other perturbation by more, but
for the curvature. Only the last step's difference counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robust_policies.certificates.gain_search import generated_bases, input_units, running_map
from robust_policies.certificates.witness import read_witness
from robust_policies.files.atomic import write_atomic

_BASES, _TURNS = 24, 2
_SIZES = (1e-3, 1.0)


@dataclass(frozen=True)
class PeakWitness:
    """Input sequences (outputs, 2, time, nu) of which each pair changes its output at the last step, from equal states.

    `units` (nu,) is how far a pair of inputs may differ at most in units of its size, `found` (outputs,) the change of
    the output over that size.
    """

    inputs: np.ndarray
    units: np.ndarray
    found: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Return `path` after writing the witness there as npz, whole or not at all."""
        return write_atomic(path, lambda file: np.savez(file, inputs=self.inputs, units=self.units, found=self.found))

    @classmethod
    def load(cls, path: str | Path) -> PeakWitness:
        """Return the witness in `path`; raises MissingFileError, CorruptFileError."""
        return read_witness(path, lambda file: cls(file["inputs"], file["units"], file["found"]))


def peak_witness(model: Any, units: np.ndarray, steps: int = 50, seed: int = 0) -> PeakWitness:
    """Return the largest change of each output found for errors of `units` (nu,) at each of `steps` steps.

    Args:
        model: a cell, actor or policy with an actor, as for `empirical_gain`.
        units: how far each input may differ at every step.
        steps: length of the sequences.
        seed: of the base sequences.

    Raises DivergedError where the model's arrays are not finite.
    """
    running = running_map(model)
    centre, scale = input_units(model, running.input_size)
    generator = torch.Generator().manual_seed(seed)
    bases = centre + scale * generated_bases(steps, _BASES, running.input_size, generator)
    bases = torch.cat((bases, centre.expand(steps, 1, -1)), dim=1)
    reach = torch.as_tensor(np.asarray(units, dtype=np.float64))
    outputs = running.run(bases).shape[-1]
    best = [_best(running, bases, output, reach) for output in range(outputs)]
    inputs = np.stack([pair for pair, _ in best])
    return PeakWitness(inputs, np.asarray(units, dtype=np.float64), peak_secants(model, inputs, units))


def peak_secants(model: Any, inputs: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return (ny,) |y_i(T) - y'_i(T)| over the largest |u - u'| / units of pair i, less what may be rounding."""
    running = running_map(model)
    found = []
    for output, pair in enumerate(torch.as_tensor(inputs, dtype=torch.float64)):
        ends = running.run(pair.transpose(0, 1))[-1, :, output]
        size = float(((pair[0] - pair[1]).abs() / torch.as_tensor(units, dtype=torch.float64)).max())
        rounding = 1e-13 * float(ends.abs().max())
        found.append(max(0.0, float((ends[0] - ends[1]).abs()) - rounding) / size if size > 0 else 0.0)
    return np.array(found)


def _best(running: Any, bases: torch.Tensor, output: int, reach: torch.Tensor) -> tuple[np.ndarray, float]:
    """Return the pair (2, time, nu) with the largest change of one output, and that change."""
    best, pair = -1.0, np.zeros((2, *bases[:, 0].shape))
    for size in _SIZES:
        middle = bases
        for _ in range(_TURNS):
            half = 0.5 * size * reach * _signs(running, middle, output)
            ends = [running.run(middle + sign * half)[-1, :, output] for sign in (1.0, -1.0)]
            change = (ends[0] - ends[1]).abs() / size
            change = torch.where(change.isfinite(), change, 0.0)
            winner = int(change.argmax())
            if float(change[winner]) > best:
                best = float(change[winner])
                pair = torch.stack([(middle + sign * half)[:, winner] for sign in (1.0, -1.0)]).numpy()
            # The middle is judged anew where the pair's one end leads.
            middle = middle + half
    return pair, best


def _signs(running: Any, bases: torch.Tensor, output: int) -> torch.Tensor:
    inputs = bases.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(running.run(inputs)[-1, :, output].sum(), inputs)
    return torch.where(gradient >= 0, 1.0, -1.0).to(bases)
