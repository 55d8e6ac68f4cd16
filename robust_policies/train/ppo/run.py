"""A recipe of recurrent PPO -> run folder, with checkpoints that continue exactly."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from robust_policies.files.atomic import write_atomic
from robust_policies.policies import RecurrentCellPolicy, save_policy
from robust_policies.policies.youla.deploy import deploy_trained
from robust_policies.train.environment import make_env
from robust_policies.train.ppo.algorithm import TensorRecurrentPPO
from robust_policies.train.ppo.callback import RunCallback
from robust_policies.train.ppo.continuation import continues, read_checkpoint
from robust_policies.train.recipe.rates import schedule
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.checkpoints import Progress, reached
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.guard import LinAlgError, diverged, why_it_failed
from robust_policies.train.run.job import SEEDS, Job, TrainResult, interrupted
from robust_policies.train.run.logs import tensorboard_logger
from robust_policies.train.run.resources import memory_of
from robust_policies.train.run.stop import StopRequest


def make_model(recipe: Recipe, env: VecEnv, device: str = "cpu") -> OnPolicyAlgorithm:
    """Return the untrained model that the recipe describes, on `env`."""
    policy, algorithm = recipe.policy, recipe.algorithm
    policy_kwargs: dict[str, Any] = {
        "cell": policy.cell,
        "cell_kwargs": policy.cell_kwargs(),
        "critic": policy.critic,
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
    if algorithm.name == "tensor_ppo":
        kind = TensorRecurrentPPO
        options["normalize_observation"] = algorithm.normalize_observation
        options["spread_episodes"] = algorithm.spread_episodes
        options["normalize_reward"] = algorithm.normalize_reward and not isinstance(env, VecNormalize)
    return kind(
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


def train_ppo(job: Job) -> TrainResult:
    """Return the result of training by recurrent PPO; see `train`."""
    recipe, run, section = job.recipe, job.run, job.recipe.checkpoints
    with ExitStack() as stack:
        with memory_of(recipe, "task.num_envs"):
            env = make_env(recipe, recipe.task.num_envs, recipe.seed, job.device, training=True)
            stack.callback(env.close)
            eval_env = make_env(recipe, min(section.evaluate_episodes, 64), job.eval_seed, job.device, training=False)
            stack.callback(eval_env.close)
        stack.enter_context(memory_of(recipe, "task.num_envs", "algorithm.n_steps", "algorithm.batch_size"))
        model = make_model(recipe, env, job.device)
        continued = stack.enter_context(job.reserved())
        progress, best = (read_checkpoint(run.checkpoints, model) if continued else None) or (Progress(), None)
        if progress.num_timesteps and not continues(model):
            env.seed((recipe.seed + progress.num_timesteps) % SEEDS)
            warnings.warn(
                f"The state of {recipe.task.id} cannot be read: its episodes begin anew, so the run will not be number "
                "for number the one that was not interrupted.",
                stacklevel=3,
            )
        if best is not None:
            _restore_best(run, model, best)
        remaining = recipe.algorithm.total_steps - progress.num_timesteps
        if remaining > 0 and not reached(section, progress):
            model.set_logger(tensorboard_logger(run.tensorboard, progress.num_timesteps))
            job.reporter.start(recipe.algorithm.total_steps, progress.num_timesteps)
            with StopRequest() as stop:
                callback = RunCallback(run, section, job.eval_seed, eval_env, job.reporter, stop, progress, best)
                try:
                    model.learn(remaining, callback, reset_num_timesteps=False)
                except (ValueError, LinAlgError) as error:
                    found = why_it_failed(model, error)
                    if found is None:
                        raise
                    raise diverged(found, callback.update, model.num_timesteps) from error
                finally:
                    job.reporter.stop()
                    model.logger.close()
            if callback.interrupted:
                raise interrupted(run, recipe, progress)
            best = callback.best
        if section.keep == "best" and best is not None:
            model.policy.load_state_dict(best)
        write_atomic(run.policy_zip, lambda file: model.save(file))  # pyright: ignore[reportArgumentType]
        result = job.finish(progress)
        save_policy(deploy_trained(model), run.path)
    return result


def _restore_best(run: RunFolder, model: OnPolicyAlgorithm, best: dict[str, torch.Tensor]) -> None:
    """Write `checkpoints/best` as of the checkpoint: the killed run may have gone on to a better one."""
    current = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(best)
    save_policy(deploy_trained(model), run.checkpoints / "best")
    model.policy.load_state_dict(current)
