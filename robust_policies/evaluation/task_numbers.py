"""What a task is in numbers: its time step, its signals by name and unit, and its plant's physical parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from robust_policies.envs import Plant, load_plant
from robust_policies.envs.registration import ours
from robust_policies.errors import InvalidValueError

# The masses of a model with many bodies are in its file; a page does not repeat them.
_SHOWN = 6


def plant_of(task: str, env_kwargs: Mapping[str, Any]) -> Plant:
    """Return the plant of one of this package's tasks, given by its Gymnasium id and the environment's options."""
    return load_plant(env_kwargs.get("task", gymnasium.spec(task).kwargs["task"]))


def task_numbers(task: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a task as JSON has it; of another package's environment only its length.

    Keys: options (of the environment), max_episode_steps, time_step [s], observations and actions (names with units),
    action_low, action_high, parameters {name: {value, unit}}.

    Raises:
        InvalidValueError: Gymnasium does not know the task.
    """
    try:
        spec = gymnasium.spec(task)
    except gymnasium.error.Error as error:
        raise InvalidValueError(f"{task} is not a registered environment ({error}).") from error
    if not ours(task):
        return {
            "options": dict(env_kwargs),
            "max_episode_steps": env_kwargs.get("max_episode_steps", spec.max_episode_steps),
        }
    plant = plant_of(task, env_kwargs)
    parameters = {name: value for name, value in plant.nominal().items() if value.numel() <= _SHOWN}
    return {
        "options": dict(env_kwargs),
        "max_episode_steps": env_kwargs.get("max_episode_steps", plant.max_episode_steps),
        "time_step": plant.time_step,
        "observations": list(plant.output_names),
        "actions": list(plant.action_names),
        "action_low": plant.action_low.tolist(),
        "action_high": plant.action_high.tolist(),
        "parameters": {
            name: {"value": value.tolist(), "unit": plant.parameter_units.get(name, "")}
            for name, value in parameters.items()
        },
    }
