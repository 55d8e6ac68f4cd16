"""Policies: cells inside Stable-Baselines3, and the deployed policy that needs no training library.

Names are imported on first use, so that `load_policy` does not import Stable-Baselines3.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_policies.policies.deployed import DeployedPolicy
    from robust_policies.policies.history import HistoryWrapper, VecHistory
    from robust_policies.policies.recurrent import (
        RecurrentCellCnnPolicy,
        RecurrentCellMultiInputPolicy,
        RecurrentCellPolicy,
    )
    from robust_policies.policies.storage import load_policy, save_policy
    from robust_policies.policies.windowed import WindowedExtractor
    from robust_policies.policies.youla import YoulaVectorWrapper, YoulaWrapper
    from robust_policies.policies.youla_policy import YoulaPolicy

_HOME = {
    "DeployedPolicy": "deployed",
    "HistoryWrapper": "history",
    "RecurrentCellCnnPolicy": "recurrent",
    "RecurrentCellMultiInputPolicy": "recurrent",
    "RecurrentCellPolicy": "recurrent",
    "VecHistory": "history",
    "WindowedExtractor": "windowed",
    "load_policy": "storage",
    "YoulaPolicy": "youla_policy",
    "YoulaVectorWrapper": "youla",
    "YoulaWrapper": "youla",
    "save_policy": "storage",
}

__all__ = [
    "DeployedPolicy",
    "HistoryWrapper",
    "RecurrentCellCnnPolicy",
    "RecurrentCellMultiInputPolicy",
    "RecurrentCellPolicy",
    "VecHistory",
    "WindowedExtractor",
    "YoulaPolicy",
    "YoulaVectorWrapper",
    "YoulaWrapper",
    "load_policy",
    "save_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
