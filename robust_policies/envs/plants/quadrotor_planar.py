"""A quadrotor in a vertical plane that follows a circle or hovers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

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

Pair = tuple[Number, Number]


class Parameters(Section):
    """The physical parameters."""

    gravity: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s^2"})
    mass: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    inertia: PositiveNumber = Field(json_schema_extra={"unit": "kg m^2"})
    arm: PositiveNumber = Field(json_schema_extra={"unit": "m"})


class Limits(Section):
    """Where the thrust is clipped and the episode ends."""

    thrust: PositiveNumber = Field(json_schema_extra={"unit": "N"})
    position_low: Pair = Field(json_schema_extra={"unit": "m"})
    position_high: Pair = Field(json_schema_extra={"unit": "m"})
    pitch: PositiveNumber = Field(json_schema_extra={"unit": "rad"})


class Reference(Section):
    """What is followed: a circle, or its centre."""

    kind: Literal["circle", "hover"]
    centre: Pair = Field(json_schema_extra={"unit": "m"})
    radius: PositiveNumber | None = Field(default=None, json_schema_extra={"unit": "m"})
    period: PositiveNumber | None = Field(default=None, json_schema_extra={"unit": "s"})


class Cost(Section):
    """Weights of the squares in the cost of a step."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "1/m^2"})
    velocity: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/m^2"})
    pitch: NonNegativeNumber = Field(json_schema_extra={"unit": "1/rad^2"})
    pitch_rate: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/rad^2"})
    thrust: NonNegativeNumber = Field(json_schema_extra={"unit": "1/N^2"})


class Reset(Section):
    """Half widths of the uniform start distribution."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "m"})
    pitch: NonNegativeNumber = Field(json_schema_extra={"unit": "rad"})
    velocity: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s"})
    pitch_rate: NonNegativeNumber = Field(json_schema_extra={"unit": "rad/s"})


class PlanarQuadrotorTask(TaskFile):
    """The task.yaml of a planar quadrotor."""

    substeps: PositiveInt = Field(json_schema_extra={"unit": "Runge-Kutta steps in a time step"})
    parameters: Parameters
    limits: Limits
    reference: Reference
    cost: Cost
    reset: Reset


class PlanarQuadrotorPlant(Plant):
    """A rigid body pushed by two pairs of motors, its thrust along (sin pitch, cos pitch) in the (x, z) plane.

        m x'' = (T1 + T2) sin(pitch),  m z'' = (T1 + T2) cos(pitch) - m g,  I pitch'' = (T2 - T1) arm / sqrt(2)

    z points up, pitch 0 is level, a positive pitch leans towards +x; the pair 1 sits at +x, the pair 2 at -x. State
    (x, z, pitch [rad, not wrapped], x', z', pitch', clock [s]): the reference is a function of the clock. Observation:
    position minus reference, sin and cos of the pitch, velocities, pitch rate, velocity of the reference.
    """

    kind = "quadrotor_planar"
    least_reward = 0.0
    Task = PlanarQuadrotorTask
    terminates = True
    state_size = 7
    observation_size = 9
    reset_size = 6
    state_names = (
        "x [m]",
        "z [m]",
        "pitch [rad]",
        "x velocity [m/s]",
        "z velocity [m/s]",
        "pitch rate [rad/s]",
        "clock [s]",
    )
    output_names = (
        "x error [m]",
        "z error [m]",
        "sin(pitch)",
        "cos(pitch)",
        "x velocity [m/s]",
        "z velocity [m/s]",
        "pitch rate [rad/s]",
        "x velocity of the reference [m/s]",
        "z velocity of the reference [m/s]",
    )
    action_names = ("thrust of the pair at +x [N]", "thrust of the pair at -x [N]")
    disturbance_names = ("force x [N]", "force z [N]", "torque [N m]")
    parameter_units = units(Parameters)

    def __init__(self, task: PlanarQuadrotorTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.limits, self.cost, self.start = task.limits, task.cost, task.reset
        self.substeps = task.substeps
        self.centre = task.reference.centre
        self.radius, self.turn_rate = _circle(task.reference)
        for axis, low, middle, high in zip(
            "xz", task.limits.position_low, self.centre, task.limits.position_high, strict=True
        ):
            if not low < middle - self.radius or not middle + self.radius < high:
                raise InvalidValueError(
                    f"reference reaches from {middle - self.radius:g} to {middle + self.radius:g} m in {axis}; "
                    f"expected it within limits.position_low and position_high, {low:g} to {high:g} m."
                )
        self.action_low = np.zeros(2)
        self.action_high = np.full(2, task.limits.thrust)
        self.observation_high = np.array([np.inf, np.inf, 1.0, 1.0, *(np.inf,) * 5])
        self.observation_low = -self.observation_high

    def reference(self, clock: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return where the reference is at `clock` (...) [s] and how fast: x, z [m], x', z' [m/s], each (...)."""
        phase = self.turn_rate * clock
        x, z = self.radius * phase.cos(), self.radius * phase.sin()
        return self.centre[0] + x, self.centre[1] + z, -self.turn_rate * z, self.turn_rate * x

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state (..., 7) one time step later; the disturbance is a force and a torque, not clipped."""
        front, rear = action.to(state.dtype).clamp(0.0, self.limits.thrust).unbind(-1)
        mass, gravity = params["mass"], params["gravity"]
        lift = (front + rear) / mass
        torque = (rear - front) * params["arm"] * math.sqrt(0.5)
        push_x = push_z = 0.0
        if disturbance is not None:
            push_x, push_z = disturbance[..., 0] / mass, disturbance[..., 1] / mass
            torque = torque + disturbance[..., 2]
        turning = torque / params["inertia"]

        def derivative(moving: torch.Tensor) -> torch.Tensor:
            _, _, pitch, *velocities = moving.unbind(0)
            x = lift * pitch.sin() + push_x
            z = lift * pitch.cos() - gravity + push_z
            return torch.stack((*velocities, x, z, turning))

        *moving, clock = state.unbind(-1)
        # One row a component: the arithmetic then runs on contiguous memory.
        moved = rk4(derivative, torch.stack(moving), self.time_step, self.substeps)
        return columns(*moved.unbind(0), clock + self.time_step)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the nine numbers of `output_names`."""
        x, z, pitch, *velocities, clock = state.unbind(-1)
        wanted_x, wanted_z, *wanted_velocities = self.reference(clock)
        errors = (x - wanted_x, z - wanted_z)
        return columns(*errors, pitch.sin(), pitch.cos(), *velocities, *wanted_velocities)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return 1 / (1 + cost), in (0, 1], the cost a weighted sum of squares of `following` and of the action."""
        x, z, pitch, x_velocity, z_velocity, pitch_rate, clock = following.unbind(-1)
        wanted_x, wanted_z, wanted_x_velocity, wanted_z_velocity = self.reference(clock)
        front, rear = action.to(state.dtype).clamp(0.0, self.limits.thrust).unbind(-1)
        hover = params["mass"] * params["gravity"] / 2.0
        cost = (
            self.cost.position * ((x - wanted_x) ** 2 + (z - wanted_z) ** 2)
            + self.cost.velocity * ((x_velocity - wanted_x_velocity) ** 2 + (z_velocity - wanted_z_velocity) ** 2)
            + self.cost.pitch * pitch**2
            + self.cost.pitch_rate * pitch_rate**2
            + self.cost.thrust * ((front - hover) ** 2 + (rear - hover) ** 2)
        )
        return 1.0 / (1.0 + cost)

    def terminated(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return where the quadrotor has left its box, leans beyond the limit, or is not a number."""
        x, z, pitch = state[..., 0], state[..., 1], state[..., 2]
        low, high = self.limits.position_low, self.limits.position_high
        inside = (x >= low[0]) & (x <= high[0]) & (z >= low[1]) & (z <= high[1]) & (pitch.abs() <= self.limits.pitch)
        # The sum is finite where every number is, and cheaper to ask.
        return ~(inside & state.sum(-1).isfinite())

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return states about the start of the reference, uniform within the task's half widths, clock 0."""
        x, z, pitch, x_velocity, z_velocity, pitch_rate = (2.0 * uniform - 1.0).unbind(-1)
        clock = torch.zeros_like(x)
        start_x, start_z, _, _ = self.reference(clock)
        spread = self.start
        return torch.stack(
            (
                start_x + spread.position * x,
                start_z + spread.position * z,
                spread.pitch * pitch,
                spread.velocity * x_velocity,
                spread.velocity * z_velocity,
                spread.pitch_rate * pitch_rate,
                clock,
            ),
            dim=-1,
        )

    def energy(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the kinetic and potential energy (...) [J], zero at rest at z = 0."""
        _, z, _, x_velocity, z_velocity, pitch_rate, _ = state.unbind(-1)
        moving = params["mass"] * (x_velocity**2 + z_velocity**2) + params["inertia"] * pitch_rate**2
        return 0.5 * moving + params["mass"] * params["gravity"] * z


def _circle(reference: Reference) -> tuple[float, float]:
    """Return the radius [m] and the turn rate [rad/s], both 0 for hovering."""
    if reference.kind == "hover":
        if reference.radius is not None or reference.period is not None:
            raise InvalidValueError("reference hovers and has a radius or a period; leave them out, or use circle.")
        return 0.0, 0.0
    if reference.radius is None or reference.period is None:
        raise InvalidValueError("reference is a circle without radius or period; expected both, or kind hover.")
    return reference.radius, 2.0 * math.pi / reference.period
