"""Choices that begin elsewhere than at 0, which Stable-Baselines3 takes to begin there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution, MultiCategoricalDistribution
from torch import Tensor

from robust_policies.errors import InvalidValueError
from robust_policies.policies.observations import choices_of


class _Starting(CategoricalDistribution):
    """A choice among start, start + 1, ..."""

    def __init__(self, action_dim: int, start: int) -> None:
        super().__init__(action_dim)
        self.start = start

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probabilities (batch,)."""
        return super().log_prob(actions - self.start)

    def sample(self) -> Tensor:
        """Return sampled choices (batch,)."""
        return super().sample() + self.start

    def mode(self) -> Tensor:
        """Return the most likely choices (batch,)."""
        return super().mode() + self.start


class _AllStarting(MultiCategoricalDistribution):
    """Several choices, each among its start, start + 1, ..."""

    def __init__(self, action_dims: list[int], starts: list[int]) -> None:
        super().__init__(action_dims)
        self.starts = starts

    def proba_distribution(self, action_logits: Tensor) -> Self:
        """Return this distribution with the logits (batch, n)."""
        super().proba_distribution(action_logits)
        self.shift = torch.tensor(self.starts, device=action_logits.device)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probabilities (batch,)."""
        return super().log_prob(actions - self.shift)

    def sample(self) -> Tensor:
        """Return sampled choices (batch, k)."""
        return super().sample() + self.shift

    def mode(self) -> Tensor:
        """Return the most likely choices (batch, k)."""
        return super().mode() + self.shift


def starting(space: spaces.Space, distribution: Distribution) -> Distribution:
    """Return the distribution of a policy's actions in the space's own numbers: `distribution` if they begin at 0.

    Raises:
        InvalidValueError: choices in several axes, which Stable-Baselines3 cannot have.
    """
    if isinstance(space, spaces.MultiDiscrete | spaces.Discrete):
        firsts, widths = choices_of(space)
        if any(firsts):
            single = isinstance(space, spaces.Discrete)
            return _Starting(widths[0], firsts[0]) if single else _AllStarting(widths, firsts)
    return distribution


def refuse_start(space: spaces.Space) -> None:
    """Raise if Stable-Baselines3's own policies would act or read in numbers that are not the space's."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    for part in parts:
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete) and any(choices_of(part)[0]):
            raise InvalidValueError(
                f"The choices {part} do not begin at 0, but Stable-Baselines3's own policies take them to; train a "
                "RecurrentCellPolicy, or shift the environment's choices."
            )


def from_zero(space: spaces.Space, observations: Any) -> Any:
    """Return a batch of observations whose choices begin at 0, as Stable-Baselines3 encodes them."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observations, Mapping):
            return observations
        return {key: from_zero(space[key], value) for key, value in observations.items()}
    if isinstance(space, spaces.Discrete):
        return observations - int(space.start) if space.start else observations
    if isinstance(space, spaces.MultiDiscrete) and space.start.any():
        return observations - torch.as_tensor(space.start, device=observations.device)
    return observations


def padded(space: spaces.Space, values: Any) -> Any:
    """Return stored observations or actions (batch, ...) of which the rows that fill up a sequence are choices too.

    sb3-contrib fills up with zeros, which need not be among the choices, and masks what is computed of them.
    """
    if isinstance(space, spaces.Dict):
        return {key: padded(space[key], value) for key, value in values.items()}
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete) or not any(choices_of(space)[0]):
        return values
    firsts, widths = (torch.as_tensor(numbers, device=values.device) for numbers in choices_of(space))
    return torch.minimum(torch.maximum(values, firsts), firsts + widths - 1)
