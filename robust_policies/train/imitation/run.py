"""A recipe of imitation -> run folder, with checkpoints that continue exactly.

A checkpoint holds weights, optimizer and all demonstrations; every round draws from a seed of its own.

Beside what every run folder has: imitation.json (the errors of every round, what teacher and student earn), and
closed_loop.json (what is proven of the policy in feedback with the task's linear model).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from robust_policies.control.feedback import compensator
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.linearize import linearize_plant
from robust_policies.control.norms import hinf_norm, radius
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError
from robust_policies.files.atomic import write_json
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.feedback import closed_loop_bound
from robust_policies.train.actor import new_actor
from robust_policies.train.imitation.algorithm import Imitation
from robust_policies.train.imitation.margin import ClosedLoopMargin
from robust_policies.train.imitation.rollout import Demonstrations, Stage
from robust_policies.train.imitation.teacher import LQGTeacher, teacher_of
from robust_policies.train.recipe.imitation import ImitationSection
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.loop import RETURN, Updates, run_updates, trained

SCHEMA = 1


class ImitationRun(Updates):
    """Learning from a recipe's teacher; an update is a round.

    Args:
        recipe: what to train.
        device: where.
        eval_seed: of the episodes of evaluations; those held out have the next seeds.
        teacher: where the recipe's teacher is "given": a policy, or anything with Stable-Baselines3's `predict`.

    Raises:
        UserError: task, teacher or policy do not fit.
    """

    shown = RETURN
    timed = False

    def __init__(self, recipe: Recipe[ImitationSection], device: str, eval_seed: int, teacher: Any = None) -> None:
        self.recipe, self.eval_seed = recipe, eval_seed
        settings = recipe.algorithm
        stage = Stage(recipe.task, recipe.task.num_envs, device)
        self.teacher = teacher_of(settings.teacher, teacher, stage.env, device)
        student = new_actor(recipe.policy, stage.observation_size, stage.action_space, recipe.seed).to(device)
        self.model, self.why_no_model = linear_model(recipe, stage)
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
        self.steps, self.updates = self.learning.horizon * stage.count, settings.updates
        self.history: list[dict[str, float]] = []
        self.held_out: Demonstrations | None = None
        self.teacher_return = math.nan

    @property
    def module(self) -> nn.Module:
        """The student."""
        return self.learning.student

    def update(self, progress: Progress) -> dict[str, Any]:
        """Return the scalars of one round made at `progress`; raises `DivergedError`."""
        if self.held_out is None:
            self._teach()
        return self.learning.round()

    def note(self, found: Mapping[str, Any]) -> None:
        """Keep the scalars of a round."""
        self.history.append({name: float(value) for name, value in found.items()})

    def deployed(self) -> DeployedPolicy:
        """Return a copy of the student as it is, on the CPU."""
        return self.learning.deployed()

    def evaluate(self) -> dict[str, float]:
        """Return the scalars of an evaluation; its episodes begin the same every time."""
        held_out, own, mean, length = self._errors()
        return {
            RETURN: mean,
            "eval/mean_ep_length": length,
            "eval/teacher_reward": self.teacher_return,
            "eval/held_out_mse": float(held_out.mean()),
            "eval/own_trajectories_mse": float(own.mean()),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimizer and all demonstrations, by name."""
        return self.learning.tensors()

    def facts(self) -> dict[str, Any]:
        """Return the scalars of all rounds."""
        return {"history": self.history}

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress) -> None:
        """Go on from what `tensors` returned, of the same shapes, and `facts`; raises as `Learner`'s."""
        self.learning.load_tensors(tensors, progress.n_updates // self.updates)
        self.history = list(facts["history"])

    def close(self) -> None:
        """Close the environments."""
        for stage in (self.learning.stage, self.watched, self.held_out_stage):
            stage.close()

    def report(self, run: RunFolder) -> None:
        """Write imitation.json and closed_loop.json about the student as it is."""
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
        if isinstance(self.teacher, LQGTeacher):
            base = self.teacher.base
            copied = compensator(base.model, base.design)
            rho = radius(copied.A)
            content["teacher_radius"], content["teacher_gain"] = rho, hinf_norm(copied) if rho < 1.0 else None
        write_json(run.imitation, content)
        write_json(
            run.closed_loop, {"schema": SCHEMA, **closed_loop(self.learning.deployed(), self.model, self.why_no_model)}
        )

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


def train_imitation(job: Job) -> TrainResult:
    """Return the result of learning from a teacher; see `train`."""

    def make(job: Job, stack: ExitStack) -> ImitationRun:
        learner = ImitationRun(job.recipe, job.device, job.eval_seed, job.teacher)
        stack.callback(learner.close)
        return learner

    return trained(job, make, run_updates, "task.num_envs", "algorithm.horizon", "algorithm.batch_size")


def closed_loop(policy: DeployedPolicy, model: LinearModel | None, why_no_model: str) -> dict[str, Any]:
    """Return what is proven of a policy in feedback with the task's linear model, as JSON data."""
    if model is None:
        return {"claim": f"Closed loop: no bound follows: {why_no_model}."}
    bound = closed_loop_bound(policy, model)
    numbers = {name: value for name, value in asdict(bound).items() if value != math.inf}
    said = {"claim": bound.claim(model), "model": model.origin, "exact": model.exact, "proven": bound.proven}
    return {**said, **numbers}


def linear_model(recipe: Recipe, stage: Stage) -> tuple[LinearModel | None, str]:
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
