"""Projected gradient ascent over perturbation sequences: several starts side by side, the best iterate kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust_policies.evaluation.attacks.budget import Ball

Objective = Callable[[Tensor], Tensor]


def ascend(
    objective: Objective,
    starts: Tensor,
    ball: Ball,
    *,
    steps: int,
    rate: float,
    momentum: float = 0.0,
    include_zero: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return (delta (time, batch, nu), value (batch,)) of the largest objective found in `ball`.

    Steps are steepest ascent steps for the ball's norm (normalised gradient, or its sign), from `rate` times the size
    down to a tenth of it, with momentum on normalised gradients (MI-FGSM, Dong et al. 2018). Each sample of the batch
    has its own best iterate over all steps and starts; values that are not finite never win.

    Args:
        objective: delta (time, starts * batch, nu) -> values (starts * batch,) to maximise.
        starts: (starts, time, batch, nu); projected into the ball.
        ball: what is allowed, with sizes (batch,).
        steps: number of gradient steps.
        rate: length of the first step, in sizes.
        momentum: how much of the last direction is kept.
        include_zero: no perturbation is a candidate too.
    """
    count, time, batch, nu = starts.shape
    many = ball.repeated(count)
    delta = many.project(starts.transpose(0, 1).reshape(time, count * batch, nu))
    best = torch.full((count * batch,), -torch.inf, dtype=delta.dtype, device=delta.device)
    kept = torch.zeros_like(delta)
    if include_zero:
        with torch.no_grad():
            best = torch.nan_to_num(objective(kept), nan=-torch.inf)
    velocity = torch.zeros_like(delta)
    for k in range(steps + 1):
        delta = delta.detach().requires_grad_(k < steps)
        with torch.set_grad_enabled(k < steps):
            value = objective(delta)
        better = (value > best).detach()
        best = torch.where(better, value.detach(), best)
        kept = torch.where(better.reshape(1, -1, 1), delta.detach(), kept)
        if k < steps:
            # Actions that do not depend on these observations at all have no graph.
            gradient = torch.autograd.grad(value.sum(), delta)[0] if value.requires_grad else torch.zeros_like(delta)
            velocity = momentum * velocity + many.steepest(gradient)
            pace = rate * 0.1 ** (k / max(1, steps - 1))
            delta = many.project(delta.detach() + pace * many.steepest(velocity))
    winner = best.reshape(count, batch).argmax(dim=0)
    chosen = kept.reshape(time, count, batch, nu)[:, winner, torch.arange(batch, device=delta.device)]
    return chosen, best.reshape(count, batch).amax(dim=0)
