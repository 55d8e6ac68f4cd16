"""A recipe from a few words: an environment, a cell and an algorithm, with scales that its spaces suggest."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from robust_policies.envs.batch import make_one, ours, plant_of, spec_of
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.files.yaml_text import dump_yaml
from robust_policies.networks.registry import CELLS
from robust_policies.policies.spaces import action_range
from robust_policies.train.recipe.recipe import ALGORITHMS, Recipe, parse_recipe, set_value

_SIZES: dict[str, dict[str, Any]] = {
    "lstm": {"state_size": 64},
    "gru": {"state_size": 32},
    "mlp": {"hidden_sizes": [64, 64]},
    "lbdn": {"hidden_sizes": [64, 64]},
}
_OTHER_SIZES: dict[str, Any] = {"state_size": 16, "features": 32, "hidden_sizes": [32, 32]}
_MEMORY = {"critic": "own", "critic_kwargs": {"cell": "gru", "state_size": 32}}
_SETTINGS: dict[str, dict[str, Any]] = {
    "tensor_ppo": {
        **{"n_steps": 64, "batch_size": 1024, "n_epochs": 5, "learning_rate": "lin_1e-3", "spread_episodes": True}
    },
    "recurrent_ppo": {"n_steps": 256, "batch_size": 256, "learning_rate": "lin_3e-4"},
    "apg": {"horizon": 32, "learning_rate": "lin_3e-3"},
    "ppo": {"n_steps": 512, "batch_size": 256},
    "recurrent_sac": {},
    "sac": {"learning_starts": 1000},
    "td3": {"learning_starts": 1000, "action_noise": 0.1},
}
_ENVIRONMENTS = {"tensor_ppo": 64, "recurrent_ppo": 8, "apg": 64, "ppo": 4, "recurrent_sac": 8}
_CONTINUOUS = ("apg", "sac", "td3", "recurrent_sac")
# Bounds beyond it are those of the number type.
_UNBOUNDED = 1e6
_TRIED = 500


def composed(
    env_id: str,
    cell: str = "r2dn",
    gamma: float | None = None,
    algorithm: str | None = None,
    steps: float = 1_000_000,
    env_kwargs: Mapping[str, Any] | None = None,
    overrides: list[str] | None = None,
    seed: int | None = None,
) -> tuple[Recipe, str]:
    """Return a recipe and its YAML text, which makes the same recipe.

    Args:
        env_id: Gymnasium id, or module:id.
        cell: name of the policy's cell.
        gamma: bound on the gain of the cell, between scaled signals; None: contraction alone, where it can.
        algorithm: one of `ALGORITHMS` without imitation; None: tensor_ppo, or recurrent_ppo for other packages' tasks.
        steps: environment steps.
        env_kwargs: passed on to the environment.
        overrides: assignments such as `policy.state_size=8`, applied in order.
        seed: of the recipe.

    Raises:
        UserError: a name is unknown, or the parts do not fit one another.
    """
    if not math.isfinite(steps):
        raise InvalidValueError(f"--steps is {steps:g}; expected a number of environment steps, such as 1e5.")
    spec_of(env_id)
    name = algorithm or ("tensor_ppo" if ours(env_id) else "recurrent_ppo")
    known = [one for one in ALGORITHMS if one in _SETTINGS]
    if name not in known:
        raise UnknownNameError.among("--algo", name, known)
    if cell not in CELLS:
        raise UnknownNameError.among("--cell", cell, CELLS)
    env = make_one(env_id, env_kwargs)
    try:
        _fits(name, env_id, env_kwargs, env.action_space)
        policy = suggested_policy(name, cell, gamma, env)
    finally:
        env.close()
    total = int(steps) if float(steps).is_integer() else steps
    every = max(int(steps) // 20, 1)
    data: dict[str, Any] = {
        "schema": 1,
        "description": f"{env_id.rpartition('/')[2]}, {cell} by {name}",
        "seed": seed or 0,
        "task": {"id": env_id, "num_envs": _ENVIRONMENTS.get(name, 1), "kwargs": dict(env_kwargs or {})},
        "policy": policy,
        "algorithm": {"name": name, "total_steps": total, **_SETTINGS[name]},
        "checkpoints": {"every": 5 * every, "evaluate_every": every, "evaluate_episodes": 10},
        "evaluation": {"tasks": [env_id]},
    }
    for assignment in overrides or []:
        set_value(data, assignment)
    if seed is not None:
        data["seed"] = seed
    return parse_recipe(data, "The options"), dump_yaml(data)


def _fits(name: str, env_id: str, kwargs: Mapping[str, Any] | None, actions: spaces.Space) -> None:
    """Raise where an algorithm cannot train in an environment, whatever the policy."""
    if name in _CONTINUOUS and not isinstance(actions, spaces.Box):
        raise InvalidValueError(
            f"--algo is {name} and {env_id} has the actions {actions}; expected ppo, recurrent_ppo or tensor_ppo."
        )
    plant = plant_of(env_id, kwargs) if name == "apg" else None
    if name == "apg" and (plant is None or not plant.differentiable):
        raise InvalidValueError(
            f"--algo is apg and no gradients flow through {env_id}; expected a torch-native task of this package, or "
            "another algorithm."
        )


def suggested_policy(name: str, cell: str, gamma: float | None, env: gymnasium.Env) -> dict[str, Any]:
    """Return a recipe's `policy` section for an algorithm: sizes of a cell, and scales that the spaces suggest."""
    options = set(inspect.signature(CELLS[cell]).parameters)
    sizes = _SIZES.get(cell, _OTHER_SIZES)
    policy: dict[str, Any] = {"cell": cell, **{key: value for key, value in sizes.items() if key in options}}
    if gamma is not None:
        if not options & {"guarantee", "gamma"}:
            raise InvalidValueError(f"--gamma is {gamma:g} and --cell {cell} has no bound on its gain; leave it out.")
        policy["gamma"] = gamma
    policy |= _observation_scales(env)
    memory, windowed = "state_size" in options, ALGORITHMS[name].windowed
    if windowed:
        policy |= {"window": 16} if memory else {}
        policy |= {"rate": 0.8} if memory and "rate" in options else {}
        policy |= {} if cell == "mlp" or name == "ppo" else {"critic": "mlp"}
        return policy
    if name == "recurrent_sac":
        return policy
    known = action_range(env.action_space)
    scale = np.ones(1) if known is None else known[0]
    if known is not None and not known[1].any():
        policy["action_scale"] = [_rounded(value) for value in scale]
    if name != "apg":
        policy |= _MEMORY if memory else {"critic": "mlp"}
        if isinstance(env.action_space, spaces.Box):
            policy["log_std_init"] = _rounded(math.log(0.5 * float(scale.max())))
    return policy


def _observation_scales(env: gymnasium.Env) -> dict[str, Any]:
    """Return the half width and the middle of each observation: of its bounds, or of a few hundred random steps."""
    space = env.observation_space
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return {}
    low, high = space.low.flatten().astype(float), space.high.flatten().astype(float)
    bounded = np.maximum(np.abs(low), np.abs(high)) < _UNBOUNDED
    scale, offset = np.ones_like(low), np.zeros_like(low)
    scale[bounded] = (high[bounded] - low[bounded]) / 2
    offset[bounded] = (high[bounded] + low[bounded]) / 2
    if not bounded.all():
        seen = np.abs(_seen(env))[:, ~bounded]
        # Twice the root mean square holds most of what is seen, and no rare jump alone decides.
        scale[~bounded] = 2.0 * np.sqrt(np.mean(seen**2, 0))
    scale = np.array([_rounded(value) if value > 1e-3 else 1.0 for value in scale])
    found: dict[str, Any] = {"observation_scale": scale.tolist()}
    return found | ({"observation_offset": offset.tolist()} if offset.any() else {})


def _seen(env: gymnasium.Env) -> np.ndarray:
    """Return the observations (steps, nu) of random actions, the same every time."""
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    rows = [observation]
    for _ in range(_TRIED):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        rows.append(observation)
        if terminated or truncated:
            rows.append(env.reset()[0])
    return np.array(rows, dtype=float).reshape(len(rows), -1)


def _rounded(value: float) -> float:
    """Return a number with two digits."""
    return float(f"{value:.2g}")
