"""The one way to environments: a registered id, `module:id`, an environment, or a function that makes one.

`module:id` is Gymnasium's form for what is registered when a module is imported. A task's folder is an option of this
package's ids: `kwargs={"task": FOLDER}`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, parse_env_id, registry
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import TimeLimit

from robust_policies.envs.perturb.applying import perturb
from robust_policies.envs.perturb.listing import parse
from robust_policies.envs.plant import Plant
from robust_policies.envs.registration import VECTOR, register_tasks, unknown_environment
from robust_policies.envs.side_by_side import SideBySide
from robust_policies.envs.task import load_plant
from robust_policies.envs.vector import TorchVectorEnv, changes
from robust_policies.errors import InvalidValueError, RobustPoliciesError, UnknownNameError

Environment = str | gymnasium.Env | Callable[..., gymnasium.Env]
"""An id, `module:id`, an environment of which copies are made, or a function that makes one environment."""


def spec_of(env_id: str) -> EnvSpec:
    """Return what Gymnasium knows of an id, or of `module:id` once the module is imported.

    Raises:
        UnknownNameError: there is no such id, or no such module.
    """
    register_tasks()
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        # Somebody's module may end the process too.
        except (Exception, SystemExit) as error:
            raise UnknownNameError(
                f"{env_id!r} names the module {module!r}, which cannot be imported ({type(error).__name__}: {error}); "
                f"expected one on Python's path that registers {name!r}."
            ) from error
    spec = registry.get(name) or _newest(name)
    if spec is None:
        raise unknown_environment(env_id)
    return spec


def ours(env: Environment) -> bool:
    """Return whether a name is one of this package's, or of `register_task`: tensors, many at once."""
    if not isinstance(env, str):
        return False
    try:
        return spec_of(env).vector_entry_point == VECTOR
    except UnknownNameError:
        return False


def plant_of(env: Environment, kwargs: Mapping[str, Any] | None = None) -> Plant | None:
    """Return the plant of this package's environment with these options, None for any other name.

    Raises:
        UserError: what `load_plant` raises of the task.
    """
    if not isinstance(env, str) or not ours(env):
        return None
    given = kwargs or {}
    return load_plant(given.get("task", spec_of(env).kwargs["task"]), changes(given.get("model")))


def name_of(env: Environment) -> str:
    """Return how messages call an environment."""
    if isinstance(env, gymnasium.Env):
        return type(env.unwrapped).__name__
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)


def make_one(env: Environment, kwargs: Mapping[str, Any] | None = None) -> gymnasium.Env:
    """Return one environment, made with the options `kwargs`.

    Raises:
        UserError: there is no such environment, it does not take the options (one that is there takes none), or its own
            package cannot make it.
    """
    options = dict(kwargs or {})
    if options and isinstance(env, gymnasium.Env):
        raise InvalidValueError(
            f"{name_of(env)} is there already and takes no options; {options} was given. Give them where it is made."
        )
    with told(env, options):
        if isinstance(env, str):
            return gymnasium.make(spec_of(env).id, **options)
        return copy.deepcopy(env) if isinstance(env, gymnasium.Env) else env(**options)


def make_batch(
    env: Environment,
    count: int,
    kwargs: Mapping[str, Any] | None = None,
    perturbations: Any = (),
    *,
    autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
    device: torch.device | str = "cpu",
) -> VectorEnv:
    """Return `count` environments side by side, inside `perturbations` as `perturb` takes them.

    This package's are one `TorchVectorEnv` on `device`; others are stepped one after the other in NumPy.

    Raises:
        UserError: there is no such environment, it does not take the options, its own package cannot make it, or a
            perturbation does not fit it.
    """
    options, specifications = dict(kwargs or {}), parse(perturbations)
    if ours(env):
        with told(env, options):
            made = gymnasium.make_vec(
                spec_of(str(env)).id, num_envs=count, autoreset_mode=autoreset, device=device, **options
            )
    else:
        made = SideBySide([lambda: make_one(env, options) for _ in range(count)], autoreset_mode=autoreset)
    try:
        return perturb(made, specifications)
    except Exception:
        made.close()
        raise


def time_limit(env: VectorEnv | gymnasium.Env) -> int | None:
    """Return the number of steps an episode can last, None if the environment does not say."""
    inner: Any = env.unwrapped
    if isinstance(inner, TorchVectorEnv):
        return inner.max_episode_steps
    at: Any = inner.envs[0] if isinstance(env, VectorEnv) else env
    if at.spec is not None and at.spec.max_episode_steps is not None:
        return at.spec.max_episode_steps
    while isinstance(at, gymnasium.Wrapper):
        if isinstance(at, TimeLimit):
            return at._max_episode_steps
        at = at.env
    return None


@contextmanager
def told(env: Environment, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn what goes wrong while an environment is made into an `InvalidValueError` that says whose mistake it is."""
    try:
        yield
    except (RobustPoliciesError, MemoryError):
        raise
    except Exception as error:
        name, said = name_of(env), " ".join(str(error).split())
        if isinstance(error, TypeError) and options:
            raise InvalidValueError(f"{name} does not take the options {dict(options)}: {said}.") from error
        if ours(env):
            raise
        raise InvalidValueError(
            f"{name} cannot be made: its own package, not this one, raised {type(error).__name__}: {said}."
        ) from error


def _newest(name: str) -> EnvSpec | None:
    """Return the highest version of an id that is given without one, None if there is none."""
    try:
        namespace, bare, version = parse_env_id(name)
    except gymnasium.error.Error:
        return None
    highest = find_highest_version(namespace, bare) if version is None else None
    return None if highest is None else registry.get(get_env_id(namespace, bare, highest))
