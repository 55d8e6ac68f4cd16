"""A recipe of adversarial imitation -> run folder: PPO on the device, whose reward is learnt beside the policy.

Before the advantages of every rollout, the reward learns to tell its steps from the teacher's; the policy then learns
from the new reward of the same steps. The task's own reward is logged and evaluated and never learnt from.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robust_policies.errors import InvalidValueError
from robust_policies.files.atomic import write_json
from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.train.imitation.adversary import Adversary
from robust_policies.train.imitation.demonstrations import Shown, shown
from robust_policies.train.imitation.rollout import Stage
from robust_policies.train.imitation.run import SCHEMA, closed_loop, linear_model
from robust_policies.train.ppo.algorithm import TensorRecurrentPPO
from robust_policies.train.ppo.buffer import TensorRolloutBuffer
from robust_policies.train.ppo.run import PpoRun, learn_ppo, make_model
from robust_policies.train.recipe.gail import GailSection
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.loop import trained


class AdversarialPPO(TensorRecurrentPPO):
    """`TensorRecurrentPPO` that learns from an `Adversary`'s reward.

    Attributes:
        adversary: of the reward; to be set before `learn`.
    """

    adversary: Adversary

    def rewards_of(self, buffer: TensorRolloutBuffer) -> Tensor:
        """Return the learnt rewards (n_steps, n_envs), after the reward was fitted to this rollout too."""
        observations = buffer.observations
        actions = buffer.actions if self._bounds is None else buffer.actions.clamp(*self._bounds)
        try:
            found = self.adversary.learn(observations.flatten(0, 1), actions.flatten(0, 1))
        except FloatingPointError as error:
            self._check(f"of the learnt reward: {error}")
            raise
        for name, value in found.items():
            self.logger.record(name, value)
        rewards = self.adversary.reward(observations, actions)
        self.logger.record("imitation/learnt_reward", float(rewards.mean()))
        return rewards

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "adversary"]


class GailRun(PpoRun):
    """Adversarial imitation of a recipe's teacher.

    Args:
        job: what to train, and where.
        stack: closes the environments.

    Raises:
        UserError: task, teacher or policy do not fit.
    """

    def __init__(self, job: Job, stack: ExitStack) -> None:
        recipe: Recipe[GailSection] = job.recipe
        self.recipe = recipe
        stage = Stage(recipe.task, recipe.algorithm.demonstrations, job.device)
        stack.callback(stage.close)
        self.linear, self.why_no_model = linear_model(recipe, stage)
        self.shown: Shown = shown(recipe, stage, recipe.seed, job.teacher, job.device)
        super().__init__(job, stack)

    def make_model(self, recipe: Recipe, env: VecEnv, device: str) -> Any:
        """Return the untrained model with its untrained reward."""
        if env.unwrapped.__class__.__name__ != "SB3VecEnv":
            raise InvalidValueError(
                f"algorithm.name is gail and {recipe.task.id} does not run on tensors; expected a task of this "
                "package (robust_policies/...)."
            )
        model = make_model(recipe, env, device, self.ranks, AdversarialPPO)
        assert isinstance(model, AdversarialPPO)
        if model.why_numpy is not None:
            raise InvalidValueError(f"algorithm.name is gail, which runs on tensors, but {model.why_numpy}.")
        seen, done, *_ = self.shown
        model.adversary = Adversary(seen, done, recipe.algorithm.reward, model.device)
        return model

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimizers and environments, by name."""
        adversary = self.model.adversary
        found = {f"reward.{name}": value for name, value in adversary.reward.state_dict().items()}
        found |= {f"reward_optimizer.{name}": value for name, value in optimizer_tensors(adversary.optimizer).items()}
        return super().tensors() | found

    def load_tensors(self, tensors: Any, facts: Any, progress: Any) -> None:
        """Go on from what `tensors` returned, of the same shapes, and `facts`; raises as `Learner`'s."""
        adversary = self.model.adversary
        adversary.reward.load_state_dict(under("reward", tensors))
        load_optimizer(adversary.optimizer, under("reward_optimizer", tensors))
        super().load_tensors(tensors, facts, progress)

    def report(self, run: RunFolder) -> None:
        """Write policy.zip, and imitation.json and closed_loop.json about the policy as it is."""
        super().report(run)
        settings, gains = self.recipe.algorithm, self.model.adversary.gains()
        content = {
            "schema": SCHEMA,
            "teacher": settings.teacher,
            "method": "gail",
            "demonstrations": self.shown.episodes,
            "steps": len(self.shown.actions),
            "student_return": self.evaluate()["eval/mean_reward"],
            "teacher_return": self.shown.mean_return,
            "reward": {"cell": settings.reward.cell, **gains},
        }
        write_json(run.imitation, content)
        found = closed_loop(self.deployed(), self.linear, self.why_no_model)
        write_json(run.closed_loop, {"schema": SCHEMA, **found})


def train_gail(job: Job) -> TrainResult:
    """Return the result of adversarial imitation; see `train`."""
    return trained(job, GailRun, learn_ppo, "task.num_envs", "algorithm.n_steps", "algorithm.batch_size")
