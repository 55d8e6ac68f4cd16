"""Recipe -> model -> run folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from robust_policies import checks
from robust_policies.certificates.files import write_atomic
from robust_policies.envs.registration import unknown_environment
from robust_policies.envs.sb3 import SB3VecEnv, make_sb3_vec_env
from robust_policies.errors import DivergedError, RobustPoliciesError
from robust_policies.policies import RecurrentCellPolicy, save_policy
from robust_policies.policies.export import deploy_trained
from robust_policies.train.apg_recipe import ApgRecipe
from robust_policies.train.apg_run import ApgRun
from robust_policies.train.callbacks import RunCallback, StopRequest
from robust_policies.train.checkpoints import Progress, last_checkpoint, reached, read_checkpoint
from robust_policies.train.continuation import continues
from robust_policies.train.determinism import deterministic
from robust_policies.train.folder import RunFolder
from robust_policies.train.guard import LinAlgError, diverged, why_it_failed
from robust_policies.train.imitation_recipe import ImitationRecipe
from robust_policies.train.imitation_run import ImitationRun
from robust_policies.train.logs import tensorboard_logger
from robust_policies.train.progress import Reporter, Silent
from robust_policies.train.recipe import Recipe, schedule
from robust_policies.train.resources import disk_of, memory_of
from robust_policies.train.target import Outcome, outcome
from robust_policies.train.tensor_ppo import TensorRecurrentPPO
from robust_policies.train.youla_recipe import youla_wrapper

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
    reached: bool = False
    """Whether it ended because an evaluation reached `checkpoints.stop_at_reward`."""
    target: Outcome | None = None


def make_env(recipe: Recipe, num_envs: int, seed: int, device: str, training: bool) -> VecEnv:
    """Return `num_envs` environments of the recipe's task that report each episode's return and length.

    Training environments divide rewards by the running deviation of the return if the recipe says so (where the
    algorithm does not do it itself); observations are never normalised by running statistics, which would change what a
    certificate is about. With a `youla` section they are inside the wrapper.
    """
    env = make_sb3_vec_env(
        recipe.task.id,
        num_envs,
        seed,
        device=device,
        env_kwargs=recipe.task.kwargs,
        perturbations=recipe.task.perturbations,
        wrap=youla_wrapper(recipe),
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
    teacher: Any = None,
) -> TrainResult:
    """Return the result of training `recipe` into `folder`, or of continuing the run that is there.

    Args:
        recipe: what to train.
        folder: a new or empty folder; with `resume` also one that holds an interrupted run of the same recipe.
        device: `cpu`, `cuda` or `cuda:N`.
        resume: continue from the last checkpoint, with the numbers of a run that was not interrupted where the
            environments are this package's; the episodes of others begin anew, and a warning says so.
        reporter: shows progress; None shows nothing.
        teacher: of imitation: what to learn from where the recipe's teacher is "given" (`train.imitate`).

    Raises:
        UserError: the recipe names something unknown, the folder is in use, or the device does not exist; then
            nothing was written.
        TrainingInterruptedError: Ctrl-C or SIGTERM; a checkpoint was written.
        DivergedError: something became NaN or infinite; the last checkpoint stays as it was.
        NotEnoughMemoryError, DiskError: memory or disk ran out; the last checkpoint is whole.
    """
    run = RunFolder(folder)
    checks.device(device)
    check_tasks(recipe.evaluation.tasks)
    job = _Job(recipe, run, device, resume, reporter or Silent(), (recipe.seed + _EVALUATION_SEED) % _SEEDS)
    with deterministic(recipe.deterministic):
        if isinstance(recipe, ImitationRecipe):
            return _train_imitation(job, recipe, teacher)
        return _train_apg(job, recipe) if isinstance(recipe, ApgRecipe) else _train_ppo(job)


class _Job(NamedTuple):
    recipe: Recipe
    run: RunFolder
    device: str
    resume: bool
    reporter: Reporter
    eval_seed: int

    @contextmanager
    def reserved(self) -> Iterator[bool]:
        """Keep the run folder for the block, and explain what ends it; yield whether a run is being continued."""
        run = self.run
        with run.reserved(self.recipe, self.resume) as continued, disk_of(run.path, run.checkpoints):
            try:
                yield continued
            except DivergedError as error:
                raise DivergedError(f"{error} {last_checkpoint(run.checkpoints)}") from error

    def finish(self, progress: Progress) -> TrainResult:
        """Return the result after writing the provenance."""
        recipe, section = self.recipe, self.recipe.checkpoints
        stopped, found = reached(section, progress), outcome(recipe.target, progress)
        self.run.write_provenance(
            seed=recipe.seed,
            device=self.device,
            deterministic=recipe.deterministic,
            num_timesteps=progress.num_timesteps,
            training_seconds=round(progress.seconds, 1),
            ended_by="stop_at_reward" if stopped else "total_steps",
            kept=section.keep,
            best_mean_reward=progress.best_reward,
            best_timesteps=progress.best_timesteps,
            cpu_seconds=round(progress.cpu_seconds, 1),
            evaluations=progress.evaluations,
            target=None if found is None else asdict(found),
        )
        best = progress.best_reward, progress.best_timesteps
        return TrainResult(self.run.path, progress.num_timesteps, progress.seconds, *best, stopped, found)


def _train_ppo(job: _Job) -> TrainResult:
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
            env.seed((recipe.seed + progress.num_timesteps) % _SEEDS)
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
                raise _interrupted(run, recipe, progress)
            best = callback.best
        if section.keep == "best" and best is not None:
            model.policy.load_state_dict(best)
        write_atomic(run.policy_zip, lambda file: model.save(file))  # pyright: ignore[reportArgumentType]
        result = job.finish(progress)
        save_policy(deploy_trained(model), run.path)
    return result


def _train_apg(job: _Job, recipe: ApgRecipe) -> TrainResult:
    """Return the result of training by analytic policy gradients; see `train`."""
    with memory_of(recipe, "task.num_envs", "algorithm.horizon"):
        training = ApgRun(recipe, job.device, job.reporter)
        with job.reserved() as continued:
            if continued:
                training.load(job.run)
            if not training.finished and not training.train(job.run, job.eval_seed):
                raise _interrupted(job.run, recipe, training.progress)
            training.keep()
            result = job.finish(training.progress)
            save_policy(training.algorithm.deployed(), job.run.path)
    return result


def _train_imitation(job: _Job, recipe: ImitationRecipe, teacher: Any) -> TrainResult:
    """Return the result of learning from a teacher; see `train`."""
    with ExitStack() as stack:
        stack.enter_context(memory_of(recipe, "task.num_envs", "algorithm.horizon", "algorithm.batch_size"))
        training = ImitationRun(recipe, job.device, job.reporter, job.eval_seed, teacher)
        stack.callback(training.close)
        if stack.enter_context(job.reserved()):
            training.load(job.run)
        if not training.finished and not training.train(job.run):
            raise _interrupted(job.run, recipe, training.progress)
        training.keep()
        training.report(job.run.path)
        result = job.finish(training.progress)
        save_policy(training.learning.deployed(), job.run.path)
    return result


def _interrupted(run: RunFolder, recipe: Recipe, progress: Progress) -> TrainingInterruptedError:
    done = progress.n_updates if isinstance(recipe, ImitationRecipe) else progress.num_timesteps
    return TrainingInterruptedError(
        f"Stopped after {done} of {recipe.algorithm.total_steps} steps; the checkpoint is in "
        f"{run.checkpoints}. To go on, run the same command with --resume."
    )


def _restore_best(run: RunFolder, model: OnPolicyAlgorithm, best: dict[str, torch.Tensor]) -> None:
    """Write `checkpoints/best` as of the checkpoint: the killed run may have gone on to a better one."""
    current = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(best)
    save_policy(deploy_trained(model), run.checkpoints / "best")
    model.policy.load_state_dict(current)
