"""A recipe of the analytic policy gradient -> run folder, with checkpoints that continue exactly.

A checkpoint holds weights, optimizers, plants, policies and the random generator: all that decides what comes next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import flatdim
from stable_baselines3.common.logger import Logger
from torch import Tensor

from robust_policies import checks
from robust_policies.envs.batch import make_one, plant_of, spec_of
from robust_policies.envs.plant import Plant
from robust_policies.errors import InvalidValueError
from robust_policies.policies import save_policy
from robust_policies.policies.actor import Actor
from robust_policies.policies.youla.base import BaseController
from robust_policies.policies.youla.policy import YoulaCell
from robust_policies.train.actor import new_actor
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.environment import youla_wrapper
from robust_policies.train.recipe.recipe import ApgRecipe
from robust_policies.train.run.checkpoints import Progress, newest_state, reached, weights, write_state
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.guard import diverged
from robust_policies.train.run.logs import tensorboard_logger
from robust_policies.train.run.monitor import certified
from robust_policies.train.run.progress import Reporter
from robust_policies.train.run.stop import StopRequest


def task_plant(recipe: ApgRecipe) -> tuple[Plant, int]:
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
    given = {key: value for key, value in task.kwargs.items() if key != "task"}
    limit = checks.positive_int(
        "task.kwargs.max_episode_steps", given.pop("max_episode_steps", plant.max_episode_steps)
    )
    if given:
        raise InvalidValueError(
            f"task.kwargs is {task.kwargs} with algorithm.name 'apg'; expected max_episode_steps and task alone, "
            f"or {instead}."
        )
    return plant, limit


def make_actor(recipe: ApgRecipe, plant: Plant, device: str) -> Actor:
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


def base_controller(recipe: ApgRecipe) -> BaseController | None:
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


class ApgRun:
    """One training into a folder.

    Args:
        recipe: what to train.
        device: where.
        reporter: shows progress.

    Raises:
        UserError: the recipe's task or policy does not fit; nothing was written.
    """

    def __init__(self, recipe: ApgRecipe, device: str, reporter: Reporter) -> None:
        self.recipe, self.reporter = recipe, reporter
        plant, limit = task_plant(recipe)
        actor = make_actor(recipe, plant, device)
        self.algorithm = AnalyticPolicyGradient(
            plant, actor, recipe.algorithm, recipe.task.num_envs, recipe.seed, limit
        )
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None

    @property
    def finished(self) -> bool:
        """Whether all steps of the recipe are done, or the return was reached at which it stops."""
        recipe, progress = self.recipe, self.progress
        return progress.num_timesteps >= recipe.algorithm.total_steps or reached(recipe.checkpoints, progress)

    def train(self, run: RunFolder, eval_seed: int) -> bool:
        """Return whether training came to its end; False after Ctrl-C, with a checkpoint of where it was.

        Raises:
            DivergedError: the objective, its gradient or an evaluation is NaN or infinite; the last checkpoint stays.
        """
        algorithm, progress, section = self.algorithm, self.progress, self.recipe.checkpoints
        total, saved = self.recipe.algorithm.total_steps, progress.num_timesteps
        updates = math.ceil(total / algorithm.steps_per_update)
        began, first = time.monotonic(), progress.num_timesteps
        before, cpu_began = progress.seconds, time.process_time() - progress.cpu_seconds
        logger = tensorboard_logger(run.tensorboard, first)
        self.reporter.start(total, first)
        try:
            with StopRequest() as stop:
                while not self.finished and not stop.requested:
                    found: dict[str, Any] = algorithm.update(1.0 - progress.n_updates / updates)
                    progress.n_updates += 1
                    progress.num_timesteps += algorithm.steps_per_update
                    progress.seconds = before + time.monotonic() - began
                    progress.cpu_seconds = time.process_time() - cpu_began
                    last = progress.num_timesteps >= total
                    found["time/fps"] = (progress.num_timesteps - first) / max(time.monotonic() - began, 1e-9)
                    if section.certify_every and (progress.n_updates % section.certify_every == 0 or last):
                        found |= self._timed(found, "certificate", lambda: certified(algorithm.deployed()))
                    if last or progress.num_timesteps - progress.last_evaluation >= section.evaluate_every:
                        found |= self._timed(found, "evaluation", lambda: self._evaluate(run, eval_seed))
                    if self.finished or progress.num_timesteps - saved >= section.every:
                        self._timed(found, "checkpoint", lambda: self.save(run.checkpoints))
                        saved = progress.num_timesteps
                    self._log(logger, found)
                if not self.finished:
                    self.save(run.checkpoints)
        finally:
            self.reporter.stop()
            logger.close()
        return self.finished

    def keep(self) -> None:
        """Put the best weights into the actor if the recipe keeps the best."""
        if self.recipe.checkpoints.keep == "best" and self.best is not None:
            self.algorithm.actor.load_state_dict(self.best)

    def save(self, folder: Path) -> None:
        """Write a checkpoint; older ones than the last two are deleted."""
        write_state(folder, self.progress, self.algorithm.tensors(), self.best, {})

    def load(self, run: RunFolder) -> None:
        """Go on from the newest checkpoint of a run, if there is one; `checkpoints/best` becomes what it was then."""
        found = newest_state(run.checkpoints)
        if found is None:
            return
        try:
            self.algorithm.load_tensors(found.tensors)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise found.damaged(error) from error
        self.progress, self.best = found.progress, found.best
        if self.best is not None:
            current = {name: value.clone() for name, value in self.algorithm.actor.state_dict().items()}
            self.algorithm.actor.load_state_dict(self.best)
            save_policy(self.algorithm.deployed(), run.checkpoints / "best")
            self.algorithm.actor.load_state_dict(current)

    @staticmethod
    def _timed(found: dict[str, Any], phase: str, what: Callable[[], Any]) -> Any:
        """Return what `what` returns, with its duration in `found`."""
        began = time.perf_counter()
        result = what()
        found[f"time/{phase}_seconds"] = time.perf_counter() - began
        return result

    def _log(self, logger: Logger, found: dict[str, Any]) -> None:
        progress, episodes = self.progress, self.algorithm.episodes
        mean = None
        if episodes:
            mean, length = (float(value) for value in np.mean(np.array(episodes), axis=0))
            found |= {"rollout/ep_rew_mean": mean, "rollout/ep_len_mean": length}
        for name, value in found.items():
            logger.record(name, value)
        logger.dump(progress.num_timesteps)
        self.reporter.update(progress.num_timesteps, mean, progress.best_reward)

    def _evaluate(self, run: RunFolder, seed: int) -> dict[str, float]:
        """Return the scalars of an evaluation; the best policy so far is kept."""
        algorithm, progress = self.algorithm, self.progress
        mean, length = algorithm.evaluate(self.recipe.checkpoints.evaluate_episodes, seed)
        if not math.isfinite(mean):
            raise diverged(f"the evaluation's mean return was {mean}", progress.n_updates, progress.num_timesteps)
        if self.recipe.checkpoints.policies:
            save_policy(algorithm.deployed(), run.policy_at(progress.num_timesteps))
        if progress.evaluated(mean):
            self.best = weights(algorithm.actor)
            save_policy(algorithm.deployed(), run.checkpoints / "best")
        return {"eval/mean_reward": mean, "eval/mean_ep_length": length}
