"""Wrap an environment, single or vectorized, in a list of perturbations."""

from __future__ import annotations

from typing import Any, TypeVar

import gymnasium
from gymnasium.vector import VectorEnv

from robust_policies.envs.perturb import single, vector
from robust_policies.envs.perturb.blocks import Blocks, BlocksWrapper
from robust_policies.envs.perturb.listing import parse
from robust_policies.errors import InvalidValueError

Environment = TypeVar("Environment", bound=gymnasium.Env | VectorEnv)


def perturb(env: Environment, perturbations: Any) -> Environment:
    """Return `env` wrapped in perturbations, anything that `parse` reads; the first sits nearest to the plant.

    Observations pass the list from first to last on their way to the policy, actions from last to first on their way to
    the plant. Nothing of the environment has changed if one of them cannot be applied.

    Raises:
        UserError: a list that `parse` refuses, or a perturbation that does not fit the environment; it names it.
    """
    if not isinstance(env, (gymnasium.Env, VectorEnv)):
        raise InvalidValueError(f"perturb was given {type(env).__name__}; expected a Gymnasium environment.")
    wrappers: Any = vector.WRAPPERS if isinstance(env, VectorEnv) else single.WRAPPERS
    wrapped: Any = env
    made: list[Any] = []
    try:
        for spec in parse(perturbations):
            if isinstance(spec, Blocks):
                wrapped = BlocksWrapper(wrapped, spec)
            else:
                wrapped = wrappers[spec.name](wrapped, **spec.model_dump(exclude_unset=True))
            made.append(wrapped)
    except Exception:
        for wrapper in reversed(made):
            wrapper.perturbation.release()
        raise
    return wrapped
