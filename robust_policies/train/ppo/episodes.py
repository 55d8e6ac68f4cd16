"""Returns and lengths of episodes from the rewards of whole rollouts."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import Tensor


class EpisodeTotals:
    """Return and length so far of each environment's episode, carried from rollout to rollout."""

    def __init__(self, n_envs: int, device: torch.device) -> None:
        self.returns = torch.zeros(n_envs, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(n_envs, dtype=torch.int64, device=device)
        self.partial: Tensor | None = None
        self._began = time.time()

    def skip_running(self) -> None:
        """Leave out the episodes now under way: they did not begin at their beginning."""
        self.partial = torch.ones_like(self.returns, dtype=torch.bool)

    def ended(self, rewards: Tensor, dones: Tensor, limit: int) -> list[dict[str, float]]:
        """Return the last `limit` episodes that ended in a rollout as SB3's Monitor describes them, in that order.

        Args:
            rewards: (time, env).
            dones: (time, env) bool, an episode ended with that step.
            limit: the number of episodes, at most.
        """
        # What is as large as the rollout is small or soon let go: this is where a training's memory may peak.
        steps = torch.arange(len(rewards), dtype=torch.int32, device=rewards.device).unsqueeze(1)
        latest = torch.where(dones, steps, -1)
        for before, row in pairwise(latest.unbind()):
            torch.maximum(row, before, out=row)
        counted = dones
        if self.partial is not None:
            # In a first episode no step before ended one.
            first = torch.cat((self.partial.unsqueeze(0), self.partial & (latest[:-1] < 0)))
            counted = dones & ~first
            self.partial = self.partial & (latest[-1] < 0)
        sums = rewards.to(torch.float64, copy=True)
        # Not cumsum, which has no deterministic algorithm on CUDA.
        for before, row in pairwise(sums.unbind()):
            row.add_(before)
        # The only look at the device in a rollout.
        at, rows = counted.nonzero()[-limit:].unbind(1)
        previous = torch.where(at > 0, latest[at - 1, rows].long(), -1)
        lengths = at - previous + torch.where(previous < 0, self.lengths[rows], 0)
        returns = sums[at, rows] + torch.where(previous < 0, self.returns[rows], -sums[previous, rows])
        last = latest[-1].long()
        columns = torch.arange(len(last), device=last.device)
        self.returns = sums[-1] + torch.where(last < 0, self.returns, -sums[last, columns])
        self.lengths = len(rewards) - 1 - last + torch.where(last < 0, self.lengths, 0)
        seconds = round(time.time() - self._began, 6)
        found = zip(returns.tolist(), lengths.tolist(), strict=True)
        return [{"r": round(total, 6), "l": length, "t": seconds} for total, length in found]
