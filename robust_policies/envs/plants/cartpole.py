"""The cart-pole: balance with two forces as in Gymnasium's CartPole-v1, balance with any force, and swing-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from robust_policies.checks import finite_float
from robust_policies.envs.plant import (
    NonNegativeNumber,
    Number,
    Params,
    Plant,
    PositiveNumber,
    Section,
    TaskFile,
    columns,
    units,
)
from robust_policies.envs.plants.integrate import rk4
from robust_policies.errors import InvalidValueError


class Integration(Section):
    """How a time step is integrated: explicit Euler or classical Runge-Kutta, in equal substeps."""

    method: Literal["euler", "rk4"]
    substeps: PositiveInt = Field(json_schema_extra={"unit": "substeps a time step"})


class Parameters(Section):
    """The physical parameters; `length` is half the pole's, from the pivot to its centre of mass."""

    gravity: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s^2"})
    masscart: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    masspole: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    length: PositiveNumber = Field(json_schema_extra={"unit": "m"})


class Limits(Section):
    """The force is clipped; an episode terminates beyond the position or the angle (absent: at no angle)."""

    force: PositiveNumber = Field(json_schema_extra={"unit": "N"})
    position: PositiveNumber = Field(json_schema_extra={"unit": "m"})
    angle: PositiveNumber | None = Field(default=None, json_schema_extra={"unit": "rad"})


class Cost(Section):
    """Weights of the squares in the reward; see `CartPolePlant.reward`."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "1/m^2"})
    speed: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/m^2"})
    angle: NonNegativeNumber = Field(default=0.0, json_schema_extra={"unit": "1/rad^2, for reward: balance"})
    angular_speed: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/rad^2"})
    force: NonNegativeNumber = Field(json_schema_extra={"unit": "1/N^2"})


class Reset(Section):
    """The start: at rest at `angle`, plus uniform numbers within +-spread on each of the four states."""

    angle: Number = Field(json_schema_extra={"unit": "rad"})
    spread: NonNegativeNumber = Field(json_schema_extra={"unit": "m, m/s, rad and rad/s"})


class CartPoleTask(TaskFile):
    """The task.yaml of a cart-pole."""

    integration: Integration
    actions: Literal["two_forces", "continuous"]
    observation: Literal["state", "cos_sin"]
    reward: Literal["alive", "balance", "swing_up"]
    parameters: Parameters
    limits: Limits
    cost: Cost | None = None
    reset: Reset


class CartPolePlant(Plant):
    """A uniform pole on a cart that a force u pushes, without friction; theta = 0 upright, positive to the right.

    With the total mass M = masscart + masspole, m = masspole and the half length l:

        temp = (u + m l theta'^2 sin(theta)) / M
        theta'' = (g sin(theta) - cos(theta) temp) / (l (4/3 - m cos(theta)^2 / M))
        x'' = temp - m l theta'' cos(theta) / M

    State (x [m], x' [m/s], theta [rad, not wrapped], theta' [rad/s]); observation the state, or
    (x, x', cos theta, sin theta, theta'); action force [N]; disturbance a horizontal force on the cart [N].
    Source: Gymnasium's gymnasium/envs/classic_control/cartpole.py (CartPole-v1); the equations are
    R. V. Florian, "Correct equations for the dynamics of the cart-pole system" (2005), without friction.
    """

    kind = "cartpole"
    Task = CartPoleTask
    terminates = True
    state_size = 4
    reset_size = 4
    reset_options = ("low", "high")
    state_names = ("position [m]", "speed [m/s]", "angle [rad]", "angular speed [rad/s]")
    action_names = ("force [N]",)
    disturbance_names = ("force on the cart [N]",)
    parameter_units = units(Parameters)

    def __init__(self, task: CartPoleTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.limits, self.start = task.limits, task.reset
        self.integration, self.reward_kind = task.integration, task.reward
        if task.cost is None and task.reward != "alive":
            raise InvalidValueError(f"cost is missing; expected its weights, which reward: {task.reward} needs.")
        self.cost = task.cost or Cost(position=0.0, speed=0.0, angular_speed=0.0, force=0.0)
        # The squares of `balance` have no limit.
        effort = -(1 + 1e-5) * self.cost.force * self.limits.force**2
        self.least_reward = {"alive": 1.0, "swing_up": effort}.get(self.reward_kind)
        self.action_high = np.array([task.limits.force])
        self.action_low = -self.action_high
        if task.actions == "two_forces":
            self.discrete_actions = np.stack((self.action_low, self.action_high))
        self.cos_sin = task.observation == "cos_sin"
        # Twice the limits, so that the observation that ends an episode is still within bounds.
        position, angle = 2.0 * task.limits.position, 2.0 * (task.limits.angle or np.inf)
        if self.cos_sin:
            self.output_names = (*self.state_names[:2], "cos(angle)", "sin(angle)", self.state_names[3])
            self.observation_high = np.array([position, np.inf, 1.0, 1.0, np.inf])
        else:
            self.output_names = self.state_names
            self.observation_high = np.array([position, np.inf, angle, np.inf])
        self.observation_low = -self.observation_high
        self.observation_size = len(self.observation_high)

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state one time step later; the disturbance is a force beside the motor's, not clipped."""
        substeps = self.integration.substeps
        if self.integration.method == "rk4":
            return rk4(self.derivative(action.to(state.dtype), params, disturbance), state, self.time_step, substeps)
        rates = self._rates(action.to(state.dtype), params, disturbance)
        for _ in range(substeps):
            # Column by column, so that a compiler makes one loop of it.
            pairs = zip(state.unbind(-1), rates(state), strict=True)
            state = columns(*(torch.add(now, rate, alpha=self.time_step / substeps) for now, rate in pairs))
        return state

    def derivative(
        self, action: torch.Tensor, params: Params, disturbance: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function that gives a state's time derivative (..., 4) while the action and disturbance hold."""
        rates = self._rates(action, params, disturbance)
        return lambda state: columns(*rates(state))

    def _rates(
        self, action: torch.Tensor, params: Params, disturbance: torch.Tensor | None
    ) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        dtype = action.dtype
        force = self._force(action)
        if disturbance is not None:
            force = force + disturbance[..., 0].to(dtype)
        gravity, masscart, masspole, length = (params[name].to(dtype) for name in self.parameter_units)
        total = masscart + masspole
        push, lever = force / total, masspole * length / total

        def rates(state: torch.Tensor) -> tuple[torch.Tensor, ...]:
            _, speed, angle, turning = state.unbind(-1)
            sine, cosine = angle.sin(), angle.cos()
            temp = push + lever * turning.square() * sine
            turning_up = (gravity * sine - cosine * temp) / (4.0 / 3.0 * length - lever * cosine.square())
            return speed, temp - lever * turning_up * cosine, turning, turning_up

        return rates

    def _force(self, action: torch.Tensor) -> torch.Tensor:
        return action[..., 0].clamp(-self.limits.force, self.limits.force)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the state, or (x, x', cos theta, sin theta, theta') where the task says cos_sin."""
        if not self.cos_sin:
            return state
        position, speed, angle, turning = state.unbind(-1)
        return columns(position, speed, angle.cos(), angle.sin(), turning)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return the reward (...) of arriving at `following` = (x, x', theta, theta') by the clipped force u.

        With the task's weights w: 1 for `alive`;
        1 - (w_x x^2 + w_x' x'^2 + w_theta theta^2 + w_theta' theta'^2) - w_u u^2 for `balance`; and
        (1 + cos theta) / 2 exp(-(w_x x^2 + w_x' x'^2 + w_theta' theta'^2)) - w_u u^2 for `swing_up`.
        """
        if self.reward_kind == "alive":
            # Not a bare constant: it stays part of the graph, with the gradient zero.
            return 1.0 + 0.0 * following[..., 0]
        position, speed, angle, turning = following.unbind(-1)
        cost = self.cost
        away = cost.position * position**2 + cost.speed * speed**2 + cost.angular_speed * turning**2
        effort = cost.force * self._force(action).to(following.dtype) ** 2
        if self.reward_kind == "balance":
            return 1.0 - away - cost.angle * angle**2 - effort
        return 0.5 * (1.0 + angle.cos()) * torch.exp(-away) - effort

    def terminated(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return where the cart has left the track or the pole its angle, or one of them is not a number."""
        beyond = state[..., 0].abs() - self.limits.position
        if self.limits.angle is not None:
            beyond = torch.maximum(beyond, state[..., 2].abs() - self.limits.angle)
        return ~(beyond <= 0.0)

    def energy(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the energy [J] of states (..., nx); the potential part is zero where the pole is level."""
        _, speed, angle, turning = state.unbind(-1)
        total = params["masscart"] + params["masspole"]
        moment = params["masspole"] * params["length"]
        kinetic = 0.5 * total * speed**2 + moment * speed * turning * angle.cos()
        turned = 2.0 / 3.0 * moment * params["length"] * turning**2
        return kinetic + turned + moment * params["gravity"] * angle.cos()

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise unless the options are bounds `low` <= `high` of the numbers added to the start state."""
        super().check_options(options)
        low, high = self._bounds(options)
        if low > high:
            raise InvalidValueError(f"reset option low is {low:g} and high {high:g}; expected low <= high.")

    def _bounds(self, options: Mapping[str, Any] | None) -> tuple[float, float]:
        given = {"low": -self.start.spread, "high": self.start.spread, **(options or {})}
        return finite_float("reset option low", given["low"]), finite_float("reset option high", given["high"])

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return states uniform between the bounds, about rest at the task's angle; options `low`, `high` set them."""
        low, high = self._bounds(options)
        position, speed, angle, turning = (low + (high - low) * uniform).unbind(-1)
        return columns(position, speed, self.start.angle + angle, turning)
