"""The models of Stable-Baselines3 that recipes of sac, td3 and ppo describe, and what their environments wear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from robust_policies.errors import InvalidValueError
from robust_policies.networks import LBDN
from robust_policies.policies.sb3.history import history_of
from robust_policies.policies.sb3.memoryless import FlatExtractor, FlatWindow
from robust_policies.policies.sb3.windowed import WindowedExtractor
from robust_policies.train.recipe.rates import schedule
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.recipe.sections import PolicySection
from robust_policies.train.sb3.buffer import WindowReplayBuffer

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
# Stable-Baselines3's own.
_WIDTHS = {"sac": [256, 256], "td3": [400, 300], "ppo": [64, 64]}
_SHARED = ("learning_rate", "batch_size", "discount")
_OFF_POLICY = ("buffer_size", "learning_starts", "tau", "gradient_steps")
_KEYS = {
    "sac": (*_OFF_POLICY, "ent_coef", "target_update_interval", "target_entropy"),
    "td3": (*_OFF_POLICY, "policy_delay", "target_policy_noise", "target_noise_clip"),
    "ppo": (
        *("n_steps", "n_epochs", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "target_kl"),
        "normalize_advantage",
    ),
}


class _FlatCritic:
    """Gives the critics of a policy all that its actor reads, side by side, in place of a cell of their own."""

    def make_critic(self: Any, features_extractor: Any = None) -> Any:
        own, space = self.actor.features_extractor, self.observation_space
        if isinstance(own, WindowedExtractor):
            features_extractor = FlatWindow(space, own.scaling)
        else:
            features_extractor = FlatExtractor(space)
            features_extractor.scaling = own.scaling
        # Of the policy that this stands before.
        return super().make_critic(features_extractor)  # pyright: ignore[reportAttributeAccessIssue]


class FlatCriticSACPolicy(_FlatCritic, SACPolicy):
    """SAC's policy whose critics are perceptrons of the scaled observations, all of a window where there is one."""


class FlatCriticTD3Policy(_FlatCritic, TD3Policy):
    """TD3's policy whose critics are perceptrons of the scaled observations, as of `FlatCriticSACPolicy`."""


class _BoundedCritics(_FlatCritic):
    """Gives a policy critics whose gain is bounded: LBDNs of all that its actor reads, side by side, and the action.

    `bounded_critic` are an LBDN's options: gamma, hidden_sizes, activation.
    """

    def __init__(self: Any, *args: Any, bounded_critic: Mapping[str, Any], **kwargs: Any) -> None:
        self.bounded_critic = dict(bounded_critic)
        super().__init__(*args, **kwargs)

    def make_critic(self: Any, features_extractor: Any = None) -> Any:
        critic = super().make_critic(features_extractor)
        for index, network in enumerate(critic.q_networks):
            bounded = LBDN(network[0].in_features, output_size=1, **self.bounded_critic).to(self.device)
            critic.q_networks[index] = bounded
            setattr(critic, f"qf{index}", bounded)
        return critic

    def _get_constructor_parameters(self: Any) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "bounded_critic": self.bounded_critic}  # pyright: ignore[reportAttributeAccessIssue]


class BoundedCriticSACPolicy(_BoundedCritics, SACPolicy):
    """SAC's policy whose critics differ by at most gamma times the distance of scaled observation and action."""


class BoundedCriticTD3Policy(_BoundedCritics, TD3Policy):
    """TD3's policy whose critics are bounded as those of `BoundedCriticSACPolicy`."""


_POLICIES: dict[str, tuple[type, type, type]] = {
    "sac": (SACPolicy, FlatCriticSACPolicy, BoundedCriticSACPolicy),
    "td3": (TD3Policy, FlatCriticTD3Policy, BoundedCriticTD3Policy),
    "ppo": (ActorCriticPolicy, ActorCriticPolicy, ActorCriticPolicy),
}


def make_model(recipe: Recipe, env: VecEnv, device: str = "cpu") -> BaseAlgorithm:
    """Return the untrained SAC, TD3 or PPO that the recipe describes, on `env`.

    Raises:
        UserError: the cell's options or the actions do not fit.
    """
    policy, settings = recipe.policy, recipe.algorithm
    options: dict[str, Any] = {key: getattr(settings, key) for key in (*_SHARED, *_KEYS[settings.name])}
    options["gamma"], options["learning_rate"] = options.pop("discount"), schedule(settings.learning_rate)
    if settings.name == "ppo":
        kind, clipped = PPO, settings.clip_range_vf
        options["clip_range"] = schedule(settings.clip_range)
        options["clip_range_vf"] = None if clipped is None else schedule(clipped)
    else:
        kind = SAC if settings.name == "sac" else TD3
        options |= _off_policy_options(recipe, env)
    plain, flat, bounded = _POLICIES[settings.name]
    if isinstance(policy.critic, str):
        bounded = flat if policy.critic == "mlp" and policy.cell != "mlp" else plain
    return kind(
        bounded,
        env,
        policy_kwargs=_policy_options(recipe, env),
        seed=recipe.seed,
        device=device,
        **options,
    )


def _off_policy_options(recipe: Recipe, env: VecEnv) -> dict[str, Any]:
    settings, space = recipe.algorithm, env.action_space
    if not isinstance(space, spaces.Box) or not np.isfinite([space.low, space.high]).all():
        raise InvalidValueError(
            f"algorithm.name is {settings.name!r} and {recipe.task.id} has the actions {space}; expected a Box with "
            "finite limits, or ppo."
        )
    options: dict[str, Any] = {"train_freq": settings.frequency}
    if settings.action_noise is not None:
        mean = np.zeros(space.shape, np.float32)
        options["action_noise"] = NormalActionNoise(mean, mean + np.float32(settings.action_noise))
    history = history_of(env)
    if history is not None:
        options["replay_buffer_class"] = WindowReplayBuffer
        window = history.windows.shape[1]
        if settings.buffer_size // env.num_envs < window:
            raise InvalidValueError(
                f"algorithm.buffer_size is {settings.buffer_size}; expected at least the window of {window} steps of "
                f"each of {env.num_envs} environments."
            )
    return options


def _policy_options(recipe: Recipe, env: VecEnv) -> dict[str, Any]:
    policy, name = recipe.policy, recipe.algorithm.name
    options, extractor = _extractor(policy, history_of(env) is not None)
    widths = _WIDTHS[name]
    value = policy.critic_kwargs.get("hidden_sizes", widths)
    own = [] if policy.cell != "mlp" else widths if policy.hidden_sizes is None else policy.hidden_sizes
    options["net_arch"] = {"pi": own, ("vf" if name == "ppo" else "qf"): value}
    options["share_features_extractor"] = policy.critic == "shared"
    if policy.cell == "mlp" and policy.activation is not None:
        options["activation_fn"] = _ACTIVATIONS[policy.activation]
    if not isinstance(policy.critic, str):
        options["bounded_critic"] = policy.critic.model_dump(exclude={"cell"})
    if name == "ppo":
        options["log_std_init"] = policy.log_std_init
    return options | {"features_extractor_kwargs": extractor}


def _extractor(policy: PolicySection, windows: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return which features extractor a policy has, and its options."""
    kwargs: dict[str, Any] = {
        "observation_scale": policy.observation_scale,
        "observation_offset": policy.observation_offset,
    }
    if policy.cell != "mlp":
        kwargs |= {"cell": policy.cell, "cell_kwargs": policy.cell_kwargs()}
        if policy.cell_output_size is not None:
            kwargs["features_dim"] = policy.cell_output_size
    return {"features_extractor_class": WindowedExtractor if windows else FlatExtractor}, kwargs
