"""Linear plants from matrices: x+ = A x + B u + E w, y = C x + F v, quadratic cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from robust_policies.envs.plant import (
    NonNegativeNumber,
    Number,
    Params,
    Plant,
    PositiveNumber,
    Section,
    TaskFile,
    units,
)
from robust_policies.envs.streams import normals, uniforms_for_normals
from robust_policies.errors import InvalidValueError, ShapeError

Matrix = list[list[Number]]


class Parameters(Section):
    """The matrices of the plant, one step of `time_step` each."""

    A: Matrix = Field(json_schema_extra={"unit": "state by state"})
    B: Matrix = Field(json_schema_extra={"unit": "state by action"})
    C: Matrix = Field(json_schema_extra={"unit": "output by state"})


class Limits(Section):
    """Actions are clipped at +-action; an episode terminates where a state leaves +-state (absent: never)."""

    action: list[PositiveNumber]
    state: list[PositiveNumber] | None = None


class Cost(Section):
    """x' Q x + u' R u a step."""

    Q: Matrix
    R: Matrix


class Noise(Section):
    """Standard deviations (a list: independent) or a matrix that multiplies independent standard normal numbers."""

    process: list[NonNegativeNumber] | Matrix | None = None
    measurement: list[NonNegativeNumber] | Matrix | None = None


class Reset(Section):
    """The start state: mean plus uniform within +-spread, or normal with standard deviation spread."""

    distribution: Literal["uniform", "normal"]
    mean: list[Number]
    spread: list[NonNegativeNumber]


class Names(Section):
    """Labels for drawings."""

    state: list[str]
    output: list[str]


class LinearTask(TaskFile):
    """The task.yaml of a linear plant."""

    parameters: Parameters
    limits: Limits
    cost: Cost
    noise: Noise = Noise()
    reset: Reset
    names: Names | None = None


def _matrix(name: str, rows: Matrix, shape: tuple[int | None, int | None]) -> np.ndarray:
    """Return the matrix if its rows are equally long and its shape fits (None fits any)."""
    widths = {len(row) for row in rows}
    if len(widths) != 1 or 0 in widths:
        raise ShapeError(f"{name} has rows of {sorted(widths)} numbers; expected a matrix, every row equally long.")
    given = (len(rows), widths.pop())
    if any(wanted is not None and wanted != size for wanted, size in zip(shape, given, strict=True)):
        wanted = " by ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(f"{name} is {given[0]} by {given[1]}; expected {wanted} to fit the other matrices.")
    return np.array(rows, dtype=np.float64)


def _vector(name: str, values: list[float], size: int) -> np.ndarray:
    if len(values) != size:
        raise ShapeError(f"{name} has {len(values)} number(s); expected {size}.")
    return np.array(values, dtype=np.float64)


def _noise(name: str, given: list | None, size: int) -> np.ndarray:
    """Return the matrix (size, any) that multiplies standard normal numbers; no column where there is no noise."""
    if given is None:
        return np.zeros((size, 0))
    if given and isinstance(given[0], list):
        return _matrix(name, given, (size, None))
    deviation = _vector(name, given, size)
    return np.diag(deviation)[:, deviation > 0]


def _weight(name: str, rows: Matrix, size: int) -> np.ndarray:
    weight = _matrix(name, rows, (size, size))
    if not np.allclose(weight, weight.T) or np.linalg.eigvalsh(weight).min() < -1e-12 * np.abs(weight).max():
        raise InvalidValueError(f"{name} is not symmetric positive semidefinite; expected a weight that is.")
    return weight


def _apply(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Return matrix @ vector for (..., n) vectors and one matrix for all, or one a row."""
    matrix = matrix.to(vector.dtype)
    return vector @ matrix.mT if matrix.ndim == 2 else (matrix @ vector.unsqueeze(-1)).squeeze(-1)


class LinearPlant(Plant):
    """x+ = A x + B u + E w, y = C x + F v, reward -(x' Q x + u' R u), with w and v independent standard normal."""

    kind = "linear"
    Task = LinearTask

    def __init__(self, task: LinearTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self.A = _matrix("parameters.A", task.parameters.A, (len(task.parameters.A), len(task.parameters.A)))
        self.state_size = len(self.A)
        self.B = _matrix("parameters.B", task.parameters.B, (self.state_size, None))
        self.C = _matrix("parameters.C", task.parameters.C, (None, self.state_size))
        self.observation_size, actions = len(self.C), self.B.shape[1]
        self.Q = _weight("cost.Q", task.cost.Q, self.state_size)
        self.R = _weight("cost.R", task.cost.R, actions)
        self.E = _noise("noise.process", task.noise.process, self.state_size)
        self.F = _noise("noise.measurement", task.noise.measurement, self.observation_size)
        self.process_noise_size, self.measurement_noise_size = self.E.shape[1], self.F.shape[1]
        self.action_high = _vector("limits.action", task.limits.action, actions)
        self.observation_high = np.full(self.observation_size, np.inf)
        self.action_low, self.observation_low = -self.action_high, -self.observation_high
        self.action_names = tuple(f"u{i + 1}" for i in range(actions))
        self.disturbance_names = tuple(f"at {name}" for name in self.action_names)
        self.parameter_units = units(Parameters)
        self.mean = _vector("reset.mean", task.reset.mean, self.state_size)
        self.spread = _vector("reset.spread", task.reset.spread, self.state_size)
        self.distribution = task.reset.distribution
        self.reset_size = uniforms_for_normals(self.state_size) if self.distribution == "normal" else self.state_size
        self.terminates = task.limits.state is not None
        if task.limits.state is not None:
            self.state_limit = _vector("limits.state", task.limits.state, self.state_size)
        names = task.names
        self.state_names = tuple(names.state if names else (f"x{i + 1}" for i in range(self.state_size)))
        self.output_names = tuple(names.output if names else (f"y{i + 1}" for i in range(self.observation_size)))
        if (len(self.state_names), len(self.output_names)) != (self.state_size, self.observation_size):
            raise ShapeError(f"names has {len(self.state_names)} states and {len(self.output_names)} outputs; expected "
                             f"{self.state_size} and {self.observation_size}.")  # fmt: skip
        self._constants: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    def nominal(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> dict[str, torch.Tensor]:
        """Return A (n, n), B (n, nu) and C (ny, n)."""
        return {name: torch.tensor(getattr(self, name), dtype=dtype, device=device) for name in ("A", "B", "C")}

    def _constant(self, name: str, like: torch.Tensor) -> torch.Tensor:
        key = (name, like.device, like.dtype)
        if key not in self._constants:
            # A tensor first made in inference mode could never be part of a gradient later.
            with torch.inference_mode(False):
                self._constants[key] = torch.tensor(getattr(self, name), dtype=like.dtype, device=like.device)
        return self._constants[key]

    def clip(self, action: torch.Tensor) -> torch.Tensor:
        """Return the action within +-limits.action."""
        limit = self._constant("action_high", action)
        return action.clamp(-limit, limit)

    def step(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return A x + B (clip(u) + d) + E w."""
        pushed = self.clip(action.to(state.dtype))
        if disturbance is not None:
            pushed = pushed + disturbance
        following = _apply(params["A"], state) + _apply(params["B"], pushed)
        return following if noise is None else following + _apply(self._constant("E", state), noise)

    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return C x + F v."""
        output = _apply(params["C"], state)
        return output if noise is None else output + _apply(self._constant("F", state), noise)

    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return -(x' Q x + u' R u) for the state before the step and the clipped action."""
        action = self.clip(action.to(state.dtype))
        cost = (state @ self._constant("Q", state) * state).sum(-1)
        return -(cost + (action @ self._constant("R", action) * action).sum(-1))

    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return states distributed as the task file says."""
        if self.distribution == "normal":
            scatter = normals(uniform, self.state_size)
        else:
            scatter = 2.0 * uniform - 1.0
        return self._constant("mean", uniform) + self._constant("spread", uniform) * scatter

    def terminated(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return where a state has left limits.state, or is not a number."""
        return ~(state.abs() <= self._constant("state_limit", state)).all(-1)
