"""The return itself by gradients through the closed loop: policy, recurrent state and a differentiable plant.

Receding horizon: a plan for a window is made from the present state, its first part is played, and the rest is where
the next plan begins. The plant is simulated without its noise and without perturbation wrappers around the environment.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robust_policies.envs.gradient import differentiable
from robust_policies.errors import InvalidValueError
from robust_policies.evaluation.attacks.attack import Moment, Scene
from robust_policies.evaluation.attacks.planned import Planned, PlannedOptions
from robust_policies.evaluation.attacks.search import Objective, cross_entropy


class ClosedLoopOptions(PlannedOptions):
    """Settings of `closed_loop_pgd`."""

    search: Literal["gradient", "cem"] = Field(
        "gradient", description="projected gradient, or the cross-entropy method, which needs none: to see masking"
    )
    population: int = Field(64, ge=8, description="samples of each step of the cross-entropy method")
    objective: Literal["return", "last_reward"] = Field(
        "return", description="what is made small: the rewards' sum over the window, or its last reward only"
    )


class ClosedLoopPGD(Planned):
    """Projected gradient on the simulated return of a window of the closed loop."""

    Options = ClosedLoopOptions
    variations = (
        {},
        {"window": 80, "momentum": 0.0},
        {"search": "cem", "population": 64},
        {"rate": 1.5},
        {"window": 20},
    )
    total_variations = (
        {},
        {"window": 0, "replan": 10_000, "steps": 30},
        {"hurry": 5.0},
        {"window": 0},
        {"search": "cem", "hurry": 5.0},
    )

    def begin(self, scene: Scene) -> None:
        """Start without a plan; raises InvalidValueError where no gradient flows through the environment."""
        if scene.environment is None:
            raise InvalidValueError(
                "closed_loop_pgd was asked for an environment that is not this package's; it needs a plant through "
                "which gradients flow: use sequence_pgd."
            )
        self.plant = differentiable(scene.environment.plant)
        self.environment = scene.environment
        super().begin(scene)

    def planned(self, moment: Moment, width: int) -> Tensor:
        """Return a plan (width, batch, nu) from this moment on."""
        options = self.options
        ball = self.scene.budget.ball(moment.t, width, options.hurry)
        if options.search == "gradient":
            return self.searched(self._simulation(moment, options.restarts), ball, width)
        return cross_entropy(
            self._simulation(moment, options.population),
            self.first_guesses(ball, width)[0],
            ball,
            population=options.population,
            steps=options.steps,
            generator=self.generator,
        )[0]

    def _force(self, numbers: Tensor) -> Tensor:
        """Return the plant's action; that of a choice has the gradient of what its chances would do on average."""
        actor, table = self.scene.actor, self.plant.discrete_actions
        if not actor.choices or table is None:
            return actor.clip(numbers)
        actions = torch.as_tensor(table, dtype=numbers.dtype, device=numbers.device)
        chosen = actions[numbers.argmax(dim=-1)]
        # Sure of its choice, a policy would leave no gradient.
        spread = (numbers.amax(-1, keepdim=True) - numbers.amin(-1, keepdim=True)).detach().clamp(min=1.0)
        mean = torch.softmax(numbers / spread, dim=-1) @ actions
        return chosen + (mean - mean.detach())

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
                action, memory = actor.step(plant.observe(state, params) + perturbation, memory)
                action = self._force(action)
                following = plant.advance(state, action, params)
                reward = plant.reward(state, action, following, params) * alive
                total = reward if only_last else total + reward
                if plant.terminates:
                    alive = alive * ~plant.terminated(following, params)
                state = following
            return -total

        return harm
