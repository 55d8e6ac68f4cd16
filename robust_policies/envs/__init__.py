"""Tasks as Gymnasium environments: vectorized on a device, single ones in numpy, and a bridge to Stable-Baselines3.

Importing it registers the ids with Gymnasium and loads no torch; each name loads its module when it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

from robust_policies.envs.registration import ENV_IDS, register_tasks

_HOME = {
    "Plant": "plant",
    "PendulumPlant": "pendulum",
    "LinearPlant": "linear",
    "PLANTS": "task",
    "load_plant": "task",
    "TorchVectorEnv": "vector",
    "TaskEnv": "single",
    "SB3VecEnv": "sb3",
    "make_sb3_vec_env": "sb3",
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "ENV_IDS",
    "PLANTS",
    "LinearPlant",
    "PendulumPlant",
    "Plant",
    "SB3VecEnv",
    "TaskEnv",
    "TorchVectorEnv",
    "load_plant",
    "make_sb3_vec_env",
    "register_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


register_tasks()
