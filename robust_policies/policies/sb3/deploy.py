"""From a policy inside Stable-Baselines3 to a deployed one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import nn

from robust_policies.certificates import Certificate
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.policies.actor import Actor, FrozenNormalizer
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.observations import flat_size, is_image, parts_of
from robust_policies.policies.sb3.perceptron import perceptron


def deploy(policy_or_model: Any, env: VecEnv | None = None) -> DeployedPolicy:
    """Return a deployed copy, on the CPU, of a policy or of the model that has it.

    `RecurrentCellPolicy` and the MLP policies that `perceptron` knows can be deployed; of those of SAC, TD3 and DDPG
    the deterministic actions alone.

    The statistics of a VecNormalize in `env` (by default the model's) are frozen into the copy.

    Raises:
        InvalidValueError: another kind of policy, or one that does not read its observations flat.
    """
    policy = getattr(policy_or_model, "policy", policy_or_model)
    own = getattr(policy, "actor", None)
    live = own if isinstance(own, Actor) else perceptron(policy)
    if env is None and policy is not policy_or_model:
        env = policy_or_model.get_env()
    space = policy.observation_space
    refuse_unflat(policy)
    if policy.squash_output and not live.head.squash:
        raise InvalidValueError("A policy with squash_output=True cannot be deployed; train with squash_output=False.")
    actor = copy.deepcopy(Actor(live.body, live.head, normalizer(env))).cpu()
    log_std, gsde = None, getattr(policy, "use_sde", False)
    if isinstance(policy.action_space, spaces.Box) and not gsde and not live.head.squash:
        log_std = policy.log_std.detach().cpu()
    return DeployedPolicy(actor, space, policy.action_space, log_std, state_dependent_noise=gsde)


def refuse_unflat(policy: Any) -> None:
    """Raise InvalidValueError unless a policy reads its observations flat, as `policies.observations` has them."""
    space, kind = policy.observation_space, policy.features_extractor_class
    whose = policy if getattr(policy, "features_extractor", None) is not None else policy.actor
    extractor = whose.features_extractor
    scaled_image = policy.normalize_images and is_image(space)
    flat = kind is FlattenExtractor
    if kind is CombinedExtractor:
        flat = all(isinstance(part, nn.Flatten) for part in extractor.extractors.values())
    if not flat or scaled_image:
        raise InvalidValueError(
            f"Only policies that read flat observations can be deployed; this one reads a {type(space).__name__}"
            f"{' of an image' if scaled_image else ''} through a {kind.__name__}. Keep Stable-Baselines3's zip file "
            "for it."
        )
    flat_size(space)


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
        parts = [(key, part) for key, part in parts_of(wrapper.observation_space)]
        if any(key not in statistics or not isinstance(part, spaces.Box) for key, part in parts):
            raise InvalidValueError(
                "A VecNormalize that leaves some entries of a Dict as they are cannot be frozen into a policy; "
                "normalise all of them, or none."
            )
        mean, var = (
            np.concatenate([np.ravel(getattr(statistics[key], name)) for key, _ in parts]) for name in ("mean", "var")
        )
    else:
        mean, var = statistics.mean, statistics.var
    return FrozenNormalizer(mean, np.sqrt(var + wrapper.epsilon), wrapper.clip_obs)


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
