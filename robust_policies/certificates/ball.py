"""The balls of perturbation sequences that claims are about and attacks stay in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NORMS = ("per_step_l2", "per_step_linf", "total_l2")


@dataclass(frozen=True)
class Ball:
    """Perturbation sequences (time, batch, nu) of which each step's l2 or linf norm, or the whole's, is at most `size`.

    Attributes:
        norm: one of `NORMS`; for "total_l2" the size is that of the whole sequence.
        size: (batch,).
        measured: (nu,) bool, where a perturbation may be; None: everywhere.
    """

    norm: str
    size: Tensor
    measured: Tensor | None = None

    def repeated(self, times: int) -> Ball:
        """Return the ball of `times` copies of the batch, one after the other."""
        return Ball(self.norm, self.size.repeat(times), self.measured)

    def length(self, delta: Tensor) -> Tensor:
        """Return the norm that the ball limits, (time, batch, 1) or (1, batch, 1) for the total."""
        if self.norm == "per_step_linf":
            return delta.abs().amax(dim=-1, keepdim=True)
        if self.norm == "total_l2":
            return delta.square().sum(dim=(0, 2), keepdim=True).sqrt()
        # PyTorch's own norm is ten times as slow where the components are apart in memory.
        return delta.square().sum(dim=-1, keepdim=True).sqrt()

    def project(self, delta: Tensor) -> Tensor:
        """Return the point of the ball nearest to `delta` in the l2 norm."""
        delta, size = self._kept(delta), self.size.reshape(1, -1, 1)
        if self.norm == "per_step_linf":
            return torch.minimum(torch.maximum(delta, -size), size)
        return delta * (size / self.length(delta).clamp(min=1e-30)).clamp(max=1.0)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the point of the ball furthest along `gradient`."""
        gradient = self._kept(torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0))
        size = self.size.reshape(1, -1, 1)
        if self.norm == "per_step_linf":
            return gradient.sign() * size
        # Gradients of long windows can be far below float32's smallest square.
        scaled = gradient / gradient.abs().amax(dim=(0, 2), keepdim=True).clamp(min=1e-30)
        return scaled / self.length(scaled).clamp(min=1e-12) * size

    def _kept(self, delta: Tensor) -> Tensor:
        return delta if self.measured is None else torch.where(self.measured, delta, 0.0)


@dataclass(frozen=True)
class Balls:
    """Sequences whose first, second, ... entries are in a ball each.

    Attributes:
        balls: one for each part.
        parts: how many entries each has.
    """

    balls: Sequence[Ball]
    parts: list[int]

    def project(self, delta: Tensor) -> Tensor:
        """Return the nearest member to `delta` (time, batch, nu) in the l2 norm."""
        return self._each(Ball.project, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the member furthest along `gradient` (time, batch, nu)."""
        return self._each(Ball.steepest, gradient)

    def _each(self, move: Callable[[Ball, Tensor], Tensor], whole: Tensor) -> Tensor:
        pieces = zip(self.balls, whole.split(self.parts, -1), strict=True)
        return torch.cat([move(ball, piece) if piece.shape[-1] else piece for ball, piece in pieces], -1)


def unit(norm: str, noise: Tensor) -> Tensor:
    """Return standard normal noise (time, batch, nu) moved to the surface (linf: corners) of the ball of size 1."""
    return Ball(norm, torch.ones(noise.shape[1], dtype=noise.dtype, device=noise.device)).steepest(noise)


def climb(cost: Callable[[Tensor], Tensor], start: Tensor, ball: Ball | Balls, steps: int) -> tuple[Tensor, Tensor]:
    """Return the perturbations (time, batch, nu) of the largest cost met, and that cost (batch,).

    Each of `steps` steps goes to the point of the ball that is furthest along the gradient (the power iteration, or
    Frank and Wolfe's method, for convex costs: they never fall). Perturbations of which nothing depends stay.

    Args:
        cost: (time, batch, nu) -> (batch,), to maximise; values that are not finite never win.
        start: where it begins, in the ball.
        ball: with sizes (batch,).
        steps: number of gradients.
    """
    delta, best = start, start
    most = torch.full((start.shape[1],), -torch.inf, dtype=start.dtype, device=start.device)
    for k in range(steps + 1):
        delta = delta.detach().requires_grad_(k < steps)
        with torch.set_grad_enabled(k < steps):
            value = cost(delta)
        better = (value > most).detach()
        most = torch.where(better, value.detach(), most)
        best = torch.where(better.reshape(1, -1, 1), delta.detach(), best)
        if k < steps and value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), delta)
            flat = (slope == 0).all(-1, keepdim=True)
            delta = ball.project(torch.where(flat, delta.detach(), ball.steepest(slope)))
    return best, most
