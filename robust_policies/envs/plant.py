"""What a plant is: pure batched functions of state, action and parameters, whose numbers come from a task.yaml."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, PositiveInt

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.files.settings import Section as Section
from robust_policies.files.settings import units as units

Params = Mapping[str, torch.Tensor]
Number = Annotated[float, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]


COMMON_RESET_OPTIONS = ("state", "parameters", "randomize", "reset_mask")


class TaskFile(Section):
    """What every task.yaml holds; a plant's own model adds its parameters, limits, cost, noise and reset."""

    schema_number: Literal[1] = Field(alias="schema")
    plant: str
    description: str = ""
    time_step: PositiveNumber = Field(json_schema_extra={"unit": "s"})
    max_episode_steps: PositiveInt = Field(json_schema_extra={"unit": "steps"})
    randomize: dict[str, tuple[PositiveNumber, PositiveNumber]] = Field(
        default={}, json_schema_extra={"unit": "factors of the nominal value, lowest and highest"}
    )


class Plant(ABC):
    """The equations of one kind of task: pure, batched, differentiable methods, none of which works in place.

    States (..., state_size), actions (..., action_size) and observations (..., observation_size) are tensors of any
    floating dtype on any device. Physical parameters are a mapping of names to tensors, the value for all or one per
    environment with a leading batch dimension; `prepare` turns them into the `params` that all other methods take, once
    per parameter value (a linear plant discretises its matrices there). Noise arguments are standard normal numbers
    (..., process_noise_size) and (..., measurement_noise_size), the disturbance (..., len(disturbance_names)) is in
    the units of its names; leave them out for the undisturbed plant. Nothing here draws random numbers.
    """

    kind: ClassVar[str]
    Task: ClassVar[type[TaskFile]]
    differentiable: ClassVar[bool] = True
    terminates: bool = False
    observes_actions: ClassVar[bool] = True
    """False: observations are what they are whatever the actions (an innovation), so they can be computed ahead."""
    least_reward: float | None = None
    """No step of an episode brings less, whatever the actions; None: not known."""
    process_noise_size: int = 0
    measurement_noise_size: int = 0
    reset_size: int
    reset_options: tuple[str, ...] = ()

    state_size: int
    observation_size: int
    state_names: tuple[str, ...]
    output_names: tuple[str, ...]
    action_names: tuple[str, ...]
    disturbance_names: tuple[str, ...] = ()
    parameter_units: Mapping[str, str]
    action_low: np.ndarray
    action_high: np.ndarray
    observation_low: np.ndarray
    observation_high: np.ndarray
    discrete_actions: np.ndarray | None = None
    """The action (n, action_size) that each of n choices means; None: the actions are continuous."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a plant written for the name `step`, which is Gymnasium's word for an environment's."""
        super().__init_subclass__(**options)
        if "step" in cls.__dict__ and "advance" not in cls.__dict__:
            raise InvalidValueError(
                f"{cls.__name__} defines step(); expected advance(): rename this method of a plant."
            )

    def __init__(self, task: TaskFile, folder: Path | None = None) -> None:
        """Keep the task file, and the folder it came from (for plants whose task names further files)."""
        self.task = task
        self.folder = folder
        self.time_step = task.time_step
        self.max_episode_steps = task.max_episode_steps

    @property
    def action_size(self) -> int:
        """The number of actions."""
        return len(self.action_high)

    def nominal(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> dict[str, torch.Tensor]:
        """Return the physical parameters by name as tensors, in the units of `parameter_units`.

        They are the numbers (0-d) of the task file's section `parameters`; a plant that has them elsewhere says where.
        """
        return tensors(getattr(self.task, "parameters", Section()), device, dtype)

    def prepare(self, physical: Params) -> Params:
        """Return what the other methods take as `params`, computed from physical parameters once per value."""
        return physical

    def constants(self, params: Params) -> Params:
        """Return `params` and whatever `advance` computes of them alone, for many steps with the same ones."""
        return params

    @abstractmethod
    def advance(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        params: Params,
        noise: torch.Tensor | None = None,
        disturbance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the state (..., nx) one time step later, in the units of `state_names`.

        Args:
            state: (..., nx), nx = `state_size`.
            action: (..., nu), nu = `action_size`, in the units of `action_names`; clipped to the limits.
            params: what `prepare` returned.
            noise: standard normal numbers (..., nw), nw = `process_noise_size`; None: none acts.
            disturbance: (..., nd) in the units of `disturbance_names`; None: none acts.
        """

    @abstractmethod
    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the observation (..., ny) of the state (..., nx), in the units of `output_names`.

        `params` is what `prepare` returned, `noise` standard normal numbers (..., nv), nv = `measurement_noise_size`.
        """

    @abstractmethod
    def reward(
        self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor, params: Params
    ) -> torch.Tensor:
        """Return the reward, one number (scalar) for each state, of the step from `state` with `action` to `following`.

        States are (..., nx), the action (..., nu) as it was given to `advance`; `params` is what `prepare` returned.
        """

    @abstractmethod
    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return start states (n, nx) from uniform numbers in [0, 1), (n, nr), nr = `reset_size`.

        `params` is what `prepare` returned, `options` what `check_options` accepted.
        """

    def settle(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return states (n, nx) a user gave, with whatever follows from the rest of a state (readings) made to fit."""
        return state

    def terminated(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return where the episode ends because of the state (..., nx), bool; asked only if `terminates`."""
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    def take(self, params: Params, rows: torch.Tensor) -> Params:
        """Return prepared parameters for the environments of a batch whose indices are `rows` (n,), int64."""
        return {name: value[rows] if self._one_each(name, value) else value for name, value in params.items()}

    def put(self, params: Params, rows: torch.Tensor | slice, part: Params) -> None:
        """Write `part`, prepared parameters for the environments `rows` (n,), int64, or a slice, into the batch's."""
        for name, value in params.items():
            if self._one_each(name, value):
                value[rows] = part[name]

    def _one_each(self, name: str, value: torch.Tensor) -> bool:
        if not hasattr(self, "_dimensions"):
            self._dimensions = {name: value.ndim for name, value in self.prepare(self.nominal()).items()}
        return value.ndim > self._dimensions[name]

    def use(self, backend: str, device: torch.device, num_envs: int) -> None:
        """Choose what computes the steps; torch is the only choice unless a plant says otherwise."""
        if backend not in {"auto", "torch"}:
            raise UnknownNameError(f"backend is {backend!r}; a {self.kind} task has only 'torch' ('auto' takes it).")

    def close(self) -> None:
        """Release what the plant holds beside memory, if anything; it comes back with the next use."""
        return None

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `UnknownNameError` or `InvalidValueError` for a reset option that this plant cannot take."""
        for name in options:
            if name not in self.reset_options:
                raise UnknownNameError.among("reset option", name, (*self.reset_options, *COMMON_RESET_OPTIONS))


def columns(*values: torch.Tensor) -> torch.Tensor:
    """Return tensors (...) side by side as (..., n), each column contiguous in memory.

    So a plant's step, which works column by column, reads and writes without strides.
    """
    return torch.stack(values).movedim(0, -1)


def tensors(
    values: BaseModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    """Return a section's numbers as tensors by name."""
    return {name: torch.tensor(value, dtype=dtype, device=device) for name, value in values.model_dump().items()}
