"""A recipe of the analytic policy gradient -> run folder, with checkpoints that continue exactly.

A checkpoint holds weights, optimizers, plants, policies and the random generator: all that decides what comes next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import flatdim
from torch import Tensor, nn

from robust_policies import checks
from robust_policies.certificates.trajectory import Gain
from robust_policies.envs.batch import make_one, plant_of, spec_of
from robust_policies.envs.plant import Plant
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.policies.actor import Actor
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.return_task import linear_task
from robust_policies.policies.youla.base import BaseController
from robust_policies.policies.youla.policy import YoulaCell
from robust_policies.train.actor import new_actor
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.apg.certified import UnprovenStartError
from robust_policies.train.apg.start import imitated, load_start
from robust_policies.train.environment import youla_wrapper
from robust_policies.train.recipe.apg import ApgSection
from robust_policies.train.recipe.imitation import LQG
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.loop import RETURN, Updates, run_updates, trained

_CERTIFIED = "eval/certified_reward"


def task_plant(recipe: Recipe[ApgSection]) -> tuple[Plant, int]:
    """Return the plant of the recipe's task and its time limit.

    Raises:
        UnknownNameError: no such task. InvalidValueError: gradients cannot be taken through it.
    """
    task = recipe.task
    instead = "train it with algorithm.name=recurrent_ppo"
    spec_of(task.id)
    plant = plant_of(task.id, task.kwargs)
    if plant is None:
        raise InvalidValueError(
            f"algorithm.name is 'apg' and task.id is {task.id!r}, whose equations are not known here; expected a "
            f"torch-native task of this package (robust_policies/...), or {instead}."
        )
    if not plant.differentiable:
        raise InvalidValueError(
            f"algorithm.name is 'apg' and task.id is {task.id!r}, a {plant.kind} task, through which no gradients "
            "flow; expected a torch-native task (the pendulums, cart-poles, linear plants, QubeServo, MagLev or the "
            f"quadrotors), or {instead}."
        )
    if plant.discrete_actions is not None:
        raise InvalidValueError(
            f"algorithm.name is 'apg' and task.id is {task.id!r}, whose actions are choices; expected a task of "
            f"continuous actions (such as robust_policies/CartPoleContinuous-v0), or {instead}."
        )
    if task.perturbations:
        raise InvalidValueError(
            f"task.perturbations is {task.perturbations} with algorithm.name 'apg', which differentiates the plant "
            f"itself; expected none (evaluation.perturbations stays possible), or {instead}."
        )
    given = {key: value for key, value in task.kwargs.items() if key not in ("task", "model")}
    limit = checks.positive_int(
        "task.kwargs.max_episode_steps", given.pop("max_episode_steps", plant.max_episode_steps)
    )
    if given:
        raise InvalidValueError(
            f"task.kwargs is {task.kwargs} with algorithm.name 'apg'; expected max_episode_steps and task alone, "
            f"or {instead}."
        )
    return plant, limit


def make_actor(recipe: Recipe[ApgSection], plant: Plant, device: str) -> Actor:
    """Return the untrained actor that the recipe describes; the same seed gives the same weights.

    With a `youla` section it is the whole controller, whose parameters are the Youla parameter's: gradients flow
    through plant, observer and feedback.
    """
    base = base_controller(recipe)
    inputs, actions = plant.observation_size, spaces.Box(plant.action_low, plant.action_high, dtype=np.float64)
    if base is not None:
        inputs, actions = flatdim(base.youla_observation_space), base.youla_action_space
    actor = new_actor(recipe.policy, inputs, actions, recipe.seed)
    if recipe.algorithm.zero_init and actor.head.linear is None:
        actor.cell.zero_output_()
    return (actor if base is None else YoulaCell(base, actor).as_actor()).to(device)


def base_controller(recipe: Recipe[ApgSection]) -> BaseController | None:
    """Return the base controller of the recipe's `youla` section; None without one.

    Raises:
        UserError: it does not fit the task.
    """
    wrap = youla_wrapper(recipe)
    if wrap is None:
        return None
    env = wrap(make_one(recipe.task.id, recipe.task.kwargs))
    env.close()
    return env.controller


class ApgRun(Updates):
    """The analytic policy gradient on a recipe's task.

    Args:
        recipe: what to train.
        device: where.
        eval_seed: of the episodes of evaluations.

    Raises:
        UserError: the recipe's task or policy does not fit.
    """

    updates = 1
    shown = "rollout/ep_rew_mean"
    timed = True

    def __init__(self, recipe: Recipe[ApgSection], device: str, eval_seed: int = 0) -> None:
        self.recipe, self.eval_seed = recipe, eval_seed
        plant, limit = task_plant(recipe)
        actor = make_actor(recipe, plant, device)
        self.start, self.device = recipe.algorithm.start, device
        if recipe.algorithm.certified_size is not None:
            linear_task({"id": recipe.task.id, "kwargs": recipe.task.kwargs})
        if self.start not in (None, LQG):
            load_start(actor, self.start)
        self.algorithm = AnalyticPolicyGradient(
            plant, actor, recipe.algorithm, recipe.task.num_envs, recipe.seed, limit
        )
        self.steps = self.algorithm.steps_per_update
        if self.algorithm.certified is not None and self.start != LQG:
            self.algorithm.certified.begin()
        self._number = math.ceil(recipe.algorithm.total_steps / self.steps)
        self._began: tuple[float, int] | None = None

    @property
    def module(self) -> nn.Module:
        """The actor."""
        return self.algorithm.actor

    def update(self, progress: Progress) -> dict[str, Any]:
        """Return the scalars of one update made at `progress`; raises `DivergedError`."""
        if self.start == LQG and not progress.n_updates:
            self._imitate()
        began, first = self._began = self._began or (time.monotonic(), progress.num_timesteps)
        found: dict[str, Any] = self.algorithm.update(1.0 - progress.n_updates / self._number)
        steps = progress.num_timesteps + self.steps - first
        found["time/fps"] = steps / max(time.monotonic() - began, 1e-9)
        if self.algorithm.episodes:
            mean, length = np.mean(np.array(self.algorithm.episodes), axis=0)
            found |= {self.shown: float(mean), "rollout/ep_len_mean": float(length)}
        return found

    def deployed(self) -> DeployedPolicy:
        """Return a copy of the policy as it is, on the CPU."""
        return self.algorithm.deployed()

    def evaluate(self) -> dict[str, float]:
        """Return the scalars of an evaluation; its episodes begin the same every time."""
        mean, length = self.algorithm.evaluate(self.recipe.checkpoints.evaluate_episodes, self.eval_seed)
        found = {RETURN: mean, "eval/mean_ep_length": length}
        certified = self.algorithm.certified
        gain = None if certified is None else certified.proven()
        if isinstance(gain, Gain):
            size, steps = self.recipe.algorithm.certified_size or 0.0, self.algorithm.limit
            bound = -((math.sqrt(max(-mean, 0.0)) + gain.gain * size * math.sqrt(steps)) ** 2)
            found |= {"eval/certified_gain": gain.gain, _CERTIFIED: bound}
        return found

    def rank(self, found: Mapping[str, float]) -> float | None:
        """Return the mean return, or with a certified_size the certified one, None where nothing is proven."""
        return found[RETURN] if self.algorithm.certified is None else found.get(_CERTIFIED)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimizers, plants, memories and the random generator, by name."""
        return self.algorithm.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress) -> None:
        """Go on from what `tensors` returned, of the same shapes; raises KeyError or RuntimeError elsewhere."""
        self.algorithm.load_tensors(tensors)

    def _imitate(self) -> None:
        """Begin with an imitation of the task's design."""
        imitated(self.algorithm.actor, self.recipe, self.device, self.eval_seed)
        if self.algorithm.certified is not None:
            try:
                self.algorithm.certified.begin()
            except NotCertifiableError as error:
                raise UnprovenStartError(f"After algorithm.start_rounds rounds of imitation: {error}") from error


def train_apg(job: Job) -> TrainResult:
    """Return the result of training by analytic policy gradients; see `train`."""
    return trained(
        job,
        lambda job, stack: ApgRun(job.recipe, job.device, job.eval_seed),
        run_updates,
        "task.num_envs",
        "algorithm.horizon",
    )
