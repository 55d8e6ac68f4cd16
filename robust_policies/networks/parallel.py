"""A run over time in chunks side by side, for one long sequence: the loop of `row_kernels`, each chunk a sample.

Every chunk begins at zero but the first. A contracting cell forgets where it began, so the chunks are then run again
from where those before them ended, block by block and only as long as the states still differ from those found before.
Where a memory is longer than a chunk, what differs is handed on from chunk to chunk with the
Jacobians of mean slopes: a Newton step whose error is what the slopes vary by. After as many rounds as there are
chunks the run is exact whatever the cell. Backward the adjoint at each chunk's end is found in the same way, by a loop
for it alone; gradients of arrays and inputs are then one pass.
"""

from __future__ import annotations

import importlib
import time
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks import picard, rows
from robust_policies.networks.compiled import fits
from robust_policies.networks.linalg import full_precision
from robust_policies.networks.program import transformed

MODES = ("auto", "chunks", "picard", "scan")
# Numbers of chunks that are tried, steps of a block, and calls after which costs are measured again.
_COUNTS, _BLOCK, _AGAIN = (16, 32, 64), 16, 512
# Chunks are chosen where they take less than this share of the scan's time.
_CLEARLY = 0.9
Array = np.ndarray


class _Choice:
    """What was chosen for sequences of one kind, None for the scan, and how often it was used."""

    def __init__(self, chunks: int | None) -> None:
        self.chunks, self.used = chunks, 0


_CHOSEN: WeakKeyDictionary[nn.Module, dict[Any, _Choice]] = WeakKeyDictionary()


def checked_mode(mode: Any, tolerance: float) -> str:
    """Return `mode`, one of `MODES`; raises UnknownNameError, and InvalidValueError for a tolerance below rounding."""
    if mode not in MODES:
        raise UnknownNameError.among("parallel", str(mode), MODES)
    if not 1e-15 <= tolerance < 1:
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
        raise InvalidValueError(
            "parallel='chunks' needs the extra `fast`, a cell of small widths on the CPU and at least "
            f"{2 * _COUNTS[0]} steps; use parallel='auto', which takes the scan elsewhere."
        )
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
    return rows.works(cell.activation.name, dtype) and not transformed((inputs, state, *cell.parameters()))


def _fastest(cell: Any, tolerance: float, inputs: Tensor, state: Tensor, starts: Tensor | None) -> int | None:
    """Return the number of chunks that is clearly faster than the scan, None if none is, the arrays' time included."""
    inputs = inputs.detach().requires_grad_(torch.is_grad_enabled())
    asked = [inputs, *(one for one in cell.parameters() if one.requires_grad)]
    counts = [count for count in _COUNTS if len(inputs) >= 2 * count]
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


def _side_by_side(values: Array, chunks: int, to: Array | None = None) -> Array:
    """Return (time, batch, n) as (time / chunks, chunks * batch, n), put `to` an array where there is one."""
    time, batch, n = values.shape
    split = values.reshape(chunks, time // chunks, batch, n).swapaxes(0, 1)
    if to is None:
        return np.ascontiguousarray(split).reshape(time // chunks, chunks * batch, n)
    to.reshape(time // chunks, chunks, batch, -1)[..., :n] = split
    return to


def _in_a_row(values: Array, chunks: int) -> Array:
    """Return (time / chunks, chunks * batch, n) as (time, batch, n)."""
    steps, lanes, n = values.shape
    split = values.reshape(steps, chunks, lanes // chunks, n).swapaxes(0, 1)
    return np.ascontiguousarray(split).reshape(chunks * steps, lanes // chunks, n)


@cache
def _chunk_kernels() -> Any:
    """Return the module of what is not a run, which loads numba."""
    return importlib.import_module("robust_policies.networks.chunk_kernels")


def _limit(tolerance: float, dtype: np.dtype) -> float:
    """Return what does not count of a state or an adjoint of size 1."""
    return max(tolerance / 4, 8 * float(np.finfo(dtype).eps))


def _largest(values: Array) -> float:
    return max(float(values.max()), -float(values.min()))


def _blocks(steps: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + _BLOCK, steps)) for begin in range(0, steps, _BLOCK)]


class Chunks:
    """The run of `rows` in chunks side by side: its `forward` and `backward`, with the same arguments.

    Args:
        count: of chunks; steps beyond whole ones come first.
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
        first, begun = len(inputs) % self.count, None
        if first:
            some = None if keep is None else keep[:first]
            outputs, state, begun = rows.forward(kind, sizes, F, inputs[:first], state, some)
            inputs, keep = inputs[first:], None if keep is None else keep[first:]
            more, final, kept = self._forward(kind, sizes, F, inputs, state, keep)
            return np.concatenate((outputs, more)), final, (begun, kept)
        outputs, final, kept = self._forward(kind, sizes, F, inputs, state, keep)
        return outputs, final, (None, kept)

    def _forward(
        self, kind: int, sizes: rows.Sizes, F: Array, inputs: Array, state: Array, keep: Array | None
    ) -> tuple[Array, Array, Any]:
        run, chunks, (nu, nx, ny, widths, _) = rows.kernels_of().forward, self.count, sizes
        dtype, (length, batch, _) = F.dtype, inputs.shape
        steps, lanes = length // chunks, chunks * batch
        S = np.empty((steps + 1, lanes, nu + nx + ny), dtype)
        _side_by_side(inputs, chunks, S[:steps])
        kept = np.empty(0, np.bool_) if keep is None else _side_by_side(keep[..., None], chunks)[..., 0]
        x, H = S[..., nu : nu + nx], np.empty(steps * lanes * sum(widths), dtype)
        x[0], x[0, :batch] = 0, state
        beginning, ends = x[0].copy(), x[steps]
        given = kind, kept.reshape(-1), steps, lanes, nu, nx, ny, np.array(widths), F, S.reshape(-1), H
        run(*given, 0, steps)
        done = steps
        limit = _limit(self.tolerance, dtype) * max(1.0, _largest(x))
        M = _chunk_kernels().jacobians(*given[:9], H)
        for _ in range(chunks - 1):
            missing = np.zeros_like(beginning)
            missing[batch:] = ends[:-batch] - beginning[batch:]
            _chunk_kernels().carried(M, missing, batch, False)
            if _largest(missing) <= limit:
                break
            beginning += missing
            x[0] = beginning
            for begin, end in _blocks(steps):
                following = x[end].copy()
                run(*given, begin, end)
                done += end - begin
                if end < steps:
                    # A reset there has touched what the next block began with before.
                    reached = x[end] * kept[end][:, None] if len(kept) else x[end]
                    if _largest(reached - following) <= limit:
                        x[end] = following
                        break
        self.rounds = done / steps
        return _in_a_row(S[1:, :, nu + nx :], chunks), ends[-batch:].copy(), (given, M, batch)

    def backward(self, kept: Any, outputs: Array, final: Array, asked: bool) -> tuple[Array | None, Array, Array]:
        """Return the gradients of inputs (time, batch, nu) if `asked`, of the state and of F, as `rows.backward`.

        `outputs` (time, batch, ny) and `final` (batch, nx) are the gradients of what `forward` returned, with `kept`.
        """
        begun, chunked = kept
        if begun is None:
            return self._backward(chunked, outputs, final, asked)
        first = begun[2]
        by_inputs, by_state, by_F = self._backward(chunked, outputs[first:], final, asked)
        before, by_state, also = rows.backward(begun, outputs[:first], by_state, asked)
        both = None if before is None or by_inputs is None else np.concatenate((before, by_inputs))
        return both, by_state, by_F + also

    def _backward(self, kept: Any, outputs: Array, final: Array, asked: bool) -> tuple[Array | None, Array, Array]:
        (given, M, batch), chunks = kept, self.count
        adjoint, carried = _chunk_kernels().adjoint, _chunk_kernels().carried
        steps, lanes, nu, F = given[2], given[3], given[4], given[8]
        grad, none, rest = _side_by_side(outputs, chunks).reshape(-1), np.empty(0, F.dtype), (*given[:9], given[10])
        found = np.zeros((lanes, final.shape[1]), F.dtype)
        found[-batch:] = final
        applied, before = found.copy(), 0.0
        adjoint(*rest, grad, found.reshape(-1), 0, steps)
        limit = _limit(self.tolerance, F.dtype) * max(_largest(found), _largest(applied))
        for _ in range(chunks - 1):
            x = np.zeros_like(found)
            x[:-batch] = found[batch:] - applied[:-batch]
            carried(M, x, batch, True)
            size = _largest(x)
            applied += x
            # It is linear: the next is to this one as this one to the last, and less than that where M is near.
            if size * (min(1.0, size / before) if before else 1.0) <= limit:
                break
            before = size
            for begin, end in reversed(_blocks(steps)):
                adjoint(*rest, none, x.reshape(-1), begin, end)
                if begin and _largest(x) <= limit:
                    x[:] = 0
                    break
            found += x
        by_inputs, by_F = np.empty((steps, lanes, nu) if asked else (0, lanes, nu), F.dtype), np.zeros_like(F)
        rows.kernels_of().backward(*given, grad, applied.reshape(-1), by_inputs.reshape(-1), by_F)
        return _in_a_row(by_inputs, chunks) if asked else None, applied[:batch].copy(), by_F
