"""From a policy inside Stable-Baselines3 to a deployed one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize
from torch import nn

from robust_policies.certificates import Certificate
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.policies.actor import Actor, FrozenNormalizer
from robust_policies.policies.bridges.model import model_of
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.observations import flat_size, is_image, parts_of
from robust_policies.policies.sb3.history import HistoryWrapper, VecHistory
from robust_policies.policies.sb3.memoryless import FlatExtractor
from robust_policies.policies.sb3.perceptron import perceptron, windowed
from robust_policies.policies.sb3.reading import reads_raw
from robust_policies.policies.sb3.windowed import WindowedExtractor


def deploy(policy_or_model: Any, env: Any = None) -> DeployedPolicy:
    """Return a deployed copy, on the CPU, of a policy or of the model that has it.

    `RecurrentCellPolicy` and the MLP policies that `perceptron` knows can be deployed; of those of SAC, TD3 and DDPG
    the deterministic actions alone. One with a `WindowedExtractor` reads single observations then: the window is the
    state of `predict`.

    The statistics of a VecNormalize in `env` (by default the model's) are frozen into the copy. A policy alone does not
    know what its environment does to observations, so its certificate then speaks of what it is given, never of raw
    observations.

    Of a model of `policies.bridges`, or the runner of rsl_rl or agent of skrl that has it, `env` is the bridge it acts
    in.

    Raises:
        InvalidValueError: another kind of policy, one that does not read its observations flat, or a VecNormalize that
            normalises something else than what the policy reads at each step.
    """
    if (model := model_of(policy_or_model)) is not None:
        return model.deployed(None if model is policy_or_model else policy_or_model, env)
    policy = getattr(policy_or_model, "policy", policy_or_model)
    if env is None and policy is not policy_or_model:
        env = policy_or_model.get_env()
    if not isinstance(policy, BasePolicy):
        raise InvalidValueError(
            f"A {type(policy).__name__} cannot be deployed; expected a policy of Stable-Baselines3, a model of "
            "policies.bridges, or what has one of these."
        )
    space, reader = policy.observation_space, policy.features_extractor_class
    own = getattr(policy, "actor", None)
    # Training goes on with the random numbers it would have drawn.
    with torch.random.fork_rng(devices=[]):
        if reader is WindowedExtractor:
            live = windowed(policy)
            assert isinstance(space, spaces.Box)  # windows are made of nothing else
            space = _single(space, live.cell.input_size, env)
        else:
            refuse_unflat(policy)
            live = own if isinstance(own, Actor) else perceptron(policy)
    if policy.squash_output and not live.head.squash:
        raise InvalidValueError("A policy with squash_output=True cannot be deployed; train with squash_output=False.")
    statistics = normalizer(env)
    if statistics is not None and statistics.mean.numel() != live.cell.input_size:
        raise InvalidValueError(
            f"The VecNormalize normalises {statistics.mean.numel()} numbers and the policy reads "
            f"{live.cell.input_size} at each step, as a frame stack or history stands between them; put VecNormalize "
            + ("inside the history." if reader is WindowedExtractor else "around it.")
        )
    actor = copy.deepcopy(Actor(live.body, live.head, statistics)).cpu()
    log_std, gsde = None, getattr(policy, "use_sde", False)
    if isinstance(policy.action_space, spaces.Box) and not gsde and not live.head.squash:
        live_std: Any = policy.log_std
        log_std = live_std.detach().cpu()
    raw = env is not None and reads_raw(env, windows=reader is WindowedExtractor)
    return DeployedPolicy(actor, space, policy.action_space, log_std, state_dependent_noise=gsde, raw=raw)


def _single(space: spaces.Box, size: int, env: Any) -> spaces.Space:
    """Return the space of one of the observations whose windows are in `space`: the environment's own if known."""
    inner: Any = env
    while inner is not None:
        found = None
        if isinstance(inner, VecHistory | VecFrameStack):
            found = inner.venv.observation_space
        elif isinstance(inner, HistoryWrapper):
            found = inner.env.observation_space
        if found is not None and flat_size(found) == size:
            return found
        several = getattr(inner, "envs", None)
        inner = several[0] if several else getattr(inner, "venv", None) or vars(inner).get("env")
    low, high = (
        bound.reshape(-1)[-(size + 1) : -1] if space.low.ndim == 2 else bound[-size:]
        for bound in (space.low, space.high)
    )
    return spaces.Box(low, high, dtype=space.dtype.type)


def refuse_unflat(policy: Any) -> None:
    """Raise InvalidValueError unless a policy reads its observations flat, as `policies.observations` has them."""
    space, kind = policy.observation_space, policy.features_extractor_class
    whose = policy if getattr(policy, "features_extractor", None) is not None else policy.actor
    scaled_image = policy.normalize_images and is_image(space)
    if not reads_flat(whose.features_extractor) or scaled_image:
        raise InvalidValueError(
            "Only policies that read flat observations, or windows of them, can be deployed; this one reads a "
            f"{type(space).__name__}"
            f"{' of an image' if scaled_image else ''} through a {kind.__name__}. Keep Stable-Baselines3's zip file "
            "for it."
        )
    flat_size(space)


def reads_flat(extractor: Any) -> bool:
    """Return whether a features extractor reads observations flat, as `policies.observations` has them."""
    if type(extractor) is CombinedExtractor:
        return all(isinstance(part, nn.Flatten) for part in extractor.extractors.values())
    return type(extractor) in (FlattenExtractor, FlatExtractor)


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
