"""Maximal action difference: each observation is moved so that the action it causes differs most (Zhang et al. 2020).

The search sees the policy's state and this step's observation only: what a perturbation does to later actions through
the recurrent state is not part of it (`sequence_pgd` has that).
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from robust_policies.evaluation.attacks.attack import Attack, Moment, Options
from robust_policies.evaluation.attacks.pushed import SQUARED, pushed
from robust_policies.evaluation.attacks.search import ascend


class MADOptions(Options):
    """Settings of `mad_pgd`."""

    steps: PositiveInt = Field(10, description="gradient steps for each observation")
    restarts: PositiveInt = Field(1, description="random starts, the best of which counts")
    rate: float = Field(0.6, gt=0, description="length of the first gradient step, in budgets")


class MADPGD(Attack):
    """Projected gradient on the squared distance of this step's applied action from the unperturbed one."""

    Options = MADOptions

    def perturbation(self, moment: Moment) -> Tensor:
        """Return the perturbations found for the observations of this moment."""
        actor, options = self.scene.actor, self.options
        ball = self.scene.budget.ball(moment.t, 1)
        with torch.no_grad():
            clean = actor.clip(actor.step(moment.observation, moment.hidden)[0]).repeat(options.restarts, 1)
        hidden, observation = (value.repeat(options.restarts, 1) for value in (moment.hidden, moment.observation))
        distance = pushed(actor, observation.unsqueeze(0), hidden, clean.unsqueeze(0), SQUARED)
        starts = self.starts(options.restarts, 1) * ball.size.reshape(1, 1, -1, 1)
        return ascend(distance, starts, ball, steps=options.steps, rate=options.rate)[0][0]
