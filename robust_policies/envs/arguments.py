"""What a user gives an environment, checked: number types, autoreset mode, masks, seeds and actions."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from robust_policies import checks
from robust_policies.envs.plant import Plant
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def float_dtype(name: str, value: torch.dtype | str) -> torch.dtype:
    """Return torch.float32 or torch.float64, given as such or by name."""
    dtype = _DTYPES.get(str(value).removeprefix("torch."))
    if dtype is None:
        raise InvalidValueError(f"{name} is {value!r}; expected torch.float32 or torch.float64.")
    return dtype


def autoreset(value: AutoresetMode | str) -> AutoresetMode:
    """Return the autoreset mode given as such, as 'SAME_STEP' or as Gymnasium's 'SameStep'."""
    for mode in AutoresetMode:
        if value is mode or value in {mode.name, mode.value}:
            return mode
    raise InvalidValueError(
        f"autoreset_mode is {value!r}; expected one of {', '.join(mode.name for mode in AutoresetMode)}."
    )


def spaces(plant: Plant, dtype: torch.dtype) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Space]:
    """Return a plant's observation and action space, boxes of `dtype` or `Discrete` for a plant of choices."""
    kind = np.float32 if dtype is torch.float32 else np.float64

    def box(low: np.ndarray, high: np.ndarray) -> gymnasium.spaces.Box:
        return gymnasium.spaces.Box(low.astype(kind), high.astype(kind), dtype=kind)

    observations = box(plant.observation_low, plant.observation_high)
    if plant.discrete_actions is not None:
        return observations, gymnasium.spaces.Discrete(len(plant.discrete_actions))
    return observations, box(plant.action_low, plant.action_high)


def reset_rows(mask: Any, num_envs: int, device: torch.device) -> torch.Tensor:
    """Return the indices that a reset mask (num_envs,) bool, NumPy or torch, marks."""
    if not isinstance(mask, (np.ndarray, torch.Tensor)):
        raise ShapeError(f"reset_mask is {type(mask).__name__}; expected a NumPy or torch array of bool.")
    if str(mask.dtype).removeprefix("torch.") != "bool":
        raise ShapeError(f"reset_mask has dtype {mask.dtype}; expected bool.")
    checks.shape("reset_mask", mask, (num_envs,))
    rows = marked(torch.as_tensor(mask, device=device))
    if not len(rows):
        raise InvalidValueError("reset_mask marks no environment; expected at least one True.")
    return rows


def marked(mask: torch.Tensor) -> torch.Tensor:
    """Return the indices where a mask (n,) bool is true, int64; on the CPU by NumPy, which is much faster at it."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(-1)


def seed_list(seed: int | Sequence[int | None], num_envs: int) -> list[int | None]:
    """Return one seed for each environment: seed + i, or the given ones (None: that generator goes on)."""
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    # `whole` says that it is a number, which a type checker does not follow.
    seeds = [int(seed) + i for i in range(num_envs)] if whole else seed  # type: ignore[arg-type]
    if not isinstance(seeds, (list, tuple, np.ndarray)) or len(seeds) != num_envs:
        raise InvalidValueError(f"seed is {seed!r}; expected a whole number or {num_envs} of them.")
    return [None if one is None else checks.positive_int("seed", one, minimum=0) for one in seeds]


class Actions:
    """Turns what `step` is given into the plant's actions (num_envs, action_size), or raises."""

    def __init__(self, plant: Plant, num_envs: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self.size = plant.action_size
        self.trusted = False
        choices = plant.discrete_actions
        self.table = None if choices is None else torch.tensor(choices, dtype=torch.float64, device=device)
        self.numbers = torch.empty(0) if self.table is None else self.table[:, 0]

    def __call__(self, given: Any) -> torch.Tensor:
        """Return finite actions on the device; raise `ShapeError` (shape, dtype, device) or `NonFiniteError`."""
        if isinstance(given, np.ndarray):
            if given.dtype.kind not in "fiub":
                wanted = "float32" if self.table is None else "int64"
                raise ShapeError(f"actions have dtype {given.dtype}; expected numbers, such as {wanted}.")
            action = torch.as_tensor(np.ascontiguousarray(given), device=self.device)
        elif isinstance(given, torch.Tensor):
            if given.device.type != self.device.type or self.device.index not in {None, given.device.index}:
                raise ShapeError(f"actions are on device {given.device}; expected {self.device}.")
            action = given.detach()
        else:
            raise ShapeError(f"actions are of type {type(given).__name__}; expected a torch tensor or a NumPy array.")
        return self._continuous(action, given) if self.table is None else self._chosen(action, given)

    def _continuous(self, action: torch.Tensor, given: Any) -> torch.Tensor:
        if not action.dtype.is_floating_point:
            wanted = "a floating dtype such as float32" if given is not action else "torch.float32 or torch.float64"
            raise ShapeError(f"actions have dtype {given.dtype}; expected {wanted}.")
        checks.shape("actions", given, (self.num_envs, self.size))
        if self.trusted:
            return action
        finite = torch.isfinite(action)
        if not bool(finite.all()):
            bad = (~finite).any(-1).nonzero().squeeze(-1).tolist()
            message = f"actions hold NaN or infinite values for {len(bad)} environment(s), the first {bad[0]}"
            raise NonFiniteError(f"{message}; expected finite numbers.")
        return action

    def _chosen(self, choice: torch.Tensor, given: Any) -> torch.Tensor:
        table = self.table
        assert table is not None
        if choice.dtype.is_floating_point or choice.dtype is torch.bool or choice.is_complex():
            raise ShapeError(f"actions have dtype {given.dtype}; expected whole numbers 0 to {len(table) - 1}, int64.")
        checks.shape("actions", given, (self.num_envs,))
        # The lookup itself refuses what is out of range, but on a GPU it would take the process with it.
        if choice.device.type != "cpu" and not self.trusted:
            self._in_table(choice)
        try:
            if self.size == 1:
                # A row of one number takes torch three times as long as the number.
                return self.numbers.index_select(0, choice.long()).unsqueeze(-1)
            return table.index_select(0, choice.long())
        except IndexError:
            self._in_table(choice)
            raise

    def _in_table(self, choice: torch.Tensor) -> None:
        last = 0 if self.table is None else len(self.table) - 1
        wrong = (choice < 0) | (choice > last)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise InvalidValueError(f"actions hold {int(choice[first])} for environment {first}; expected 0 to {last}.")
