"""The return itself by gradients through the closed loop: policy, recurrent state and a differentiable plant.

Receding horizon: a plan for a window is made from the present state, its first part is played, and the rest is where
the next plan begins. The plant is simulated without its noise and without perturbation wrappers around the environment.

With `search: whole_episode` there is one plan, made at the start for all of the episode by an attacker who knows all of
its noise: what a certified return quantifies over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robust_policies.certificates.ball import climb
from robust_policies.envs.gradient import differentiable
from robust_policies.errors import InvalidValueError
from robust_policies.evaluation.attacks.attack import Moment, Scene
from robust_policies.evaluation.attacks.planned import Planned, PlannedOptions
from robust_policies.evaluation.attacks.search import Objective, ascend, cross_entropy
from robust_policies.evaluation.attacks.window import Window

Noise = tuple[Tensor | None, Tensor | None]


class ClosedLoopOptions(PlannedOptions):
    """Settings of `closed_loop_pgd`."""

    search: Literal["gradient", "cem", "whole_episode"] = Field(
        "gradient",
        description="projected gradient; cem, the cross-entropy method, which needs none: to see masking; "
        "whole_episode: one plan for all of it, its noise known, by power iteration and then by projected gradient",
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

    def perturbation(self, moment: Moment) -> Tensor:
        """Return this step's part of the plan; of a whole episode there is one, made at its start."""
        if self.options.search != "whole_episode" or self.rehearsed is not None:
            return super().perturbation(moment)
        if moment.t == 0:
            self.plan = self._whole(moment)
        return self.plan[moment.t]

    def _whole(self, moment: Moment) -> Tensor:
        """Return the plan (time, batch, nu) of the whole episode that knows its noise."""
        options, horizon, batch = self.options, self.scene.budget.horizon, self.scene.batch
        ball = self.scene.budget.ball(0, horizon)
        starts, noise = self.first_guesses(ball, horizon), self.environment.foreseen(horizon)
        many = ball.repeated(options.restarts)
        guesses = many.project(starts.transpose(0, 1).flatten(1, 2))
        found, cost = climb(self._simulation(moment, options.restarts, noise), guesses, many, options.steps)
        winner = torch.nan_to_num(cost, nan=-torch.inf).unflatten(0, (options.restarts, batch)).argmax(0)
        chosen = found.unflatten(1, (options.restarts, batch))[:, winner, torch.arange(batch, device=found.device)]
        alone = self._simulation(moment, 1, noise)
        # Where the return is not concave, shorter steps go on from there.
        return ascend(alone, chosen[None], ball, steps=options.steps, rate=options.rate, momentum=options.momentum)[0]

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

    def _simulation(self, moment: Moment, count: int, noise: Sequence[Noise] = ()) -> Objective:
        """Return delta (time, count * batch, nu) -> minus the simulated rewards (count * batch,).

        `noise`, where it is known, is that of each step and of what is observed after it.
        """
        plant, actor = self.plant, self.scene.actor
        rows = torch.arange(self.scene.batch, device=moment.observation.device).repeat(count)
        first, hidden = self.environment.state[rows].float(), moment.hidden[rows]
        params = {name: value.float() for name, value in plant.take(self.environment.prepared, rows).items()}
        known = [tuple(None if part is None else part[rows].float() for part in parts) for parts in noise]
        only_last = self.options.objective == "last_reward"
        window = Window(plant, plant.constants(params), actor, first, hidden, only_last)
        if not noise and window.suits:
            return window.harm()

        def harm(delta: Tensor) -> Tensor:
            state, memory = first, hidden
            total = torch.zeros_like(first[:, 0])
            alive = torch.ones_like(total)
            observation = moment.observation[rows] if noise else plant.observe(state, params)
            for t, perturbation in enumerate(delta):
                action, memory = actor.step(observation + perturbation, memory)
                action = self._force(action)
                process, measurement = known[t] if noise else (None, None)
                following = plant.advance(state, action, params, process)
                reward = plant.reward(state, action, following, params) * alive
                total = reward if only_last else total + reward
                if plant.terminates:
                    alive = alive * ~plant.terminated(following, params)
                state, observation = following, plant.observe(following, params, measurement)
            return -total

        return Objective(harm)
