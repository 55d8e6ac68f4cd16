"""A policy together with the statistics by which its observations are normalised."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn

from robust_policies.policies.sb3.deploy import observation_normalizer
from robust_policies.train.ppo.continuation import observation_moments


class Normalized(nn.Module):
    """A model's policy whose state has the VecNormalize's means and variances: the best policy is kept with its own."""

    def __init__(self, model: BaseAlgorithm) -> None:
        super().__init__()
        self.policy = model.policy
        self._normalizer: VecNormalize | None = observation_normalizer(model.get_env())

    def state_dict(self, *args: object, **options: object) -> dict[str, Tensor]:
        """Return weights and statistics by name."""
        found: dict[str, Tensor] = dict(self.policy.state_dict())
        for key, moments in self._moments().items():
            for name in ("mean", "var"):
                found[f"normalizer.{key}.{name}"] = torch.from_numpy(np.array(getattr(moments, name), np.float64))
        return found

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: object, **options: object) -> None:
        """Take weights of any shape and statistics (nu,) from what `state_dict` returned.

        Raises KeyError or RuntimeError where they do not fit.
        """
        weights = {name: value for name, value in state_dict.items() if not name.startswith("normalizer.")}
        self.policy.load_state_dict(weights)
        for key, moments in self._moments().items():
            for name in ("mean", "var"):
                setattr(moments, name, state_dict[f"normalizer.{key}.{name}"].double().numpy().copy())

    def _moments(self) -> dict:
        return {} if self._normalizer is None else observation_moments(self._normalizer)


def share_statistics(model: BaseAlgorithm, env: VecEnv) -> None:
    """Let `env`, in which a model is evaluated, normalise observations as the model's own environment does now."""
    own, other = observation_normalizer(model.get_env()), observation_normalizer(env)
    if own is not None and other is not None:
        other.obs_rms = own.obs_rms
