"""A run over time in chunks side by side, for one long sequence: the loop of `kernels`, a chunk in each SIMD lane.

Every chunk begins at zero but the first. A contracting cell forgets where it began, so the chunks are then run again
from where those before them ended, block by block and only as long as the states still differ from those found before.
Where a memory is longer than a chunk, what differs is handed on through all chunks at once, by doubling, with the
Jacobians of mean slopes: a Newton step whose error is what the slopes vary by. After as many rounds as there are
chunks the run is exact whatever the cell. Backward the adjoint at each chunk's end is found in the same way, by a loop
for it alone; gradients of arrays and inputs are then one pass.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks.activations import ACTIVATIONS
from robust_policies.networks.compiled import Collapsed, Packed, _again, applies, kernels_of, packed, parts_of
from robust_policies.networks.program import transformed

MODES = ("auto", "chunks", "scan")
# Numbers of chunks that are tried, steps of a block, and calls after which costs are measured again.
_COUNTS, _BLOCK, _AGAIN = (16, 32, 64), 16, 512
# Chunks are chosen where they take less than this share of the scan's time.
_CLEARLY = 0.9
# Less of a chunk's beginning than this at its end is not worth handing on.
_NOTHING = 1e-4
# Of a chunk, each with slopes of its own, for its Jacobian.
_PARTS = 1
Run = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class _Plan(NamedTuple):
    name: str
    chunks: int
    tolerance: float


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


def parallel_run(
    cell: nn.Module, scan: Run, step: Collapsed | None, name: str, mode: str, tolerance: float, *given: Any
) -> tuple[Tensor, Tensor]:
    """Return (outputs (time, batch, ny), final state (batch, nx)) by chunks side by side, or by the scan.

    Args:
        cell: whose choices are kept.
        scan: the sequential run, of `given`.
        step: the cell's collapsed step, None where it has none.
        name: of the activation.
        mode: "chunks"; "auto", chunks where they are measured to be faster, by CPU time of what is asked (with the
            gradient where there is one); or "scan".
        tolerance: by how much states may differ from the scan's, relative to the largest; rounding is added.
        given: inputs (time, batch, nu), state (batch, nx), starts (time, batch) bool or None.

    Raises:
        InvalidValueError: "chunks" of a cell or of inputs that the compiled loop does not take.
    """
    inputs, state, starts = given
    fits = step is not None and len(inputs) >= 2 * _COUNTS[0] and applies(name, inputs, state, step)
    if mode == "chunks" and not fits:
        raise InvalidValueError(
            "parallel='chunks' needs the extra `fast`, a cell of small widths on the CPU and at least "
            f"{2 * _COUNTS[0]} steps; use parallel='auto', which takes the scan elsewhere."
        )
    if mode == "scan" or step is None or not fits:
        return scan(inputs, state, starts)
    if mode == "chunks":
        return run(_Plan(name, _COUNTS[1], tolerance), step, inputs, state, starts)
    kept = _CHOSEN.setdefault(cell, {})
    key = (*inputs.shape, inputs.dtype, starts is None, torch.is_grad_enabled(), tolerance)
    choice = kept.get(key)
    if choice is None or choice.used >= _AGAIN:
        choice = kept[key] = _Choice(_fastest(name, tolerance, scan, step, inputs, state, starts))
    choice.used += 1
    if choice.chunks is None:
        return scan(inputs, state, starts)
    return run(_Plan(name, choice.chunks, tolerance), step, inputs, state, starts)


def _fastest(
    name: str, tolerance: float, scan: Run, step: Collapsed, inputs: Tensor, state: Tensor, starts: Tensor | None
) -> int | None:
    """Return the number of chunks that is clearly faster than the scan, None if none is."""
    inputs = inputs.detach().requires_grad_(torch.is_grad_enabled())
    counts = [count for count in _COUNTS if len(inputs) >= 2 * count]
    found: dict[int | None, float] = {}
    for _ in range(3):
        for count in (None, *counts):
            begin = time.process_time()
            if count is None:
                outputs = scan(inputs, state, starts)[0]
            else:
                outputs = run(_Plan(name, count, tolerance), step, inputs, state, starts)[0]
            if outputs.requires_grad:
                torch.autograd.grad(outputs.sum(), inputs, retain_graph=True)
            found[count] = min(found.get(count, float("inf")), time.process_time() - begin)
    best = min(counts, key=lambda count: found[count])
    return best if found[best] < _CLEARLY * found[None] else None


def run(plan: _Plan, step: Collapsed, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (outputs (time, batch, ny), final state (batch, nx)) by chunks; steps beyond whole ones come first.

    The inputs are (time, batch, nu), the state (batch, nx), starts (time, batch) bool or None.
    """
    rest = (*step[:6], *step.weights, *step.biases)
    first, found = len(inputs) % plan.chunks, []
    if first:
        alone = plan._replace(chunks=1)
        begun = None if starts is None else starts[:first]
        outputs, state = _Chunks.apply(alone, begun, len(step.biases), inputs[:first], state, *rest)
        found.append(outputs)
        inputs, starts = inputs[first:], None if starts is None else starts[first:]
    outputs, final = _Chunks.apply(plan, starts, len(step.biases), inputs, state, *rest)
    return torch.cat((*found, outputs)) if found else outputs, final


def _side_by_side(values: np.ndarray, chunks: int) -> np.ndarray:
    """Return (time, batch, n) as (time / chunks, n, chunks * batch)."""
    time, batch, n = values.shape
    split = values.reshape(chunks, time // chunks, batch, n).transpose(1, 3, 0, 2)
    return np.ascontiguousarray(split).reshape(time // chunks, n, chunks * batch)


def _in_a_row(values: np.ndarray, chunks: int) -> np.ndarray:
    """Return (time / chunks, n, chunks * batch) as (time, batch, n)."""
    steps, n, lanes = values.shape
    split = values.reshape(steps, n, chunks, lanes // chunks).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(split).reshape(chunks * steps, lanes // chunks, n)


def _jacobians(name: str, one: Packed, H: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return each chunk's Jacobian (lanes, nx, nx), its end by its beginning, from mean slopes of a few parts of it.

    H (steps, neurons, lanes) are the neurons, `keep` (steps, lanes) 0 at resets, or (0, lanes).
    """
    (steps, neurons, lanes), nx = H.shape, len(one.B)
    found = np.broadcast_to(np.eye(nx, dtype=H.dtype), (lanes, nx, nx))
    for begin, end in pairwise(np.linspace(0, steps, _PARTS + 1).astype(int)):
        seen = torch.from_numpy(H[begin:end:2])
        slopes = ACTIVATIONS[name].slope(seen, torch.empty_like(seen)).mean(0).numpy().T[..., None]
        reached = np.zeros((lanes, neurons, nx), H.dtype)
        reached[:, : len(one.P) - nx] = one.P[nx:, :nx]
        for r0, r1, c0, c1, at in one.blocks:
            if c1 > c0:
                W = one.weights[at : at + (r1 - r0) * (c1 - c0)].reshape(r1 - r0, c1 - c0)
                reached[:, r0:r1] += W @ reached[:, c0:c1]
            reached[:, r0:r1] *= slopes[:, r0:r1]
        J = one.P[:nx, :nx] + one.B @ reached[:, neurons - one.B.shape[1] :]
        found = np.linalg.matrix_power(J, int(end - begin)) @ found
    return found * keep.min(0)[:, None, None] if len(keep) else found


def _carried(M: np.ndarray, missing: np.ndarray, chunks: int) -> np.ndarray:
    """Return d (nx, lanes) with d_s = missing_s + M_(s-1) d_(s-1) over chunks s, by doubling.

    M is (lanes, nx, nx); `missing` (nx, lanes) is 0 in the first chunk.
    """
    nx, lanes = missing.shape
    d = np.ascontiguousarray(missing.T).reshape(chunks, -1, nx, 1)
    M, reach = M.reshape(chunks, -1, nx, nx), 1
    M = np.concatenate((np.zeros_like(M[:1]), M[:-1]))
    while reach < chunks and np.abs(M).max() > _NOTHING:
        d[reach:] += M[reach:] @ d[:-reach]
        M[reach:] = M[reach:] @ M[:-reach]
        reach *= 2
    return np.ascontiguousarray(d.reshape(lanes, nx).T)


def _turned(values: np.ndarray, chunks: int) -> np.ndarray:
    """Return (n, lanes) with the last chunk first."""
    return np.ascontiguousarray(values.reshape(len(values), chunks, -1)[:, ::-1]).reshape(values.shape)


@cache
def _adjoint_kernels() -> Any:
    """Return the module of the adjoint's loop, which loads numba."""
    return importlib.import_module("robust_policies.networks.adjoint_kernels")


def _limit(tolerance: float, dtype: np.dtype) -> float:
    """Return what does not count of a state or an adjoint of size 1."""
    return max(tolerance / 4, 8 * float(np.finfo(dtype).eps))


def _blocks(steps: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + _BLOCK, steps)) for begin in range(0, steps, _BLOCK)]


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, starts: Tensor | None, layers: int, inputs: Tensor, state: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        kernels, one, chunks = kernels_of(), packed(rest, layers, state.shape[1]), plan.chunks
        dtype, nx, (length, batch, nu) = one.P.dtype, state.shape[1], inputs.shape
        kind, steps, lanes = kernels.kind_of(plan.name, dtype), length // chunks, chunks * batch
        given = _side_by_side(inputs.detach().numpy(), chunks)
        keep = np.empty((0, lanes), dtype)
        if starts is not None:
            keep = _side_by_side((~starts).unsqueeze(-1).numpy().astype(dtype), chunks)[:, 0]
        S, H = np.empty((steps, nx + nu, lanes), dtype), np.empty((steps, one.neurons, lanes), dtype)
        beginning = np.zeros((nx, lanes), dtype)
        beginning[:, :batch] = state.detach().numpy().T
        ends = beginning.copy()
        outputs = kernels.forward(kind, keep, given, ends, *one[:-1], S, H)
        limit = _limit(plan.tolerance, dtype) * max(1.0, float(np.abs(S[:, :nx]).max()))
        M = _jacobians(plan.name, one, H, keep) if chunks > 1 else np.zeros((lanes, nx, nx), dtype)
        for _ in range(chunks - 1):
            missing = np.zeros_like(beginning)
            missing[:, batch:] = ends[:, :-batch] - beginning[:, batch:]
            missing = _carried(M, missing, chunks)
            if np.abs(missing).max() <= limit:
                break
            beginning = beginning + missing
            x = beginning.copy()
            for begin, end in _blocks(steps):
                # What the next block began with before, which a reset there has not touched.
                following = ends.copy() if end == steps else S[end, :nx].copy()
                part = keep[begin:end] if len(keep) else keep
                y = kernels.forward(kind, part, given[begin:end], x, *one[:-1], S[begin:end], H[begin:end])
                outputs[begin:end] = y
                if end == steps:
                    ends = x
                    break
                reached = x * keep[end] if len(keep) else x
                if np.abs(reached - following).max() <= limit:
                    break
        ctx.name, ctx.starts, ctx.layers, ctx.plan = plan.name, starts, layers, plan
        ctx.M = M
        ctx.kept = (kind, keep, nu), (*one.turned(), one.weights, one.blocks, S, H)
        ctx.save_for_backward(inputs, state, *rest)
        final = np.ascontiguousarray(ends[:, lanes - batch :].T)
        return torch.from_numpy(_in_a_row(outputs, chunks)), torch.from_numpy(final)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kernels, chunks = kernels_of(), ctx.plan.chunks
        inputs, state, *rest = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed(grads):
            return (None, None, None, *_again(ctx, (inputs, state, *rest), grads))
        (kind, keep, nu), (*arrays, S, H) = ctx.kept
        grad, batch = _side_by_side(grads[0].numpy(), chunks), inputs.shape[1]
        adjoint = np.zeros((state.shape[1], chunks * batch), S.dtype)
        adjoint[:, -batch:] = grads[1].numpy().T
        applied = adjoint.copy()
        light, (PT, BT, QT, RT, weights, blocks) = _adjoint_kernels(), arrays
        turned = light.turned_blocks(weights, blocks)
        if chunks > 1:
            light.adjoint(kind, keep, grad, adjoint, PT, BT, QT, RT, turned, blocks, H)
        scale = max(float(np.abs(adjoint).max()), float(np.abs(applied).max()))
        limit = _limit(ctx.plan.tolerance, S.dtype) * scale
        M = ctx.M.reshape(chunks, batch, *ctx.M.shape[1:])[::-1].swapaxes(-1, -2).reshape(ctx.M.shape)
        for _ in range(chunks - 1):
            missing = np.zeros_like(adjoint)
            missing[:, :-batch] = adjoint[:, batch:] - applied[:, :-batch]
            x = _turned(_carried(M, _turned(missing, chunks), chunks), chunks)
            if np.abs(x).max() <= limit:
                break
            applied += x
            for begin, end in reversed(_blocks(len(S))):
                part = keep[begin:end] if len(keep) else keep
                light.adjoint(kind, part, grad[:0], x, PT, BT, QT, RT, turned, blocks, H[begin:end])
                if begin and np.abs(x).max() <= limit:
                    x[:] = 0
                    break
            adjoint += x
        g_inputs, *sums = kernels.backward(kind, keep, nu, grad, applied, *arrays, S, H)
        adjoint = applied
        *found, gW, gb = sums
        places = len(rest) - ctx.layers
        found += parts_of(gW, [one.shape for one in rest[6:places]])
        found += parts_of(gb, [one.shape for one in rest[places:]])
        by_state = torch.from_numpy(np.ascontiguousarray(adjoint[:, :batch].T))
        return (
            None,
            None,
            None,
            torch.from_numpy(_in_a_row(g_inputs, chunks)),
            by_state,
            *map(torch.from_numpy, found),
        )
