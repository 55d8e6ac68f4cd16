"""What attacks share that plan a window of perturbations, play a part of it and plan again."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from robust_policies.evaluation.attacks.attack import Attack, Moment, Options, Scene
from robust_policies.evaluation.attacks.budget import Ball
from robust_policies.evaluation.attacks.search import Objective, ascend


class PlannedOptions(Options):
    """Settings of every attack that plans."""

    window: NonNegativeInt = Field(40, description="steps planned at once; 0: the rest of the episode")
    replan: PositiveInt = Field(20, description="steps played before the plan is made again, at most the window")
    steps: PositiveInt = Field(10, description="gradient steps for each plan")
    restarts: PositiveInt = Field(
        3, description="starts: the last plan's rest if there is one, steady pushes and random ones in turn"
    )
    rate: float = Field(0.8, gt=0, description="length of the first gradient step, in budgets")
    momentum: float = Field(0.5, ge=0, lt=1, description="how much of the last direction a step keeps")
    hurry: float = Field(1.0, gt=0, description="a window's share of a total budget, in shares of an even spread")
    plays: PositiveInt = Field(
        1,
        description="times that the same episodes are rehearsed with different settings; of each episode the worst is "
        "played, found with its budget or a smaller one",
    )


class Planned(Attack):
    """Receding horizon: the rest of a plan is where the search for the next one begins."""

    Options: ClassVar[type[Options]] = PlannedOptions
    variations: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    total_variations: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    play = 0

    def begin(self, scene: Scene) -> None:
        """Start without a plan, or with the worst of several rehearsals."""
        super().begin(scene)
        self.seeded(7919 * self.play)
        self.plan = torch.zeros(0, scene.batch, scene.observation_size, device=scene.actor.low.device)
        self.played = 0
        self.rehearsed = self._rehearsed() if self.options.plays > 1 else None

    def perturbation(self, moment: Moment) -> Tensor:
        """Return this step's part of the plan, made anew when it is time."""
        if self.rehearsed is not None:
            late = moment.t >= len(self.rehearsed)
            return torch.zeros_like(moment.observation) if late else self.rehearsed[moment.t]
        width = self.options.window or self.scene.budget.horizon
        if self.played == min(self.options.replan, len(self.plan)):
            self.plan = self.planned(moment, min(width, self.scene.budget.horizon - moment.t))
            self.played = 0
        self.played += 1
        return self.plan[self.played - 1]

    @abstractmethod
    def planned(self, moment: Moment, width: int) -> Tensor:
        """Return a plan (width, batch, nu) from this moment on."""

    def first_guesses(self, ball: Ball, width: int) -> Tensor:
        """Return where searches begin, (restarts, width, batch, nu)."""
        starts = self.starts(self.options.restarts, width)
        # A push that stays the same for the whole window is what random steps hardly ever find.
        starts[1::2] = starts[1::2, :1]
        starts = starts * ball.size.reshape(1, 1, -1, 1)
        rest = self.plan[self.played :][:width]
        if len(rest):
            starts[0, : len(rest)] = rest
        return starts

    def searched(self, objective: Objective, ball: Ball, width: int) -> Tensor:
        """Return the plan of the largest objective that projected gradients find."""
        options = self.options
        starts = self.first_guesses(ball, width)
        return ascend(objective, starts, ball, steps=options.steps, rate=options.rate, momentum=options.momentum)[0]

    def _rehearsed(self) -> Tensor:
        """Return the perturbations (time, batch, nu) float64 of each episode's worst rehearsal."""
        scene = self.scene
        variations = self.total_variations if scene.budget.norm == "total_l2" else self.variations
        returns, shifts = [], []
        for play in range(self.options.plays):
            varied = {**variations[play % len(variations)], "plays": 1}
            other = type(self)(self.options.model_copy(update=varied), self.prepared)
            other.play = play
            observations, perturbed, value = scene.rehearse(None, other)
            returns.append(torch.nan_to_num(value, nan=torch.inf).unflatten(0, (scene.sizes, scene.episodes)))
            shifts.append((perturbed.double() - observations.double()).unflatten(1, (scene.sizes, scene.episodes)))
        time = max(len(shift) for shift in shifts)
        every = torch.stack([torch.nn.functional.pad(s, (0, 0) * 3 + (0, time - len(s))) for s in shifts], dim=1)
        size = scene.budget.size.unflatten(0, (scene.sizes, scene.episodes))[:, 0]
        table = torch.stack(returns)
        columns = torch.arange(scene.episodes, device=size.device)
        chosen = []
        for limit in size:
            allowed = table.masked_fill((size > limit).reshape(1, -1, 1), torch.inf).flatten(0, 1)
            chosen.append(every.flatten(1, 2)[:, allowed.argmin(dim=0), columns])
        return torch.stack(chosen, dim=1).flatten(1, 2)
