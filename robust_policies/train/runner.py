"""Recipe -> model -> run folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from robust_policies import checks
from robust_policies.envs.batch import spec_of
from robust_policies.policies import save_policy
from robust_policies.train.apg.run import ApgRun
from robust_policies.train.imitation.run import ImitationRun
from robust_policies.train.ppo.run import train_ppo
from robust_policies.train.recipe.recipe import ApgRecipe, ImitationRecipe, Recipe
from robust_policies.train.run.determinism import deterministic
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.job import SEEDS, Job, TrainResult, interrupted
from robust_policies.train.run.progress import Reporter, Silent
from robust_policies.train.run.resources import memory_of

# Evaluation starts and resumed runs draw from seeds of their own.
_EVALUATION_SEED = 1_000_003


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
    for task in recipe.evaluation.tasks:
        spec_of(task)
    job = Job(recipe, run, device, resume, reporter or Silent(), (recipe.seed + _EVALUATION_SEED) % SEEDS)
    with deterministic(recipe.deterministic):
        if isinstance(recipe, ImitationRecipe):
            return _train_imitation(job, recipe, teacher)
        return _train_apg(job, recipe) if isinstance(recipe, ApgRecipe) else train_ppo(job)


def _train_apg(job: Job, recipe: ApgRecipe) -> TrainResult:
    """Return the result of training by analytic policy gradients; see `train`."""
    with memory_of(recipe, "task.num_envs", "algorithm.horizon"):
        training = ApgRun(recipe, job.device, job.reporter)
        with job.reserved() as continued:
            if continued:
                training.load(job.run)
            if not training.finished and not training.train(job.run, job.eval_seed):
                raise interrupted(job.run, recipe, training.progress)
            training.keep()
            result = job.finish(training.progress)
            save_policy(training.algorithm.deployed(), job.run.path)
    return result


def _train_imitation(job: Job, recipe: ImitationRecipe, teacher: Any) -> TrainResult:
    """Return the result of learning from a teacher; see `train`."""
    with ExitStack() as stack:
        stack.enter_context(memory_of(recipe, "task.num_envs", "algorithm.horizon", "algorithm.batch_size"))
        training = ImitationRun(recipe, job.device, job.reporter, job.eval_seed, teacher)
        stack.callback(training.close)
        if stack.enter_context(job.reserved()):
            training.load(job.run)
        if not training.finished and not training.train(job.run):
            raise interrupted(job.run, recipe, training.progress)
        training.keep()
        training.report(job.run.path)
        result = job.finish(training.progress)
        save_policy(training.learning.deployed(), job.run.path)
    return result
