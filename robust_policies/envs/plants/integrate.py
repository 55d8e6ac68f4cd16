"""From continuous time to one time step: Runge-Kutta, and the exact zero-order hold of linear plants."""

from __future__ import annotations

from collections.abc import Callable

import torch


def rk4(
    derivative: Callable[[torch.Tensor], torch.Tensor], state: torch.Tensor, time_step: float, substeps: int = 1
) -> torch.Tensor:
    """Return the state `time_step` seconds later by `substeps` classical fourth-order Runge-Kutta steps.

    `derivative` maps states (..., n) to their time derivative; inputs are held constant inside it.
    """
    h = time_step / substeps
    for _ in range(substeps):
        k1 = derivative(state)
        k2 = derivative(state + h / 2 * k1)
        k3 = derivative(state + h / 2 * k2)
        k4 = derivative(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def zero_order_hold(A: torch.Tensor, B: torch.Tensor, time_step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (Ad, Bd) with x(t + h) = Ad x(t) + Bd u for x' = A x + B u and u constant over h = time_step seconds.

    A (..., n, n), B (..., n, m); leading dimensions are batches. Exact, by one matrix exponential:
    exp([[A, B], [0, 0]] h) = [[Ad, Bd], [0, 1]] (C. F. Van Loan, "Computing integrals involving the matrix
    exponential", IEEE Transactions on Automatic Control 23, 1978).
    """
    n, m = B.shape[-2:]
    batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    top = torch.cat((A.expand(*batch, n, n), B.expand(*batch, n, m)), dim=-1)
    block = torch.cat((top, torch.zeros(*batch, m, n + m, dtype=A.dtype, device=A.device)), dim=-2)
    held = torch.linalg.matrix_exp(block * time_step)
    return held[..., :n, :n], held[..., :n, n:]
