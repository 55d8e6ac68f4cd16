"""Projected gradient ascent over perturbation sequences: several starts side by side, the best iterate kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_policies.evaluation.attacks.budget import Ball


@dataclass(frozen=True)
class Objective:
    """What a search makes large, and its gradient.

    Attributes:
        value: delta (time, batch, nu) -> values (batch,), of each sample's own perturbations.
        slope: delta -> values and their gradient (time, batch, nu), without a graph; None: by PyTorch's graph.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, delta: Tensor) -> Tensor:
        """Return the values (batch,) of perturbations (time, batch, nu)."""
        return self.value(delta)

    def with_slope(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (batch,) of perturbations (time, batch, nu), and the gradient."""
        if self.slope is not None:
            return self.slope(delta)
        with torch.enable_grad():
            delta = delta.detach().requires_grad_()
            value = self.value(delta)
        # Actions that do not depend on these observations at all have no graph.
        gradient = torch.autograd.grad(value.sum(), delta)[0] if value.requires_grad else torch.zeros_like(delta)
        return value.detach(), gradient


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
        objective: of delta (time, starts * batch, nu), to maximise.
        starts: (starts, time, batch, nu); projected into the ball.
        ball: what is allowed, with sizes (batch,).
        steps: number of gradient steps.
        rate: length of the first step, in sizes.
        momentum: how much of the last direction is kept.
        include_zero: no perturbation is a candidate too.
    """
    count, time, batch, nu = starts.shape
    many = ball.repeated(count)
    # Component by component in memory: sums over the components are fast then.
    delta = many.project(starts.transpose(0, 1).reshape(time, count * batch, nu).mT.contiguous().mT)
    best = torch.full((count * batch,), -torch.inf, dtype=delta.dtype, device=delta.device)
    kept = torch.zeros_like(delta)
    if include_zero:
        with torch.no_grad():
            best = torch.nan_to_num(objective(kept), nan=-torch.inf)
    velocity = torch.zeros_like(delta)
    for k in range(steps + 1):
        if k < steps:
            value, gradient = objective.with_slope(delta)
        else:
            with torch.no_grad():
                value, gradient = objective(delta), None
        better = value > best
        best = torch.where(better, value, best)
        kept = torch.where(better.reshape(1, -1, 1), delta, kept)
        if gradient is not None:
            velocity = many.steepest(gradient) if not momentum else momentum * velocity + many.steepest(gradient)
            pace = rate * 0.1 ** (k / max(1, steps - 1))
            delta = many.project(delta + pace * (many.steepest(velocity) if momentum else velocity))
    winner = best.reshape(count, batch).argmax(dim=0)
    chosen = kept.reshape(time, count, batch, nu)[:, winner, torch.arange(batch, device=delta.device)]
    return chosen, best.reshape(count, batch).amax(dim=0)


def cross_entropy(
    objective: Objective, start: Tensor, ball: Ball, *, population: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return (delta (time, batch, nu), value (batch,)) found by the cross-entropy method: no gradient is used.

    Samples are normal, half of their variance steady over the window, projected into the ball; the best eighth of each
    sample of the batch gives the next mean and deviation. No perturbation and `start` are among the first candidates.

    Args:
        objective: of delta (time, population * batch, nu), to maximise.
        start: (time, batch, nu), the first mean.
        ball: what is allowed, with sizes (batch,).
        population: samples of each step.
        steps: number of times that samples are drawn.
        generator: of the samples, on the device of `start`.
    """
    time, batch, nu = start.shape
    many = ball.repeated(population)
    scale = ball.size.reshape(1, -1, 1) / (time**0.5 if ball.norm == "total_l2" else 1.0)
    mean, deviation = start, scale.expand_as(start)
    best = torch.full((batch,), -torch.inf, dtype=start.dtype, device=start.device)
    kept = torch.zeros_like(start)
    rows = torch.arange(batch, device=start.device)
    for k in range(steps):
        noise = torch.randn((time, population, batch, nu), generator=generator, device=start.device)
        steady = torch.randn((1, population, batch, nu), generator=generator, device=start.device)
        drawn = mean.unsqueeze(1) + deviation.unsqueeze(1) * (noise + steady) * 0.5**0.5
        if k == 0:
            drawn[:, 0], drawn[:, 1] = 0.0, start
        samples = many.project(drawn.reshape(time, population * batch, nu)).reshape(time, population, batch, nu)
        with torch.no_grad():
            value = objective(samples.reshape(time, population * batch, nu)).reshape(population, batch)
        value = torch.nan_to_num(value, nan=-torch.inf)
        top, index = value.topk(max(2, population // 8), dim=0)
        elite = samples.gather(1, index.reshape(1, -1, batch, 1).expand(time, -1, -1, nu))
        better = top[0] > best
        best = torch.where(better, top[0], best)
        kept = torch.where(better.reshape(1, -1, 1), samples[:, index[0], rows], kept)
        mean, deviation = elite.mean(dim=1), elite.std(dim=1) + 0.02 * scale
    return kept, best
