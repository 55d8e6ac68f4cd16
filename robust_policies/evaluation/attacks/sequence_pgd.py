"""The whole perturbation sequence by gradients through the recurrent state, on recorded observations.

The attacker has a recording of the same episodes without an attack. It takes the observations to come to be as recorded
(teacher forcing), so no model of the environment is needed, and looks for the sequence that moves the policy's actions
furthest from those of its clean twin: the same policy, with a recurrent state of its own, on the unperturbed
observations. Replanned in windows the attack sees where the episode has really gone.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from robust_policies.evaluation.attacks.attack import Moment, Scene
from robust_policies.evaluation.attacks.planned import Planned, PlannedOptions
from robust_policies.evaluation.attacks.pushed import ABSOLUTE, SQUARED, directed, pushed


class SequenceOptions(PlannedOptions):
    """Settings of `sequence_pgd`."""

    replan: PositiveInt = Field(10, description="steps played before the plan is made again, at most the window")
    steps: PositiveInt = Field(20, description="gradient steps for each plan")
    restarts: PositiveInt = Field(
        2, description="starts: the last plan's rest if there is one, steady pushes and random ones in turn"
    )
    objective: Literal["directed", "squared", "absolute"] = Field(
        "directed",
        description="sum over steps and actions of the deviation to one side, or of its square or absolute value",
    )


class SequencePGD(Planned):
    """Projected gradient on the action deviation of a window, through the recurrent state."""

    Options = SequenceOptions
    variations = ({}, {"objective": "squared"}, {"objective": "directed"}, {"window": 20})
    total_variations = (
        {"window": 0, "replan": 10_000},
        {"window": 0, "replan": 10_000, "objective": "directed"},
        {"hurry": 5.0, "objective": "directed"},
        {"hurry": 20.0, "objective": "directed"},
    )

    def begin(self, scene: Scene) -> None:
        """Record the episodes without an attack."""
        super().begin(scene)
        if self.rehearsed is not None:
            return
        self.recording = scene.rehearse(None, None)[0]
        self.twin = scene.actor.initial_state(scene.batch)
        # One side for each episode and action, so that pushes add up.
        self.side = self.drawn(torch.randn, (), (scene.actor.low.numel(),)).sign().repeat(scene.sizes, 1)

    def perturbation(self, moment: Moment) -> Tensor:
        """Return this step's part of the plan; the twin reads the clean observation."""
        found = super().perturbation(moment)
        if self.rehearsed is None:
            with torch.no_grad():
                _, self.twin = self.scene.actor.step(moment.observation, self.twin)
        return found

    def planned(self, moment: Moment, width: int) -> Tensor:
        """Return a plan (width, batch, nu) from this moment on."""
        scene, options = self.scene, self.options
        actor, count = scene.actor, options.restarts
        ahead = self.recording[moment.t : moment.t + width]
        if len(ahead) < width:
            last = ahead[-1:] if len(ahead) else moment.observation.unsqueeze(0)
            ahead = torch.cat((ahead, last.expand(width - len(ahead), -1, -1)))
        ahead = torch.cat((moment.observation.unsqueeze(0), ahead[1:]))
        ball = scene.budget.ball(moment.t, width, options.hurry)
        with torch.no_grad():
            clean = actor.clip(actor.run(ahead, self.twin)).repeat(1, count, 1)
        many, hidden = ahead.repeat(1, count, 1), moment.hidden.repeat(count, 1)
        # Every second start pushes to the other side.
        turn = torch.tensor([1.0 - 2.0 * (i % 2) for i in range(count)], device=ahead.device)
        side = (turn.reshape(-1, 1, 1) * self.side).flatten(0, 1)
        measures = {"squared": SQUARED, "absolute": ABSOLUTE, "directed": directed(side)}
        return self.searched(pushed(actor, many, hidden, clean, measures[options.objective]), ball, width)
