"""Scales of observations and rewards, learned on the device from whole rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robust_policies.envs.wrappers.moments import RunningMoments, measured
from robust_policies.policies.actor import Scaling
from robust_policies.train.run.ranks import ALONE, Ranks

# An observation that hardly moves is not blown up: the policy's certified gain is divided by the smallest scale.
_SMALLEST_SCALE = 1e-4
_REWARD_LIMIT = 10.0
_EPSILON = 1e-8


class ObservationScale:
    """The mean and deviation of all observations so far, written into the fixed scales of a policy between updates.

    Within a rollout and its update the policy sees one scale, so that the probability ratio compares weights alone; and
    what is left after the last update is a constant of the policy, part of its files and of its certificate.
    """

    def __init__(self, size: int, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.moments, self.ranks = RunningMoments((size,), device), ranks

    def update(self, observations: Tensor, policy: nn.Module) -> None:
        """Count observations (time, env, size) and set the `Scaling` modules of `policy`."""
        self.moments.include(*self.ranks.moments(*measured(observations.flatten(0, -2))))
        offset, scale = self.moments.mean, self.moments.variance.sqrt()
        scale = torch.where(scale < _SMALLEST_SCALE, 1.0, scale)
        for module in policy.modules():
            if isinstance(module, Scaling):
                assert module.offset is not None and module.scale is not None
                module.offset.copy_(offset)
                module.scale.copy_(scale)


class RewardScale:
    """Rewards divided by the running deviation of the discounted return, as SB3's VecNormalize does step by step.

    All rewards of a rollout are divided by the deviation after it, and cut off at 10.
    """

    def __init__(self, n_envs: int, discount: float, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.discount, self.ranks = discount, ranks
        self.moments = RunningMoments((), device)
        self.returns = torch.zeros(n_envs, dtype=torch.float64, device=device)

    def restart(self) -> None:
        """Begin the returns of all environments anew: they were reset."""
        self.returns.zero_()

    def __call__(self, rewards: Tensor, dones: Tensor) -> Tensor:
        """Return the scaled rewards (time, env) of a rollout whose episodes end where `dones` (time, env) says."""
        seen = rewards.to(torch.float64, copy=True)
        keep = (~dones).to(torch.float64)
        carried = self.returns
        for row, running in zip(seen.unbind(), keep.unbind(), strict=True):
            carried = torch.add(row, carried, alpha=self.discount, out=row) * running
        self.returns = carried
        self.moments.include(*self.ranks.moments(*measured(seen.flatten())))
        scale = (self.moments.variance + _EPSILON).sqrt().to(rewards.dtype)
        return (rewards / scale).clamp(-_REWARD_LIMIT, _REWARD_LIMIT)


def to_json(moments: RunningMoments) -> dict[str, Any]:
    """Return the moments as numbers and lists, exactly."""
    return {name: tensor.tolist() for name, tensor in moments.state_dict().items()}


def from_json(moments: RunningMoments, state: Mapping[str, Any]) -> None:
    """Set the moments to a state from `to_json`."""
    moments.load_state_dict(state)
