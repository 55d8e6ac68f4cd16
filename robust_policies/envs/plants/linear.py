"""Linear plants from matrices: x+ = A x + B u + G d + E w, y = C x + F v, quadratic cost."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

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
from robust_policies.envs.plants.expressions import ExpressionMatrix
from robust_policies.envs.plants.integrate import zero_order_hold
from robust_policies.envs.streams import normals, uniforms_for_normals
from robust_policies.errors import InvalidValueError, ShapeError

Matrix = list[list[Number]]


def _entry(value: Any) -> float | str:
    """Return a matrix entry: a finite number, or the text of an expression."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not (number and math.isfinite(value)):
        raise PydanticCustomError("entry", "expected a finite number or an expression in quotes")
    return value


EntryMatrix = list[list[Annotated[float | str, PlainValidator(_entry)]]]


class Parameters(Section):
    """The matrices of the plant, of one step of `time_step` each, or of continuous time where `continuous` is true."""

    A: EntryMatrix = Field(json_schema_extra={"unit": "state by state"})
    B: EntryMatrix = Field(json_schema_extra={"unit": "state by action"})
    C: EntryMatrix = Field(json_schema_extra={"unit": "output by state"})
    G: EntryMatrix | None = Field(default=None, json_schema_extra={"unit": "state by disturbance"})


class Quantity(Section):
    """A named physical parameter."""

    value: Number
    unit: str = ""

    @model_validator(mode="before")
    @classmethod
    def _only_value_and_unit(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not set(given) <= {"value", "unit"}:
            raise PydanticCustomError("quantity", "expected a mapping such as {{value: 1.0, unit: kg}}")
        return given


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
    """Labels, with units in brackets."""

    state: list[str]
    output: list[str]
    action: list[str] | None = None
    disturbance: list[str] | None = None


class Optimum(Section):
    """The least stationary cost a step of any policy, where actions are never clipped."""

    lqr: NonNegativeNumber = Field(json_schema_extra={"unit": "cost per step, the state known"})
    lqg: NonNegativeNumber = Field(json_schema_extra={"unit": "cost per step, from the outputs up to now"})


class LinearTask(TaskFile):
    """The task.yaml of a linear plant."""

    physical: dict[str, Quantity] = Field(default={})
    continuous: bool = False
    parameters: Parameters
    limits: Limits
    cost: Cost
    noise: Noise = Noise()
    reset: Reset
    names: Names | None = None
    optimum: Optimum | None = None


def _matrix(name: str, rows: Matrix, shape: tuple[int | None, int | None]) -> np.ndarray:
    """Return a matrix of numbers if its shape fits (None fits any)."""
    return np.array(ExpressionMatrix(name, rows, shape).entries, dtype=np.float64).reshape(len(rows), -1)


def _labels(kind: str, given: list[str] | None, default: list[str]) -> tuple[str, ...]:
    if given is not None and len(given) != len(default):
        raise ShapeError(f"names.{kind} has {len(given)} label(s); expected {len(default)}.")
    return tuple(default if given is None else given)


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
    """x+ = A x + B u + G d + E w, y = C x + F v, reward -(x' Q x + u' R u), with w, v independent standard normal.

    `A`, `B`, `C`, `G`, `E`, `F`, `Q` and `R` are the matrices of one time step at the nominal parameters, as arrays.
    """

    kind = "linear"
    Task = LinearTask

    def __init__(self, task: LinearTask, folder: Path | None = None) -> None:
        super().__init__(task, folder)
        self._read_matrices(task)
        for matrix in self.matrices.values():
            matrix.check_finite(self.nominal())
        prepared = {name: value.numpy() for name, value in self.prepare(self.nominal()).items()}
        if not all(np.isfinite(value).all() for value in prepared.values()):
            raise InvalidValueError("parameters.A grows beyond all numbers within time_step; expected a slower plant.")
        self.A, self.B, self.C, self.G = (prepared[name] for name in "ABCG")
        self.state_size, self.observation_size, actions = len(self.A), len(self.C), self.B.shape[1]
        self.Q = _weight("cost.Q", task.cost.Q, self.state_size)
        self.R = _weight("cost.R", task.cost.R, actions)
        self.E = _noise("noise.process", task.noise.process, self.state_size)
        self.F = _noise("noise.measurement", task.noise.measurement, self.observation_size)
        self.process_noise_size, self.measurement_noise_size = self.E.shape[1], self.F.shape[1]
        self.action_high = _vector("limits.action", task.limits.action, actions)
        self.observation_high = np.full(self.observation_size, np.inf)
        self.action_low, self.observation_low = -self.action_high, -self.observation_high
        self.mean = _vector("reset.mean", task.reset.mean, self.state_size)
        self.spread = _vector("reset.spread", task.reset.spread, self.state_size)
        self.distribution = task.reset.distribution
        self.reset_size = uniforms_for_normals(self.state_size) if self.distribution == "normal" else self.state_size
        self.terminates = task.limits.state is not None
        if task.limits.state is not None:
            self.state_limit = _vector("limits.state", task.limits.state, self.state_size)
        self._read_names(task.names)
        self._constants: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    def _read_matrices(self, task: LinearTask) -> None:
        """Read the matrices and the physical parameters in them."""
        self.continuous, self.physical, given = task.continuous, task.physical, task.parameters
        for name in self.physical:
            if not name.isidentifier() or keyword.iskeyword(name) or name in Parameters.model_fields:
                raise InvalidValueError(
                    f"physical: {name!r} cannot be a parameter's name; expected a word of letters, "
                    f"digits and _, none of {', '.join(Parameters.model_fields)}."
                )
        states = len(given.A)
        self.matrices = {
            "A": ExpressionMatrix("parameters.A", given.A, (states, states), self.physical),
            "B": ExpressionMatrix("parameters.B", given.B, (states, None), self.physical),
            "C": ExpressionMatrix("parameters.C", given.C, (None, states), self.physical),
        }
        if given.G is not None:
            self.matrices["G"] = ExpressionMatrix("parameters.G", given.G, (states, None), self.physical)
        used = set().union(*(matrix.names for matrix in self.matrices.values()))
        unused = next((name for name in self.physical if name not in used), None)
        if unused is not None:
            raise InvalidValueError(f"physical: {unused!r} is in no matrix; expected every parameter in an expression.")
        self._numbers = {name: m.numbers for name, m in self.matrices.items() if m.numbers is not None}
        stated = {name: quantity.unit for name, quantity in self.physical.items()}
        self.parameter_units = stated | {name: units(Parameters)[name] for name in self._numbers}

    def _read_names(self, names: Names | None) -> None:
        sizes = (self.state_size, self.observation_size, self.B.shape[1], self.G.shape[1])
        plain = [[f"{letter}{i + 1}" for i in range(size)] for letter, size in zip("xyud", sizes, strict=True)]
        self.state_names = _labels("state", names and names.state, plain[0])
        self.output_names = _labels("output", names and names.output, plain[1])
        self.action_names = _labels("action", names and names.action, plain[2])
        entering = plain[3] if "G" in self.matrices else [f"at {name}" for name in self.action_names]
        self.disturbance_names = _labels("disturbance", names and names.disturbance, entering)

    def nominal(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> dict[str, torch.Tensor]:
        """Return the physical parameters as 0-d tensors, and of A, B, C and G the given matrices without names."""
        values = {name: quantity.value for name, quantity in self.physical.items()} | self._numbers
        return {name: torch.as_tensor(value, dtype=dtype, device=device).clone() for name, value in values.items()}

    def prepare(self, physical: Params) -> Params:
        """Return A (n, n), B (n, nu), C (ny, n) and G (n, nd) of one time step, with the parameters' leading dimension.

        Computed in float64, as a stiff plant needs, and returned in the parameters' number type. Without a G of its own
        the disturbance enters where the actions do.
        """
        double = {name: value.to(torch.float64) for name, value in physical.items()}
        values = {name: double[name] if name in self._numbers else m(double) for name, m in self.matrices.items()}
        A, B, C = values["A"], values["B"], values["C"]
        G = values.get("G", B)
        if self.continuous:
            batch = torch.broadcast_shapes(B.shape[:-2], G.shape[:-2])
            inputs = torch.cat((B.expand(*batch, *B.shape[-2:]), G.expand(*batch, *G.shape[-2:])), dim=-1)
            A, held = zero_order_hold(A, inputs, self.time_step)
            B, G = held[..., : B.shape[-1]], held[..., B.shape[-1] :]
        dtype = next(iter(physical.values())).dtype
        return {"A": A.to(dtype), "B": B.to(dtype), "C": C.to(dtype), "G": G.to(dtype)}

    def _constant(self, name: str, like: torch.Tensor) -> torch.Tensor:
        key = (name, like.device, like.dtype)
        if key not in self._constants:
            # A tensor first made in inference mode could never be part of a gradient later.
            with torch.inference_mode(False):
                self._constants[key] = torch.as_tensor(getattr(self, name), dtype=like.dtype, device=like.device)
        return self._constants[key]

    def clip(self, action: torch.Tensor) -> torch.Tensor:
        """Return the action (..., nu) within +-limits.action."""
        limit = self._constant("action_high", action)
        return action.clamp(-limit, limit)

    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return A x + B clip(u) + G d + E w."""
        following = _apply(params["A"], state) + _apply(params["B"], self.clip(action.to(state.dtype)))
        if disturbance is not None:
            following = following + _apply(params["G"], disturbance.to(state.dtype))
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
