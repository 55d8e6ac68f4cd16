"""Thin adapters to other reinforcement-learning libraries, which are imported when their adapter is first used.

Stable-Baselines3's is `robust_policies.envs.SB3VecEnv`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_policies.envs.bridges.rsl_rl import RslRlVecEnv
    from robust_policies.envs.bridges.skrl import SkrlWrapper

_HOME = {"RslRlVecEnv": "rsl_rl", "SkrlWrapper": "skrl"}

__all__ = ["RslRlVecEnv", "SkrlWrapper"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
