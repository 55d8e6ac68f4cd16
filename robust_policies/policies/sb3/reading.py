"""Whether what a policy reads is what its environment's sensors give: the signal that a certificate is about."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import (
    Autoreset,
    ClipAction,
    NormalizeReward,
    OrderEnforcing,
    PassiveEnvChecker,
    RecordEpisodeStatistics,
    RecordVideo,
    RescaleAction,
    TimeLimit,
    TransformReward,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

from robust_policies.certificates.signals import BEFORE_NORMALISATION, GIVEN, RAW, WINDOWED
from robust_policies.envs import wrappers
from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.envs.perturb.vector_wrapper import Wrapper as PerturbedVector
from robust_policies.envs.perturb.wrapper import Wrapper as Perturbed
from robust_policies.policies.sb3.history import HistoryWrapper, VecHistory

# A perturbation belongs to the sensors: the observation is what it makes of it.
_SINGLE = (
    *(Monitor, TimeLimit, OrderEnforcing, PassiveEnvChecker, Autoreset, RecordEpisodeStatistics, RecordVideo),
    *(ClipAction, RescaleAction, TransformReward, NormalizeReward, Perturbed),
)
_VECTOR = (
    *(wrappers.EpisodeStatistics, wrappers.ClipAction, wrappers.RescaleAction, wrappers.NormalizeReward),
    PerturbedVector,
)
_SB3 = (VecNormalize, VecMonitor, VecCheckNan, VecVideoRecorder)


def signal_read(env: VecEnv | VectorEnv | None, *, normalized: bool = False, windows: bool = False) -> str:
    """Return what a policy in `env` reads, in the words of its certificate; of an unknown environment nothing is said.

    Args:
        env: with everything around it; None: not known.
        normalized: a frozen normalizer before the policy is part of the certificate.
        windows: so is a history window.
    """
    if env is not None and reads_raw(env, windows=windows):
        return RAW
    return BEFORE_NORMALISATION if normalized else WINDOWED if windows else GIVEN


def reads_raw(env: VecEnv | VectorEnv, *, windows: bool = False) -> bool:
    """Return whether nothing but VecNormalize, or windows where they count, stands between sensors and policy.

    Only one VecNormalize is part of a certificate. A wrapper that is not known to leave observations alone counts as
    one that does not, and so does what runs in other processes, where it cannot be looked at.
    """
    around: Any = env
    normalizers = 0
    while isinstance(around, VecEnvWrapper):
        normalizers += isinstance(around, VecNormalize) and around.norm_obs
        if not isinstance(around, _SB3 + ((VecHistory, VecFrameStack) if windows else ())) or normalizers > 1:
            return False
        around = around.venv
    if isinstance(around, SB3VecEnv):
        around = around.env
    if isinstance(around, VectorEnv):
        return _only(around, _VECTOR)
    known = (*_SINGLE, HistoryWrapper) if windows else _SINGLE
    return isinstance(around, DummyVecEnv) and all(_only(one, known) for one in around.envs)


def _only(env: Any, known: tuple[type, ...]) -> bool:
    """Return whether all wrappers around an environment are instances of the `known` ones."""
    while isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        if not isinstance(env, known):
            return False
        env = env.env
    return True
