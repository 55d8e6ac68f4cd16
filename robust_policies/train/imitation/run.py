"""A recipe of imitation -> run folder, with checkpoints that continue exactly.

A checkpoint holds weights, optimizer and all demonstrations; every round draws from a seed of its own.

Beside what every run folder has: imitation.json (the errors of every round, what teacher and student earn), and
closed_loop.json (what is proven of the policy in feedback with the task's linear model).
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_policies.control.feedback import FeedbackBound, compensator
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.linearize import linearize_plant
from robust_policies.control.norms import hinf_norm, radius
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError
from robust_policies.files.atomic import write_json
from robust_policies.policies import save_policy
from robust_policies.policies.feedback import closed_loop_bound
from robust_policies.train.actor import new_actor
from robust_policies.train.imitation.algorithm import Imitation
from robust_policies.train.imitation.margin import ClosedLoopMargin
from robust_policies.train.imitation.rollout import Demonstrations, Stage
from robust_policies.train.imitation.teacher import LQGTeacher, teacher_of
from robust_policies.train.recipe.recipe import ImitationRecipe
from robust_policies.train.run.checkpoints import Progress, newest_state, reached, weights, write_state
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.guard import diverged
from robust_policies.train.run.logs import tensorboard_logger
from robust_policies.train.run.monitor import certified
from robust_policies.train.run.progress import Reporter
from robust_policies.train.run.stop import StopRequest

IMITATION = "imitation.json"
CLOSED_LOOP = "closed_loop.json"
SCHEMA = 1


class ImitationRun:
    """One training into a folder.

    Args:
        recipe: what to train.
        device: where.
        reporter: shows progress.
        eval_seed: of the episodes of evaluations; those held out have the next seeds.
        teacher: where the recipe's teacher is "given": a policy, or anything with Stable-Baselines3's `predict`.

    Raises:
        UserError: task, teacher or policy do not fit; nothing was written.
    """

    def __init__(
        self, recipe: ImitationRecipe, device: str, reporter: Reporter, eval_seed: int, teacher: Any = None
    ) -> None:
        self.recipe, self.reporter, self.eval_seed = recipe, reporter, eval_seed
        settings = recipe.algorithm
        stage = Stage(recipe.task, recipe.task.num_envs, device)
        self.teacher = teacher_of(settings.teacher, teacher, stage.env, device)
        student = new_actor(recipe.policy, stage.observation_size, stage.action_space, recipe.seed).to(device)
        self.model, self.why_no_model = _linear_model(recipe, stage)
        margin = None
        if settings.closed_loop_weight:
            if self.model is None:
                raise InvalidValueError(
                    f"algorithm.closed_loop_weight is {settings.closed_loop_weight:g}, which needs a linear model: "
                    f"{self.why_no_model}. Set it to 0."
                )
            margin = ClosedLoopMargin(self.model, student)
        self.learning = Imitation(stage, self.teacher, student, settings, recipe.seed, margin)
        self.watched = Stage(recipe.task, recipe.checkpoints.evaluate_episodes, device)
        self.held_out_stage = Stage(recipe.task, settings.held_out, device)
        self.progress = Progress()
        self.best: dict[str, Tensor] | None = None
        self.history: list[dict[str, float]] = []
        self.held_out: Demonstrations | None = None
        self.teacher_return = math.nan

    @property
    def finished(self) -> bool:
        """Whether all rounds are done, or the return was reached at which the recipe stops."""
        recipe, progress = self.recipe, self.progress
        return progress.n_updates >= recipe.algorithm.total_steps or reached(recipe.checkpoints, progress)

    def train(self, run: RunFolder) -> bool:
        """Return whether training came to its end; False after Ctrl-C, with a checkpoint of the last whole round.

        Raises:
            DivergedError: something became NaN or infinite; the last checkpoint stays.
        """
        learning, progress, section = self.learning, self.progress, self.recipe.checkpoints
        settings, saved = self.recipe.algorithm, progress.num_timesteps
        before, began = progress.seconds, time.monotonic()
        cpu_began = time.process_time() - progress.cpu_seconds
        self._teach()
        logger = tensorboard_logger(run.tensorboard, progress.num_timesteps)
        self.reporter.start(settings.total_steps, progress.n_updates)
        try:
            with StopRequest() as stop:
                while not self.finished and not stop.requested:
                    found = learning.round()
                    progress.n_updates += settings.updates
                    progress.num_timesteps += learning.horizon * learning.stage.count
                    progress.seconds = before + time.monotonic() - began
                    progress.cpu_seconds = time.process_time() - cpu_began
                    last = progress.n_updates >= settings.total_steps
                    if section.certify_every and (learning.rounds % section.certify_every == 0 or last):
                        found |= certified(learning.deployed())
                    if last or progress.num_timesteps - progress.last_evaluation >= section.evaluate_every:
                        found |= self._evaluate(run)
                    self.history.append({name: float(value) for name, value in found.items()})
                    if last or self.finished or progress.num_timesteps - saved >= section.every:
                        self.save(run.checkpoints)
                        saved = progress.num_timesteps
                    for name, value in found.items():
                        logger.record(name, value)
                    logger.dump(progress.num_timesteps)
                    self.reporter.update(progress.n_updates, found.get("eval/mean_reward"), progress.best_reward)
                if not self.finished:
                    self.save(run.checkpoints)
        finally:
            self.reporter.stop()
            logger.close()
        return self.finished

    def keep(self) -> None:
        """Put the best weights into the student if the recipe keeps the best."""
        if self.recipe.checkpoints.keep == "best" and self.best is not None:
            self.learning.student.load_state_dict(self.best)

    def close(self) -> None:
        """Close the environments."""
        for stage in (self.learning.stage, self.watched, self.held_out_stage):
            stage.close()

    def save(self, folder: Path) -> None:
        """Write a checkpoint; older ones than the last two are deleted."""
        write_state(folder, self.progress, self.learning.tensors(), self.best, {"history": self.history})

    def load(self, run: RunFolder) -> None:
        """Go on from the newest checkpoint of a run, if there is one; `checkpoints/best` becomes what it was then."""
        found = newest_state(run.checkpoints)
        if found is None:
            return
        try:
            rounds = found.progress.n_updates // self.recipe.algorithm.updates
            self.learning.load_tensors(found.tensors, rounds)
            self.history = list(found.facts["history"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise found.damaged(error) from error
        self.progress, self.best = found.progress, found.best
        if self.best is not None:
            save_policy(self.learning.deployed(self.best), run.checkpoints / "best")

    def report(self, folder: Path) -> FeedbackBound | None:
        """Write imitation.json and closed_loop.json about the student as it is, and return what is proven."""
        held_out, own, mean, _ = self._errors()
        spread = self._held_out().labels.flatten(0, 1).double().var(0, unbiased=False)
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "teacher": self.recipe.algorithm.teacher,
            "method": self.recipe.algorithm.method,
            "demonstrations": None if self.learning.data is None else self.learning.data.count,
            "horizon": self.learning.horizon,
            "held_out_episodes": self.recipe.algorithm.held_out,
            "held_out_mse": held_out.tolist(),
            "held_out_variance": spread.tolist(),
            "own_trajectories_mse": own.tolist(),
            "student_return": mean,
            "teacher_return": self.teacher_return,
            "rounds": self.history,
        }
        model = self.model
        if isinstance(self.teacher, LQGTeacher):
            base = self.teacher.base
            copied = compensator(base.model, base.design)
            rho = radius(copied.A)
            content["teacher_radius"], content["teacher_gain"] = rho, hinf_norm(copied) if rho < 1.0 else None
        write_json(folder / IMITATION, content)
        if model is None:
            write_json(
                folder / CLOSED_LOOP,
                {"schema": SCHEMA, "claim": f"Closed loop: no bound follows: {self.why_no_model}."},
            )
            return None
        bound = closed_loop_bound(self.learning.deployed(), model)
        numbers = {name: value for name, value in asdict(bound).items() if value != math.inf}
        write_json(folder / CLOSED_LOOP, {"schema": SCHEMA, "claim": bound.claim(model), "model": model.origin,
                                          "exact": model.exact, "proven": bound.proven, **numbers})  # fmt: skip
        return bound

    def _teach(self) -> None:
        """Let the teacher play the episodes that are held out, and those of the evaluations."""
        steps = self.watched.limit or self.learning.horizon
        played = self.held_out_stage.play((self.eval_seed + 1_000_000) % 2**31, self.learning.horizon, self.teacher)
        self.held_out = played.demonstrations
        self.teacher_return = float(self.watched.play(self.eval_seed, steps, self.teacher).returns.mean())

    def _held_out(self) -> Demonstrations:
        if self.held_out is None:
            self._teach()
        assert self.held_out is not None
        return self.held_out

    def _errors(self) -> tuple[Tensor, Tensor, float, float]:
        """Return the mean squared errors (na,) on held-out and on own episodes, mean return and length of these."""
        learning = self.learning
        steps = self.watched.limit or learning.horizon
        played = self.watched.play(self.eval_seed, steps, self.teacher, learning.student, chance=0.0)
        labels = played.demonstrations.labels
        own = (played.actions - labels).double().square().mean((0, 1))
        return (
            learning.error(self._held_out()),
            own,
            float(played.returns.mean()),
            float(played.lengths.double().mean()),
        )

    def _evaluate(self, run: RunFolder) -> dict[str, float]:
        """Return the scalars of an evaluation; the best policy so far is kept."""
        progress, learning = self.progress, self.learning
        held_out, own, mean, length = self._errors()
        if not (math.isfinite(mean) and bool(torch.isfinite(own).all())):
            raise diverged(f"the evaluation's mean return was {mean}", learning.rounds, progress.num_timesteps)
        if self.recipe.checkpoints.policies:
            save_policy(learning.deployed(), run.policy_at(progress.num_timesteps))
        if progress.evaluated(mean):
            self.best = weights(learning.student)
            save_policy(learning.deployed(), run.checkpoints / "best")
        return {
            "eval/mean_reward": mean, "eval/mean_ep_length": length, "eval/teacher_reward": self.teacher_return,
            "eval/held_out_mse": float(held_out.mean()), "eval/own_trajectories_mse": float(own.mean()),
        }  # fmt: skip


def _linear_model(recipe: ImitationRecipe, stage: Stage) -> tuple[LinearModel | None, str]:
    """Return the task's linear model, or None and why there is none."""
    inner = stage.env.unwrapped
    if recipe.task.perturbations:
        return None, f"task.perturbations {recipe.task.perturbations} are not part of the linear model"
    if not isinstance(inner, TorchVectorEnv):
        return None, f"the equations of {recipe.task.id} are not known here"
    try:
        return linearize_plant(inner.plant), ""
    except InvalidValueError as error:
        return None, str(error).rstrip(".")
