"""A run over time with the linear part exact and phi lagged, all steps at once: for devices that wait for each call.

    w^k = phi(v(x^k)) for all steps;  x^(k+1) = the linear recursion x+ = A x + B w^k + drive, by doubling:
    for j = 0, 1, ...:  X[2^j:] += X[:-2^j] (A^(2^j))'

Where phi is 1-Lipschitz and h1, the H-infinity norm of the linear part from w to v, is below 1, w comes nearer by a
factor of h1 in each round, in l2 over all steps and however many these are: sup |v| <= h1 |w| of a stable linear system
holds for sequences of any length. Unless it is near enough before, it is exact after as many rounds as there are steps.
A reset ends a segment, and what would be carried over it is left out. The adjoint is the transposed system, with the
same factor, and is found by the same rounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_policies.networks.activations import ACTIVATIONS
from robust_policies.networks.compiled import Collapsed

# A power of A below this carries nothing that counts.
_NOTHING = 1e-10


def recursion(A: Tensor, drive: Tensor, segments: Tensor | None) -> Tensor:
    """Return x (time, batch, nx) with x_t = A x_(t-1) + drive_t, x_(-1) = 0, in log2(time) products.

    Args:
        A: (nx, nx).
        drive: (time, batch, nx).
        segments: (time, batch) int, of which a step hands on only to those of its own number; None: to all.
    """
    x, power, reach = drive, A, 1
    while reach < len(drive):
        more = x[:-reach] @ power.mT
        if segments is not None:
            more = torch.where((segments[reach:] == segments[:-reach]).unsqueeze(-1), more, 0.0)
        x = torch.cat((x[:reach], x[reach:] + more))
        power, reach = power @ power, 2 * reach
        if not torch.is_grad_enabled() and power.abs().max() < _NOTHING:
            break
    return x


class Lagged:
    """The fixed point of one sequence: states after each step, given a guess of them.

    Args:
        name: of the activation.
        step: the collapsed step, of layers.
        inputs: (time, batch, nu).
        state: (batch, nx).
        starts: (time, batch) bool or None.
    """

    def __init__(self, name: str, step: Collapsed, inputs: Tensor, state: Tensor, starts: Tensor | None) -> None:
        self.activation, self.step, self.state, self.starts = ACTIVATIONS[name].function, step, state, starts
        self.inputs, self.nx = inputs, state.shape[1]
        self.drive = torch.nn.functional.linear(inputs, step.P[:, self.nx :], step.c)
        self.segments = None if starts is None else starts.cumsum(0)

    def before(self, states: Tensor) -> Tensor:
        """Return the states (time, batch, nx) that each step sees, of those after each step, of that shape."""
        seen = torch.cat((self.state.unsqueeze(0), states[:-1]))
        return seen if self.starts is None else torch.where(self.starts.unsqueeze(-1), 0.0, seen)

    def neurons(self, seen: Tensor) -> Tensor:
        """Return the last layer's neurons (time, batch, n) of the states (time, batch, nx) that each step sees."""
        nx, step = self.nx, self.step
        h = self.activation(self.drive[..., nx:] + seen @ step.P[nx:, :nx].mT)
        for W, b in zip(step.weights, step.biases, strict=True):
            h = self.activation(torch.nn.functional.linear(h, W, b))
        return h

    def following(self, h: Tensor) -> Tensor:
        """Return the states (time, batch, nx) after each step, of neurons (time, batch, n) that are given."""
        A = self.step.P[: self.nx, : self.nx]
        driven = self.drive[..., : self.nx] + h @ self.step.B.mT
        first = self.before(driven[:0].new_zeros(driven.shape))[:1]  # the given state, or zero after a reset
        return recursion(A, torch.cat((driven[:1] + first @ A.mT, driven[1:])), self.segments)

    def round(self, states: Tensor) -> Tensor:
        """Return the states (time, batch, nx) after one more round."""
        return self.following(self.neurons(self.before(states)))


def run(
    name: str, step: Collapsed, inputs: Tensor, state: Tensor, starts: Tensor | None, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return (outputs (time, batch, ny), final state (batch, nx)), differentiable once.

    Args:
        name: of the activation.
        step: the collapsed step, of layers.
        inputs: (time, batch, nu).
        state: (batch, nx).
        starts: (time, batch) bool or None; where True the state is zeroed before the step.
        tolerance: by how much states and adjoints may still change in a round, relative to the largest.
    """
    lagged, limit = Lagged(name, step, inputs, state, starts), max(tolerance, 8 * torch.finfo(inputs.dtype).eps)
    with torch.no_grad():
        found = _settled(lagged.round, inputs.new_zeros(len(inputs), *state.shape), limit)
    states = lagged.round(found)
    if states.requires_grad:
        point = found.requires_grad_()
        again = lagged.round(point)

        def adjoint(slope: Tensor) -> Tensor:
            def more(w: Tensor) -> Tensor:
                return slope + torch.autograd.grad(again, point, w, retain_graph=True)[0]

            return _settled(more, slope, limit)

        states.register_hook(adjoint)
    seen = lagged.before(states)
    s = torch.cat((seen, inputs), -1)
    outputs = torch.nn.functional.linear(s, step.Q, step.d) + lagged.neurons(seen) @ step.R.mT
    return outputs, states[-1]


def _settled(more: Any, first: Tensor, limit: float) -> Tensor:
    """Return the fixed point of a map of tensors of any shape that comes nearer each time, from a first guess."""
    value = first
    for _ in range(len(first) + 1):
        value, before = more(value), value
        if not (value - before).abs().max() > limit * value.abs().max().clamp(min=1.0):
            break
    return value
