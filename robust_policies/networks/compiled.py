"""The compiled run of an R2DN or a REN as one node of PyTorch's graph, and when it is used."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from robust_policies.networks import rows
from robust_policies.networks.activations import ACTIVATIONS
from robust_policies.networks.program import transformed

# Wider products are faster by BLAS, with the batch in lanes; see `rows` for those of rows.
_WIDEST = 48


class Collapsed(NamedTuple):
    """One step, s = [x; u], neurons h: [x part; h] = P s + c, h <- act(h + W h), x+ = x part + B h, y = Q s + R h + d.

    P (nx + n_1, nx + nu), c (nx + n_1,), B (nx, n), Q (ny, nx + nu), R (ny, n), d (ny,) with the n last neurons. In a
    chain `weights` are W_2, ..., W_L, (n_k, n_(k-1)), `biases` b_2, ..., b_L, (n_k,): each layer reads the one before.
    Without biases there is one matrix (n_1, n_1), strictly lower triangular: each neuron reads all before it.
    """

    P: Tensor
    c: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    d: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]


def with_step(kind: type[Any]) -> type[Any]:
    """Return a subclass of a NamedTuple of explicit arrays whose `collapsed` is their step, made together with them.

    For `torch.utils._pytree` the step's arrays are leaves too, after the others.
    """
    made = type(f"{kind.__name__}WithStep", (kind,), {"collapsed": None})

    def taken_apart(arrays: Any) -> tuple[list[Any], None]:
        return [*arrays, arrays.collapsed], None

    def put_together(leaves: Iterable[Any], _: None) -> Any:
        *arrays, collapsed = leaves
        found = made(*arrays)
        found.collapsed = collapsed
        return found

    register_pytree_node(made, taken_apart, put_together)
    return made


def applies(name: str, inputs: Tensor, state: Tensor, step: Collapsed) -> bool:
    """Return whether the loops of `kernels` are to be used: many small steps on a CPU, in float32 or float64.

    Args:
        name: of the activation.
        inputs: (time, batch, nu).
        state: (batch, nx).
        step: of the cell.
    """
    matrices = _matrices(step)
    if not fits(inputs) or max(max(one.shape) for one in matrices) > _WIDEST or transformed((inputs, state, *matrices)):
        return False
    return _works(name, str(inputs.dtype).removeprefix("torch."))


def runs(name: str, inputs: Tensor, state: Tensor, step: Collapsed) -> bool:
    """Return whether `run` is to be used, for inputs (time, batch, nu); the arguments are those of `applies`."""
    return (
        fits(inputs)
        and sizes_of(inputs.shape[2], step).fit()
        and not transformed((inputs, state, *_matrices(step)))
        and rows.works(name, str(inputs.dtype).removeprefix("torch."))
    )


def _matrices(step: Collapsed) -> tuple[Tensor, ...]:
    return step.P, step.Q, step.R, *step.weights


def sizes_of(nu: int, step: Collapsed) -> rows.Sizes:
    """Return the widths of a step of `nu` inputs."""
    nx, serial = len(step.B), len(step.weights) > len(step.biases)
    return rows.Sizes(nu, nx, len(step.d), (len(step.c) - nx, *map(len, step.biases)), serial)


def fits(inputs: Tensor) -> bool:
    """Return whether compiled loops are worth their loading for inputs (time, batch, nu)."""
    if inputs.device.type != "cpu" or inputs.dtype not in (torch.float32, torch.float64):
        return False
    return inputs.shape[0] >= 2 and inputs.shape[0] * inputs.shape[1] >= enough(inputs.dtype)


def run(
    name: str, starts: Tensor | None, inputs: Tensor, state: Tensor, step: Collapsed, way: Any = rows
) -> tuple[Tensor, Tensor]:
    """Return (outputs (time, batch, ny), final state (batch, nx)) of the loop of `row_kernels`.

    Args:
        name: of the activation.
        starts: (time, batch) bool or None; where True the state is zeroed before the step.
        inputs: (time, batch, nu).
        state: (batch, nx).
        step: of the cell.
        way: what runs it forward and backward, `rows` or a `parallel.Chunks`.
    """
    sizes = sizes_of(inputs.shape[2], step)
    return _Run.apply(name, way, starts, sizes, inputs, state, *step[:6], *step.weights, *step.biases)


def plain_run(
    name: str, starts: Tensor | None, inputs: Tensor, state: Tensor, step: Collapsed
) -> tuple[Tensor, Tensor]:
    """Return (outputs (time, batch, ny), final state (batch, nx)) as `run` does, by operations that have derivatives.

    The arguments are its: inputs (time, batch, nu), state (batch, nx), starts (time, batch).
    """
    nx, function, outputs = state.shape[1], ACTIVATIONS[name].function, []
    for t in range(len(inputs)):
        if starts is not None:
            state = torch.where(starts[t].unsqueeze(-1), torch.zeros_like(state), state)
        s = torch.cat((state, inputs[t]), 1)
        z = s @ step.P.mT + step.c
        if step.biases or not step.weights:
            h = function(z[:, nx:])
            for W, b in zip(step.weights, step.biases, strict=True):
                h = function(h @ W.mT + b)
        else:
            neurons = [function(z[:, nx])]
            for i in range(1, z.shape[1] - nx):
                neurons.append(function(z[:, nx + i] + torch.stack(neurons, 1) @ step.weights[0][i, :i]))
            h = torch.stack(neurons, 1)
        outputs.append(s @ step.Q.mT + h @ step.R.mT + step.d)
        state = z[:, :nx] + h @ step.B.mT
    return torch.stack(outputs), state


def enough(dtype: torch.dtype) -> int:
    """Return the number of steps below which the second in which numba is loaded is not worth it.

    What is differentiated in float32 is trained, and comes again some thousand times.
    """
    return 64 if torch.is_grad_enabled() and dtype == torch.float32 else 1024


@cache
def kernels_of() -> Any:
    """Return the module of the loops, which loads numba; raises ImportError where that is not there."""
    return importlib.import_module("robust_policies.networks.kernels")


@cache
def _works(name: str, dtype: str) -> bool:
    """Return whether numba is there and its loops run, which compiles them where that was not done before."""
    try:
        kernels = kernels_of()
        if name not in kernels.ACTIVATIONS:
            return False
        one = np.ones((1, 1), dtype)
        step = (np.ones((2, 2), dtype), np.ones(2, dtype), one, np.ones((1, 2), dtype), one, one[0], one[0], one[0, :0])
        blocks, S, H = np.array([[0, 1, 0, 0, 0]]), np.ones((2, 2, 1), dtype), np.ones((2, 1, 1), dtype)
        kind, keep, inputs = kernels.kind_of(name, np.dtype(dtype)), np.ones((2, 1), dtype), np.ones((2, 1, 1), dtype)
        P, c, B, Q, R, d, weights, biases = step
        grad = kernels.forward(kind, keep, inputs, one.copy(), P, c, B, Q, R, d, weights, biases, blocks, S, H)
        kernels.backward(kind, keep, 1, grad, one.copy(), P, B, Q.T.copy(), R, weights, blocks, S, H)
    except Exception:  # whatever ails the compiler: the run by PyTorch needs none
        return False
    return True


@cache
def _blocks(widths: tuple[int, ...], chain: bool) -> np.ndarray:
    """Return the blocks of neurons as `kernels.forward` takes them: layers of these widths, or neurons one by one."""
    if not chain:
        return np.array([(i, i + 1, 0, i, i * widths[0]) for i in range(widths[0])])
    found, row, at = [(0, widths[0], 0, 0, 0)], widths[0], 0
    for before, width in pairwise(widths):
        found.append((row, row + width, row - before, row, at))
        row, at = row + width, at + width * before
    return np.array(found)


class Packed(NamedTuple):
    """The arrays of a `Collapsed` as `kernels.forward` takes them, and the number of neurons."""

    P: np.ndarray
    c: np.ndarray
    B: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    d: np.ndarray
    weights: np.ndarray
    biases: np.ndarray
    blocks: np.ndarray
    neurons: int

    def turned(self) -> list[np.ndarray]:
        """Return the transposes of P, B, Q and R, as `kernels.backward` takes them."""
        return [np.ascontiguousarray(one.T) for one in (self.P, self.B, self.Q, self.R)]


def packed(arrays: Sequence[Tensor], layers: int, nx: int) -> Packed:
    """Return a step's arrays for the kernels: P (nx + n_1, nx + nu), ..., weights, biases, as `Collapsed` has them."""
    P, c, B, Q, R, d, *others = (np.ascontiguousarray(one.detach().numpy()) for one in arrays)
    weights, biases = others[: len(others) - layers], others[len(others) - layers :]
    flat = [np.concatenate([one.ravel() for one in part]) if part else P[:0, 0] for part in (weights, biases)]
    first = len(P) - nx
    blocks = _blocks((first, *map(len, biases)), bool(layers) or not weights)
    return Packed(P, c, B, Q, R, d, flat[0], flat[1], blocks, first + len(flat[1]))


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        way: Any,
        starts: Tensor | None,
        sizes: rows.Sizes,
        inputs: Tensor,
        state: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, Tensor]:
        F, keep = rows.flat(*rest).numpy(), None if starts is None else (~starts).numpy()
        kind = rows.kind_of(name, F.dtype)
        outputs, final, ctx.kept = way.forward(kind, sizes, F, inputs.numpy(), state.numpy(), keep)
        ctx.name, ctx.way, ctx.starts, ctx.sizes, ctx.layers = name, way, starts, sizes, len(rest) // 2 - 3
        ctx.save_for_backward(inputs, state, *rest)
        return torch.from_numpy(outputs), torch.from_numpy(final)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, state, *rest = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed(grads):
            return (None, None, None, None, *_again(ctx, (inputs, state, *rest), grads))
        asked = ctx.needs_input_grad[4]
        by_inputs, by_state, by_F = ctx.way.backward(ctx.kept, grads[0].numpy(), grads[1].numpy(), asked)
        found = [None if one is None else torch.from_numpy(one) for one in (by_inputs, by_state)]
        if any(ctx.needs_input_grad[6:]):
            found += map(torch.from_numpy, rows.unflat(by_F, ctx.sizes))
        else:
            found += [None] * len(rest)
        return (None, None, None, None, *found)


def parts_of(flat: np.ndarray, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return consecutive parts of a flat array in these shapes."""
    found, at = [], 0
    for shape in shapes:
        size = math.prod(shape)
        found.append(flat[at : at + size].reshape(shape))
        at += size
    return found


def _again(ctx: Any, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients as a graph, which may be differentiated again."""
    needed = ctx.needs_input_grad[4:]
    with torch.enable_grad():
        # The aliases keep the graph that joins the inputs out of it.
        aliases = [tensor.view_as(tensor) if need else tensor for tensor, need in zip(tensors, needed, strict=True)]
        inputs, state, *rest = aliases
        places = len(rest) - ctx.layers
        P, c, B, Q, R, d = rest[:6]
        step = Collapsed(P, c, B, Q, R, d, tuple(rest[6:places]), tuple(rest[places:]))
        outputs = plain_run(ctx.name, ctx.starts, inputs, state, step)
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=torch.is_grad_enabled(), allow_unused=True))
    return [next(found) if need else None for need in needed]
