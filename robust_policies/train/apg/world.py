"""The environments and policies of a training by analytic policy gradients, between two steps."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class World(NamedTuple):
    """Where n environments and the policies in them are."""

    state: Tensor
    """Plant states (n, state_size), float64."""
    observation: Tensor
    """(n, observation_size), what the policies see next."""
    memory: Tensor
    """Policy states (n, nx)."""
    elapsed: Tensor
    """Steps since each episode began (n,), int64."""
    gained: Tensor
    """Rewards since each episode began (n,)."""
    whole: Tensor
    """(n,) bool: what was gained and the steps are the episode's own, which began at its beginning."""

    def detached(self) -> World:
        """Return the same values without their past."""
        return World(*(value.detach() for value in self))
