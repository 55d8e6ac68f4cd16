"""What a task is in numbers: its time step, its signals by name and unit, and its plant's physical parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robust_policies.envs.batch import plant_of, spec_of
from robust_policies.errors import UserError

# The masses of a model with many bodies are in its file; a page does not repeat them.
_SHOWN = 6


def may_hold_code(task: str, options: Mapping[str, Any]) -> bool:
    """Return whether making a task with options may run code: of a module or a folder that it names."""
    return ":" in task or "task" in options


def task_numbers(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a task as JSON has it; of another package's environment only its length.

    Keys: options (of the environment), max_episode_steps, time_step [s], observations and actions (names with units),
    action_low, action_high (None: no limit), parameters {name: {value, unit}}. {} for a task that cannot be made.
    """
    try:
        plant = plant_of(task, env_kwargs)
        steps = spec_of(task).max_episode_steps if plant is None else plant.max_episode_steps
    except UserError:
        return {}
    known = {"options": dict(env_kwargs), "max_episode_steps": env_kwargs.get("max_episode_steps", steps)}
    if plant is None:
        return known
    parameters = {name: value for name, value in plant.nominal().items() if value.numel() <= _SHOWN}
    return known | {
        "time_step": plant.time_step,
        "observations": list(plant.output_names),
        "actions": list(plant.action_names),
        "action_low": _finite(plant.action_low.tolist()),
        "action_high": _finite(plant.action_high.tolist()),
        "parameters": {
            name: {"value": _finite(value.tolist()), "unit": plant.parameter_units.get(name, "")}
            for name, value in parameters.items()
        },
    }


def _finite(value: Any) -> Any:
    """Return numbers as JSON has them: None for those that are not finite."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None
