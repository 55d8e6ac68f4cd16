"""What stands directly around the cell of an actor, as linear maps that know what rounding did to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robust_policies.certificates.lmi import Array
from robust_policies.control.bounded import Bounded


@dataclass(frozen=True, eq=False)
class Folded:
    """An actor as u = diag(sizes) head cell((y - offset) / scale) + centre, float64.

    A frozen normalizer, before the scale, and a tanh, between head and sizes, are no part of it.

    Attributes:
        scale: (nu,) the observation scale, 1 where there is none.
        offset: (nu,) what is subtracted before, 0 where there is none.
        head: (na, ny) the linear map after the cell, the identity where there is none.
        sizes: (na,) the action scale, None where there is none.
        centre: (na,) the action offset, None or 0 where there is none; it changes no difference of trajectories.
    """

    scale: Array
    offset: Array
    head: Array
    sizes: Array | None
    centre: Array | None = None

    @property
    def inward(self) -> Bounded:
        """The map (nu, nu) from what the actor reads to what the cell reads."""
        return Bounded.inverse(self.scale).diagonal()

    @property
    def outward(self) -> Bounded:
        """The map (na, ny) from what the cell gives to what the actor gives."""
        head = Bounded.exact(self.head)
        return head if self.sizes is None else np.diag(self.sizes) @ head

    @property
    def shift(self) -> Array:
        """What (nu,) is added to the cell's input; it changes no difference of trajectories."""
        return -self.offset / self.scale
