"""The run of an R2DN by `row_kernels`, from arrays to arrays and back, and its parametrization with it as one node.

Of a cell that is trained, the parametrization and the run over time are one node of PyTorch's graph: the recorded
program (`program`) writes all numbers of a step into one array, the loops read it there, and leave its gradient where
the program's derivative reads it. Between them nothing is copied, packed or named.
"""

from __future__ import annotations

import importlib
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

WIDEST, WIDEST_SERIAL = 160, 48
"""Of a step's matrices, of layers and of neurons one by one: loops over wider ones were not measured."""

Array = np.ndarray


class Sizes(NamedTuple):
    """Widths of a step: inputs, states, outputs, and of its layers (layers,), or of neurons one by one (1,)."""

    nu: int
    nx: int
    ny: int
    widths: tuple[int, ...]
    serial: bool = False

    def fit(self) -> bool:
        """Return whether no matrix of the step is too wide."""
        nu, nx, ny, widths, serial = self
        return max(nx + max(nu, widths[0]), ny, *widths) <= (WIDEST_SERIAL if serial else WIDEST)

    def count(self) -> int:
        """Return how many numbers the array F of `row_kernels` has."""
        nu, nx, ny, widths, serial = self
        inner = widths[0] ** 2 if serial else sum((m + 1) * n for m, n in pairwise(widths))
        return (nu + nx + 1) * (nx + ny + widths[0]) + (nx + ny) * widths[-1] + inner


@cache
def kernels_of() -> Any:
    """Return the module of the loops, which loads numba; raises ImportError where that is not there."""
    return importlib.import_module("robust_policies.networks.row_kernels")


def kind_of(name: str, dtype: np.dtype) -> int:
    """Return the kind of an activation for the loops, as `kernels.kind_of`."""
    return importlib.import_module("robust_policies.networks.kernels").kind_of(name, dtype)


@cache
def works(name: str, dtype: str) -> bool:
    """Return whether the loops run with an activation, which compiles them where that was not done before."""
    try:
        kind, sizes = kind_of(name, np.dtype(dtype)), Sizes(1, 1, 1, (1, 1))
        inputs, state = np.ones((2, 1, 1), dtype), np.ones((1, 1), dtype)
        _, _, kept = forward(kind, sizes, np.ones(sizes.count(), dtype), inputs, state, None)
        backward(kept, inputs, state, True)
    except Exception:  # whatever ails the compiler, or an activation there is none of: PyTorch needs none
        return False
    return True


def flat(P: Tensor, c: Tensor, B: Tensor, Q: Tensor, R: Tensor, d: Tensor, *others: Tensor) -> Tensor:
    """Return F (numbers,), as `row_kernels` has it, of the arrays of a `Collapsed`, weights before biases.

    P is (nx + n_1, nx + nu), all others as there.
    """
    nx, layers = B.shape[0], len(others) // 2
    P = torch.cat((P[:nx], Q, P[nx:]))
    parts = [torch.cat((P[:, nx:], P[:, :nx]), 1).t(), c[:nx], d, c[nx:], B, R]
    if len(others) == 1:
        parts.append(others[0].t())
    else:
        for W, b in zip(others[:layers], others[layers:], strict=True):
            parts += [W.t(), b]
    return torch.cat([one.reshape(-1) for one in parts])


def unflat(F: Array, sizes: Sizes) -> list[Array]:
    """Return P (nx + n_1, nx + nu), c, B, Q, R, d, weights and biases of an array F (numbers,), or of its gradient."""
    nu, nx, ny, widths, serial = sizes
    at, rows = 0, nx + ny + widths[0]

    def taken(m: int, n: int) -> Array:
        nonlocal at
        at += m * n
        return F[at - m * n : at].reshape(m, n)

    P = taken(nu + nx, rows).T
    P = np.concatenate((P[:, nu:], P[:, :nu]), 1)
    c, BR, weights, biases = taken(1, rows)[0], taken(nx + ny, widths[-1]), [], []
    for m, n in pairwise(widths):
        weights.append(np.ascontiguousarray(taken(m, n).T))
        biases.append(taken(1, n)[0])
    if serial:
        weights.append(np.ascontiguousarray(taken(widths[0], widths[0]).T))
    first = [np.concatenate((P[:nx], P[nx + ny :])), np.concatenate((c[:nx], c[nx + ny :])), BR[:nx]]
    return [*first, P[nx : nx + ny], BR[nx:], c[nx : nx + ny], *weights, *biases]


def forward(
    kind: int, sizes: Sizes, F: Array, inputs: Array, state: Array, keep: Array | None
) -> tuple[Array, Array, Any]:
    """Return outputs (time, batch, ny), the final state (batch, nx) and what `backward` needs.

    Args:
        kind: of the activation, `kernels.kind_of` its name.
        sizes: of the step.
        F: (numbers,), all of the step's numbers; they are read again by `backward`.
        inputs: (time, batch, nu).
        state: (batch, nx).
        keep: (time, batch) bool, False where the state is zeroed before a step, or None.
    """
    nu, nx, ny, widths, _ = sizes
    time, batch, _ = inputs.shape
    S = np.empty((time + 1, batch, nu + nx + ny), F.dtype)
    S[:time, :, :nu] = inputs
    S[0, :, nu : nu + nx] = state
    H = np.empty(time * batch * sum(widths), F.dtype)
    kept = np.empty(0, np.bool_) if keep is None else keep.ravel()
    rest = kind, kept, time, batch, nu, nx, ny, np.array(widths), F, S.reshape(-1), H
    kernels_of().forward(*rest, 0, time)
    return S[1:, :, nu + nx :].copy(), S[time, :, nu : nu + nx].copy(), rest


def backward(kept: Any, outputs: Array, final: Array, asked: bool) -> tuple[Array | None, Array, Array]:
    """Return the gradients of inputs (time, batch, nu), None unless they are `asked` for, of the state and of F.

    `outputs` (time, batch, ny) and `final` (batch, nx) are the gradients of what `forward` returned, with `kept`.
    """
    time, batch, nu, F = kept[2], kept[3], kept[4], kept[8]
    state, by_F = final.copy(), np.zeros_like(F)
    by_input = np.empty((time, batch, nu) if asked else (0, batch, nu), F.dtype)
    kernels_of().backward(*kept, outputs.reshape(-1), state.reshape(-1), by_input.reshape(-1), by_F)
    return by_input if asked else None, state, by_F
