"""A recipe of sac, td3 or ppo -> run folder, with checkpoints that continue exactly, the replay buffer in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.optim import Optimizer

from robust_policies.files.tensors import load_optimizer, optimizer_tensors, under
from robust_policies.train.ppo.callback import RunCallback
from robust_policies.train.ppo.continuation import Moment
from robust_policies.train.ppo.run import PpoRun, learn
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.loop import Training, trained
from robust_policies.train.sb3.buffer import arrays_of, load_replay, replay_tensors
from robust_policies.train.sb3.callback import OffPolicyCallback
from robust_policies.train.sb3.model import make_model
from robust_policies.train.sb3.normalized import Normalized, share_statistics


class PlainPpoRun(PpoRun):
    """Stable-Baselines3's PPO on a recipe's task; see `PpoRun`."""

    def make_model(self, recipe: Recipe, env: VecEnv, device: str) -> BaseAlgorithm:
        """Return the untrained model."""
        model = make_model(recipe, env, device)
        self._module = Normalized(model)
        return model

    @property
    def module(self) -> nn.Module:
        """Actor, critic and the statistics of observations."""
        return self._module

    def evaluate(self) -> dict[str, float]:
        """Return the scalars of an evaluation; its episodes begin the same every time."""
        share_statistics(self.model, self.eval_env)
        return super().evaluate()


class OffPolicyRun(PlainPpoRun):
    """SAC or TD3 on a recipe's task."""

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimizers, the replay buffer and environments, by name."""
        assert self.moment is not None
        tensors = {f"policy.{name}": value for name, value in self.model.policy.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            tensors |= {f"{name}.{key}": value for key, value in optimizer_tensors(optimizer).items()}
        if (entropy := getattr(self.model, "log_ent_coef", None)) is not None:
            tensors["log_ent_coef"] = entropy
        tensors |= {f"replay.{name}": value for name, value in replay_tensors(self.model.replay_buffer).items()}
        return tensors | {f"moment.{name}": value for name, value in self.moment.tensors.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress) -> None:
        """Go on from what `tensors` returned, of the same shapes, and `facts`; raises as `Learner`'s."""
        model = self.model
        model.policy.load_state_dict(under("policy", tensors))
        for name, optimizer in self._optimizers().items():
            load_optimizer(optimizer, under(name, tensors))
        if (entropy := getattr(model, "log_ent_coef", None)) is not None:
            entropy.data.copy_(tensors["log_ent_coef"])
        load_replay(model.replay_buffer, under("replay", tensors))
        Moment(under("moment", tensors), facts).resume(model)
        model.num_timesteps, model._n_updates = progress.num_timesteps, progress.n_updates

    def buffer_size(self) -> str:
        """Return what the replay buffer needs, for a person."""
        size = sum(array.nbytes for array in arrays_of(self.model.replay_buffer).values())
        return (
            f"Replay buffer: {self.model.buffer_size} steps, {size / 1e6:.4g} MB when it is full, and as much in each "
            "of the last two checkpoints."
        )

    def _optimizers(self) -> dict[str, Optimizer]:
        entropy = getattr(self.model, "ent_coef_optimizer", None)
        found = {"actor_optimizer": self.model.actor.optimizer, "critic_optimizer": self.model.critic.optimizer}
        return found if entropy is None else {**found, "ent_coef_optimizer": entropy}


def train_plain_ppo(job: Job) -> TrainResult:
    """Return the result of training by Stable-Baselines3's PPO; see `train`."""

    def begin(training: Training, learner: PlainPpoRun) -> None:
        learn(training, learner, lambda stop: RunCallback(training, learner, stop))

    return trained(job, PlainPpoRun, begin, "task.num_envs", "algorithm.n_steps", "algorithm.batch_size")


def train_off_policy(job: Job) -> TrainResult:
    """Return the result of training by SAC or TD3; see `train`."""

    def begin(training: Training, learner: OffPolicyRun) -> None:
        job.reporter.note(learner.buffer_size())
        learn(training, learner, lambda stop: OffPolicyCallback(training, learner, stop))

    return trained(job, OffPolicyRun, begin, "algorithm.buffer_size", "task.num_envs", "algorithm.batch_size")
