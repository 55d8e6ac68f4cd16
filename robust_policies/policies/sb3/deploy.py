"""From a policy inside Stable-Baselines3 to a deployed one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from robust_policies.certificates import Certificate
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.policies.actor import Actor, FrozenNormalizer
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.sb3.perceptron import perceptron
from robust_policies.policies.sb3.reading import reads_raw


def deploy(policy_or_model: Any, env: VecEnv | None = None) -> DeployedPolicy:
    """Return a deployed copy, on the CPU, of a policy or of the model that has it.

    `RecurrentCellPolicy` and the MLP policies that `perceptron` knows can be deployed; of those of SAC, TD3 and DDPG
    the deterministic actions alone.

    The statistics of a VecNormalize in `env` (by default the model's) are frozen into the copy. A policy alone does not
    know what its environment does to observations, so its certificate then speaks of what it is given, never of raw
    observations.

    Raises:
        InvalidValueError: another kind of policy, or observations that are not a flat Box.
    """
    policy = getattr(policy_or_model, "policy", policy_or_model)
    own = getattr(policy, "actor", None)
    live = own if isinstance(own, Actor) else perceptron(policy)
    if env is None and policy is not policy_or_model:
        env = policy_or_model.get_env()
    space = policy.observation_space
    scaled_image = policy.normalize_images and is_image_space(space)
    if not isinstance(space, spaces.Box) or policy.features_extractor_class is not FlattenExtractor or scaled_image:
        raise InvalidValueError(
            f"Only policies on flat Box observations can be deployed; this one reads {space} through a "
            f"{policy.features_extractor_class.__name__}. Keep Stable-Baselines3's zip file for it."
        )
    if policy.squash_output and not live.head.squash:
        raise InvalidValueError("A policy with squash_output=True cannot be deployed; train with squash_output=False.")
    actor = copy.deepcopy(Actor(live.body, live.head, normalizer(env))).cpu()
    log_std, gsde = None, getattr(policy, "use_sde", False)
    if isinstance(policy.action_space, spaces.Box) and not gsde and not live.head.squash:
        log_std = policy.log_std.detach().cpu()
    raw = env is not None and reads_raw(env)
    return DeployedPolicy(actor, space, policy.action_space, log_std, state_dependent_noise=gsde, raw=raw)


def observation_normalizer(env: VecEnv | None) -> VecNormalize | None:
    """Return the VecNormalize in `env` that normalises observations, or None."""
    wrapper = None if env is None else unwrap_vec_normalize(env)
    return wrapper if wrapper is not None and wrapper.norm_obs else None


def normalizer(env: VecEnv | None) -> FrozenNormalizer | None:
    """Return the present statistics of the VecNormalize in `env`, or None."""
    wrapper = observation_normalizer(env)
    if wrapper is None:
        return None
    statistics = wrapper.obs_rms
    if isinstance(statistics, dict):
        raise InvalidValueError("A VecNormalize over dict observations cannot be frozen into a policy.")
    return FrozenNormalizer(statistics.mean, np.sqrt(statistics.var + wrapper.epsilon), wrapper.clip_obs)


def certify_policy(policy: Any, env: VecEnv | None = None, weights: Sequence[float] | None = None) -> Certificate:
    """Return the certificate of a RecurrentCellPolicy that acts in `env`; raises NotCertifiableError."""
    frozen(env)
    try:
        deployed = deploy(policy, env)
    except InvalidValueError as error:
        raise NotCertifiableError(f"No gain from raw observation to raw action can be stated: {error}") from error
    return deployed.certificate(weights)


def frozen(env: VecEnv | None) -> None:
    """Raise if the environment's VecNormalize still learns."""
    wrapper = observation_normalizer(env)
    if wrapper is not None and wrapper.training:
        raise NotCertifiableError(
            "The environment's VecNormalize still updates its statistics, so the gain from raw observations changes "
            "with every step; set env.training = False first."
        )
