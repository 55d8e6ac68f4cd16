"""What an attack may spend: the account that no attack can overdraw."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_policies.certificates.ball import NORMS as NORMS
from robust_policies.certificates.ball import Ball as Ball
from robust_policies.certificates.ball import unit as unit
from robust_policies.errors import UnknownNameError


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
