"""Recipe -> model -> run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robust_policies import checks
from robust_policies.envs.batch import spec_of
from robust_policies.train.apg.run import train_apg
from robust_policies.train.imitation.gail import train_gail
from robust_policies.train.imitation.run import train_imitation
from robust_policies.train.ppo.run import train_ppo
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.recurrent_sac.run import train_recurrent_sac
from robust_policies.train.run.determinism import deterministic
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.progress import Reporter, Silent
from robust_policies.train.run.ranks import ALONE, Ranks
from robust_policies.train.run.stop import StopRequest
from robust_policies.train.sb3.run import train_off_policy, train_plain_ppo

RUNS: dict[str, Callable[[Job], TrainResult]] = {
    "recurrent_ppo": train_ppo,
    "tensor_ppo": train_ppo,
    "apg": train_apg,
    "imitation": train_imitation,
    "gail": train_gail,
    "sac": train_off_policy,
    "td3": train_off_policy,
    "ppo": train_plain_ppo,
    "recurrent_sac": train_recurrent_sac,
}
"""What trains by each algorithm; `train.recipe.recipe.ALGORITHMS` has their settings."""
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
    stop: StopRequest | None = None,
    ranks: Ranks = ALONE,
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
        stop: ends training with a checkpoint once its `requested` is True; a `StopOnSignal` makes that of Ctrl-C and
            SIGTERM. None: the process's signal handlers stay as they are.
        ranks: which of several processes this one is (`launched` says so under torchrun): they train one policy, each
            in its share of the environments, and the first one alone writes files and shows progress.

    Raises:
        UserError: the recipe names something unknown, the folder is in use, or the device does not exist; then
            nothing was written.
        LostRankError: another rank ended; the last checkpoint is whole.
        TrainingInterruptedError: `stop` asked for it; a checkpoint was written.
        KeyboardInterrupt: Ctrl-C without a `stop`; the last checkpoint is whole.
        DivergedError: something became NaN or infinite; the last checkpoint stays as it was.
        NotEnoughMemoryError, DiskError: memory or disk ran out; the last checkpoint is whole.
    """
    run = RunFolder(folder)
    device = ranks.device(device)
    checks.device(device)
    ranks.fit(recipe)
    for task in recipe.evaluation.tasks:
        spec_of(task)
    eval_seed = (recipe.seed + _EVALUATION_SEED) % checks.SEEDS
    reporter = reporter if reporter is not None and ranks.first else Silent()
    job = Job(recipe, run, device, resume, reporter, stop or StopRequest(), eval_seed, teacher, ranks)
    with deterministic(recipe.deterministic), ranks.together(device):
        return RUNS[recipe.algorithm.name](job)
