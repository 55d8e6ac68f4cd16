"""A recipe of recurrent PPO -> run folder, with checkpoints that continue exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn

from robust_policies.checks import SEEDS
from robust_policies.files.atomic import write_atomic
from robust_policies.policies import RecurrentCellPolicy
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.sb3.deploy import deploy
from robust_policies.policies.youla.deploy import deploy_trained
from robust_policies.train.environment import make_env
from robust_policies.train.ppo.algorithm import TensorRecurrentPPO
from robust_policies.train.ppo.callback import RunCallback
from robust_policies.train.ppo.continuation import Moment, continues, load_model, model_tensors
from robust_policies.train.ppo.minibatches import merge_remainders
from robust_policies.train.ppo.shares import Shares
from robust_policies.train.recipe.rates import schedule
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.fitting import refuse_what_cannot_fit
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.guard import LinAlgError, diverged, why_it_failed
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.logs import tensorboard_logger
from robust_policies.train.run.loop import RETURN, Learner, Training, trained
from robust_policies.train.run.monitor import certified
from robust_policies.train.run.ranks import ALONE, Ranks
from robust_policies.train.run.resources import memory_of
from robust_policies.train.run.stop import StopRequest


def make_model(
    recipe: Recipe,
    env: VecEnv,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    on_device: type[TensorRecurrentPPO] = TensorRecurrentPPO,
) -> OnPolicyAlgorithm:
    """Return the untrained model that the recipe describes, on `env`, this rank's share of its environments.

    `on_device` makes it where the rollouts are to stay tensors.
    """
    policy, algorithm = recipe.policy, recipe.algorithm
    policy_kwargs: dict[str, Any] = {
        "cell": policy.cell,
        "cell_kwargs": policy.cell_kwargs(),
        "critic": policy.critic if isinstance(policy.critic, str) else policy.critic.model_dump(),
        "critic_kwargs": dict(policy.critic_kwargs),
        "observation_scale": policy.observation_scale,
        "observation_offset": policy.observation_offset,
        "action_scale": policy.action_scale,
        "action_offset": policy.action_offset,
        "cell_output_size": policy.cell_output_size,
        "log_std_init": policy.log_std_init,
    }
    options: dict[str, Any] = {}
    kind = RecurrentPPO
    if algorithm.on_device:
        kind = on_device
        options["normalize_observation"], options["graphs"] = algorithm.normalize_observation, algorithm.graphs
        options["spread_episodes"], options["ranks"] = algorithm.spread_episodes, ranks
        options["normalize_reward"] = algorithm.normalize_reward and not isinstance(env, VecNormalize)
    model = kind(
        RecurrentCellPolicy,
        env,
        learning_rate=schedule(algorithm.learning_rate),
        n_steps=algorithm.n_steps,
        batch_size=algorithm.batch_size,
        n_epochs=algorithm.n_epochs,
        gamma=algorithm.discount,
        gae_lambda=algorithm.gae_lambda,
        clip_range=schedule(algorithm.clip_range),
        ent_coef=algorithm.ent_coef,
        vf_coef=algorithm.vf_coef,
        max_grad_norm=algorithm.max_grad_norm,
        target_kl=algorithm.target_kl,
        normalize_advantage=algorithm.normalize_advantage,
        policy_kwargs=policy_kwargs,
        seed=recipe.seed,
        device=device,
        **options,
    )
    merge_remainders(model)
    return model


class PpoRun(Learner):
    """Recurrent PPO on a recipe's task.

    Args:
        job: what to train, and where.
        stack: closes the environments.

    Attributes:
        model: the algorithm.
        moment: what belongs to its weights and optimizer when a checkpoint is written.

    Raises:
        UserError: the recipe's task or policy does not fit.
    """

    def __init__(self, job: Job, stack: ExitStack) -> None:
        recipe, self.eval_seed, self.episodes = job.recipe, job.eval_seed, job.recipe.checkpoints.evaluate_episodes
        self.ranks = ranks = job.ranks
        count = ranks.share(recipe.task.num_envs, "task.num_envs")
        seed = (recipe.seed + ranks.rank * count) % SEEDS
        refuse_what_cannot_fit(recipe, count, job.device)
        with memory_of(recipe, "task.num_envs", device=job.device):
            env = make_env(recipe, count, seed, job.device, training=True)
            stack.callback(env.close)
            if ranks.first:
                self.eval_env = make_env(recipe, min(self.episodes, 64), job.eval_seed, job.device, training=False)
                stack.callback(self.eval_env.close)
        self.shares = None
        if not ranks.alone:
            self.shares = Shares(lambda number: make_env(recipe, number, 0, job.device, training=True), ranks)
        self.env, self.model = env, self.make_model(recipe, env, job.device)
        if not ranks.alone:
            # Stable-Baselines3 has seeded every rank's alike.
            env.seed(seed)
        self.moment: Moment | None = None

    def make_model(self, recipe: Recipe, env: VecEnv, device: str) -> Any:
        """Return the untrained model."""
        return make_model(recipe, env, device, self.ranks)

    @property
    def module(self) -> nn.Module:
        """Actor and critic."""
        return self.model.policy

    def deployed(self) -> DeployedPolicy:
        """Return a copy of the policy as it is, on the CPU."""
        return deploy_trained(self.model)

    def certified(self) -> dict[str, float]:
        """Return the scalars of what is proven of the network alone, in a Youla wrapper too."""
        return certified(deploy(self.model))

    def evaluate(self) -> dict[str, float]:
        """Return the scalars of an evaluation; its episodes begin the same every time."""
        # Two evaluations differ by the policy alone.
        self.eval_env.seed(self.eval_seed)
        returns, lengths = evaluate_policy(
            self.model, self.eval_env, self.episodes, return_episode_rewards=True, warn=False
        )
        return {RETURN: float(np.mean(returns)), "eval/mean_ep_length": float(np.mean(lengths))}

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimizer and environments, by name."""
        return model_tensors(self.model, self._whole)

    def facts(self) -> dict[str, Any]:
        """Return random generators, recent episodes and running statistics of the same moment."""
        return dict(self._whole.facts)

    @property
    def _whole(self) -> Moment:
        """The moment of all ranks' environments."""
        assert self.moment is not None
        return self.moment if self.shares is None else self.shares.whole(self.moment)

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress) -> None:
        """Go on from what `tensors` returned, of the same shapes, and `facts`; raises as `Learner`'s."""
        mine = () if self.shares is None else (self.shares.mine,)
        load_model(self.model, tensors, facts, progress, *mine)

    def report(self, run: RunFolder) -> None:
        """Write policy.zip, which Stable-Baselines3 loads."""
        # It takes an open file too, which its annotation leaves out.
        write_atomic(run.policy_zip, lambda file: self.model.save(file))  # pyright: ignore[reportArgumentType]


def train_ppo(job: Job) -> TrainResult:
    """Return the result of training by recurrent PPO; see `train`."""
    return trained(job, PpoRun, learn_ppo, "task.num_envs", "algorithm.n_steps", "algorithm.batch_size")


def learn_ppo(training: Training, learner: PpoRun) -> None:
    """Let Stable-Baselines3 learn until the training is finished; raises as `run_updates`."""
    learn(training, learner, lambda stop: RunCallback(training, learner, stop))


def learn(training: Training, learner: PpoRun, make: Callable[[StopRequest], RunCallback]) -> None:
    """Let Stable-Baselines3 learn with the callback that `make` returns; raises as `run_updates`."""
    job, progress, model = training.job, training.progress, learner.model
    if progress.num_timesteps and not continues(model):
        learner.env.seed((job.recipe.seed + progress.num_timesteps) % SEEDS)
        warnings.warn(
            f"The state of {job.recipe.task.id} cannot be read: its episodes begin anew, so the run will not be number "
            "for number the one that was not interrupted.",
            stacklevel=6,
        )
    first = job.ranks.first
    model.set_logger(
        tensorboard_logger(training.run.tensorboard, progress.num_timesteps) if first else Logger(None, [])
    )
    job.reporter.start(training.total, training.done)
    with job.stop as stop:
        callback = make(stop)
        try:
            model.learn(training.total - training.done, callback, reset_num_timesteps=False)
        except (ValueError, LinAlgError) as error:
            found = why_it_failed(model, error)
            if found is None:
                raise
            raise diverged(found, callback.update, model.num_timesteps) from error
        finally:
            job.reporter.stop()
            model.logger.close()
    if callback.interrupted:
        raise job.interrupted(progress)
