"""The whole perturbation sequence by gradients through the recurrent state, on recorded observations.

The attacker has a recording of the same episodes without an attack. It takes the observations to come to be as recorded
(teacher forcing), so no model of the environment is needed, and looks for the sequence that moves the policy's actions
furthest from those of its clean twin: the same policy, with a recurrent state of its own, on the unperturbed
observations. Replanned in windows the attack sees where the episode has really gone.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from robust_policies.evaluation.attacks.attack import Attack, Moment, Options, Scene
from robust_policies.evaluation.attacks.search import ascend


class SequenceOptions(Options):
    """Settings of `sequence_pgd`."""

    window: NonNegativeInt = Field(40, description="steps planned at once; 0: the rest of the episode")
    replan: PositiveInt = Field(10, description="steps played before the plan is made again, at most the window")
    steps: PositiveInt = Field(20, description="gradient steps for each plan")
    restarts: PositiveInt = Field(2, description="starts: the last plan's rest if there is one, and random ones")
    rate: float = Field(0.8, gt=0, description="length of the first gradient step, in budgets")
    momentum: float = Field(0.5, ge=0, lt=1, description="how much of the last direction a step keeps")
    objective: Literal["squared", "absolute", "directed"] = Field(
        "squared",
        description="sum over steps and actions of the squared or absolute deviation, or of the deviation to one side",
    )


class SequencePGD(Attack):
    """Projected gradient on the action deviation of a window, through the recurrent state."""

    Options = SequenceOptions

    def begin(self, scene: Scene) -> None:
        """Record the episodes without an attack."""
        super().begin(scene)
        self.recording = scene.recorded()
        self.twin = scene.actor.initial_state(scene.batch)
        self.plan = torch.zeros(0, scene.batch, scene.observation_size)
        self.played = 0
        # One side for each episode and action, so that pushes add up.
        shape = (scene.episodes, scene.actor.low.numel())
        signs = torch.randn(shape, generator=self.generator, device=self.generator.device).sign()
        self.side = signs.repeat(scene.sizes, 1)

    def perturbation(self, moment: Moment) -> Tensor:
        """Return this step's part of the plan, made anew when it is time."""
        width = self.options.window or self.scene.budget.horizon
        if self.played == min(self.options.replan, len(self.plan)):
            self.plan = self._planned(moment, min(width, self.scene.budget.horizon - moment.t))
            self.played = 0
        with torch.no_grad():
            self.twin, _ = self.scene.actor.step(self.twin, moment.observation)
        self.played += 1
        return self.plan[self.played - 1]

    def _planned(self, moment: Moment, width: int) -> Tensor:
        scene, options = self.scene, self.options
        actor, count = scene.actor, options.restarts
        ahead = self.recording[moment.t : moment.t + width]
        if len(ahead) < width:
            last = ahead[-1:] if len(ahead) else moment.observation.unsqueeze(0)
            ahead = torch.cat((ahead, last.expand(width - len(ahead), -1, -1)))
        ahead = torch.cat((moment.observation.unsqueeze(0), ahead[1:]))
        ball = scene.budget.ball(moment.t, width)
        with torch.no_grad():
            clean = actor.clip(actor.run(self.twin, ahead)).repeat(1, count, 1)
        many, hidden = ahead.repeat(1, count, 1), moment.hidden.repeat(count, 1)
        # Every second start pushes to the other side.
        turn = torch.tensor([1.0 - 2.0 * (i % 2) for i in range(count)], device=ahead.device)
        side = (turn.reshape(-1, 1, 1) * self.side).flatten(0, 1)

        def deviation(delta: Tensor) -> Tensor:
            moved = actor.clip(actor.run(hidden, many + delta)) - clean
            if options.objective == "squared":
                return moved.square().sum(dim=(0, 2))
            if options.objective == "absolute":
                return moved.abs().sum(dim=(0, 2))
            return (moved * side).sum(dim=(0, 2))

        starts = self.starts(count, width) * ball.size.reshape(1, 1, -1, 1)
        rest = self.plan[self.played :][:width]
        if len(rest):
            starts[0, : len(rest)] = rest
        return ascend(deviation, starts, ball, steps=options.steps, rate=options.rate, momentum=options.momentum)[0]
