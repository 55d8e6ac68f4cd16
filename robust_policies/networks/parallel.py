"""A run over time in chunks side by side, for one long sequence: the step of `row_kernels`, each chunk in SIMD lanes.

Every chunk begins at zero but the first. A contracting cell forgets where it began, so the chunks are then run again
from where those before them ended, block by block and only as long as the states still differ from those found before.
Where a memory is longer than a chunk, what differs is handed on from chunk to chunk with the
Jacobians of mean slopes: a Newton step whose error is what the slopes vary by. After as many rounds as there are
chunks the run is exact whatever the cell. Backward the adjoint at each chunk's end is found in the same way.
"""

from __future__ import annotations

import importlib
import math
import time
from functools import cache
from itertools import chain
from numbers import Real
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks import picard, rows
from robust_policies.networks.compiled import enough, fits
from robust_policies.networks.linalg import full_precision
from robust_policies.networks.program import transformed

MODES = ("auto", "chunks", "picard", "scan")
# Numbers of chunks that are tried, and calls after which costs are measured again.
_COUNTS, _AGAIN = (16, 32, 64), 512
# Numbers of the Jacobians of all chunks above which "auto" does not try so many.
_MOST = 2**22
# Chunks are chosen where they take less than this share of the scan's time.
_CLEARLY = 0.9
Array = np.ndarray


class _Choice:
    """What was chosen for sequences of one kind, None for the scan, and how often it was used."""

    def __init__(self, chunks: int | None) -> None:
        self.chunks, self.used = chunks, 0


_CHOSEN: WeakKeyDictionary[nn.Module, dict[Any, _Choice]] = WeakKeyDictionary()


def checked_mode(mode: Any, tolerance: Any) -> str:
    """Return `mode`, one of `MODES`; raises UnknownNameError, and InvalidValueError for a tolerance below rounding."""
    if mode not in MODES:
        raise UnknownNameError.among("parallel", str(mode), MODES)
    if not isinstance(tolerance, Real) or not 1e-15 <= float(tolerance) < 1:
        raise InvalidValueError(f"tolerance is {tolerance!r}; expected a number in [1e-15, 1), relative to the states.")
    return mode


def parallel_run(cell: Any, mode: str, tolerance: float, *given: Any) -> tuple[Tensor, Tensor]:
    """Return (outputs (time, batch, ny), final state (batch, nx)) of a cell by chunks side by side, or by the scan.

    Args:
        cell: whose choices are kept; its `step_sizes` say whether it has chunks, its `run_now` runs.
        mode: "chunks"; "picard", that of `picard.run`; "scan"; or "auto", chunks where they are measured to be faster
            than the scan, by CPU time of what is asked (with the gradient where there is one).
        tolerance: by how much states may differ from the scan's, relative to the largest; rounding is added.
        given: inputs (time, batch, nu), state (batch, nx), starts (time, batch) bool or None.

    Raises:
        InvalidValueError: "chunks" of a cell or of inputs that the compiled loop does not take, "picard" of a cell
            whose neurons are not in layers.
    """
    if mode == "picard":
        return _picard(cell, tolerance, *given)
    possible = mode != "scan" and _fits(cell, *given[:2])
    if mode == "chunks" and not possible:
        raise InvalidValueError(_why_not(cell, given[0]))
    if not possible:
        return cell.run_now(*given)
    if mode == "chunks":
        return cell.run_now(*given, Chunks(_COUNTS[1], tolerance))
    inputs, _, starts = given
    kept = _CHOSEN.setdefault(cell, {})
    key = (*inputs.shape, inputs.dtype, starts is None, torch.is_grad_enabled(), tolerance)
    choice = kept.get(key)
    if choice is None or choice.used >= _AGAIN:
        choice = kept[key] = _Choice(_fastest(cell, tolerance, *given))
    choice.used += 1
    return cell.run_now(*given, rows if choice.chunks is None else Chunks(choice.chunks, tolerance))


def _why_not(cell: Any, inputs: Tensor) -> str:
    """Return what chunks need that a cell with inputs (time, batch, nu) may lack."""
    (time, batch, _), sizes = inputs.shape, cell.step_sizes()
    what = "without such a run" if sizes is None else f"with {cell.activation.name}"
    return (
        f"parallel='chunks' was asked of a {cell.name!r} {what}, {time} steps of {batch} sequences; it needs an R2DN "
        f"or a REN of small widths without elu or softplus, at least {2 * _COUNTS[0]} steps and {enough(inputs.dtype)} "
        "of all sequences together, the CPU and the extra `fast`; use parallel='auto', which takes the scan elsewhere."
    )


def _picard(cell: Any, tolerance: float, *given: Any) -> tuple[Tensor, Tensor]:
    sizes = cell.step_sizes()
    if sizes is None or sizes.serial:
        raise InvalidValueError("parallel='picard' needs an R2DN, whose neurons are in layers; use parallel='auto'.")
    inputs, state, starts = given
    with full_precision(inputs):
        step = cell.collapsed(cell.explicit())
        return picard.run(cell.activation.name, step, inputs, state, starts, tolerance)


def _fits(cell: Any, inputs: Tensor, state: Tensor) -> bool:
    sizes = cell.step_sizes()
    if sizes is None or not sizes.fit() or len(inputs) < 2 * _COUNTS[0] or not fits(inputs):
        return False
    dtype = str(inputs.dtype).removeprefix("torch.")
    return rows.works(cell.activation.name, dtype) and not transformed(chain((inputs, state), cell.parameters()))


def _fastest(cell: Any, tolerance: float, inputs: Tensor, state: Tensor, starts: Tensor | None) -> int | None:
    """Return the number of chunks that is clearly faster than the scan, None if none is, the arrays' time included."""
    inputs = inputs.detach().requires_grad_(torch.is_grad_enabled())
    asked = [inputs, *(one for one in cell.parameters() if one.requires_grad)]
    jacobians = inputs.shape[1] * state.shape[1] ** 2
    counts = [count for count in _COUNTS if len(inputs) >= 2 * count and count * jacobians <= _MOST]
    if not counts:
        return None
    found: dict[int | None, float] = {}
    for _ in range(3):
        for count in (None, *counts):
            begin = time.process_time()
            way = rows if count is None else Chunks(count, tolerance)
            outputs = cell.run_now(inputs, state, starts, way)[0]
            if outputs.requires_grad:
                torch.autograd.grad(outputs.sum(), asked, allow_unused=True)
            found[count] = min(found.get(count, float("inf")), time.process_time() - begin)
    best = min(counts, key=lambda count: found[count])
    return best if found[best] < _CLEARLY * found[None] else None


@cache
def _chunk_kernels() -> Any:
    """Return the module of the loops, which loads numba."""
    return importlib.import_module("robust_policies.networks.chunk_kernels")


def _limit(tolerance: float, dtype: np.dtype) -> Any:
    """Return what does not count of a state or an adjoint of size 1."""
    return dtype.type(max(tolerance / 4, 8 * float(np.finfo(dtype).eps)))


def _aligned(dtype: np.dtype, *shape: int) -> Array:
    """Return an array of a shape that begins with a line of the cache, which wide registers are loaded from."""
    line, count = 64 // dtype.itemsize, math.prod(shape)
    numbers = np.empty(count + line, dtype)
    first = -(numbers.ctypes.data // dtype.itemsize) % line
    return numbers[first : first + count].reshape(shape)


class Chunks:
    """A run in chunks side by side: its `forward` and `backward`, with the arguments of those of `rows`.

    Args:
        count: of chunks, a multiple of 16; steps beyond whole ones come first.
        tolerance: by how much states may differ from the scan's, relative to the largest; rounding is added.

    Attributes:
        rounds: how often the last `forward` ran the chunks, a part of their steps as that part.
    """

    def __init__(self, count: int, tolerance: float) -> None:
        self.count, self.tolerance, self.rounds = count, tolerance, 0.0

    def forward(
        self, kind: int, sizes: rows.Sizes, F: Array, inputs: Array, state: Array, keep: Array | None
    ) -> tuple[Array, Array, Any]:
        """Return outputs (time, batch, ny), the final state (batch, nx) and what `backward` needs, as `rows.forward`.

        Inputs are (time, batch, nu), F (numbers,), keep (time, batch) or None.
        """
        first, begun, before = len(inputs) % self.count, None, None
        if first:
            some = None if keep is None else keep[:first]
            before, state, begun = rows.forward(kind, sizes, F, inputs[:first], state, some)
            inputs, keep = inputs[first:], None if keep is None else keep[first:]
        (nu, nx, ny, widths, _), (length, batch, _) = sizes, inputs.shape
        steps, lanes, inner = length // self.count, self.count * batch, sum(widths[:-1])
        Z = _aligned(F.dtype, steps + 1, inner + nu + nx + widths[-1], lanes)
        self._split(Z[:steps, inner : inner + nu])[...] = inputs.reshape(self.count, steps, batch, nu)
        x = Z[:, inner + nu : inner + nu + nx]
        x[0], x[0, :, :batch] = 0, state.T
        kept = np.empty(0, np.bool_) if keep is None else keep.reshape(self.count, steps, batch).swapaxes(0, 1).ravel()
        given = kind, kept, steps, lanes, batch, nu, nx, ny, np.array(widths), F, Z.reshape(-1)
        Y, M, self.rounds = _chunk_kernels().forward(*given, _limit(self.tolerance, F.dtype))
        outputs = self._split(Y.reshape(steps, ny, lanes)).reshape(length, batch, ny)
        if before is not None:
            outputs = np.concatenate((before, outputs))
        return outputs, x[-1, :, lanes - batch :].T.copy(), (begun, given, M)

    def backward(self, kept: Any, outputs: Array, final: Array, asked: bool) -> tuple[Array | None, Array, Array]:
        """Return the gradients of inputs (time, batch, nu) if `asked`, of the state and of F, as `rows.backward`.

        `outputs` (time, batch, ny) and `final` (batch, nx) are the gradients of what `forward` returned, with `kept`.
        """
        begun, given, M = kept
        _, _, steps, lanes, batch, nu, nx, ny, widths, F, _ = given
        first, above = len(outputs) - self.count * steps, sum(widths[1:])
        D = _aligned(F.dtype, steps + 1, above + nx + ny + widths[0], lanes)
        slopes = self._split(D[1:, above + nx : above + nx + ny])
        slopes[...] = outputs[first:].reshape(self.count, steps, batch, ny)
        x = D[:, above : above + nx]
        x[-1], x[-1, :, lanes - batch :] = 0, final.T
        found, by_F = np.empty((steps, nu, lanes) if asked else (0, nu, lanes), F.dtype), np.zeros_like(F)
        limit = _limit(self.tolerance, F.dtype)
        _chunk_kernels().backward(*given, M, limit, D.reshape(-1), found.reshape(-1), by_F)
        by_inputs = self._split(found).reshape(-1, batch, nu) if asked else None
        by_state = x[0, :, :batch].T.copy()
        if begun is None:
            return by_inputs, by_state, by_F
        before, by_state, also = rows.backward(begun, outputs[:first], by_state, asked)
        both = None if before is None or by_inputs is None else np.concatenate((before, by_inputs))
        return both, by_state, by_F + also

    def _split(self, values: Array) -> Array:
        """Return a view (chunks, steps, batch, n) of values (steps, n, chunks * batch)."""
        steps, n, lanes = values.shape
        return values.reshape(steps, n, self.count, lanes // self.count).transpose(2, 0, 3, 1)
