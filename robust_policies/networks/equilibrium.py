"""The implicit layer of a REN, w = act(b + D11 w) with D11 strictly lower triangular, and its implicit derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robust_policies.networks.activations import Activation

_BLOCK = 64
_FEW = 2560  # batch * nv up to which a triangular matrix a sample is solved sooner than neuron after neuron


def solve_equilibrium(b: Tensor, D11: Tensor, activation: Activation) -> Tensor:
    """Return w (batch, nv) with w = act(b + D11 w).

    One autograd node whatever nv: forward substitution without a graph, then the implicit function theorem.
    Forward-mode derivatives, functional transforms and second derivatives go through the plain substitution, which
    PyTorch differentiates by itself.

    Args:
        b: (batch, nv).
        D11: (nv, nv), strictly lower triangular; what stands on or above the diagonal is never read.
        activation: slope in [0, 1].
    """
    if _is_transformed():
        return _substitute_plain(b, D11, activation)
    return _Equilibrium.apply(b, D11, activation)


class _Equilibrium(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, b: Tensor, D11: Tensor, activation: Activation) -> Tensor:
        w = _substitute(b, D11, activation.inplace)
        ctx.save_for_backward(b, D11, w)
        ctx.activation = activation
        return w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        b, D11, w = ctx.saved_tensors
        (grad,) = grads
        if torch.is_grad_enabled():
            # A derivative of this backward is asked for: the plain path builds the graph it needs. The aliases keep
            # the graph that joins the inputs out of it: b of a later step depends on D11 too.
            aliases = (b.view_as(b), D11.view_as(D11))
            plain = _substitute_plain(*aliases, ctx.activation)
            wanted = [x for x, need in zip(aliases, ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(plain, wanted, grad, create_graph=True))
            return *(next(found) if need else None for need in ctx.needs_input_grad[:2]), None
        # v = b + D11 w, w = act(v), J = diag(act'(v)): of the gradient g of w, h = J g obeys h = J (grad + D11' h).
        slope = ctx.activation.slope(w, torch.empty_like(w))
        if w.is_cuda or w.numel() <= _FEW:
            matrix = -(torch.tril(D11, -1).mT * slope.unsqueeze(1))
            total = torch.linalg.solve_triangular(matrix, grad.unsqueeze(2), upper=True, unitriangular=True)
            h = slope * total.squeeze(2)
        else:  # the same substitution as forward, from the last neuron to the first
            slopes = iter(slope.mT.flip(0).unbind())
            h = _substitute(grad.flip(1), D11.tril(-1).mT.flip(0, 1), lambda row: row.mul_(next(slopes))).flip(1)
        return h, torch.tril(h.mT @ w, -1) if ctx.needs_input_grad[1] else None, None


def _substitute(b: Tensor, lower: Tensor, close: Callable[[Tensor], Tensor]) -> Tensor:
    """Return w (batch, nv) with w_i = close(b_i + sum over j < i of lower_ij w_j); `close` overwrites its argument.

    Neurons are rows, so that each product reads contiguous memory. What earlier blocks of neurons add is one matrix
    product a block; within a block the rows that are still to come are zero and add nothing, which spares a pair of
    slices a neuron: dispatching them took longer than the arithmetic.
    """
    b, lower = b.mT.contiguous(), lower.tril(-1)
    w = torch.zeros_like(b)
    for first in range(0, len(b), _BLOCK):
        block = slice(first, first + _BLOCK)
        known, found = torch.addmm(b[block], lower[block, :first], w[:first]), w[block]
        for v, weights, row in zip(known.unbind(), lower[block, block].unbind(), found.unbind(), strict=True):
            row.copy_(close(torch.addmv(v, found.mT, weights)))
    return w.mT.contiguous()


def _substitute_plain(b: Tensor, D11: Tensor, activation: Activation) -> Tensor:
    w: list[Tensor] = [activation.function(b[:, 0])]
    for i in range(1, b.shape[1]):
        w.append(activation.function(b[:, i] + torch.stack(w, dim=1) @ D11[i, :i]))
    return torch.stack(w, dim=1)


def _is_transformed() -> bool:
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
