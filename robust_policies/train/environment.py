"""The environments that a recipe describes, inside the Youla wrapper where it has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from robust_policies.envs.bridges.sb3 import SB3VecEnv, make_sb3_vec_env
from robust_policies.errors import UserError
from robust_policies.policies.youla.wrapper import YoulaVectorWrapper, YoulaWrapper
from robust_policies.train.recipe.recipe import Recipe


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
    algorithm does not do it itself); observations are never normalised by running statistics, which would change what a
    certificate is about. With a `youla` section they are inside the wrapper.
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
    on_device = recipe.algorithm.name == "tensor_ppo" and isinstance(env, SB3VecEnv)
    if training and recipe.algorithm.normalize_reward and not on_device:
        env = VecNormalize(env, norm_obs=False, norm_reward=True, gamma=recipe.algorithm.discount)
    return env
