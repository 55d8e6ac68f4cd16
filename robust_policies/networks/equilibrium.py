"""The implicit layer of a REN, w = act(b + D11 w) with D11 strictly lower triangular, and its implicit derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from robust_policies.networks.activations import Activation


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
        w = _substitute(b, D11, activation)
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
        # v = b + D11 w, w = act(v), J = diag(act'(v)): the gradient g of w obeys g = grad + D11' J g.
        slope = ctx.activation.slope(w, torch.empty_like(w))
        transposed = -(torch.tril(D11, -1).mT * slope.unsqueeze(1))
        total = torch.linalg.solve_triangular(transposed, grad.unsqueeze(2), upper=True, unitriangular=True).squeeze(2)
        through = slope * total
        return through, torch.tril(through.mT @ w, -1) if ctx.needs_input_grad[1] else None, None


def _substitute(b: Tensor, D11: Tensor, activation: Activation) -> Tensor:
    # One row a neuron, so that each product reads contiguous memory.
    w = b.mT.contiguous()
    for i in range(w.shape[0]):
        if i:
            torch.addmv(w[i], w[:i].mT, D11[i, :i], out=w[i])
        activation.inplace(w[i])
    return w.mT.contiguous()


def _substitute_plain(b: Tensor, D11: Tensor, activation: Activation) -> Tensor:
    w: list[Tensor] = [activation.function(b[:, 0])]
    for i in range(1, b.shape[1]):
        w.append(activation.function(b[:, i] + torch.stack(w, dim=1) @ D11[i, :i]))
    return torch.stack(w, dim=1)


def _is_transformed() -> bool:
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
