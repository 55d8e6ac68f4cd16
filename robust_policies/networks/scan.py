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

from robust_policies.networks import triton_scan
from robust_policies.networks.activations import ACTIVATIONS, Activation
from robust_policies.networks.equilibrium import solve_equilibrium


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
        weights: W_2 .. W_L, (n_k, n_{k-1}); or one matrix (n_1, n_1), strictly lower triangular, and no biases: then
            each neuron reads those before it, as a REN's do.
        biases: b_2 .. b_L, (n_k,).
    """
    tensors = (drive, state, AM, Bt, *weights, *biases)
    if _needs_plain_path(tensors):
        return plain_scan(activation, starts, *tensors)
    serial = len(weights) > len(biases)
    widths = (state.shape[1], drive.shape[2] - state.shape[1], *(len(b) for b in biases))
    if triton_scan.applies(activation.name, drive, widths, serial):
        return _Kernel.apply(activation.name, starts, *tensors)
    if serial:
        return plain_scan(activation, starts, *tensors)
    return _Scan.apply(activation.name, starts, *tensors)


def plain_scan(
    activation: Activation, starts: Tensor | None, drive: Tensor, state: Tensor, AM: Tensor, Bt: Tensor, *rest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `scan` returns, by differentiable operations: for forward mode, vmap and second derivatives.

    The arguments are `scan`'s, `rest` its weights (n_k, n_{k-1}) and then its biases (n_k,).
    """
    nx, layers = state.shape[-1], len(rest) // 2
    states, lasts = [], []
    for t in range(drive.shape[0]):
        if starts is not None:
            state = torch.where(starts[t].unsqueeze(-1), torch.zeros_like(state), state)
        states.append(state)
        z = drive[t] + state @ AM.mT
        if len(rest) == 1:
            h = solve_equilibrium(z[..., nx:], rest[0], activation)
        else:
            h = activation.function(z[..., nx:])
        for W, b in zip(rest[:layers], rest[len(rest) - layers :], strict=True):
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
        # Every buffer starts as what its product is added to; carry[t] ends as the state after step t.
        z = drive.clone(memory_format=torch.contiguous_format)
        carry, hidden = z[..., :nx], [z[..., nx:]]
        for b in rest[layers:]:
            hidden.append(b.expand(*drive.shape[:2], -1).clone(memory_format=torch.contiguous_format))
        resets = _reset_steps(starts)
        keep = None if starts is None else (~starts).to(drive.dtype).unsqueeze(-1)
        AM_T, Bt_T = AM.t(), Bt.t()
        maps = [(k, W.t()) for k, W in enumerate(rest[:layers], 1)]
        act = activation.inplace
        x = first = state.clone()
        h_at = zip(*(h.unbind() for h in hidden), strict=True)
        for t, (z_t, x_next, values) in enumerate(zip(z.unbind(), carry.unbind(), h_at, strict=True)):
            if t in resets and keep is not None:
                x.mul_(keep[t])
            z_t.addmm_(x, AM_T)
            h = act(values[0])
            for k, W_T in maps:
                h = act(values[k].addmm_(h, W_T))
            x = x_next.addmm_(h, Bt_T)

        states = torch.cat((first.unsqueeze(0), carry[:-1]))
        last = hidden[-1] if layers else hidden[-1].contiguous()
        ctx.activation, ctx.starts, ctx.resets, ctx.layers = activation, starts, resets, layers
        ctx.save_for_backward(drive, state, AM, Bt, *rest, states, last, z, *hidden[1:-1])
        return states, last, x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs = saved[: 4 + 2 * ctx.layers]
        if torch.is_grad_enabled():
            return (None, None, *_differentiable_backward(ctx, inputs, grads))
        return (None, None, *_fast_backward(ctx, saved, grads))


class _Kernel(torch.autograd.Function):
    """`_Scan` by one kernel each way."""

    @staticmethod
    def forward(
        ctx: Any, name: str, starts: Tensor | None, drive: Tensor, state: Tensor, AM: Tensor, Bt: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = (len(rest) + 1) // 2
        states, last, final, kept = triton_scan.forward(name, starts, drive, state, AM, Bt, rest[:count], rest[count:])
        ctx.activation, ctx.starts, ctx.count, ctx.kept = ACTIVATIONS[name], starts, count, kept
        ctx.save_for_backward(drive, state, AM, Bt, *rest, states)
        return states, last, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, None, *_differentiable_backward(ctx, inputs, grads))
        _, _, AM, Bt, *rest = inputs
        G, grad_state, hidden, deltas = triton_scan.backward(ctx.kept, AM, Bt, rest[: ctx.count], grads)
        if not any(ctx.needs_input_grad[4:]):
            return (None, None, G, grad_state, *(None,) * (2 + len(rest)))
        found = _of_arrays(G, states, hidden, deltas)
        if ctx.kept.serial:
            found = *found, (deltas[0].flatten(0, 1).t() @ hidden[0].flatten(0, 1)).tril(-1)
        return (None, None, G, grad_state, *found)


def _reset_steps(starts: Tensor | None) -> frozenset[int]:
    """Return the steps before which some state is reset; all on a GPU, which would be waited for."""
    if starts is not None and starts.is_cuda:
        return frozenset(range(len(starts)))
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
def _fast_backward(ctx: Any, saved: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    layers = ctx.layers
    drive, state, AM, Bt, *rest = saved[: 4 + 2 * layers]
    states, last, z, *between = saved[4 + 2 * layers :]
    weights = rest[:layers]
    time, batch = drive.shape[:2]
    nx = state.shape[1]
    hidden = [z[..., nx:], *between, last] if layers else [last]
    grad_states, grad_last, grad_final = grads

    # G holds the gradients [of the state after step t, of the first layer's product]; each delta starts as the slope.
    G = torch.empty_like(z)
    carry = G[..., :nx]
    carry[:-1] = grad_states[1:]
    carry[-1] = grad_final
    deltas = [G[..., nx:]] + [drive.new_empty(time, batch, W.shape[0]) for W in weights]
    for h, delta in zip(hidden, deltas, strict=True):
        ctx.activation.slope(h, delta)
    top = grad_last.clone(memory_format=torch.contiguous_format)
    below = [drive.new_empty(batch, W.shape[1]) for W in weights]
    chain = [(k, weights[k - 1], below[k - 1]) for k in range(layers, 0, -1)]
    grad_state = grad_states[0].clone(memory_format=torch.contiguous_format)
    keep = None if ctx.starts is None else (~ctx.starts).to(drive.dtype).unsqueeze(-1)
    mm, resets, carry_at = torch.mm, ctx.resets, carry.unbind()
    delta_at = tuple(zip(*(d.unbind() for d in deltas), strict=True))
    G_at, top_at = G.unbind(), top.unbind()
    for t in range(time - 1, -1, -1):
        delta = delta_at[t]
        g = top_at[t].addmm_(carry_at[t], Bt)
        for k, W, buffer in chain:
            g = mm(delta[k].mul_(g), W, out=buffer)
        delta[0].mul_(g)
        gx = (carry_at[t - 1] if t else grad_state).addmm_(G_at[t], AM)
        if t in resets and keep is not None:
            gx.mul_(keep[t])

    if not any(ctx.needs_input_grad[4:]):
        return (G, grad_state, *(None,) * (2 + 2 * layers))
    return (G, grad_state, *_of_arrays(G, states, hidden, deltas))


def _of_arrays(G: Tensor, states: Tensor, hidden: Sequence[Tensor], deltas: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of AM, Bt, weights and biases.

    G (time, batch, nx + n_1) is the drive's, states (time, batch, nx) are what each step saw; hidden and deltas are
    each layer's values and the gradients of its product, (time, batch, n_k).
    """
    nx = states.shape[2]
    G_flat = G.flatten(0, 1)
    grad_AM = G_flat.t() @ states.flatten(0, 1)
    flat = [h.flatten(0, 1) for h in hidden]
    grad_Bt = G_flat[:, :nx].t() @ flat[-1]
    d_flat = [d.flatten(0, 1) for d in deltas[1:]]
    grad_W = [d.t() @ h for d, h in zip(d_flat, flat[:-1], strict=True)]
    return (grad_AM, grad_Bt, *grad_W, *(d.sum(0) for d in d_flat))
