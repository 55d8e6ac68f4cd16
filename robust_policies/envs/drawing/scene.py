"""What a picture is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robust_policies.envs.drawing.canvas import share
from robust_policies.envs.plant import Plant


@dataclass(frozen=True)
class Moment:
    """One environment at one time: observation, state and the action that led to it, all numbers finite."""

    observation: np.ndarray
    state: np.ndarray
    action: np.ndarray


@dataclass(frozen=True)
class Scene:
    """The plant, its physical numbers (those that are one number each) and the last moments, the newest last."""

    plant: Plant
    numbers: Mapping[str, float]
    moments: Sequence[Moment]

    @property
    def state(self) -> list[float]:
        """The newest state."""
        return [float(value) for value in self.moments[-1].state]

    @property
    def action(self) -> np.ndarray:
        """The newest action, in the plant's units."""
        return self.moments[-1].action

    @property
    def push(self) -> list[float]:
        """The newest action as shares of the limits, in [-1, 1]."""
        return share(self.action, self.plant.action_low, self.plant.action_high)
