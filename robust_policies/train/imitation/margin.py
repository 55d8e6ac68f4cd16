"""What keeps the linear closed loop of a student from being proven, as a differentiable penalty.

Plant and student are a linear system around the student's neurons (`control.feedback`). They contract if that system is
stable and its gain around the neurons, |C1 (z I - A)^-1 B1| times their Lipschitz bound, is below 1 on the unit circle.
A student that fits its teacher's actions need not have this: its neurons may do what its linear part should do, and a
proof that knows only their bound then fails. The penalty is zero where both numbers have a margin. It looks at samples
of the circle and proves nothing; `policies.feedback.closed_loop_bound` does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robust_policies.certificates.layers import is_r2dn
from robust_policies.control.linear_model import LinearModel
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.policies.actor import Actor

GAIN = 0.9
RADIUS = 0.9999
# A spectral radius of 1.01 weighs as much as a gain e times too large.
_STEEPNESS = 100.0
_ANGLES = 64


def unit_circle(device: torch.device) -> Tensor:
    """Return points (samples,) of the upper unit circle, denser towards 1."""
    angles = torch.cat((torch.zeros(1), torch.logspace(-3.0, math.log10(math.pi), _ANGLES - 1)))
    return torch.polar(torch.ones(_ANGLES, dtype=torch.float64), angles.double()).to(device)


class ClosedLoopMargin:
    """The penalty for students in feedback with one linear model.

    Args:
        model: the plant; the students read its outputs and give its inputs.
        actor: such a student.

    Raises:
        InvalidValueError: the student is no R2DN, or has more than scales and a linear map around it. ShapeError: it
        does not fit the model.
    """

    def __init__(self, model: LinearModel, actor: Actor) -> None:
        cell = actor.cell
        with torch.no_grad():
            explicit = cell.explicit()
        if not is_r2dn(explicit) or actor.head.squash or actor.normalizer:
            raise InvalidValueError(
                f"algorithm.closed_loop_weight is above 0 and policy.cell is {cell.name!r}; expected 'r2dn', or "
                "algorithm.closed_loop_weight=0."
            )
        device = next(actor.parameters()).device
        if (cell.input_size, actor.head.output_size) != (model.p, model.m):
            raise ShapeError(
                f"The student does not read {model.p} output(s) and give {model.m} input(s), as the model."
            )
        self.A, self.B, self.C = (torch.as_tensor(value, device=device) for value in (model.A, model.B, model.C))
        self.circle = unit_circle(device)

    def numbers(self, actor: Actor) -> tuple[Tensor, Tensor]:
        """Return the spectral radius of the linear part, and the largest gain around the neurons on the samples."""
        e, head, scale = actor.cell.explicit(), actor.head, actor.body.scaling.scale
        A, B1, B2, C1, C2, D12, D21, D22 = (
            getattr(e, name).double() for name in ("A", "B1", "B2", "C1", "C2", "D12", "D21", "D22")
        )
        if scale is not None:
            B2, D12, D22 = (value / scale.double() for value in (B2, D12, D22))
        if head.linear is not None:
            C2, D21, D22 = (head.linear.weight.double() @ value for value in (C2, D21, D22))
        if head.scale is not None:
            C2, D21, D22 = (head.scale.double()[:, None] * value for value in (C2, D21, D22))
        loop = torch.cat(
            (
                torch.cat((self.A + self.B @ D22 @ self.C, self.B @ C2), 1),
                torch.cat((B2 @ self.C, A), 1),
            )
        )
        into, out = torch.cat((self.B @ D21, B1)), torch.cat((D12 @ self.C, C1), 1)
        radius = torch.linalg.eigvals(loop).abs().max()
        shifted = self.circle[:, None, None] * torch.eye(len(loop), device=loop.device) - loop
        response = out.to(shifted.dtype) @ torch.linalg.solve(shifted, into.to(shifted.dtype).expand(_ANGLES, -1, -1))
        return radius, torch.linalg.matrix_norm(response, 2).max()

    def __call__(self, actor: Actor) -> Tensor:
        """Return the penalty, a number >= 0; the gain counts where the linear part is stable."""
        radius, gain = self.numbers(actor)
        unstable = nn.functional.relu(_STEEPNESS * (radius / RADIUS).log())
        return unstable + torch.where(radius < 1.0, nn.functional.relu((gain / GAIN).log()), 0.0)
