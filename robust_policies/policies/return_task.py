"""The tasks of which a return can be certified: a known plant at its nominal parameters, and nothing around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from robust_policies import checks
from robust_policies.control.augment import with_input_delay
from robust_policies.control.linear_model import LinearModel, from_matrices
from robust_policies.envs.batch import make_batch, name_of, time_limit
from robust_policies.envs.perturb.listing import parse
from robust_policies.envs.perturb.specs import ActionDelay, Spec
from robust_policies.envs.plant import Plant
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.envs.single import TaskEnv
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.youla.policy import YoulaPolicy

Task = str | Mapping[str, Any] | Plant | gymnasium.Env | VectorEnv | Callable[..., gymnasium.Env]
# What changes nothing of an episode.
_HARMLESS = (
    "PassiveEnvChecker", "OrderEnforcing", "TimeLimit", "PatchedTimeLimit", "RecordEpisodeStatistics",
    "EpisodeStatistics",
)  # fmt: skip  # PatchedTimeLimit: RL Zoo's


class BareTask(NamedTuple):
    """A task's name, its plant, the length of its episodes, and by how many steps its actions are late."""

    name: str
    plant: Plant
    steps: int
    delay: int


def bare_task(task: Task, delay: int = 0) -> BareTask:
    """Return what a task consists of; arguments and errors as `certified_return`."""
    checks.positive_int("delay", delay, minimum=0)
    name, plant, steps, own = _parts(task)
    if own and delay not in (0, own):
        raise InvalidValueError(f"delay is {delay}, and ActionDelay around the task is {own} step(s); leave one out.")
    return BareTask(name, plant, steps, own or delay)


def _parts(task: Task) -> BareTask:
    late = 0
    if isinstance(task, Plant):
        name, plant, steps = task.kind, task, task.max_episode_steps
    elif isinstance(task, (gymnasium.Env, VectorEnv)):
        name, (plant, steps, late) = getattr(task.spec, "id", type(task.unwrapped).__name__), _bare(task)
    else:
        entry: Any = {"id": task} if not isinstance(task, Mapping) else task
        extra = sorted(set(entry) - {"id", "kwargs", "perturbations"})
        if extra or "id" not in entry:
            raise InvalidValueError(f"The task is {dict(entry)!r}; expected an environment's id, and kwargs.")
        around = sum(_late(wrapper) for wrapper in parse(entry.get("perturbations")))
        name, made = name_of(entry["id"]), make_batch(entry["id"], 1, entry.get("kwargs"))
        try:
            plant, steps, late = _bare(made)
        finally:
            made.close()
        late += around
    return BareTask(name, plant, steps, late)


def linear_task(task: Task, delay: int = 0) -> tuple[str, LinearPlant, int, int]:
    """Return what `bare_task` does of a linear plant whose episodes do not end early, which others are refused."""
    name, plant, steps, late = bare_task(task, delay)
    if not isinstance(plant, LinearPlant):
        raise NotCertifiableError(
            f"The plant of {name} is {plant.kind!r}, which is not linear; this needs a linear plant (plant: linear in "
            "task.yaml)."
        )
    return name, lasting(name, plant), steps, late


def lasting(name: str, plant: LinearPlant) -> LinearPlant:
    """Return the linear plant of a task whose episodes do not end early; raises NotCertifiableError where they may."""
    if plant.terminates:
        raise NotCertifiableError(
            f"Episodes of {name} end where a state leaves its limits, and a bound of a return needs a fixed length; "
            "leave limits.state out of task.yaml."
        )
    return plant


def _bare(env: Any) -> tuple[Plant, int, int]:
    """Return the plant of an environment that only delays stand around, the length of its episodes, and the delay."""
    at, late = env, 0
    while at is not at.unwrapped:
        specification = vars(at).get("specification")
        if isinstance(specification, Spec):
            late += _late(specification)
        elif type(at).__name__ not in _HARMLESS:
            _refuse(type(at).__name__)
        at = at.env
    batch, steps = at.batch if isinstance(at, TaskEnv) else at, time_limit(env)
    if not isinstance(batch, TorchVectorEnv):
        raise NotCertifiableError(
            f"{type(at).__name__} holds environments of another package, whose equations are not known; a return is "
            "certified for this package's linear tasks alone."
        )
    if batch.varies:
        raise NotCertifiableError(
            "The environment's physical parameters are not the nominal ones, or vary from episode to episode; the "
            "plant would not be the one that the proof is of. Make it without `randomize`, a changed plant as a task "
            "of its own."
        )
    return batch.plant, min(batch.max_episode_steps, steps or batch.max_episode_steps), late


def _late(wrapper: Spec) -> int:
    """Return by how many steps a perturbation delays actions; raises NotCertifiableError for all others."""
    if not isinstance(wrapper, ActionDelay):
        _refuse(wrapper.name)
    return wrapper.steps


def _refuse(wrapper: str) -> NoReturn:
    why = "which the loop that is proven does not have"
    if "Delay" in wrapper:
        why = "a delay that the loop of the proof does not have (it may have one of the actions, ActionDelay)"
    elif "Normalize" in wrapper:
        why = "a normaliser that learns, so that the policy is another one at every step"
    raise NotCertifiableError(f"{wrapper} stands around the environment, {why}; certify without it.")


def fitting_model(policy: DeployedPolicy, plant: LinearPlant, delay: int = 0) -> LinearModel:
    """Return the plant's model, the actions on their way as states.

    Raises NotCertifiableError where the policy holds the model of another plant, or of another delay.
    """
    bare = from_matrices(plant.A, plant.B, plant.C, time_step=plant.time_step)
    check_fits(policy, bare)
    model = late_model(bare, delay)
    if isinstance(policy, YoulaPolicy):
        own = policy.controller.options.delay
        if _different(late_model(policy.model, own), model):
            if not (name := _different(policy.model, bare)):
                raise NotCertifiableError(
                    f"The policy was made for actions that are {own} step(s) late, here they are {delay}; its loop is "
                    "then another one. Make it with the option delay of this task."
                )
            raise NotCertifiableError(
                f"The policy was made for another plant: {name} of its model is not that of the task. Design it "
                "for this task."
            )
    return model


def late_model(model: LinearModel, delay: int) -> LinearModel:
    """Return the model whose inputs act `delay` steps later."""
    return with_input_delay(model, delay) if delay else model


def _different(own: LinearModel, here: LinearModel) -> str:
    """Return the name of the first matrix in which two models differ, "" where none does."""
    return next((name for name in "ABC" if not np.array_equal(getattr(own, name), getattr(here, name))), "")


def check_fits(policy: DeployedPolicy, model: LinearModel) -> None:
    """Raise ShapeError where the policy does not read the model's outputs or does not give its inputs."""
    sizes = policy.cell.input_size, policy.actor.head.output_size
    if sizes != (model.p, model.m):
        raise ShapeError(
            f"The policy reads {sizes[0]} number(s) and gives {sizes[1]}; the plant has {model.p} output(s) and "
            f"{model.m} input(s)."
        )
