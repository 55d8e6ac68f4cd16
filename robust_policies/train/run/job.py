"""One training of a recipe into a run folder: what is given, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robust_policies.errors import DivergedError, LostRankError, RobustPoliciesError
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.run.checkpoints import Progress, last_checkpoint, reached
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.progress import Reporter
from robust_policies.train.run.ranks import ALONE, Ranks
from robust_policies.train.run.resources import disk_of
from robust_policies.train.run.stop import StopRequest
from robust_policies.train.run.target import Outcome, outcome


class TrainingInterruptedError(RobustPoliciesError):
    """Training was stopped on request (of a command: by Ctrl-C or SIGTERM) after a checkpoint was written."""

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
    best_certified: float | None = None
    """The certified return by which the best policy was kept, in a training for it."""


@dataclass(frozen=True)
class Job:
    """What a training is given.

    Attributes:
        recipe: what to train.
        run: into which folder.
        device: where.
        resume: go on with the run that is there.
        reporter: shows progress.
        stop: may ask for an end between two updates.
        eval_seed: of the episodes of evaluations.
        teacher: an object to learn from, of imitation.
        ranks: the processes that train together.
    """

    recipe: Recipe
    run: RunFolder
    device: str
    resume: bool
    reporter: Reporter
    stop: StopRequest
    eval_seed: int
    teacher: Any = None
    ranks: Ranks = ALONE

    @contextmanager
    def reserved(self) -> Iterator[bool]:
        """Keep the run folder for the block, and explain what ends it; yield whether a run is being continued."""
        run, ranks = self.run, self.ranks
        kept = run.reserved(self.recipe, self.resume) if ranks.first else nullcontext(False)
        with kept as continued, disk_of(run.path, run.checkpoints):
            try:
                yield ranks.told(continued)
            except (DivergedError, LostRankError) as error:
                raise type(error)(f"{error} {last_checkpoint(run.checkpoints)}") from error

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
            **({} if self.ranks.alone else {"ranks": self.ranks.size}),
        )
        return self.result(progress)

    def result(self, progress: Progress) -> TrainResult:
        """Return what the training says of itself."""
        section = self.recipe.checkpoints
        stopped, found = reached(section, progress), outcome(self.recipe.target, progress)
        best = progress.best_reward, progress.best_timesteps
        return TrainResult(
            self.run.path, progress.num_timesteps, progress.seconds, *best, stopped, found, progress.best_rank
        )

    def interrupted(self, progress: Progress) -> TrainingInterruptedError:
        """Return the error that says how to go on."""
        algorithm = self.recipe.algorithm
        return TrainingInterruptedError(
            f"Stopped after {getattr(progress, algorithm.counted)} of {algorithm.total_steps} steps; the checkpoint is "
            f"in {self.run.checkpoints}. To go on, run the same command with --resume."
        )
