"""A quadrotor in space that flies between waypoints or hovers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
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
from robust_policies.envs.plants import rotation
from robust_policies.envs.plants.integrate import rk4
from robust_policies.errors import InvalidValueError

Position = tuple[Number, Number, Number]


class Parameters(Section):
    """The physical parameters."""

    gravity: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s^2"})
    mass: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    inertia_x: PositiveNumber = Field(json_schema_extra={"unit": "kg m^2"})
    inertia_y: PositiveNumber = Field(json_schema_extra={"unit": "kg m^2"})
    inertia_z: PositiveNumber = Field(json_schema_extra={"unit": "kg m^2"})
    arm: PositiveNumber = Field(json_schema_extra={"unit": "m"})
    torque_ratio: NonNegativeNumber = Field(json_schema_extra={"unit": "m"})
    drag: NonNegativeNumber = Field(json_schema_extra={"unit": "N s/m"})


class Limits(Section):
    """Where thrust and body rates are clipped, and the episode ends."""

    thrust: PositiveNumber = Field(json_schema_extra={"unit": "N"})
    body_rate: PositiveNumber = Field(json_schema_extra={"unit": "rad/s"})
    position_low: Position = Field(json_schema_extra={"unit": "m"})
    position_high: Position = Field(json_schema_extra={"unit": "m"})


class Reference(Section):
    """What is followed: positions from given times on, or one."""

    kind: Literal["waypoints", "hover"]
    times: list[NonNegativeNumber] | None = Field(default=None, json_schema_extra={"unit": "s"})
    positions: list[Position] = Field(min_length=1, json_schema_extra={"unit": "m"})


class Cost(Section):
    """Weights in the cost of a step."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "1/m^2"})
    velocity: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/m^2"})
    attitude: NonNegativeNumber = Field(json_schema_extra={"unit": "1/rad^2"})
    body_rate: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/rad^2"})
    thrust: NonNegativeNumber = Field(json_schema_extra={"unit": "1/N^2"})


class Reset(Section):
    """Half widths of the uniform start distribution."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "m"})
    attitude: NonNegativeNumber = Field(json_schema_extra={"unit": "rad"})
    velocity: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s"})
    body_rate: NonNegativeNumber = Field(json_schema_extra={"unit": "rad/s"})


class QuadrotorTask(TaskFile):
    """The task.yaml of a quadrotor."""

    substeps: PositiveInt = Field(json_schema_extra={"unit": "Runge-Kutta steps in a time step"})
    parameters: Parameters
    limits: Limits
    reference: Reference
    cost: Cost
    reset: Reset


class QuadrotorPlant(Plant):
    """A rigid body with four motors in an X, its attitude a unit quaternion, so that no attitude is singular.

        p' = v,  m v' = sum(T) R(q) e3 - m g e3 - drag v,  q' = q * (0, omega) / 2,  J omega' = tau - omega x (J omega)
        tau = (arm / sqrt(2) (T3 + T4 - T1 - T2), arm / sqrt(2) (T2 + T3 - T1 - T4), torque_ratio (T2 + T4 - T1 - T3))

    World and body axes: x forward, y left, z up. Motors 1 to 4: front right, rear right, rear left, front left; 1 and 3
    turn counter-clockwise seen from above and so push the body clockwise. State (p [m], q = (w, x, y, z) from body to
    world, v [m/s] in the world, omega [rad/s] in the body, clock [s]): the reference is a function of the clock.
    Observation: position minus reference, R row by row, v, omega; q and -q are observed alike.
    """

    kind = "quadrotor"
    least_reward = 0.0
    Task = QuadrotorTask
    terminates = True
    state_size = 14
    observation_size = 18
    reset_size = 12
    state_names = (
        *(f"{axis} [m]" for axis in "xyz"),
        *(f"quaternion {part}" for part in "wxyz"),
        *(f"{axis} velocity [m/s]" for axis in "xyz"),
        *(f"body rate {axis} [rad/s]" for axis in "xyz"),
        "clock [s]",
    )
    output_names = (
        *(f"{axis} error [m]" for axis in "xyz"),
        *(f"rotation {row}{column}" for row in "xyz" for column in "xyz"),
        *(f"{axis} velocity [m/s]" for axis in "xyz"),
        *(f"body rate {axis} [rad/s]" for axis in "xyz"),
    )
    action_names = tuple(f"thrust {motor} [N]" for motor in ("front right", "rear right", "rear left", "front left"))
    disturbance_names = (*(f"force {axis} [N]" for axis in "xyz"), *(f"body torque {axis} [N m]" for axis in "xyz"))
    parameter_units = units(Parameters)

    def __init__(self, task: QuadrotorTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.limits, self.cost, self.start = task.limits, task.cost, task.reset
        self.substeps = task.substeps
        self.times = _times(task.reference)
        self.positions = task.reference.positions
        low, high = np.array(task.limits.position_low), np.array(task.limits.position_high)
        for position in self.positions:
            if not (low < position).all() or not (position < high).all():
                raise InvalidValueError(
                    f"reference.positions holds {list(position)}; expected it within limits.position_low and "
                    f"position_high, {low.tolist()} to {high.tolist()} m."
                )
        self.action_low = np.zeros(4)
        self.action_high = np.full(4, task.limits.thrust)
        rates = np.full(3, task.limits.body_rate)
        self.observation_high = np.concatenate((np.full(3, np.inf), np.ones(9), np.full(3, np.inf), rates))
        self.observation_low = -self.observation_high

    def reference(self, clock: torch.Tensor) -> torch.Tensor:
        """Return the wanted position (..., 3) [m] at `clock` (...) [s]."""
        # Half a step early: a clock summed up in float32 may fall short of the time it means.
        now = clock + 0.5 * self.time_step
        wanted = [torch.full_like(clock, place) for place in self.positions[0]]
        for time, position in zip(self.times[1:], self.positions[1:], strict=True):
            since = now >= time
            wanted = [torch.where(since, place, before) for place, before in zip(position, wanted, strict=True)]
        return torch.stack(wanted, dim=-1)

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state (..., 14) one time step later.

        The quaternion given may have any length but zero, the one returned has length 1. The disturbance is a force in
        world axes and a torque in body axes, not clipped.
        """
        first, second, third, fourth = action.to(state.dtype).clamp(0.0, self.limits.thrust).unbind(-1)
        mass, lever, ratio = params["mass"], params["arm"] * math.sqrt(0.5), params["torque_ratio"]
        ix, iy, iz = params["inertia_x"], params["inertia_y"], params["inertia_z"]
        lift = (first + second + third + fourth) / mass
        roll = lever * (third + fourth - first - second)
        pitch = lever * (second + third - first - fourth)
        yaw = ratio * (second + fourth - first - third)
        push_x, push_y, push_z = 0.0, 0.0, -params["gravity"]
        if disturbance is not None:
            force_x, force_y, force_z, torque_x, torque_y, torque_z = disturbance.unbind(-1)
            push_x, push_y, push_z = force_x / mass, force_y / mass, force_z / mass + push_z
            roll, pitch, yaw = roll + torque_x, pitch + torque_y, yaw + torque_z
        drag = params["drag"] / mass

        def derivative(moving: torch.Tensor) -> torch.Tensor:
            _, _, _, w, x, y, z, vx, vy, vz, a, b, c = moving.unbind(0)
            up_x, up_y, up_z = rotation.vertical((w, x, y, z))
            return torch.stack(
                (
                    vx,
                    vy,
                    vz,
                    *rotation.rate((w, x, y, z), (a, b, c)),
                    lift * up_x + push_x - drag * vx,
                    lift * up_y + push_y - drag * vy,
                    lift * up_z + push_z - drag * vz,
                    (roll + (iy - iz) * (b * c)) / ix,
                    (pitch + (iz - ix) * (c * a)) / iy,
                    (yaw + (ix - iy) * (a * b)) / iz,
                )
            )

        px, py, pz, w, x, y, z, *velocities, clock = state.unbind(-1)
        # One row a component: the arithmetic then runs on contiguous memory.
        moving = torch.stack((px, py, pz, *rotation.unit((w, x, y, z)), *velocities))
        px, py, pz, w, x, y, z, vx, vy, vz, *rates = rk4(derivative, moving, self.time_step, self.substeps).unbind(0)
        a, b, c = (rate.clamp(-self.limits.body_rate, self.limits.body_rate) for rate in rates)
        attitude = rotation.unit((w, x, y, z))
        return columns(px, py, pz, *attitude, vx, vy, vz, a, b, c, clock + self.time_step)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the eighteen numbers of `output_names`."""
        px, py, pz, w, x, y, z, *velocities, clock = state.unbind(-1)
        wanted_x, wanted_y, wanted_z = self.reference(clock).unbind(-1)
        # Rounding may take an entry beyond 1 in the last digit.
        axes = (entry.clamp(-1.0, 1.0) for entry in rotation.matrix(rotation.unit((w, x, y, z))))
        return columns(px - wanted_x, py - wanted_y, pz - wanted_z, *axes, *velocities)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return 1 / (1 + cost), in (0, 1], the cost a weighted sum of squares of `following` and of the action.

        The attitude counts by 2 (1 - cos a) = 4 (x^2 + y^2 + z^2) with a the angle of the rotation away from level and
        yaw 0 and (x, y, z) the vector part of the quaternion, of length 1 as `advance` returns it: smooth everywhere,
        and the same for q and -q.
        """
        px, py, pz, _, x, y, z, vx, vy, vz, a, b, c, clock = following.unbind(-1)
        wanted_x, wanted_y, wanted_z = self.reference(clock).unbind(-1)
        hover = params["mass"] * params["gravity"] / 4.0
        first, second, third, fourth = (
            thrust - hover for thrust in action.to(state.dtype).clamp(0.0, self.limits.thrust).unbind(-1)
        )
        cost = (
            self.cost.position * ((px - wanted_x) ** 2 + (py - wanted_y) ** 2 + (pz - wanted_z) ** 2)
            + self.cost.velocity * (vx**2 + vy**2 + vz**2)
            + 4.0 * self.cost.attitude * (x**2 + y**2 + z**2)
            + self.cost.body_rate * (a**2 + b**2 + c**2)
            + self.cost.thrust * (first**2 + second**2 + third**2 + fourth**2)
        )
        return 1.0 / (1.0 + cost)

    def terminated(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return where the quadrotor has left its box or is not a number."""
        # The sum is finite where every number is, and cheaper to ask.
        inside = state.sum(-1).isfinite()
        for axis, (low, high) in enumerate(zip(self.limits.position_low, self.limits.position_high, strict=True)):
            inside = inside & (state[..., axis] >= low) & (state[..., axis] <= high)
        return ~inside

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return states about the first position, uniform within the task's half widths, clock 0."""
        scatter = (2.0 * uniform - 1.0).unbind(-1)
        clock = torch.zeros_like(scatter[0])
        x, y, z = self.reference(clock).unbind(-1)
        spread, angle = self.start.position, self.start.attitude
        return torch.stack(
            (
                x + spread * scatter[0],
                y + spread * scatter[1],
                z + spread * scatter[2],
                *rotation.from_rotation_vector((angle * scatter[3], angle * scatter[4], angle * scatter[5])),
                *(self.start.velocity * part for part in scatter[6:9]),
                *(self.start.body_rate * part for part in scatter[9:]),
                clock,
            ),
            dim=-1,
        )

    def energy(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the kinetic and potential energy [J] of states (..., nx), zero at rest at z = 0."""
        position, _, velocity, omega, _ = state.split((3, 4, 3, 3, 1), dim=-1)
        moving = params["mass"] * velocity.square().sum(-1)
        for axis, rate in zip("xyz", omega.unbind(-1), strict=True):
            moving = moving + params[f"inertia_{axis}"] * rate.square()
        return 0.5 * moving + params["mass"] * params["gravity"] * position[..., 2]


def _times(reference: Reference) -> list[float]:
    """Return the time from when on each position is wanted, the first 0."""
    count = len(reference.positions)
    if reference.kind == "hover":
        if reference.times is not None or count != 1:
            raise InvalidValueError(
                f"reference hovers with {count} positions{'' if reference.times is None else ' and times'}; "
                "expected one position and no times, or kind waypoints."
            )
        return [0.0]
    times = reference.times or []
    if len(times) != count or times[0] != 0.0 or any(b <= a for a, b in pairwise(times)):
        raise InvalidValueError(f"reference.times is {times}; expected {count} rising times from 0, one a position.")
    return times
