"""A cell's parametrization and its run over time as one node of PyTorch's graph, for cells that are trained.

The recorded program (`program`) writes all numbers of a step into one array of its buffer, the loops of `row_kernels`
read it there, and the gradient of that array is what the program's derivative begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from robust_policies.networks import rows
from robust_policies.networks.compiled import Collapsed, fits, plain_run
from robust_policies.networks.program import Program, current, transformed
from robust_policies.networks.tape import Tape


class _Run(NamedTuple):
    """What a node needs of a cell: program, names and sizes, and the parametrization itself."""

    program: Program
    name: str
    sizes: rows.Sizes
    make: Callable[[], Collapsed]
    way: Any


def run_with_parameters(
    module: nn.Module,
    name: str,
    sizes: rows.Sizes,
    make: Callable[[], Collapsed],
    inputs: Tensor,
    state: Tensor,
    starts: Tensor | None,
    way: Any = rows,
) -> tuple[Tensor, Tensor] | None:
    """Return (outputs (time, batch, ny), final state (batch, nx)) of a cell as its parameters are now, by one node.

    None where that is not to be used: without numba, of few or wide steps, in forward mode or `torch.func`, where the
    parametrization cannot be recorded or a matrix has no factor, and without a graph by `rows`, whose last digits are
    then those of PyTorch's arrays.

    Args:
        module: the cell.
        name: of its activation.
        sizes: of its step.
        make: its collapsed step; all it reads but the parameters stays the same from call to call.
        inputs: (time, batch, nu).
        state: (batch, nx).
        starts: (time, batch) bool or None; where True the state is zeroed before the step.
        way: what runs it forward and backward, `rows` or a `parallel.Chunks`.
    """
    dtype = inputs.dtype
    wanted = torch.is_grad_enabled() or (way is not rows and not torch.is_inference_mode_enabled())
    if not wanted or not fits(inputs) or not sizes.fit() or transformed((inputs, state)):
        return None
    if not rows.works(name, str(dtype).removeprefix("torch.")):
        return None
    program, parameters = current(module, lambda: rows.flat(*arrays_of(make())), "whole")
    if program is None or not isinstance(program.engine, Tape) or parameters[0].dtype != dtype:
        return None
    try:
        return _Node.apply(_Run(program, name, sizes, make, way), starts, inputs, state, *parameters)
    except np.linalg.LinAlgError:
        return None


def arrays_of(step: Collapsed) -> tuple[Tensor, ...]:
    """Return P, c, B, Q, R, d, weights and biases of a step, of any shapes."""
    return (*step[:6], *step.weights, *step.biases)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: _Run, starts: Tensor | None, inputs: Tensor, state: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        (F,), ctx.lent = cast(Tape, run.program.engine).lend(parameters)
        kind, keep = rows.kind_of(run.name, F.dtype), None if starts is None else (~starts).numpy()
        outputs, final, ctx.kept = run.way.forward(kind, run.sizes, F, inputs.numpy(), state.numpy(), keep)
        ctx.run, ctx.starts = run, starts
        ctx.save_for_backward(inputs, state, *parameters)
        return torch.from_numpy(outputs), torch.from_numpy(final)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, state, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled() or transformed(grads):
            return (None, None, *_again(ctx, inputs, state, parameters, grads))
        asked = ctx.needs_input_grad[2]
        by_inputs, by_state, by_F = ctx.run.way.backward(ctx.kept, grads[0].numpy(), grads[1].numpy(), asked)
        try:
            found = ctx.run.program.engine.backward(ctx.lent, [torch.from_numpy(by_F)])
        except np.linalg.LinAlgError:
            return (None, None, *_again(ctx, inputs, state, parameters, grads))
        by_inputs = None if by_inputs is None else torch.from_numpy(by_inputs)
        return (None, None, by_inputs, torch.from_numpy(by_state), *found)


def _again(
    ctx: Any, inputs: Tensor, state: Tensor, parameters: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients as a graph, which may be differentiated again."""
    needed, further = ctx.needs_input_grad[2:], torch.is_grad_enabled()
    with torch.enable_grad():
        step = ctx.run.make()
        arrays = arrays_of(step)
        # The aliases keep the graph that joins inputs, state and arrays out of it.
        aliases = [one.view_as(one) if one.requires_grad else one for one in (inputs, state, *arrays)]
        P, c, B, Q, R, d, *others = aliases[2:]
        half = len(step.weights)  # a REN has one, and no biases
        copy = Collapsed(P, c, B, Q, R, d, tuple(others[:half]), tuple(others[half:]))
        outputs = plain_run(ctx.run.name, ctx.starts, aliases[0], aliases[1], copy)
    wanted = [one for one in aliases if one.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=further, allow_unused=True))
    slopes = [next(found) if one.requires_grad else None for one in aliases]
    pairs = [(one, slope) for one, slope in zip(arrays, slopes[2:], strict=True) if slope is not None]
    asked = [one for one, need in zip(parameters, needed[2:], strict=True) if need]
    ends, by_ends = [one for one, _ in pairs], [slope for _, slope in pairs]
    by_parameters = iter(torch.autograd.grad(ends, asked, by_ends, create_graph=further, allow_unused=True))
    return [*slopes[:2], *(next(by_parameters) if need else None for need in needed[2:])]
