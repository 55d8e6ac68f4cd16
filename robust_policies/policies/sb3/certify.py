"""The gain of Stable-Baselines3's own policies (PPO, A2C, SAC, TD3), on flat observations or on windows of them.

Observation -> frozen normalizer -> history window and cell, where there is a `WindowedExtractor` -> perceptron ->
squashing -> action scale -> clip. No SB3 policy keeps a state, so the initial state plays no part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from robust_policies.certificates import Certificate, Factor, Verification, compose, verify, verify_layers
from robust_policies.certificates.signals import Signals
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.policies.bridges.model import model_of
from robust_policies.policies.certify import UP, choices, verification_of_window
from robust_policies.policies.observations import flat_size
from robust_policies.policies.sb3.deploy import certify_policy, deploy, frozen, normalizer, refuse_unflat
from robust_policies.policies.sb3.memoryless import FlatExtractor
from robust_policies.policies.sb3.reading import signal_read
from robust_policies.policies.sb3.recurrent import RecurrentCellPolicy
from robust_policies.policies.sb3.windowed import (
    WindowedExtractor,
    normalization_factors,
    window_factors,
)

# Slopes in [0, 1] whatever the settings that torch lets one choose; ELU, LeakyReLU and Softplus are checked below.
_SLOPES = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity, nn.Hardtanh, nn.Softsign)


def certify_model(policy_or_model: Any, env: Any = None) -> Certificate:
    """Return the certificate of a Stable-Baselines3 model or policy, from what it reads to its mean action or logits.

    The certificate's `signals` and claim name what it reads: raw observations where the environment is known and
    leaves them as they are but for a frozen VecNormalize, which is part of the chain.

    Args:
        policy_or_model: PPO, A2C, SAC or TD3 with "MlpPolicy", with or without a `WindowedExtractor`; or anything with
            a `RecurrentCellPolicy`; or a model of `policies.bridges`, its runner or agent.
        env: the environment whose VecNormalize is part of the chain; None: the model's, and for a policy alone none is
            known: nothing is then said of raw observations.

    Raises:
        NotCertifiableError: there is no such gain; the message names the reason.
    """
    if model_of(policy_or_model) is not None:
        return deploy(policy_or_model, env).certificate()
    policy = getattr(policy_or_model, "policy", policy_or_model)
    if env is None and policy is not policy_or_model:
        env = policy_or_model.get_env()
    if isinstance(policy, RecurrentCellPolicy):
        return certify_policy(policy, env)
    frozen(env)
    extractor, modules, squashed = _parts(policy)
    if isinstance(extractor, FlatExtractor):
        return certify_policy(policy, env)
    before, cell, signals = _features(extractor, policy, env)
    net = _perceptron(modules)
    if net.status != "PASS" or net.gamma is None or (cell is not None and cell.status != "PASS"):
        return compose(net if net.status != "PASS" or cell is None else cell, signals=signals, before=before)
    after = [Factor("squashing", 1.0, "tanh is 1-Lipschitz")] if squashed else []
    space, stretch = policy.action_space, 1.0
    if squashed:
        stretch = float(np.max((space.high.astype(np.float64) - space.low) / 2)) * UP
    after.append(Factor("action scale", stretch, "half of the widest action range" if squashed else "none"))
    if isinstance(space, spaces.Box):
        after.append(Factor("action clip", 1.0, "clipping to the action space is 1-Lipschitz"))
    arrays, chosen = dict(policy.state_dict()), choices(space, cell is not None)
    if cell is None:
        return compose(net, signals=signals, before=before, after=after, arrays=arrays, cell_note="mlp", choices=chosen)
    after.insert(0, Factor("perceptron", net.gamma, net.method))
    # The policy itself forgets after the window, so the cell's rate is not one of the policy's.
    return compose(
        verification_of_window(cell),
        signals=signals,
        before=before,
        after=after,
        arrays=arrays,
        cell_note=extractor.cell.name,
        choices=chosen,
    )


def _features(
    extractor: Any, policy: BasePolicy, env: VecEnv | None
) -> tuple[list[Factor], Verification | None, Signals]:
    """Return what stands before the perceptron: factors and, with a window, what is proven of the cell; and signals."""
    try:
        statistics = normalizer(env)
    except InvalidValueError as error:
        raise NotCertifiableError(f"No gain from raw observation to raw action can be stated: {error}") from error
    windows, normalized = isinstance(extractor, WindowedExtractor), statistics is not None
    reads = signal_read(env, normalized=normalized, windows=windows)
    if windows:
        signals = Signals.between(reads, extractor.cell.input_size, policy.action_space)
        return window_factors(extractor, statistics), verify(extractor.cell), signals
    try:
        refuse_unflat(policy)
    except InvalidValueError as error:
        raise NotCertifiableError(f"No gain from raw observation to raw action can be stated: {error}") from error
    signals = Signals.between(reads, flat_size(policy.observation_space), policy.action_space)
    return normalization_factors(statistics), None, signals


def _parts(policy: Any) -> tuple[Any, list[nn.Module], bool]:
    """Return the features extractor, the actor's layers in order and whether tanh and a stretch follow them."""
    if getattr(policy, "use_sde", False):
        raise NotCertifiableError(
            "The policy explores with state-dependent noise (gSDE), which is a function of the observation with a gain "
            "of its own; train with use_sde=False."
        )
    if isinstance(policy, ActorCriticPolicy) and hasattr(policy, "mlp_extractor"):
        extractor = policy.features_extractor if policy.share_features_extractor else policy.pi_features_extractor
        return extractor, [*policy.mlp_extractor.policy_net, policy.action_net], False
    if isinstance(policy, SACPolicy):
        return policy.actor.features_extractor, [*policy.actor.latent_pi, policy.actor.mu], True
    if isinstance(policy, TD3Policy):
        layers = list(policy.actor.mu)
        return policy.actor.features_extractor, layers[:-1] if isinstance(layers[-1], nn.Tanh) else layers, True
    raise NotCertifiableError(
        f"No chain of factors is known for a {type(policy).__name__}; expected the MlpPolicy of PPO, A2C, SAC or TD3, "
        "or a RecurrentCellPolicy."
    )


def _perceptron(modules: list[nn.Module]) -> Verification:
    """Return what is proven of linear layers with one activation between each two."""
    weights: list[np.ndarray] = []
    after_linear = False
    for module in modules:
        if isinstance(module, nn.Linear):
            if after_linear:
                raise NotCertifiableError("Two linear layers follow each other without an activation; merge them.")
            weights.append(module.weight.detach().cpu().double().numpy())
            after_linear = True
        elif _has_slope_in_unit_interval(module):
            after_linear = False
        elif not isinstance(module, nn.Flatten):
            raise NotCertifiableError(
                f"The actor has a {type(module).__name__} layer, whose slope is not known to be in [0, 1]; use linear "
                "layers with ReLU, Tanh, Sigmoid, ELU, LeakyReLU, Softplus, Hardtanh or Softsign."
            )
    if not weights or not after_linear:
        raise NotCertifiableError("The actor does not end in a linear layer; expected SB3's own actor network.")
    return verify_layers(weights)


def _has_slope_in_unit_interval(module: nn.Module) -> bool:
    if isinstance(module, nn.ELU):
        return 0 <= module.alpha <= 1
    if isinstance(module, nn.LeakyReLU):
        return 0 <= module.negative_slope <= 1
    return isinstance(module, (*_SLOPES, nn.Softplus))
