"""One step of an R2DN whose arrays stay as they are: nothing computed twice, and gradients without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robust_policies.networks.activations import Activation
from robust_policies.networks.cell import FixedStep
from robust_policies.networks.lbdn import LayerMatrices
from robust_policies.networks.linalg import full_precision

Linear = tuple[Tensor, Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]


class FixedR2DN(FixedStep):
    """(input (batch, nu), state (batch, nx)) -> (output (batch, ny), next state (batch, nx)).

    A call does what `R2DN.step` and its graph do, in the same order: the same numbers, bit for bit. `forward` and
    `backward` take the collapsed arrays, as `R2DN.run` does: fewer products, rounded otherwise; their caller sets
    `full_precision`.

    Args:
        activation: of the layers that are not linear.
        matrices: A, B1, B2, C1, C2, D12, D21, D22, bx, bv, by.
        layers: of phi, first layer first.
        collapsed: [B2; M_u; D22] (n, nu) and its bias, [A; M; C2] (n, nx), [Bt; D21] (nx + ny, n_L), W_2 .. W_L and
            b_2 .. b_L, as `scan` has them.
    """

    def __init__(
        self,
        activation: Activation,
        matrices: Sequence[Tensor],
        layers: Sequence[LayerMatrices],
        collapsed: Linear,
    ) -> None:
        self.activation = activation
        # Matrices are transposed, as they multiply rows.
        self.arrays = tuple(matrix.detach() if matrix.ndim == 1 else matrix.detach().mT for matrix in matrices)
        self.layers = [
            (layer.in_map().detach().mT, layer.b.detach(), None if layer.A is None else layer.out_map().detach().mT)
            for layer in layers
        ]
        drive, self.bias, AM, self.out, weights, biases = collapsed
        self.hidden = [(weight, weight.t(), bias.detach()) for weight, bias in zip(weights, biases, strict=True)]
        self.nx, self.first = matrices[0].shape[0], AM.shape[0] - matrices[4].shape[0]
        self.drive_T, self.AM_T, self.Bt_T, self.D21_T = (
            drive.t(),
            AM.t(),
            self.out[: self.nx].t(),
            self.out[self.nx :].t(),
        )
        rows = slice(0, self.nx), slice(self.nx, self.first), slice(self.first, None)
        (self.drive_linear, self.drive_first), (self.AM_linear, self.AM_first) = (
            (torch.cat((whole[rows[0]], whole[rows[2]])), whole[rows[1]].contiguous()) for whole in (drive, AM)
        )

    def __call__(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state), differentiable in both arguments."""
        if torch.is_grad_enabled() and (input.requires_grad or state.requires_grad):
            return _Step.apply(self, input, state)
        return self.step(input, state)[:2]

    def step(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return (output, next state, what each activation gave)."""
        A, B1, B2, C1, C2, D12, D21, D22, bx, bv, by = self.arrays
        hidden = []
        with full_precision(state):
            w = (state @ C1).add_(input @ D12).add_(bv)
            for inward, bias, outward in self.layers:
                w = (w @ inward).add_(bias)
                if outward is not None:
                    w = self.activation.inplace(w)
                    hidden.append(w)
                    w = w @ outward
            output = (state @ C2).add_(w @ D21).add_(input @ D22).add_(by)
            return output, (state @ A).add_(w @ B1).add_(input @ B2).add_(bx), hidden

    def slopes(self, hidden: Sequence[Tensor], output: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of input and state of `step` from those of output and next state."""
        A, B1, B2, C1, C2, D12, D21, D22, *_ = self.arrays
        left = list(hidden)
        with full_precision(output):
            w = (following @ B1.mT).add_(output @ D21.mT)
            for inward, _, outward in reversed(self.layers):
                if outward is not None:
                    w = (w @ outward.mT).mul_(self._slope(left.pop()))
                w = w @ inward.mT
            return (
                (following @ B2.mT).add_(output @ D22.mT).add_(w @ D12.mT),
                (following @ A.mT).add_(output @ C2.mT).add_(w @ C1.mT),
            )

    def forward(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return (output, next state, what each activation gave), by the collapsed arrays."""
        nx, first = self.nx, self.first
        z = torch.addmm(self.bias, input, self.drive_T).addmm_(state, self.AM_T)
        h = self.activation.inplace(z[:, nx:first])
        hidden = [h]
        for _, transposed, bias in self.hidden:
            h = self.activation.inplace(torch.addmm(bias, h, transposed))
            hidden.append(h)
        following, output = z[:, :nx].addmm_(h, self.Bt_T), z[:, first:].addmm_(h, self.D21_T)
        return output, following, hidden

    def backward(self, kept: Sequence[Tensor], output: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of input and state of `forward` from those of output and next state."""
        slope = self.activation.slope
        both = torch.cat((following, output), -1)
        g = both @ self.out
        for (weight, _, _), h in zip(reversed(self.hidden), reversed(kept), strict=False):
            g = g.mul_(slope(h, torch.empty_like(h))) @ weight
        g.mul_(slope(kept[0], torch.empty_like(g)))
        return (
            (both @ self.drive_linear).addmm_(g, self.drive_first),
            (both @ self.AM_linear).addmm_(g, self.AM_first),
        )

    def _slope(self, h: Tensor) -> Tensor:
        return self.activation.slope(h, torch.empty_like(h))


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: FixedR2DN, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, following, hidden = step.step(input, state)
        ctx.step = step
        ctx.save_for_backward(*hidden)
        return output, following

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.step.slopes(ctx.saved_tensors, *grads))
