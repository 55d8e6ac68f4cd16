"""Random perturbations on the surface of the budget: the yardstick that a search must beat."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robust_policies.evaluation.attacks.attack import Attack, Moment, Options, Scene
from robust_policies.evaluation.attacks.budget import unit


class RandomOptions(Options):
    """Settings of `random`."""

    where: Literal["surface", "ball"] = Field(
        "surface", description="of the budget: l2 sphere or linf corners ('surface'), or uniform inside ('ball')"
    )


class Random(Attack):
    """Independent at each step; a total budget is a random direction of the whole sequence."""

    Options = RandomOptions

    def begin(self, scene: Scene) -> None:
        """Draw the whole sequence of every episode, scaled later."""
        super().begin(scene)
        norm, nu = scene.budget.norm, scene.observation_size
        horizon = scene.budget.horizon
        drawn = unit(norm, self.drawn(torch.randn, (horizon,), (nu,)))
        if self.options.where == "ball":
            radius = self.drawn(torch.rand, (horizon,), (nu,))
            if norm == "per_step_linf":
                drawn = drawn * radius
            elif norm == "per_step_l2":
                drawn = drawn * radius[..., :1] ** (1 / nu)
            else:
                drawn = drawn * radius[:1, :, :1] ** (1 / (nu * horizon))
        self.sequence = drawn

    def perturbation(self, moment: Moment) -> Tensor:
        """Return this step's numbers times the size."""
        return self.sequence[moment.t].repeat(self.scene.sizes, 1) * self.scene.budget.size.unsqueeze(-1)
