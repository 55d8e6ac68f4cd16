"""An R2DN or a REN step by step inside a differentiated loop, by the compiled run's kernels.

A step of PyTorch's operations leaves some thirty nodes in the graph, and the gradients of a dozen arrays are added up
after each. Here a step is one node, and the arrays' gradients are added up outside the graph: a node at its beginning,
on which every step hangs, hands the sums to the arrays once all steps have been there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robust_policies.networks.compiled import Collapsed, applies, kernels_of, packed, parts_of
from robust_policies.networks.robust_cell import RobustCell

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def stepping(cell: Any, explicit: Any, horizon: int, batch: int) -> Step:
    """Return `cell.step` with its explicit arrays, (input (batch, nu), state (batch, nx)) -> (output, next state).

    Where many small steps are to be differentiated, by the compiled kernels: once, not twice.

    Args:
        cell: a `Cell`, whose arrays they are.
        explicit: its arrays.
        horizon: how often the step will be taken.
        batch: of each step.
    """
    # What closes a loop around a cell has its arrays and another step.
    collapsed = getattr(explicit, "collapsed", None) if isinstance(cell, RobustCell) else None
    if collapsed is not None and horizon > 1:
        like = collapsed.P.detach()
        inputs = like.new_empty(0).expand(horizon, batch, 0)
        name = cell.activation.name
        if applies(name, inputs, like, collapsed):
            return Steps(name, collapsed, cell.state_size)
    return lambda input, state: cell.step(explicit, input, state)


class Steps:
    """The compiled steps that hang on one token."""

    def __init__(self, name: str, collapsed: Collapsed, nx: int) -> None:
        arrays = (*collapsed[:6], *collapsed.weights, *collapsed.biases)
        self.layers, self.shapes = len(collapsed.biases), [one.shape for one in arrays]
        self.arrays = packed(arrays, self.layers, nx)
        self.turned = self.arrays.turned()
        self.kind = kernels_of().kind_of(name, self.arrays.P.dtype)
        self.sums: list[np.ndarray] | None = None
        self.task = -1
        self.token = _Begin.apply(self, *arrays)

    def __call__(self, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output (batch, ny), next state (batch, nx))."""
        return _Step.apply(self, self.token, input, state)

    def keep(self, batch: int) -> np.ndarray:
        """Return what says that no sample of a batch begins anew."""
        return np.empty((0, batch), self.arrays.P.dtype)

    def add(self, found: list[np.ndarray]) -> None:
        """Add a step's gradients of P, c, B, Q, R, d, weights and biases; those of another backward pass are gone."""
        task = torch._C._current_graph_task_id()
        if self.sums is None or task != self.task:
            self.sums, self.task = found, task
            return
        for one, other in zip(self.sums, found, strict=True):
            one += other


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: Steps, *arrays: Tensor) -> Tensor:
        ctx.steps = steps
        return arrays[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        steps = ctx.steps
        if steps.sums is None or steps.task != torch._C._current_graph_task_id():
            return (None,) * (len(steps.shapes) + 1)
        *found, gW, gb = steps.sums
        steps.sums = None
        places = len(steps.shapes) - steps.layers
        found += parts_of(gW, steps.shapes[6:places]) + parts_of(gb, steps.shapes[places:])
        return (None, *map(torch.from_numpy, found))


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: Steps, token: Tensor, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        one, kernels = steps.arrays, kernels_of()
        following = state.detach().numpy().T.copy()
        S = np.empty((1, one.P.shape[1], len(input)), one.P.dtype)
        H = np.empty((1, one.neurons, len(input)), one.P.dtype)
        given = np.ascontiguousarray(input.detach().numpy().T)[None]
        output = kernels.forward(steps.kind, steps.keep(len(input)), given, following, *one[:-1], S, H)
        ctx.steps, ctx.kept = steps, (S, H)
        return torch.from_numpy(output[0]).t(), torch.from_numpy(following).t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        steps, one, (S, H) = ctx.steps, ctx.steps.arrays, ctx.kept
        by_output = np.ascontiguousarray(grads[0].numpy().T)[None]
        by_state = grads[1].numpy().T.copy()
        by_input, *found = kernels_of().backward(
            steps.kind, steps.keep(S.shape[2]), S.shape[1] - len(by_state), by_output, by_state, *steps.turned,
            one.weights, one.blocks, S, H,
        )  # fmt: skip
        steps.add(found)
        return None, steps.token.new_zeros(()), torch.from_numpy(by_input[0]).t(), torch.from_numpy(by_state).t()
