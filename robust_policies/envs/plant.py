"""What a plant is: pure batched functions of state, action and parameters, whose numbers come from a task.yaml."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from robust_policies.errors import UnknownNameError

Params = Mapping[str, torch.Tensor]
Number = Annotated[float, Field(allow_inf_nan=False)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping in task.yaml: no unknown keys, no missing numbers, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskFile(Section):
    """What every task.yaml holds; a plant's own model adds its parameters, limits, cost, noise and reset."""

    schema_number: Literal[1] = Field(alias="schema")
    plant: str
    description: str = ""
    time_step: PositiveNumber = Field(json_schema_extra={"unit": "s"})
    max_episode_steps: PositiveInt = Field(json_schema_extra={"unit": "steps"})


class Plant(ABC):
    """The equations of one kind of task: pure, batched, differentiable methods, none of which works in place.

    States (..., state_size), actions (..., action_size) and observations (..., observation_size) are tensors of any
    floating dtype on any device. `params` maps names to tensors: the value for all, or one per environment with a
    leading batch dimension. Noise arguments are standard normal numbers (..., process_noise_size) and
    (..., measurement_noise_size); leave them out for the noise-free plant. Nothing here draws random numbers.
    """

    kind: ClassVar[str]
    Task: ClassVar[type[TaskFile]]
    terminates: bool = False
    process_noise_size: int = 0
    measurement_noise_size: int = 0
    reset_size: int
    reset_options: tuple[str, ...] = ()

    state_size: int
    observation_size: int
    state_names: tuple[str, ...]
    output_names: tuple[str, ...]
    action_limit: np.ndarray
    observation_limit: np.ndarray

    def __init__(self, task: TaskFile) -> None:
        self.task = task
        self.time_step = task.time_step
        self.max_episode_steps = task.max_episode_steps

    @property
    def action_size(self) -> int:
        """The number of actions."""
        return len(self.action_limit)

    @abstractmethod
    def nominal(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> dict[str, torch.Tensor]:
        """Return the physical parameters of the task file as tensors, the `params` of the other methods."""

    @abstractmethod
    def step(
        self, state: torch.Tensor, action: torch.Tensor, params: Params, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the state (..., state_size) one time step later; actions beyond the limits are clipped."""

    @abstractmethod
    def observe(self, state: torch.Tensor, params: Params, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return the observation (..., observation_size) of `state`."""

    @abstractmethod
    def reward(self, state: torch.Tensor, action: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the reward (...) for taking `action` in `state` (the state before the step)."""

    @abstractmethod
    def initial(self, uniform: torch.Tensor, params: Params, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Return start states (n, state_size) from uniform numbers in [0, 1), (n, reset_size)."""

    def terminated(self, state: torch.Tensor, params: Params) -> torch.Tensor:
        """Return where (...) the episode ends because of `state`; asked only if `terminates`."""
        return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `UnknownNameError` or `InvalidValueError` for a reset option that this plant cannot take."""
        for name in options:
            if name not in self.reset_options:
                raise UnknownNameError.among("reset option", name, (*self.reset_options, "state", "reset_mask"))
