"""Magnetic levitation: a steel ball below an electromagnet whose voltage must hold it in the air."""

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
from robust_policies.errors import InvalidValueError


class Parameters(Section):
    """The physical parameters; the coil's inductance is L1 + L0 / (1 + z / a) with the ball at z."""

    gravity: PositiveNumber = Field(json_schema_extra={"unit": "m/s^2"})
    mass: PositiveNumber = Field(json_schema_extra={"unit": "kg"})
    friction: NonNegativeNumber = Field(json_schema_extra={"unit": "N s/m"})
    a: PositiveNumber = Field(json_schema_extra={"unit": "m"})
    L0: PositiveNumber = Field(json_schema_extra={"unit": "H"})
    L1: PositiveNumber = Field(json_schema_extra={"unit": "H"})
    resistance: NonNegativeNumber = Field(json_schema_extra={"unit": "ohm"})


class Limits(Section):
    """The voltage lies in [0, voltage] and is clipped there; the ball lies in [0, position], between two stops."""

    voltage: PositiveNumber = Field(json_schema_extra={"unit": "V"})
    position: PositiveNumber = Field(json_schema_extra={"unit": "m"})


class Cost(Section):
    """Weights of the squares of what differs from the equilibrium."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "1/m^2"})
    speed: NonNegativeNumber = Field(json_schema_extra={"unit": "s^2/m^2"})
    current: NonNegativeNumber = Field(json_schema_extra={"unit": "1/A^2"})
    voltage: NonNegativeNumber = Field(json_schema_extra={"unit": "1/V^2"})


class Noise(Section):
    """Standard deviations of the two measurements."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "m"})
    current: NonNegativeNumber = Field(json_schema_extra={"unit": "A"})


class Reset(Section):
    """Half widths of the uniform start distribution about the equilibrium."""

    position: NonNegativeNumber = Field(json_schema_extra={"unit": "m"})
    speed: NonNegativeNumber = Field(json_schema_extra={"unit": "m/s"})
    current: NonNegativeNumber = Field(json_schema_extra={"unit": "A"})


class MagLevTask(TaskFile):
    """The task.yaml of a magnetic levitation."""

    substeps: PositiveInt = Field(json_schema_extra={"unit": "Runge-Kutta steps a time step"})
    setpoint: PositiveNumber = Field(json_schema_extra={"unit": "m"})
    parameters: Parameters
    limits: Limits
    cost: Cost
    noise: Noise
    reset: Reset


class MagLevPlant(Plant):
    """A ball of mass m at z below the magnet (z downwards), a coil with current i, resistance R and inductance L(z).

        L(z) = L1 + L0 / (1 + z / a) = L1 + a L0 / (a + z)
        z'' = g - k z' / m - a L0 i^2 / (2 m (a + z)^2)
        i' = (V - R i + a L0 i z' / (a + z)^2) / L(z)

    At 0 (the magnet) and at limits.position lie inelastic stops: after each Runge-Kutta substep the position is clamped
    to them, and the speed of a ball beyond a stop that moves outwards becomes zero. Gradients flow through everything
    else; there they are zero.

    State (z [m], z' [m/s], i [A]); observation the measured (z, i); action the voltage V; disturbance a force on the
    ball [N], downwards. The equilibrium at the setpoint follows from the parameters, see `equilibrium`.
    Source: H. K. Khalil, "Nonlinear Systems", 3rd edition (2002), exercises 1.18 and 12.8.
    """

    kind = "maglev"
    Task = MagLevTask
    state_size = 3
    observation_size = 2
    reset_size = 3
    state_names = ("position [m]", "speed [m/s]", "current [A]")
    output_names = ("measured position [m]", "measured current [A]")
    action_names = ("voltage [V]",)
    disturbance_names = ("force on the ball [N]",)
    parameter_units = units(Parameters)

    def __init__(self, task: MagLevTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.limits, self.cost, self.noise, self.start = task.limits, task.cost, task.noise, task.reset
        self.substeps, self.setpoint = task.substeps, task.setpoint
        if task.setpoint >= task.limits.position:
            raise InvalidValueError(f"setpoint is {task.setpoint:g} m; expected less than limits.position, "
                                    f"{task.limits.position:g} m.")  # fmt: skip
        self.action_low, self.action_high = np.array([0.0]), np.array([task.limits.voltage])
        self.observation_high = np.full(2, np.inf)
        self.observation_low = -self.observation_high
        self.measurement_noise_size = 2 if task.noise.position > 0 or task.noise.current > 0 else 0

    def equilibrium(self, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the current [A] whose force carries the ball at the setpoint, and the voltage [V] that holds it."""
        reach = params["a"] + self.setpoint
        squared = 2.0 * params["mass"] * params["gravity"] / (params["a"] * params["L0"])
        current = reach * squared.sqrt()
        return current, params["resistance"] * current

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state one time step later; the disturbance is a force on the ball."""
        derivative = self.derivative(action.to(state.dtype), params, disturbance)
        for _ in range(self.substeps):
            state = self._stopped(rk4(derivative, state, self.time_step / self.substeps))
        return state

    def derivative(
        self, action: torch.Tensor, params: Params, disturbance: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function that gives a state's time derivative (..., 3) while the action and disturbance hold.

        It knows no stops.
        """
        dtype = action.dtype
        gravity, mass, friction, a, L0, L1, resistance = (params[name].to(dtype) for name in self.parameter_units)
        strength, drag, voltage = a * L0, friction / mass, self._voltage(action)
        falling = gravity if disturbance is None else gravity + disturbance[..., 0].to(dtype) / mass

        def rate(state: torch.Tensor) -> torch.Tensor:
            position, speed, current = state.unbind(-1)
            reach = a + position
            # Minus the inductance's derivative by the position, times the current.
            linked = strength * current / reach.square()
            speed_up = falling - drag * speed - linked * current / (2.0 * mass)
            current_up = (voltage - resistance * current + linked * speed) / (L1 + strength / reach)
            return columns(speed, speed_up, current_up)

        return rate

    def _stopped(self, state: torch.Tensor) -> torch.Tensor:
        """Return the state after the stops: none beyond them, none moving outwards."""
        position, speed, current = state.unbind(-1)
        clamped = position.clamp(0.0, self.limits.position)
        outwards = (position - clamped) * speed > 0.0
        return columns(clamped, torch.where(outwards, 0.0, speed), current)

    def _voltage(self, action: torch.Tensor) -> torch.Tensor:
        return action[..., 0].clamp(0.0, self.limits.voltage)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the measured position [m] and current [A]."""
        position, _, current = state.unbind(-1)
        if noise is not None and self.measurement_noise_size:
            position = position + self.noise.position * noise[..., 0].to(state.dtype)
            current = current + self.noise.current * noise[..., 1].to(state.dtype)
        return columns(position, current)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return minus the weighted squares of what the state before the step and the voltage differ by.

        They differ from the equilibrium at the setpoint, that of the environment's own parameters.
        """
        position, speed, current = state.unbind(-1)
        held, voltage = (value.to(state.dtype) for value in self.equilibrium(params))
        cost = self.cost
        away = cost.position * (position - self.setpoint) ** 2 + cost.speed * speed**2
        effort = cost.voltage * (self._voltage(action).to(state.dtype) - voltage) ** 2
        return -(away + cost.current * (current - held) ** 2 + effort)

    def energy(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the kinetic, potential and magnetic energy (...) in J, m z'^2 / 2 - m g z + L(z) i^2 / 2."""
        position, speed, current = state.unbind(-1)
        inductance = params["L1"] + params["a"] * params["L0"] / (params["a"] + position)
        ball = params["mass"] * (0.5 * speed**2 - params["gravity"] * position)
        return ball + 0.5 * inductance * current**2

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return states uniform within the task's half widths about the equilibrium of the parameters."""
        held = self.equilibrium(params)[0].to(uniform.dtype)
        position, speed, current = (2.0 * uniform - 1.0).unbind(-1)
        start = self.setpoint + self.start.position * position
        return columns(start, self.start.speed * speed, held + self.start.current * current)
