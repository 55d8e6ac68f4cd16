"""The run over time of an R2DN with everything linear collapsed, and its own backward pass.

Between two activations an R2DN is linear, so with W_k the product of the out-map of layer k-1 and the in-map of layer k
a step is
    [x part, h_1] = [A; M] x + drive,  h_1 <- act(h_1),  h_k = act(W_k h_{k-1} + b_k),  x+ = x part + Bt h_L.
What depends on the input alone (`drive`) and the outputs are products over all time steps outside this loop. Backward
needs only the same L + 1 small products a step; each weight gradient is one product over time * batch afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robust_policies.networks.activations import ACTIVATIONS, Activation


def scan(
    activation: Activation,
    starts: Tensor | None,
    drive: Tensor,
    state: Tensor,
    AM: Tensor,
    Bt: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (states (time, batch, nx) seen by each step, last activations (time, batch, n_L), final state).

    Args:
        activation: applied after every product but the last.
        starts: (time, batch) bool or None; where True the state is zeroed before the step.
        drive: (time, batch, nx + n_1).
        state: (batch, nx).
        AM: [A; M], (nx + n_1, nx).
        Bt: (nx, n_L).
        weights: W_2 .. W_L, (n_k, n_{k-1}).
        biases: b_2 .. b_L, (n_k,).
    """
    tensors = (drive, state, AM, Bt, *weights, *biases)
    if _needs_plain_path(tensors):
        return plain_scan(activation, starts, *tensors)
    return _Scan.apply(activation.name, starts, *tensors)


def plain_scan(
    activation: Activation, starts: Tensor | None, drive: Tensor, state: Tensor, AM: Tensor, Bt: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `scan` returns, by differentiable operations: for forward mode, vmap and second derivatives."""
    nx, layers = state.shape[-1], len(rest) // 2
    states, lasts = [], []
    for t in range(drive.shape[0]):
        if starts is not None:
            state = torch.where(starts[t].unsqueeze(-1), torch.zeros_like(state), state)
        states.append(state)
        z = drive[t] + state @ AM.mT
        h = activation.function(z[..., nx:])
        for W, b in zip(rest[:layers], rest[layers:], strict=True):
            h = activation.function(h @ W.mT + b)
        lasts.append(h)
        state = z[..., :nx] + h @ Bt.mT
    return torch.stack(states), torch.stack(lasts), state


def _needs_plain_path(tensors: Sequence[Tensor]) -> bool:
    # A custom autograd function has no forward-mode rule and cannot run inside torch.func transforms.
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, starts: Tensor | None, drive: Tensor, state: Tensor, AM: Tensor, Bt: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        activation = ACTIVATIONS[name]
        nx, layers = state.shape[1], len(rest) // 2
        time, batch = drive.shape[:2]
        z = torch.empty_like(drive, memory_format=torch.contiguous_format)
        states = drive.new_empty(time + 1, batch, nx)
        hidden = [z[..., nx:]] + [drive.new_empty(time, batch, W.shape[0]) for W in rest[:layers]]
        states[0] = state

        x_at, z_at, drive_at, carry_at = states.unbind(), z.unbind(), drive.unbind(), z[..., :nx].unbind()
        h_at = tuple(zip(*(h.unbind() for h in hidden), strict=True))
        AM_T, Bt_T = AM.t(), Bt.t()
        maps = [(b, W.t()) for W, b in zip(rest[:layers], rest[layers:], strict=True)]
        resets = _reset_steps(starts)
        keep = None if starts is None else (~starts).to(drive.dtype).unsqueeze(-1)
        act, addmm = activation.inplace, torch.addmm
        for t in range(time):
            x = x_at[t]
            if t in resets and keep is not None:
                x.mul_(keep[t])
            addmm(drive_at[t], x, AM_T, out=z_at[t])
            values = h_at[t]
            h = act(values[0])
            for k, (b, W_T) in enumerate(maps, 1):
                h = act(addmm(b, h, W_T, out=values[k]))
            addmm(carry_at[t], h, Bt_T, out=x_at[t + 1])

        last = hidden[-1] if layers else hidden[-1].contiguous()
        final = states[time].clone()
        ctx.activation, ctx.starts, ctx.resets, ctx.layers = activation, starts, resets, layers
        ctx.save_for_backward(drive, state, AM, Bt, *rest, states, last, z, *hidden[1:-1])
        return states[:time], last, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs = saved[: 4 + 2 * ctx.layers]
        if torch.is_grad_enabled():
            return (None, None, *_differentiable_backward(ctx, inputs, grads))
        return (None, None, *_fast_backward(ctx, saved, grads))


def _reset_steps(starts: Tensor | None) -> frozenset[int]:
    return frozenset() if starts is None else frozenset(starts.any(dim=1).nonzero().flatten().tolist())


def _differentiable_backward(ctx: Any, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    # create_graph=True: differentiate a recomputation. The aliases keep the graph that joins the inputs out of it.
    needed = ctx.needs_input_grad[2:]
    aliases = [tensor.view_as(tensor) if need else tensor for tensor, need in zip(inputs, needed, strict=True)]
    outputs = plain_scan(ctx.activation, ctx.starts, *aliases)
    wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
    results = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return tuple(next(results) if need else None for need in needed)


@torch.no_grad()
def _fast_backward(ctx: Any, saved: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    layers = ctx.layers
    drive, state, AM, Bt, *rest = saved[: 4 + 2 * layers]
    states, last, z, *between = saved[4 + 2 * layers :]
    weights = rest[:layers]
    time, batch = drive.shape[:2]
    nx = state.shape[1]
    hidden = [z[..., nx:], *between, last] if layers else [last]
    grad_states, grad_last, grad_final = grads

    G = torch.empty_like(z)
    deltas = [G[..., nx:]] + [drive.new_empty(time, batch, W.shape[0]) for W in weights]
    G_at, gx_at = G.unbind(), G[..., :nx].unbind()
    delta_at = tuple(zip(*(d.unbind() for d in deltas), strict=True))
    h_at = tuple(zip(*(h.unbind() for h in hidden), strict=True))
    grad_x_at, grad_h_at = grad_states.unbind(), grad_last.unbind()
    below = [drive.new_empty(batch, d.shape[-1]) for d in deltas]
    chain = [(k, weights[k - 1], below[k - 1]) for k in range(layers, 0, -1)]
    grad_state = torch.empty_like(state, memory_format=torch.contiguous_format)
    keep = None if ctx.starts is None else (~ctx.starts).to(drive.dtype).unsqueeze(-1)
    slope, addmm, mm, resets, top = ctx.activation.backward, torch.addmm, torch.mm, ctx.resets, below[-1]
    gx_at[time - 1].copy_(grad_final)
    for t in range(time - 1, -1, -1):
        h, delta = h_at[t], delta_at[t]
        g = addmm(grad_h_at[t], gx_at[t], Bt, out=top)
        for k, W, buffer in chain:
            g = mm(slope(g, h[k], delta[k]), W, out=buffer)
        slope(g, h[0], delta[0])
        gx = addmm(grad_x_at[t], G_at[t], AM, out=gx_at[t - 1] if t else grad_state)
        if t in resets and keep is not None:
            gx.mul_(keep[t])

    G_flat = G.flatten(0, 1)
    grad_AM = G_flat.t() @ states[:time].flatten(0, 1)
    grad_Bt = G_flat[:, :nx].t() @ last.flatten(0, 1)
    flat = [h.flatten(0, 1) for h in hidden[:-1]] if layers else []
    d_flat = [d.flatten(0, 1) for d in deltas[1:]]
    grad_W = [d.t() @ h for d, h in zip(d_flat, flat, strict=True)]
    return (G, grad_state, grad_AM, grad_Bt, *grad_W, *(d.sum(0) for d in d_flat))
