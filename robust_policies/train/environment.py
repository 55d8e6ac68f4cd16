"""The environments that a recipe describes, inside the Youla wrapper where it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from robust_policies.envs.bridges.sb3 import SB3VecEnv, make_sb3_vec_env
from robust_policies.errors import InvalidValueError, UserError
from robust_policies.networks import make_cell
from robust_policies.policies.sb3.history import NormalizedHistory, VecHistory
from robust_policies.policies.youla.wrapper import YoulaVectorWrapper, YoulaWrapper
from robust_policies.train.recipe.recipe import Recipe

WINDOW = 16
"""Observations that a cell with a memory runs over where a recipe does not say."""


def youla_wrapper(recipe: Recipe) -> Callable[[Any], Any] | None:
    """Return what wraps the recipe's environment, None where the policy acts alone.

    It raises a `UserError` that begins with "youla" where the section does not fit the environment.
    """
    section = recipe.youla
    if section is None:
        return None

    def wrap(env: Any) -> Any:
        kind: Any = YoulaVectorWrapper if isinstance(env, VectorEnv) else YoulaWrapper
        try:
            return kind(env, **section.arguments())
        except UserError as error:
            raise type(error)(f"youla of the recipe for {recipe.task.id}: {error}") from error

    return wrap


def make_env(recipe: Recipe, num_envs: int, seed: int, device: str, training: bool) -> VecEnv:
    """Return `num_envs` environments of the recipe's task that report each episode's return and length.

    Training environments divide rewards by the running deviation of the return if the recipe says so (where the
    algorithm does not do it itself). Those of Stable-Baselines3's own algorithms may normalise observations too, by
    statistics that are frozen into the policy, and hand out windows where the cell has a memory. With a `youla` section
    they are inside the wrapper.
    """
    env = make_sb3_vec_env(
        recipe.task.id,
        num_envs,
        seed,
        device=device,
        env_kwargs=recipe.task.kwargs,
        perturbations=recipe.task.perturbations,
        wrap=youla_wrapper(recipe),
    )
    if recipe.algorithm.windowed:
        return _seen(env, recipe, training)
    on_device = recipe.algorithm.on_device and isinstance(env, SB3VecEnv)
    if training and recipe.algorithm.normalize_reward and not on_device:
        env = VecNormalize(env, norm_obs=False, norm_reward=True, gamma=recipe.algorithm.discount)
    return env


def _seen(env: VecEnv, recipe: Recipe, training: bool) -> VecEnv:
    """Return environments as the policies of Stable-Baselines3's own algorithms see them."""
    policy, settings = recipe.policy, recipe.algorithm
    # Without a size an MLP has Stable-Baselines3's own.
    memory = 0 if policy.cell == "mlp" else make_cell(policy.cell, 1, 1, **policy.cell_kwargs()).state_size
    if policy.window is not None and not memory:
        raise InvalidValueError(f"policy.window is {policy.window} and policy.cell {policy.cell}; expected null.")
    normalizer: Any = VecNormalize
    if memory:
        env, normalizer = VecHistory(env, WINDOW if policy.window is None else policy.window), NormalizedHistory
    rewards = training and settings.normalize_reward
    if not (settings.normalize_observation or rewards):
        return env
    if settings.normalize_observation and not isinstance(env.observation_space, spaces.Box):
        raise InvalidValueError(
            f"algorithm.normalize_observation is true and {recipe.task.id} observes {env.observation_space}; expected "
            "a Box."
        )
    options = {"norm_obs": settings.normalize_observation, "norm_reward": rewards, "gamma": settings.discount}
    return normalizer(env, training=training, **options)
