"""What an attack may spend: balls of perturbation sequences, and the account that no attack can overdraw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_policies.errors import UnknownNameError

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
        return delta.norm(dim=-1, keepdim=True)

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


def unit(norm: str, noise: Tensor) -> Tensor:
    """Return standard normal noise (time, batch, nu) moved to the surface (linf: corners) of the ball of size 1."""
    return Ball(norm, torch.ones(noise.shape[1], dtype=noise.dtype, device=noise.device)).steepest(noise)


class Budget:
    """The account of a batch of episodes: how much of the budget is left, and perturbed observations within it.

    Args:
        norm: one of `NORMS`.
        size: (batch,) of each step or of the whole episode; the limit is kept in float64.
        horizon: the number of steps an episode can last.
        measured: (nu,) bool, which observations can be perturbed; None: all.
    """

    def __init__(self, norm: str, size: Tensor, horizon: int, measured: Tensor | None = None) -> None:
        if norm not in NORMS:
            raise UnknownNameError.among("norm", norm, NORMS)
        self.norm, self.horizon, self.measured = norm, horizon, measured
        self.size = size.float()
        # Whoever adds up what was spent in another order must not find more either.
        self.limit = size.double() * (1 - 1e-12)
        self.left = self.limit.clone()

    def ball(self, t: int, width: int, hurry: float = 1.0) -> Ball:
        """Return the ball of what may be spent in the `width` steps from step `t` on.

        Of a total budget's energy that is the window's share of the steps to come, `hurry` times, at most all of it.
        """
        if self.norm != "total_l2":
            return Ball(self.norm, self.size, self.measured)
        share = min(1.0, hurry * width / max(1, self.horizon - t)) ** 0.5
        return Ball(self.norm, (self.left * share).to(self.size.dtype), self.measured)

    def apply(self, observation: Tensor, delta: Tensor) -> Tensor:
        """Return observation + delta (batch, nu) in the observation's dtype, delta shrunk to what is left, and book it.

        What fits is taken as it is; else a small part is left out, for the rounded sum must not exceed the limit.
        """
        clean = observation.double()
        limit = self.left if self.norm == "total_l2" else self.limit
        wanted = torch.nan_to_num(delta.double())
        if self.measured is not None:
            wanted = torch.where(self.measured, wanted, 0.0)
        allowed = Ball("per_step_l2" if self.norm == "total_l2" else self.norm, limit)
        whole = (clean + wanted).to(observation.dtype)
        fits = allowed.length((whole.double() - clean).unsqueeze(0)).squeeze(0) <= limit.unsqueeze(-1)
        margin = torch.finfo(observation.dtype).eps * (clean.norm(dim=-1) + limit)
        inner = Ball(allowed.norm, (limit - margin).clamp(min=0.0))
        shrunk = (clean + inner.project(wanted.unsqueeze(0)).squeeze(0)).to(observation.dtype)
        perturbed = torch.where(fits, whole, torch.where((inner.size > 0).unsqueeze(-1), shrunk, observation))
        if self.norm == "total_l2":
            spent = (perturbed.double() - clean).square().sum(-1)
            self.left = (self.left.square() - torch.nan_to_num(spent)).clamp(min=0.0).sqrt()
        return perturbed
