"""The value at the end of a horizon: a learned function of where the plant is, and how it is fitted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_policies.networks import LBDN
from robust_policies.networks.perceptron import layers
from robust_policies.train.recipe.sections import BoundedCritic


class Experience(NamedTuple):
    """What a horizon of h steps of n environments says about values, without gradients."""

    features: Tensor
    """(h, n, size), before each step."""
    following: Tensor
    """(h, n, size), after each step and before a reset."""
    rewards: Tensor
    """(h, n)."""
    terminated: Tensor
    """(h, n) bool: the episode ended there, nothing follows."""
    ended: Tensor
    """(h, n) bool: terminated, or stopped by the time limit, where more would have followed."""
    actions: Tensor
    """(h, n, action_size), within their limits."""


class ValueTail(nn.Module):
    """The discounted return to come, an MLP, or an LBDN if `bounded`, on normalised features (..., size).

    Features are normalised by their running mean and deviation; `scale`, set from the first rewards, is the size of a
    return, so that the network's own output is of order one whatever the task's rewards are.
    """

    mean: Tensor
    deviation: Tensor
    seen: Tensor
    scale: Tensor

    def __init__(self, size: int, hidden_sizes: Sequence[int], bounded: BoundedCritic | None = None) -> None:
        super().__init__()
        widths = [size, *hidden_sizes]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        if bounded is not None:
            self.network = nn.Sequential(LBDN(size, output_size=1, **bounded.model_dump(exclude={"cell"})))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Return the values (...) of features (..., size)."""
        return self.scale * self.scaled(self.normalised(features))

    def normalised(self, features: Tensor) -> Tensor:
        """Return what the network reads of features (..., size)."""
        return ((features.to(self.mean.dtype) - self.mean) / self.deviation).clamp(-10.0, 10.0)

    def scaled(self, normalised: Tensor) -> Tensor:
        """Return the values (...) in units of the scale, of normalised features (..., size)."""
        return layers(self.network, normalised).squeeze(-1)

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Take features (..., size) into the running mean and deviation."""
        flat = features.flatten(0, -2).double()
        count = flat.shape[0]
        total = float(self.seen) + count
        share = count / total
        variance, mean = torch.var_mean(flat, dim=0, unbiased=False)
        difference = mean - self.mean
        spread = (1.0 - share) * self.deviation.double() ** 2 + share * variance
        if float(self.seen) == 0.0:
            spread = variance
        spread = spread + (share * (1.0 - share) if float(self.seen) else 0.0) * difference**2
        self.mean.copy_(self.mean + share * difference)
        # A feature that has not moved yet would be blown up by what little it moves later.
        self.deviation.copy_(spread.sqrt().clamp(min=1e-2))
        self.seen.fill_(total)

    def set_scale(self, rewards: Tensor, steps: float) -> None:
        """Set the size of a return from rewards (...) of the first horizon, over `steps` effective steps."""
        self.scale.copy_((rewards.abs().mean() * steps).clamp(min=1e-6))


def target_of(value: ValueTail) -> ValueTail:
    """Return a copy that follows `value` slowly and is never fitted itself."""
    return copy.deepcopy(value).requires_grad_(False)


@torch.no_grad()
def follow(target: ValueTail, value: ValueTail, share: float) -> None:
    """Move the target's weights `share` of the way to the value's; its normalisation becomes the value's."""
    for slow, fast in zip(target.parameters(), value.parameters(), strict=True):
        slow.lerp_(fast, share)
    for slow, fast in zip(target.buffers(), value.buffers(), strict=True):
        slow.copy_(fast)


@torch.no_grad()
def lambda_returns(experience: Experience, values: Tensor, discount: float, mixing: float) -> Tensor:
    """Return the TD(lambda) targets (h, n) from `values` (h, n) of the `following` features.

    R_t = r_t + discount ((1 - lambda) V_t + lambda R_{t+1}) within an episode; at its end and at the horizon's V_t
    alone stands for what follows, and nothing where the episode terminated.
    Source: R. S. Sutton and A. G. Barto, Reinforcement Learning, 2nd edition (2018), section 12.1.
    """
    returns = torch.empty_like(values)
    later = values[-1]
    for t in range(values.shape[0] - 1, -1, -1):
        mixed = torch.where(experience.ended[t], values[t], torch.lerp(values[t], later, mixing))
        later = experience.rewards[t] + discount * torch.where(experience.terminated[t], 0.0, mixed)
        returns[t] = later
    return returns
