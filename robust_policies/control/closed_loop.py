"""The closed loop of plant, observer and Youla parameter as a cell that runs, so that its gain can be measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import Array
from robust_policies.control.youla import (
    Performance,
    closed_loop_matrices,
    parameter_matrices,
    scaled_parameter,
)
from robust_policies.errors import InvalidValueError
from robust_policies.networks.cell import Cell
from robust_policies.networks.r2dn import R2DN, R2DNExplicit

_BLOCKS = ("A", "B1", "B2", "C1", "C2", "D12", "D21", "D22")


class ClosedLoop(Cell):
    """From disturbance d = (w, v) to performance z, in float64: what `certificates.empirical_gain` can search.

    Args:
        model: the plant.
        design: the gains.
        cell: the Youla parameter, an R2DN between normalised innovation and normalised input.
        scales: what `youla.normalisation` returned; None: the signals are not normalised.
        performance: d and z; None: `Performance.lqg(design)`.
        shift: (inputs of the cell,) what is added to them; None: nothing.

    State (x, e, state of the cell). `matrices` and `ell` are the explicit matrices and phi's Lipschitz bound.
    """

    def __init__(
        self,
        model: LinearModel,
        design: LQGDesign,
        cell: R2DN,
        scales: tuple[Array, Array] | None = None,
        performance: Performance | None = None,
        shift: Array | None = None,
    ) -> None:
        double = cell.double_copy()
        q, ell = parameter_matrices(double)
        inward, outward = (np.eye(model.p), np.eye(model.m)) if scales is None else scales
        loop = closed_loop_matrices(model, design, scaled_parameter(q, inward, outward), performance)
        super().__init__(loop.sizes[2], loop.sizes[0], loop.sizes[3])
        self._shift = torch.as_tensor(np.zeros(q.B2.shape[1]) if shift is None else shift)
        self.inner, self.matrices, self.ell = double, loop, ell
        Dz = (Performance.lqg(design) if performance is None else performance).Dz
        # Q's output bias enters the plant, and what is judged, as its output does.
        self._into, self._through = torch.as_tensor(model.B @ outward), torch.as_tensor(Dz @ outward)

    def explicit(self) -> R2DNExplicit:
        """Return the arrays that run."""
        e: Any = self.inner.explicit()
        m = {name: torch.as_tensor(getattr(self.matrices, name)) for name in _BLOCKS}
        by, bx, bv = (bias + matrix @ self._shift for bias, matrix in ((e.by, e.D22), (e.bx, e.B2), (e.bv, e.D12)))
        bx = torch.cat((self._into @ by, torch.zeros(len(self._into), dtype=by.dtype), bx))
        return R2DNExplicit(
            m["A"],
            m["B1"],
            m["B2"],
            m["C1"],
            m["C2"],
            m["D12"],
            m["D21"],
            m["D22"],
            bx,
            bv,
            self._through @ by,
            e.layers,
        )

    def step(self, explicit: R2DNExplicit, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (z, next state) by the loop's equations as they stand."""
        return self.inner.step(explicit, input, state)

    def run(
        self, explicit: R2DNExplicit, inputs: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (z, final state) as the Youla parameter's own scan does."""
        return self.inner.run(explicit, inputs, state, starts)

    def options(self) -> dict[str, Any]:
        """Return what describes the Youla parameter; a loop is not built from a description."""
        return self.inner.options()

    def zero_output_(self) -> ClosedLoop:
        """Refuse: the loop's output is not zero for any Youla parameter."""
        raise InvalidValueError("A closed loop has no parameters that make its output zero; set those of its cell.")
