"""The return itself by gradients through the closed loop: policy, recurrent state and a differentiable plant.

Receding horizon: a plan for a window is made from the present state, its first part is played, and the rest is where
the next plan begins. The plant is simulated without its noise and without perturbation wrappers around the environment.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from robust_policies.envs.gradient import differentiable
from robust_policies.errors import InvalidValueError
from robust_policies.evaluation.attacks.attack import Attack, Moment, Options, Scene
from robust_policies.evaluation.attacks.search import Objective, ascend


class ClosedLoopOptions(Options):
    """Settings of `closed_loop_pgd`."""

    window: NonNegativeInt = Field(40, description="steps planned at once; 0: the rest of the episode")
    replan: PositiveInt = Field(20, description="steps played before the plan is made again, at most the window")
    steps: PositiveInt = Field(10, description="gradient steps for each plan")
    restarts: PositiveInt = Field(2, description="starts: the last plan's rest if there is one, and random ones")
    rate: float = Field(0.8, gt=0, description="length of the first gradient step, in budgets")
    momentum: float = Field(0.5, ge=0, lt=1, description="how much of the last direction a step keeps")
    objective: Literal["return", "last_reward"] = Field(
        "return", description="what is made small: the rewards' sum over the window, or its last reward only"
    )


class ClosedLoopPGD(Attack):
    """Projected gradient on the simulated return of a window of the closed loop."""

    Options = ClosedLoopOptions

    def begin(self, scene: Scene) -> None:
        """Start without a plan; raises InvalidValueError where no gradient flows through the environment."""
        super().begin(scene)
        if scene.environment is None:
            raise InvalidValueError(
                "closed_loop_pgd was asked for an environment that is not this package's; it needs a plant through "
                "which gradients flow: use sequence_pgd."
            )
        self.plant = differentiable(scene.environment.plant)
        self.environment = scene.environment
        self.plan = torch.zeros(0, scene.batch, scene.observation_size)
        self.played = 0

    def perturbation(self, moment: Moment) -> Tensor:
        """Return this step's part of the plan, made anew when it is time."""
        width = self.options.window or self.scene.budget.horizon
        if self.played == min(self.options.replan, len(self.plan)):
            self.plan = self._planned(moment, min(width, self.scene.budget.horizon - moment.t))
            self.played = 0
        self.played += 1
        return self.plan[self.played - 1]

    def _planned(self, moment: Moment, width: int) -> Tensor:
        options, count = self.options, self.options.restarts
        ball = self.scene.budget.ball(moment.t, width)
        starts = self.starts(count, width) * ball.size.reshape(1, 1, -1, 1)
        rest = self.plan[self.played :][:width]
        if len(rest):
            starts[0, : len(rest)] = rest
        harm = self._simulation(moment, count)
        return ascend(harm, starts, ball, steps=options.steps, rate=options.rate, momentum=options.momentum)[0]

    def _simulation(self, moment: Moment, count: int) -> Objective:
        """Return delta (time, count * batch, nu) -> minus the simulated rewards (count * batch,)."""
        plant, actor = self.plant, self.scene.actor
        rows = torch.arange(self.scene.batch, device=moment.observation.device).repeat(count)
        first, hidden = self.environment.state[rows].float(), moment.hidden[rows]
        params = {name: value.float() for name, value in plant.take(self.environment.prepared, rows).items()}
        only_last = self.options.objective == "last_reward"

        def harm(delta: Tensor) -> Tensor:
            state, memory = first, hidden
            total = torch.zeros_like(first[:, 0])
            alive = torch.ones_like(total)
            for perturbation in delta:
                memory, action = actor.step(memory, plant.observe(state, params) + perturbation)
                action = actor.clip(action)
                following = plant.step(state, action, params)
                reward = plant.reward(state, action, following, params) * alive
                total = reward if only_last else total + reward
                if plant.terminates:
                    alive = alive * ~plant.terminated(following, params)
                state = following
            return -total

        return harm
