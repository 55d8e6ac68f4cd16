"""A rotary pendulum after Quanser's Qube-Servo 2: a motor turns an arm, at whose end a pendulum must stand upright."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt

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
from robust_policies.envs.plants.integrate import rk4


class Parameters(Section):
    """The physical parameters; arm and pendulum are uniform rods, each pivoted at its end."""

    gravity: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s^2"})
    resistance: PositiveNumber = Field(json_schema_extra={"unit": "ohm"})
    torque_constant: PositiveNumber = Field(json_schema_extra={"unit": "N m/A"})
    back_emf_constant: NonNegativeNumber = Field(json_schema_extra={"unit": "V s/rad"})
    arm_mass: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    arm_length: PositiveNumber = Field(json_schema_extra={"unit": "m"})
    arm_damping: NonNegativeNumber = Field(json_schema_extra={"unit": "N m s/rad"})
    pendulum_mass: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    pendulum_length: PositiveNumber = Field(json_schema_extra={"unit": "m"})
    pendulum_damping: NonNegativeNumber = Field(json_schema_extra={"unit": "N m s/rad"})


class Limits(Section):
    """What is clipped."""

    voltage: PositiveNumber = Field(json_schema_extra={"unit": "V"})


class Cost(Section):
    """Weights of the squares in the cost of a step."""

    arm_angle: NonNegativeNumber = Field(json_schema_extra={"unit": "1/rad^2"})
    pendulum_angle: NonNegativeNumber = Field(json_schema_extra={"unit": "1/rad^2"})
    arm_speed: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/rad^2"})
    pendulum_speed: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/rad^2"})
    voltage: NonNegativeNumber = Field(json_schema_extra={"unit": "1/V^2"})


class Noise(Section):
    """Standard deviations: of what is added to the state in every step, and of the encoders."""

    angle: NonNegativeNumber = Field(json_schema_extra={"unit": "rad"})
    speed: NonNegativeNumber = Field(json_schema_extra={"unit": "rad/s"})
    encoder: NonNegativeNumber = Field(json_schema_extra={"unit": "rad"})


class Reset(Section):
    """Half widths of the uniform start distribution."""

    angle: NonNegativeNumber = Field(json_schema_extra={"unit": "rad"})
    speed: NonNegativeNumber = Field(json_schema_extra={"unit": "rad/s"})


class QubeTask(TaskFile):
    """The task.yaml of a rotary pendulum."""

    substeps: PositiveInt = Field(json_schema_extra={"unit": "Runge-Kutta steps a time step"})
    parameters: Parameters
    limits: Limits
    cost: Cost
    noise: Noise
    reset: Reset


class QubePlant(Plant):
    """A horizontal arm (angle th, length r, mass M) and at its end a pendulum (angle al, 0 upright, length p, mass m).

    A point of the pendulum at distance s from its pivot moves with the squared speed
    r^2 th'^2 + 2 r s cos(al) th' al' + s^2 al'^2 + s^2 sin(al)^2 th'^2. Integrated over uniform rods, with the
    inertias Ja = M r^2 / 3 and Jp = m p^2 / 3 about their pivots, Lagrange's equations are

        [Ja + m r^2 + Jp sin(al)^2   c cos(al)] [th'']   [torque - 2 Jp sin(al) cos(al) th' al' + c sin(al) al'^2]
        [c cos(al)                   Jp       ] [al''] = [Jp sin(al) cos(al) th'^2 + m g p sin(al) / 2 - Dp al'  ]

    with c = m r p / 2 and the motor's torque = kt (V - km th') / R - Dr th' (no inductance).
    State (th [rad], al [rad], th' [rad/s], al' [rad/s]), no angle wrapped; observation the encoders' (th, al); action
    the voltage V; disturbance torques on arm and pendulum [N m].
    Source of the device and its numbers: Quanser, Qube-Servo 2 user manual and its rotary pendulum courseware.
    """

    kind = "qube"
    Task = QubeTask
    state_size = 4
    observation_size = 2
    reset_size = 4
    state_names = ("arm angle [rad]", "pendulum angle [rad]", "arm speed [rad/s]", "pendulum speed [rad/s]")
    output_names = ("measured arm angle [rad]", "measured pendulum angle [rad]")
    action_names = ("voltage [V]",)
    disturbance_names = ("torque on the arm [N m]", "torque on the pendulum [N m]")
    parameter_units = units(Parameters)

    def __init__(self, task: QubeTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.limits, self.cost, self.noise, self.start = task.limits, task.cost, task.noise, task.reset
        self.substeps = task.substeps
        self.action_high = np.array([task.limits.voltage])
        self.observation_high = np.full(2, np.inf)
        self.action_low, self.observation_low = -self.action_high, -self.observation_high
        self.process_noise_size = 4 if task.noise.angle > 0 or task.noise.speed > 0 else 0
        self.measurement_noise_size = 2 if task.noise.encoder > 0 else 0

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state one time step later; the disturbance is a torque on the arm and one on the pendulum."""
        derivative = self.derivative(action.to(state.dtype), params, disturbance)
        following = rk4(derivative, state, self.time_step, self.substeps)
        if noise is None or not self.process_noise_size:
            return following
        shaken = torch.cat((self.noise.angle * noise[..., :2], self.noise.speed * noise[..., 2:]), dim=-1)
        return following + shaken.to(state.dtype)

    def derivative(
        self, action: torch.Tensor, params: Params, disturbance: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function that gives a state's time derivative (..., 4) while the action and disturbance hold."""
        p = {name: value.to(action.dtype) for name, value in params.items()}
        pendulum, inertia, coupling = _inertias(p)
        gain = p["torque_constant"] / p["resistance"]
        arm_loss = p["arm_damping"] + gain * p["back_emf_constant"]
        pendulum_loss = p["pendulum_damping"]
        weight = 0.5 * p["pendulum_mass"] * p["gravity"] * p["pendulum_length"]
        on_arm = gain * self._voltage(action)
        on_pendulum = torch.zeros_like(on_arm)
        if disturbance is not None:
            on_arm = on_arm + disturbance[..., 0].to(action.dtype)
            on_pendulum = on_pendulum + disturbance[..., 1].to(action.dtype)

        def rate(state: torch.Tensor) -> torch.Tensor:
            _, angle, arm_speed, speed = state.unbind(-1)
            sine, cosine = angle.sin(), angle.cos()
            twist, shared = pendulum * sine * cosine, coupling * cosine
            turns = on_arm - arm_loss * arm_speed - 2.0 * twist * arm_speed * speed + coupling * sine * speed.square()
            tilts = on_pendulum - pendulum_loss * speed + twist * arm_speed.square() + weight * sine
            whole = inertia + pendulum * sine.square()
            determinant = whole * pendulum - shared.square()
            arm_up = (pendulum * turns - shared * tilts) / determinant
            up = (whole * tilts - shared * turns) / determinant
            return columns(arm_speed, speed, arm_up, up)

        return rate

    def _voltage(self, action: torch.Tensor) -> torch.Tensor:
        return action[..., 0].clamp(-self.limits.voltage, self.limits.voltage)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the angles (th, al) that the encoders measure [rad], not wrapped."""
        angles = state[..., :2]
        if noise is None or not self.measurement_noise_size:
            return angles
        return angles + self.noise.encoder * noise.to(state.dtype)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return minus the weighted squares of the state before the step and of the clipped voltage."""
        arm_angle, angle, arm_speed, speed = state.unbind(-1)
        cost = self.cost
        away = cost.arm_angle * arm_angle**2 + cost.pendulum_angle * angle**2
        moving = cost.arm_speed * arm_speed**2 + cost.pendulum_speed * speed**2
        return -(away + moving + cost.voltage * self._voltage(action).to(state.dtype) ** 2)

    def energy(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the kinetic and potential energy (...) in J; the potential one is zero where the pendulum is level."""
        _, angle, arm_speed, speed = state.unbind(-1)
        pendulum, inertia, coupling = _inertias(params)
        kinetic = 0.5 * (inertia + pendulum * angle.sin() ** 2) * arm_speed**2 + 0.5 * pendulum * speed**2
        height = 0.5 * params["pendulum_length"] * angle.cos()
        shared = coupling * angle.cos() * arm_speed * speed
        return kinetic + shared + params["pendulum_mass"] * params["gravity"] * height

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return states uniform within the task's half widths about upright rest."""
        angles, speeds = (2.0 * uniform - 1.0).chunk(2, dim=-1)
        return torch.cat((self.start.angle * angles, self.start.speed * speeds), dim=-1)


def _inertias(params: Params) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return Jp of the pendulum, Ja + m r^2 of the arm that carries it, and their coupling m r p / 2, in kg m^2."""
    mass, length, arm = params["pendulum_mass"], params["pendulum_length"], params["arm_length"]
    inertia = params["arm_mass"] * arm**2 / 3.0 + mass * arm**2
    return mass * length**2 / 3.0, inertia, 0.5 * mass * arm * length
