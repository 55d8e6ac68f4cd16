"""Tasks as Gymnasium environments: vectorized on a device, single ones in numpy, and a bridge to Stable-Baselines3.

Importing it registers the ids with Gymnasium and loads no torch; each name loads its module when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from robust_policies.envs.registration import ENV_IDS, register_task, register_tasks

if TYPE_CHECKING:
    from robust_policies.envs.linear import LinearPlant
    from robust_policies.envs.pendulum import PendulumPlant
    from robust_policies.envs.plant import Plant
    from robust_policies.envs.sb3 import SB3VecEnv, make_sb3_vec_env
    from robust_policies.envs.single import TaskEnv
    from robust_policies.envs.task import PLANTS, load_plant
    from robust_policies.envs.vector import TorchVectorEnv

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

__all__ = [
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
    "register_task",
    "register_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


register_tasks()
