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
        shape = (scene.budget.horizon, scene.episodes, nu)
        noise = torch.randn(shape, generator=self.generator, device=self.generator.device)
        drawn = unit(norm, noise)
        if self.options.where == "ball":
            radius = torch.rand(shape, generator=self.generator, device=self.generator.device)
            if norm == "per_step_linf":
                drawn = drawn * radius
            elif norm == "per_step_l2":
                drawn = drawn * radius[..., :1] ** (1 / nu)
            else:
                drawn = drawn * radius[:1, :, :1] ** (1 / (nu * shape[0]))
        self.drawn = drawn

    def perturbation(self, moment: Moment) -> Tensor:
        """Return this step's numbers times the size."""
        return self.drawn[moment.t].repeat(self.scene.sizes, 1) * self.scene.budget.size.unsqueeze(-1)
