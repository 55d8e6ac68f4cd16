"""Recipe -> model -> run folder."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from robust_policies import checks
from robust_policies.certificates.files import write_atomic
from robust_policies.envs.registration import unknown_environment
from robust_policies.envs.sb3 import SB3VecEnv, make_sb3_vec_env
from robust_policies.errors import RobustPoliciesError
from robust_policies.policies import RecurrentCellPolicy, save_policy
from robust_policies.train.apg_recipe import ApgRecipe
from robust_policies.train.apg_run import ApgRun
from robust_policies.train.callbacks import RunCallback, StopRequest, diverging
from robust_policies.train.checkpoints import Progress, read_checkpoint
from robust_policies.train.folder import RunFolder
from robust_policies.train.progress import Reporter, Silent
from robust_policies.train.recipe import Recipe, schedule
from robust_policies.train.target import Outcome, outcome
from robust_policies.train.tensor_ppo import TensorRecurrentPPO

# Evaluation starts and resumed runs draw from seeds of their own.
_EVALUATION_SEED = 1_000_003
_SEEDS = 2**31


class TrainingInterruptedError(RobustPoliciesError):
    """Training was stopped by Ctrl-C or SIGTERM after a checkpoint was written."""

    exit_status = 1


@dataclass(frozen=True)
class TrainResult:
    """What a finished training says of itself."""

    folder: Path
    num_timesteps: int
    seconds: float
    best_reward: float | None
    best_timesteps: int | None
    target: Outcome | None = None


def make_env(recipe: Recipe, num_envs: int, seed: int, device: str, training: bool) -> VecEnv:
    """Return `num_envs` environments of the recipe's task that report each episode's return and length.

    Training environments divide rewards by the running deviation of the return if the recipe says so (where the
    algorithm does not do it itself); observations are never normalised by running statistics, which would change what a
    certificate is about.
    """
    env = make_sb3_vec_env(
        recipe.task.id,
        num_envs,
        seed,
        device=device,
        env_kwargs=recipe.task.kwargs,
        perturbations=recipe.task.perturbations,
    )
    on_device = recipe.algorithm.name == "tensor_ppo" and isinstance(env, SB3VecEnv)
    if training and recipe.algorithm.normalize_reward and not on_device:
        env = VecNormalize(env, norm_obs=False, norm_reward=True, gamma=recipe.algorithm.discount)
    return env


def check_tasks(ids: list[str]) -> None:
    """Raise `UnknownNameError` for the first id that Gymnasium does not know."""
    for name in ids:
        try:
            gymnasium.spec(name)
        except gymnasium.error.Error as error:
            raise unknown_environment(name) from error


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


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Return the result of training `recipe` into `folder`, or of continuing the run that is there.

    Args:
        recipe: what to train.
        folder: a new or empty folder; with `resume` also one that holds an interrupted run of the same recipe.
        device: `cpu`, `cuda` or `cuda:N`.
        resume: continue from the last checkpoint; episodes under way when it was written start afresh.
        reporter: shows progress; None shows nothing.

    Raises:
        UserError: the recipe names something unknown, the folder is in use, or the device does not exist; then
            nothing was written.
        TrainingInterruptedError: Ctrl-C or SIGTERM; a checkpoint was written.
        DivergedError: the weights became NaN or infinite.
    """
    run = RunFolder(folder)
    checks.device(device)
    check_tasks(recipe.evaluation.tasks)
    reporter = reporter or Silent()
    section = recipe.checkpoints
    eval_seed = (recipe.seed + _EVALUATION_SEED) % _SEEDS
    if isinstance(recipe, ApgRecipe):
        return _train_apg(recipe, run, device, resume, reporter, eval_seed)
    env = make_env(recipe, recipe.task.num_envs, recipe.seed, device, training=True)
    eval_env = make_env(recipe, min(section.evaluate_episodes, 64), eval_seed, device, training=False)
    try:
        model = make_model(recipe, env, device)
        continued = run.begin(recipe, resume)
        loaded = read_checkpoint(run.checkpoints, model, model.get_vec_normalize_env()) if continued else None
        progress, best = loaded or (Progress(), None)
        if loaded:
            env.seed((recipe.seed + progress.num_timesteps) % _SEEDS)
        if best is not None:
            _restore_best(run, model, best)
        began = time.monotonic() - progress.seconds
        remaining = recipe.algorithm.total_steps - progress.num_timesteps
        if remaining > 0:
            model.set_logger(configure(str(run.tensorboard), ["tensorboard"]))
            reporter.start(recipe.algorithm.total_steps, progress.num_timesteps)
            with StopRequest() as stop:
                callback = RunCallback(run, section, eval_seed, eval_env, reporter, stop, progress, best)
                try:
                    model.learn(remaining, callback, reset_num_timesteps=False)
                except ValueError as error:
                    raise diverging(error, lambda: _finite(model)) from error
                finally:
                    reporter.stop()
                    model.logger.close()
            if callback.interrupted:
                raise _interrupted(run, recipe, progress)
            best = callback.best
        seconds = time.monotonic() - began
        if section.keep == "best" and best is not None:
            model.policy.load_state_dict(best)
        _write_provenance(run, recipe, device, progress, seconds)
        write_atomic(run.policy_zip, lambda file: model.save(file))  # pyright: ignore[reportArgumentType]
        save_policy(model, run.path)
    finally:
        env.close()
        eval_env.close()
    return _result(run, recipe, progress, seconds)


def _train_apg(
    recipe: ApgRecipe, run: RunFolder, device: str, resume: bool, reporter: Reporter, eval_seed: int
) -> TrainResult:
    """Return the result of training by analytic policy gradients; see `train`."""
    training = ApgRun(recipe, device, reporter)
    if run.begin(recipe, resume):
        training.load(run)
    progress = training.progress
    if not training.finished and not training.train(run, eval_seed):
        raise _interrupted(run, recipe, progress)
    training.keep()
    _write_provenance(run, recipe, device, progress, progress.seconds)
    save_policy(training.algorithm.deployed(), run.path)
    return _result(run, recipe, progress, progress.seconds)


def _result(run: RunFolder, recipe: Recipe, progress: Progress, seconds: float) -> TrainResult:
    best, at = progress.best_reward, progress.best_timesteps
    return TrainResult(run.path, progress.num_timesteps, seconds, best, at, outcome(recipe.target, progress))


def _interrupted(run: RunFolder, recipe: Recipe, progress: Progress) -> TrainingInterruptedError:
    return TrainingInterruptedError(
        f"Stopped after {progress.num_timesteps} of {recipe.algorithm.total_steps} steps; the checkpoint is in "
        f"{run.checkpoints}. To go on, run the same command with --resume."
    )


def _write_provenance(run: RunFolder, recipe: Recipe, device: str, progress: Progress, seconds: float) -> None:
    reached = outcome(recipe.target, progress)
    run.write_provenance(
        seed=recipe.seed,
        device=device,
        num_timesteps=progress.num_timesteps,
        training_seconds=round(seconds, 1),
        kept=recipe.checkpoints.keep,
        best_mean_reward=progress.best_reward,
        best_timesteps=progress.best_timesteps,
        cpu_seconds=round(progress.cpu_seconds, 1),
        evaluations=progress.evaluations,
        target=None if reached is None else asdict(reached),
    )


def _finite(model: OnPolicyAlgorithm) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in model.policy.state_dict().values())


def _restore_best(run: RunFolder, model: OnPolicyAlgorithm, best: dict[str, torch.Tensor]) -> None:
    """Write `checkpoints/best` as of the checkpoint: the killed run may have gone on to a better one."""
    current = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(best)
    save_policy(model, run.checkpoints / "best")
    model.policy.load_state_dict(current)
