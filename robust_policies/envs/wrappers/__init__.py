"""Wrappers for vectorized environments whose numbers stay tensors on their device.

Gymnasium's own vector wrappers are for NumPy, and its normalisation is for NEXT_STEP only. These take a
`TorchVectorEnv`, or wrappers around one, in every autoreset mode.
"""

from robust_policies.envs.wrappers.actions import ClipAction, RescaleAction
from robust_policies.envs.wrappers.base import Changing, TensorWrapper
from robust_policies.envs.wrappers.moments import RunningMoments
from robust_policies.envs.wrappers.normalize import NormalizeObservation, NormalizeReward
from robust_policies.envs.wrappers.statistics import EpisodeStatistics

__all__ = [
    "Changing",
    "ClipAction",
    "EpisodeStatistics",
    "NormalizeObservation",
    "NormalizeReward",
    "RescaleAction",
    "RunningMoments",
    "TensorWrapper",
]
