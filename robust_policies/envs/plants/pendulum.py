"""The pendulum of Gymnasium's Pendulum-v1: a rod on a motor that must stand upright."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from robust_policies.checks import finite_float
from robust_policies.envs.plant import (
    NonNegativeNumber,
    Params,
    Plant,
    PositiveNumber,
    Section,
    TaskFile,
    columns,
    units,
)
from robust_policies.errors import InvalidValueError

_OUTPUTS = {"cos": "cos(angle)", "sin": "sin(angle)", "speed": "speed [rad/s]"}


class Parameters(Section):
    """The physical parameters."""

    gravity: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s^2"})
    mass: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    length: PositiveNumber = Field(json_schema_extra={"unit": "m"})


class Limits(Section):
    """What is clipped."""

    torque: PositiveNumber = Field(json_schema_extra={"unit": "N m"})
    speed: PositiveNumber = Field(json_schema_extra={"unit": "rad/s"})


class Cost(Section):
    """Weights of the squares in the cost of a step."""

    angle: NonNegativeNumber = Field(json_schema_extra={"unit": "1/rad^2"})
    speed: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/rad^2"})
    torque: NonNegativeNumber = Field(json_schema_extra={"unit": "1/(N m)^2"})


class Reset(Section):
    """Half widths of the uniform start distribution."""

    angle: NonNegativeNumber = Field(json_schema_extra={"unit": "rad"})
    speed: NonNegativeNumber = Field(json_schema_extra={"unit": "rad/s"})


class PendulumTask(TaskFile):
    """The task.yaml of a pendulum."""

    parameters: Parameters
    limits: Limits
    cost: Cost
    reset: Reset
    observed: list[Literal["cos", "sin", "speed"]] = Field(default=["cos", "sin", "speed"], min_length=1)


class PendulumPlant(Plant):
    """theta'' = 3 g / (2 l) sin(theta) + 3 u / (m l^2), theta = 0 upright, semi-implicit Euler, the speed clipped.

    State (theta [rad, not wrapped], theta' [rad/s]); observation (cos theta, sin theta, theta'), or those of them that
    the task file lists; action torque [N m].
    The torque keeps the action's dtype, as in NumPy's promotion: float32 actions then give Gymnasium's very numbers.
    Source: Gymnasium's gymnasium/envs/classic_control/pendulum.py (Pendulum-v1).
    """

    kind = "pendulum"
    Task = PendulumTask
    state_size = 2
    reset_size = 2
    reset_options = ("x_init", "y_init")
    state_names = ("angle [rad]", "speed [rad/s]")
    action_names = ("torque [N m]",)
    disturbance_names = ("torque [N m]",)
    parameter_units = units(Parameters)

    def __init__(self, task: PendulumTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.limits, self.cost, self.start = task.limits, task.cost, task.reset
        self.action_high = np.array([task.limits.torque])
        self.observed = tuple(task.observed)
        if len(set(self.observed)) != len(self.observed):
            raise InvalidValueError(f"observed is {task.observed}; expected each of cos, sin and speed at most once.")
        self.observation_size = len(self.observed)
        self.output_names = tuple(_OUTPUTS[name] for name in self.observed)
        self.observation_high = np.array([task.limits.speed if name == "speed" else 1.0 for name in self.observed])
        self.action_low, self.observation_low = -self.action_high, -self.observation_high
        fastest = max(self.limits.speed, self.start.speed)
        self.least_reward = -(1 + 1e-5) * (
            self.cost.angle * math.pi**2 + self.cost.speed * fastest**2 + self.cost.torque * self.limits.torque**2
        )

    def constants(self, params: Params) -> Params:
        """Return `params` with the accelerations that a torque of 1 N m and gravity at a right angle bring."""
        mass, length = params["mass"], params["length"]
        return {**params, "gain": 3.0 / (mass * length**2), "fall": 3.0 * params["gravity"] / (2.0 * length)}

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return (theta, theta') one time step later; the disturbance is a torque beside the motor's, not clipped."""
        angle, speed = state.unbind(-1)
        torque = action[..., 0].clamp(-self.limits.torque, self.limits.torque)
        if disturbance is not None:
            torque = torque + disturbance[..., 0]
        known = params if "gain" in params else self.constants(params)
        acceleration = known["fall"] * angle.sin() + known["gain"] * torque
        speed = (speed + acceleration * self.time_step).clamp(-self.limits.speed, self.limits.speed)
        return columns(angle + speed * self.time_step, speed).to(state.dtype)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return cos theta, sin theta and theta', or those of them that the task file lists, in its order."""
        angle, speed = state.unbind(-1)
        measured = {"cos": angle.cos, "sin": angle.sin, "speed": lambda: speed}
        return torch.stack([measured[name]() for name in self.observed], dim=-1)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return -(theta^2 + 0.1 theta'^2 + 0.001 u^2), theta wrapped to [-pi, pi), with the task's weights."""
        angle, speed = state.unbind(-1)
        torque = action[..., 0].clamp(-self.limits.torque, self.limits.torque)
        wrapped = torch.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
        return -(self.cost.angle * wrapped**2 + self.cost.speed * speed**2 + self.cost.torque * torque**2)

    def energy(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the energy m l^2 theta'^2 / 6 + m g l cos(theta) / 2 [J] of states (..., nx), for a uniform rod."""
        angle, speed = state.unbind(-1)
        moment = params["mass"] * params["length"]
        return moment * params["length"] * speed**2 / 6.0 + moment * params["gravity"] * angle.cos() / 2.0

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise unless the options are half widths, `x_init` [rad] and `y_init` [rad/s]."""
        super().check_options(options)
        for name, value in options.items():
            finite_float(f"reset option {name}", value, at_least=0.0)

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return states uniform within the task's half widths, or options `x_init`, `y_init` as in Gymnasium."""
        given = options or {}
        half = [float(given.get("x_init", self.start.angle)), float(given.get("y_init", self.start.speed))]
        # Numbers, not a tensor of them, which would have to be carried to a GPU in every reset.
        return columns(*(-high + 2.0 * high * u for high, u in zip(half, uniform.unbind(-1), strict=True)))
