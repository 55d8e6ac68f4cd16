"""Which steps of a horizon end episodes, and what that makes of discounts and of the rewards of whole episodes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor


def steps_at_limits(elapsed: Tensor, limit: int, horizon: int, terminates: bool) -> Collection[int]:
    """Return the steps (from 0) of a horizon in which time limits may end episodes, asking the device once.

    Args:
        elapsed: (n,) steps since each episode began.
        limit: of an episode.
        horizon: steps.
        terminates: whether episodes also end otherwise; elsewhere each of the steps ends one.
    """
    left = set((limit - elapsed).clamp_min(1).tolist())
    steps = {step for first in left for step in range(first - 1, horizon, limit)}
    # An episode that terminates is followed by one that may reach its limit in any later step.
    return range(min(steps), horizon) if steps and terminates else steps


def discount_factors(ended: Tensor, ends: Collection[int], discount: float) -> Tensor:
    """Return the weights (h, n) of a horizon's rewards, 1 where an episode begins.

    Args:
        ended: (h, n) bool.
        ends: the steps in which anything ended.
        discount: the factor of a step.
    """
    weight = torch.ones(ended.shape[1], dtype=torch.float64, device=ended.device)
    weights = []
    for t in range(len(ended)):
        weights.append(weight)
        weight = weight * discount
        if t in ends:
            weight = torch.where(ended[t], 1.0, weight)
    return torch.stack(weights)


def totals(
    gained: Tensor, rewards: Tensor, ended: Tensor, ends: Mapping[int, tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[tuple[float, int]]]:
    """Return the rewards (n,) since each episode began, and return and length of the whole ones that ended.

    Args:
        gained: (n,), before the horizon.
        rewards: (h, n).
        ended: (h, n) bool.
        ends: of each step in which episodes ended: how long they were (n,), and which (n,) ended and were whole.
    """
    episodes: list[tuple[float, int]] = []
    for t, row in enumerate(rewards.unbind()):
        gained = gained + row
        if t in ends:
            lengths, whole = ends[t]
            rows = whole.nonzero().squeeze(-1)
            episodes += zip(gained[rows].tolist(), lengths[rows].tolist(), strict=True)
            gained = gained.masked_fill(ended[t], 0.0)
    return gained, episodes
