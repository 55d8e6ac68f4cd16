"""Cells that are a linear system around layers of neurons, and their run.

x+ = A x + B1 w + B2 u + bx,  v = C1 x + D11 w + D12 u + bv,  y = C2 x + D21 w + D22 u + by,  w = act(v).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robust_policies.networks.activations import Activation
from robust_policies.networks.cell import Cell
from robust_policies.networks.compiled import Collapsed, run, runs
from robust_policies.networks.linalg import full_precision


class RENExplicit(NamedTuple):
    """The arrays that run."""

    A: Tensor
    B1: Tensor
    B2: Tensor
    C1: Tensor
    C2: Tensor
    D11: Tensor
    D12: Tensor
    D21: Tensor
    D22: Tensor
    bx: Tensor
    bv: Tensor
    by: Tensor


def collapsed(e: RENExplicit) -> Collapsed:
    """Return one step of the arrays as the compiled run takes it; D11 (nv, nv) is strictly lower triangular."""
    P = torch.cat((torch.cat((e.A, e.B2), 1), torch.cat((e.C1, e.D12), 1)))
    return Collapsed(P, torch.cat((e.bx, e.bv)), e.B1, torch.cat((e.C2, e.D22), 1), e.D21, e.by, (e.D11,), ())


class NeuronCell(Cell):
    """A cell whose neurons are found in passes: w <- act(v + D11 w), `passes` times from w = 0.

    With D11 strictly lower triangular in blocks of as many layers this is exact. Otherwise what runs is that many
    passes, always from zero: a start from the last step's neurons would be a state outside every proof.

    Attributes:
        activation: slope in [0, 1].
        passes: how often the neurons are evaluated.
        block_size: the states, 1 or 2 at a time, that a bound entry by entry takes together (`certificates.positive`).
    """

    activation: Activation
    passes: int
    block_size: int = 1

    def step(self, explicit: RENExplicit, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (output, next state) by the model's equations as they stand."""
        e = explicit
        with full_precision(state):
            w = self._neurons(state @ e.C1.mT + input @ e.D12.mT + e.bv, e.D11.mT)
            output = state @ e.C2.mT + w @ e.D21.mT + input @ e.D22.mT + e.by
            return output, state @ e.A.mT + w @ e.B1.mT + input @ e.B2.mT + e.bx

    def run(self, explicit: RENExplicit, inputs: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (outputs, final state); what does not depend on the state is one product over all time steps."""
        e = explicit
        with full_precision(inputs):
            if self.layered:
                step = collapsed(e)
                if runs(self.activation.name, inputs, state, step):
                    return run(self.activation.name, starts, inputs, state, step)
            drive_x, drive_v = functional.linear(inputs, e.B2, e.bx), functional.linear(inputs, e.D12, e.bv)
            A_T, B1_T, C1_T, D11_T = e.A.mT, e.B1.mT, e.C1.mT, e.D11.mT
            keep = None if starts is None else (~starts).to(inputs.dtype).unsqueeze(-1)
            states, neurons = [], []
            for t, (x_part, v_part) in enumerate(zip(drive_x.unbind(), drive_v.unbind(), strict=True)):
                state = state if keep is None else state * keep[t]
                states.append(state)
                w = self._neurons(torch.addmm(v_part, state, C1_T), D11_T)
                neurons.append(w)
                state = torch.addmm(torch.addmm(x_part, state, A_T), w, B1_T)
            outputs = functional.linear(inputs, e.D22, e.by)
            return outputs + torch.stack(states) @ e.C2.mT + torch.stack(neurons) @ e.D21.mT, state

    @property
    def layered(self) -> bool:
        """Whether D11 is strictly lower triangular, so that the passes are exact."""
        return True

    def _neurons(self, v: Tensor, D11_T: Tensor) -> Tensor:
        w = self.activation.function(v)
        for _ in range(self.passes - 1):
            w = self.activation.function(v + w @ D11_T)
        return w
