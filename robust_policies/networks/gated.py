"""The compiled run of an LSTM or a GRU as one node of PyTorch's graph, and when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robust_policies.networks.program import transformed

# Fewer steps are not worth the second in which numba is loaded; wider ones gain less and less.
_ENOUGH, _WIDEST = 256, 128


class GatedMatrices(NamedTuple):
    """Weights of an LSTM or GRU in torch's gate order, and of its output map y = C h + by."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    C: Tensor
    by: Tensor


def applies(inputs: Tensor, state: Tensor, weights: GatedMatrices) -> bool:
    """Return whether the compiled run is to be used: many small steps on a CPU, in float32 or float64.

    Args:
        inputs: (time, batch, nu).
        state: (batch, nx).
        weights: of the cell.
    """
    if inputs.device.type != "cpu" or inputs.dtype not in (torch.float32, torch.float64):
        return False
    if inputs.shape[0] * inputs.shape[1] < _ENOUGH:
        return False
    if max(inputs.shape[2], *weights.C.shape) > _WIDEST or transformed((inputs, state, *weights)):
        return False
    if any(one.dtype != inputs.dtype or one.device != inputs.device for one in (state, *weights)):
        return False
    return _works(str(inputs.dtype).removeprefix("torch."))


def run(starts: Tensor | None, inputs: Tensor, state: Tensor, weights: GatedMatrices) -> tuple[Tensor, Tensor]:
    """Return (outputs (time, batch, ny), final state (batch, nx)) of the loop of `gated_kernels`.

    An LSTM's state is [h, c] side by side, a GRU's h.

    Args:
        starts: (time, batch) bool or None; where True the state is zeroed before the step.
        inputs: (time, batch, nu).
        state: (batch, nx).
        weights: of the cell.
    """
    return _Run.apply(starts, inputs, state, *weights)


def stepped(input: Tensor, state: Tensor, weights: GatedMatrices) -> tuple[Tensor, Tensor]:
    """Return (output (batch, ny), next state (batch, nx)) of one step, input (batch, nu) and state (batch, nx)."""
    size = weights.weight_hh.shape[1]
    given = functional.linear(input, weights.weight_ih, weights.bias_ih)
    known = functional.linear(state[..., :size], weights.weight_hh, weights.bias_hh)
    if state.shape[-1] == size:
        ir, iz, i_n = given.chunk(3, dim=-1)
        hr, hz, hn = known.chunk(3, dim=-1)
        z = torch.sigmoid(iz + hz)
        n = torch.tanh(i_n + torch.sigmoid(ir + hr) * hn)
        h = following = (1 - z) * n + z * state
    else:
        i, f, g, o = (given + known).chunk(4, dim=-1)
        c = torch.sigmoid(f) * state[..., size:] + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        following = torch.cat((h, c), dim=-1)
    return functional.linear(h, weights.C, weights.by), following


@cache
def _kernels() -> Any:
    """Return the module of the loops, which loads numba; raises ImportError where that is not there."""
    return importlib.import_module("robust_policies.networks.gated_kernels")


@cache
def _works(dtype: str) -> bool:
    """Return whether numba is there and its loops run, which compiles them where that was not done before."""
    try:
        small = [np.full(shape, 0.5, dtype) for shape in ((1, 1), (4, 1), (4, 1), (4,), (4,), (1, 1), (1,))]
        given, (state, *weights) = np.ones((2, 1, 1), dtype), small
        outputs, kept = _forward(np.ones((2, 1), dtype), given, np.concatenate((state, state)), weights)[::2]
        return bool(np.isfinite(_backward(kept, outputs, np.ones((2, 1), dtype), weights)[1]).all())
    except Exception:  # whatever ails the compiler: the run by PyTorch needs none
        return False


def kinds(dtype: np.dtype) -> tuple[int, int]:
    """Return the kinds of sigmoid and tanh for numbers of a dtype."""
    return _kernels().kind_of("sigmoid", dtype), _kernels().kind_of("tanh", dtype)


def joined(W: np.ndarray, matrices: Sequence[np.ndarray]) -> None:
    """Overwrite the kernels' matrix W (4 n, n + 1 + nu) with weights and biases (k n, nu), (k n, n) and (k n,) twice.

    k is 4 of an LSTM and 3 of a GRU, whose zeros in W stay.
    """
    w_ih, w_hh, b_ih, b_hh = matrices
    n = w_hh.shape[1]
    if len(w_hh) == 3 * n:
        W[: 3 * n, :n], W[: 3 * n, n], W[: 2 * n, n + 1 :] = w_hh, b_hh, w_ih[: 2 * n]
        W[3 * n :, n + 1 :], W[3 * n :, n] = w_ih[2 * n :], b_ih[2 * n :]
        W[: 2 * n, n] += b_ih[: 2 * n]
    else:
        W[:, :n], W[:, n], W[:, n + 1 :] = w_hh, b_ih + b_hh, w_ih


def parted(gru: bool, gW: np.ndarray) -> list[np.ndarray]:
    """Return the gradients of weights and biases, as `joined` takes them, of that of W (4 n, n + 1 + nu)."""
    n = len(gW) // 4
    found = gW[:, n + 1 :], gW[:, :n], gW[:, n], gW[:, n]
    if gru:
        g_ih = np.concatenate((gW[: 2 * n], gW[3 * n :]))
        found = g_ih[:, n + 1 :], gW[: 3 * n, :n], g_ih[:, n], gW[: 3 * n, n]
    return [one.copy() for one in found]


def _forward(keep: np.ndarray, inputs: np.ndarray, state: np.ndarray, weights: Sequence[np.ndarray]) -> Any:
    """Return outputs (time, ny, batch), the final state (nx, batch) and what backward needs; features before batch."""
    kernels, (time, nu, batch) = _kernels(), inputs.shape
    *matrices, C, d = weights
    n = C.shape[1]
    gru = len(state) == n
    W = np.zeros((4 * n, n + 1 + nu), inputs.dtype)
    joined(W, matrices)
    S, Z = np.empty((time, n + 1 + nu, batch), W.dtype), np.empty((time, 4 * n, batch), W.dtype)
    K = np.empty((time, n if gru else 3 * n, batch), W.dtype)
    h, c = state[:n].copy(), state[n:].copy()
    outputs = kernels.forward(gru, *kinds(W.dtype), keep, inputs, h, c, W, np.ascontiguousarray(C), d, S, Z, K)
    return outputs, np.concatenate((h, c)), (gru, keep, W, C, S, Z, K)


def _backward(kept: Any, grad: np.ndarray, last: np.ndarray, weights: Sequence[np.ndarray]) -> Any:
    """Return the gradients of the inputs (time, nu, batch), the first state (nx, batch) and the weights."""
    gru, keep, W, C, S, Z, K = kept
    n = C.shape[1]
    h, c = last[:n].copy(), last[n:].copy()
    turned = np.ascontiguousarray(W.T), np.ascontiguousarray(C.T)
    g_inputs, gW, gC, gd = _kernels().backward(gru, keep, grad, h, c, *turned, S, Z, K)
    return g_inputs, np.concatenate((h, c)), *parted(gru, gW), gC, gd


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, starts: Tensor | None, inputs: Tensor, state: Tensor, *weights: Tensor) -> Any:
        given = np.ascontiguousarray(inputs.detach().transpose(1, 2).numpy())
        arrays = [np.ascontiguousarray(one.detach().numpy()) for one in weights]
        keep = np.empty((0, inputs.shape[1]), given.dtype)
        if starts is not None:
            keep = (~starts).numpy().astype(given.dtype)
        outputs, final, ctx.kept = _forward(keep, given, state.detach().numpy().T, arrays)
        ctx.starts = starts
        ctx.save_for_backward(inputs, state, *weights)
        return torch.from_numpy(outputs).transpose(1, 2), torch.from_numpy(final).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed(grads):
            return (None, *_again(ctx, tensors, grads))
        grad = np.ascontiguousarray(grads[0].transpose(1, 2).numpy())
        weights = [one.detach().numpy() for one in tensors[2:]]
        g_inputs, first, *found = _backward(ctx.kept, grad, grads[1].numpy().T, weights)
        results = (torch.from_numpy(one) for one in found)
        return (None, torch.from_numpy(g_inputs).transpose(1, 2), torch.from_numpy(first).t(), *results)


def _again(ctx: Any, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients as a graph, which may be differentiated again."""
    needed = ctx.needs_input_grad[1:]
    with torch.enable_grad():
        # The aliases keep the graph that joins the inputs out of it.
        aliases = [tensor.view_as(tensor) if need else tensor for tensor, need in zip(tensors, needed, strict=True)]
        inputs, state, *rest = aliases
        outputs = []
        for t in range(len(inputs)):
            if ctx.starts is not None:
                state = state.masked_fill(ctx.starts[t].unsqueeze(-1), 0.0)
            output, state = stepped(inputs[t], state, GatedMatrices(*rest))
            outputs.append(output)
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    ends = torch.stack(outputs), state
    found = iter(torch.autograd.grad(ends, wanted, grads, create_graph=torch.is_grad_enabled(), allow_unused=True))
    return [next(found) if need else None for need in needed]
