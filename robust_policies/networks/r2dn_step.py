"""One step of an R2DN whose arrays stay as they are: nothing computed twice, and its own backward pass.

The operations are those of `R2DN.step`, and of its gradients those of autograd, in the same order: the numbers are the
same, bit for bit. Gradients flow to the input and the state only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_policies.networks.activations import Activation
from robust_policies.networks.lbdn import LayerMatrices
from robust_policies.networks.linalg import full_precision

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Arrays(NamedTuple):
    """The arrays of a step, transposed as they multiply rows; `layers` (in map, bias, out map or None) first to last."""

    A: Tensor
    B1: Tensor
    B2: Tensor
    C1: Tensor
    C2: Tensor
    D12: Tensor
    D21: Tensor
    D22: Tensor
    bx: Tensor
    bv: Tensor
    by: Tensor
    layers: tuple[tuple[Tensor, Tensor, Tensor | None], ...]


def fixed_step(activation: Activation, matrices: Sequence[Tensor], layers: Sequence[LayerMatrices]) -> Step:
    """Return (input (batch, nu), state (batch, nx)) -> (output (batch, ny), next state (batch, nx)).

    Args:
        activation: of the layers that are not linear.
        matrices: A, B1, B2, C1, C2, D12, D21, D22, bx, bv, by; they have no gradient.
        layers: of phi, first layer first.
    """
    maps = tuple(
        (layer.in_map().mT, layer.b.detach(), None if layer.A is None else layer.out_map().mT) for layer in layers
    )
    arrays = Arrays(*(matrix.detach() if matrix.ndim == 1 else matrix.detach().mT for matrix in matrices), layers=maps)

    def step(input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(state):
            if torch.is_grad_enabled() and (input.requires_grad or state.requires_grad):
                return _Step.apply(activation, arrays, input, state)
            output, following, _ = _forward(activation, arrays, input, state)
            return output, following

    return step


def _forward(activation: Activation, a: Arrays, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return (output, next state, what each activation gave)."""
    w = (state @ a.C1).add_(input @ a.D12).add_(a.bv)
    hidden = []
    for inward, bias, outward in a.layers:
        w = (w @ inward).add_(bias)
        if outward is not None:
            w = activation.inplace(w)
            hidden.append(w)
            w = w @ outward
    output = (state @ a.C2).add_(w @ a.D21).add_(input @ a.D22).add_(a.by)
    return output, (state @ a.A).add_(w @ a.B1).add_(input @ a.B2).add_(a.bx), hidden


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Activation, a: Arrays, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, following, hidden = _forward(activation, a, input, state)
        ctx.activation, ctx.arrays = activation, a
        ctx.save_for_backward(*hidden)
        return output, following

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, hidden = ctx.arrays, list(ctx.saved_tensors)
        output, following = grads
        _, _, wanted, remembered = ctx.needs_input_grad
        w = (following @ a.B1.mT).add_(output @ a.D21.mT)
        for inward, _, outward in reversed(a.layers):
            if outward is not None:
                h = hidden.pop()
                w = (w @ outward.mT).mul_(ctx.activation.slope(h, torch.empty_like(h)))
            w = w @ inward.mT
        input = state = None
        if wanted:
            input = (following @ a.B2.mT).add_(output @ a.D22.mT).add_(w @ a.D12.mT)
        if remembered:
            state = (following @ a.A.mT).add_(output @ a.C2.mT).add_(w @ a.C1.mT)
        return None, None, input, state
