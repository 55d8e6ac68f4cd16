"""The actors of Stable-Baselines3's MLP policies as cells: the same numbers, without the library."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from robust_policies.errors import InvalidValueError
from robust_policies.networks import MLPCell
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.sb3.choices import refuse_start
from robust_policies.policies.sb3.memoryless import FlatExtractor
from robust_policies.policies.spaces import action_range
from robust_policies.policies.window import WindowCell

_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh"}


def perceptron(policy: Any) -> Actor:
    """Return the deterministic actor of an MLP policy of PPO, A2C, SAC, TD3 or DDPG: observation -> mean action.

    Raises:
        InvalidValueError: another policy or activation, or choices that do not begin at 0.
    """
    refuse_start(policy.action_space)
    refuse_start(policy.observation_space)
    if isinstance(policy, SACPolicy) and not policy.actor.use_sde:
        parts, squash = [*policy.actor.latent_pi, policy.actor.mu], True
    elif isinstance(policy, TD3Policy):
        parts, squash = list(policy.actor.mu)[:-1], True
    elif type(policy) in (ActorCriticPolicy, MultiInputActorCriticPolicy):
        heads: Any = policy.mlp_extractor
        parts, squash = [*heads.policy_net, policy.action_net], False
    else:
        raise InvalidValueError(
            f"A {type(policy).__name__} cannot be deployed; expected a RecurrentCellPolicy, an MlpPolicy of PPO, A2C, "
            "SAC (without gSDE), TD3 or DDPG, or a model trained with one."
        )
    layers = [part for part in parts if isinstance(part, nn.Linear)]
    between = {type(part) for part in parts if not isinstance(part, nn.Linear)}
    if len(between) > 1 or not between <= set(_ACTIVATIONS):
        names = ", ".join(sorted(kind.__name__ for kind in between))
        raise InvalidValueError(f"The policy's layers have the activation(s) {names}; expected ReLU or Tanh alone.")
    scale, offset = squashed_range(policy.action_space) if squash else (None, None)
    extractor = extractor_of(policy)
    flat = extractor if isinstance(extractor, FlatExtractor) else None
    if flat is not None and flat.cell is not None:
        if len(layers) != 1:
            raise InvalidValueError(
                f"{len(layers)} layers follow the cell {flat.cell.name!r}; expected a linear one alone: net_arch with "
                "pi=[]."
            )
        head = MeanHead(layers[0].in_features, layers[0].out_features, True, scale, offset, squash=squash)
        head.linear = layers[0]
        return Actor(ScaledCell(flat.cell, flat.scaling), head)
    activation = _ACTIVATIONS[between.pop()] if between else "tanh"
    widths = [layer.out_features for layer in layers]
    cell = MLPCell(layers[0].in_features, widths[:-1], widths[-1], activation)
    with torch.no_grad():
        for own, layer in zip(cell.layers, layers, strict=True):
            own.load_state_dict(layer.state_dict())
    head = MeanHead(widths[-1], widths[-1], linear=False, scale=scale, offset=offset, squash=squash)
    return Actor(ScaledCell(cell, Scaling(cell.input_size) if flat is None else flat.scaling), head)


def extractor_of(policy: Any) -> Any:
    """Return the features extractor of a policy's actor."""
    return policy.actor.features_extractor if hasattr(policy, "actor") else policy.pi_features_extractor


def windowed(policy: Any) -> Actor:
    """Return the deterministic actor of a policy with a `WindowedExtractor`: one raw observation -> mean action.

    Its state is the window. Raises as `perceptron`.
    """
    live = perceptron(policy)
    extractor = extractor_of(policy)
    cell = WindowCell(extractor.cell, cast(MLPCell, live.cell), extractor.window, extractor.masked)
    with torch.no_grad():
        cell.blank.copy_(extractor.scaling(torch.zeros_like(cell.blank)))
    return Actor(ScaledCell(cell, extractor.scaling), live.head)


def squashed_range(space: spaces.Space) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what a tanh is multiplied by (na,) to fill a Box, and what is added (na,), None in a symmetric one."""
    known = action_range(space)
    if known is None:
        raise InvalidValueError("The squashed actions are in a space without limits; expected a finite Box.")
    return known[0], known[1] if known[1].any() else None
