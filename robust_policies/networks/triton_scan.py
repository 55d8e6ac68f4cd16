"""When the scan runs as one kernel over time, and how its arrays are handed to it; see `triton_kernels`."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Wider products take minutes to compile: they are unrolled.
_WIDEST = 64
# One stage: else every weight is held two or three times in a processor's shared memory, which is too small for it.
_LAUNCH = {"ROWS": 16, "num_stages": 1}


class Kept(NamedTuple):
    """What `backward` needs: hidden values (L, time, batch, N), what is kept at each step, and sizes."""

    hidden: Tensor
    keep: Tensor | None
    kind: int
    widths: tuple[int, ...]
    serial: bool


def padded(widths: Sequence[int]) -> int:
    """Return the power of two, at least 16, that all widths fit into."""
    return max(16, 1 << (max(widths) - 1).bit_length())


def applies(name: str, drive: Tensor, widths: Sequence[int], serial: bool = False) -> bool:
    """Return whether the kernel is to be used: on CUDA in float32, `widths` (the state's too) of 64 at most.

    `name` is the activation's, drive (time, batch, ...), `serial` says that neurons read those before them. Without
    Triton, or where it does not compile, PyTorch runs the steps.
    """
    if not drive.is_cuda or drive.dtype != torch.float32 or not drive.numel() or padded(widths) > _WIDEST:
        return False
    return _works(name, len(widths) - 1, padded(widths), serial, drive.device)


@cache
def _kernels() -> Any:
    """Return the module of the kernels, which loads Triton; raises ImportError where that is not there."""
    return importlib.import_module("robust_policies.networks.triton_kernels")


@cache
def _works(name: str, layers: int, size: int, serial: bool, device: torch.device) -> bool:
    """Return whether kernels for this many layers of this size compile and run."""
    try:
        one = torch.zeros(1, 1, 2 * size, device=device)
        matrix = torch.zeros(size, size, device=device)
        between = [matrix] * (1 if serial else layers - 1)
        AM = torch.cat((matrix, matrix))
        biases = [matrix[0]] * (layers - 1)
        starts = torch.zeros(1, 1, dtype=torch.bool, device=device)
        for begins in (None, starts):
            states, last, final, kept = forward(name, begins, one, one[0, :, :size], AM, matrix, between, biases)
            backward(kept, AM, matrix, between, (states, last, final))
    except Exception as error:  # whatever ails the compiler: PyTorch needs none
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"R2DN and REN run step by step on {device}, not as one Triton kernel: {reason}.", stacklevel=4)
        return False
    return True


def forward(
    name: str,
    starts: Tensor | None,
    drive: Tensor,
    state: Tensor,
    AM: Tensor,
    Bt: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Kept]:
    """Return what `scan.scan` returns, without a graph, and what `backward` needs.

    The arguments are its: drive (time, batch, nx + n_1), state (batch, nx), starts (time, batch) bool or None.
    """
    kernels, (time, batch), serial = _kernels(), drive.shape[:2], len(weights) > len(biases)
    nx = state.shape[1]
    widths = (nx, drive.shape[2] - nx, *(len(b) for b in biases))
    size, layers, kind = padded(widths), len(widths) - 1, kernels.ACTIVATIONS.index(name)
    # Strictly lower triangular: what stands elsewhere is not read.
    between = [weights[0].tril(-1)] if serial else [W.mT for W in weights]
    arrays = _stacked([AM[:nx].mT, AM[nx:].mT, *between, Bt.mT], size)
    offsets = _stacked([one.unsqueeze(0) for one in biases], size)[:, 0] if biases else arrays[0]
    keep = None if starts is None else (~starts).to(drive.dtype)
    states, final = drive.new_empty(time, batch, nx), drive.new_empty(batch, nx)
    hidden = drive.new_empty(layers, time, batch, size)
    kernels.forward[(-(-batch // _LAUNCH["ROWS"]),)](
        drive.contiguous(), state.contiguous(), states if keep is None else keep, arrays, offsets.contiguous(), states,
        hidden, final, time, batch, nx, widths[1],
        L=layers, N=size, KIND=kind, RESETS=keep is not None, SERIAL=serial, **_LAUNCH,
    )  # fmt: skip
    return states, hidden[-1, ..., : widths[-1]].contiguous(), final, Kept(hidden, keep, kind, widths, serial)


def backward(
    kept: Kept, AM: Tensor, Bt: Tensor, weights: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients of drive and state, each layer's values and the gradients of each layer's product.

    Values and gradients are (time, batch, n_k); `grads` those of states, last activations and final state.
    """
    kernels, (layers, time, batch, size) = _kernels(), kept.hidden.shape
    nx, n1, *_ = kept.widths
    between = [weights[0].tril(-1)] if kept.serial else list(weights)
    arrays = _stacked([AM[:nx], AM[nx:], *between, Bt], size)
    by_states, by_last, by_final = (one.contiguous() for one in grads)
    by_drive, by_state = by_states.new_empty(time, batch, nx + n1), by_final.new_empty(batch, nx)
    deltas = torch.empty_like(kept.hidden)
    kernels.backward[(-(-batch // _LAUNCH["ROWS"]),)](
        by_states, by_last, by_final, by_states if kept.keep is None else kept.keep, arrays, kept.hidden, by_drive,
        deltas, by_state, time, batch, nx, n1, kept.widths[-1],
        L=layers, N=size, KIND=kept.kind, RESETS=kept.keep is not None, SERIAL=kept.serial, **_LAUNCH,
    )  # fmt: skip
    hidden, slopes = ([one[k, ..., :n] for k, n in enumerate(kept.widths[1:])] for one in (kept.hidden, deltas))
    return by_drive, by_state, hidden, slopes


def _stacked(matrices: Sequence[Tensor], size: int) -> Tensor:
    """Return the matrices in the corners of zeros, (count, size, size)."""
    found = matrices[0].new_zeros(len(matrices), size, size)
    for place, matrix in zip(found.unbind(), matrices, strict=True):
        place[: matrix.shape[0], : matrix.shape[1]] = matrix
    return found
