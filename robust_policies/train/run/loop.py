"""What every training does beside learning: it evaluates, keeps the best policy, certifies, and writes checkpoints.

An algorithm is a `Learner`. `run_updates` is the loop of those that make one update after another; where a library has
the loop (Stable-Baselines3's `learn`), its callback asks the same `Training` for what is due.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from robust_policies.policies import load_policy, save_policy
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.train.run.checkpoints import (
    Best,
    Progress,
    newest_state,
    reached,
    told_to_all,
    weights,
    write_state,
)
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.guard import THEIRS, diverged
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.logs import tensorboard_logger
from robust_policies.train.run.monitor import certified
from robust_policies.train.run.resources import memory_of

RETURN = "eval/mean_reward"


class Learner(Protocol):
    """An algorithm with all that it learns on.

    Attributes:
        score: name of the evaluation's scalar that stands in `Progress`: larger is better.
    """

    score: str = RETURN

    @property
    def module(self) -> nn.Module:
        """The network whose weights are kept."""
        ...

    def deployed(self) -> DeployedPolicy:
        """Return a copy of the policy as it is, on the CPU."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was learnt, as it is, into a folder."""
        save_policy(self.deployed(), folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; raises where it cannot be read."""
        load_policy(folder)

    def certified(self) -> dict[str, float]:
        """Return the scalars of what is proven of the policy as it is."""
        return certified(self.deployed())

    def evaluate(self) -> dict[str, float]:
        """Return the scalars of an evaluation, among them `score`; what it begins with is the same every time."""
        ...

    def rank(self, found: Mapping[str, float]) -> float | None:
        """Return the number by which the best of the evaluations is kept, None for one that never is."""
        return found[self.score]

    def exhausted(self, progress: Progress) -> bool:
        """Return whether further updates are pointless, which ends the run."""
        return False

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that decide what comes next, by name."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what belongs to the tensors, as JSON data."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress) -> None:
        """Go on from what `tensors` returned at `progress`, of the same shapes, and `facts`.

        Raises KeyError, RuntimeError, ValueError, TypeError or AttributeError where they do not fit.
        """
        ...

    def report(self, run: RunFolder) -> None:
        """Write what the algorithm itself has to say of the kept policy."""


class Updates(Learner, Protocol):
    """A learner that makes one update after another.

    Attributes:
        steps: environment steps of an update.
        updates: what an update adds to `Progress.n_updates`.
        shown: name of the scalar that is shown as the return of late.
        timed: certificates, evaluations and checkpoints are logged with the time they take.
    """

    steps: int
    updates: int
    shown: str
    timed: bool

    def update(self, progress: Progress) -> dict[str, Any]:
        """Return the scalars of one update made at `progress`; raises `DivergedError`."""
        ...

    def note(self, found: Mapping[str, Any]) -> None:
        """Take note of all scalars of an update, those of its certificate and evaluation among them."""


L = TypeVar("L", bound=Learner)


class Training:
    """One training between two updates: how far it is, its best policy so far, and what is due.

    Attributes:
        progress: where it stands.
        best: weights of the best policy of its evaluations.
    """

    def __init__(self, job: Job, learner: Learner) -> None:
        self.job, self.learner = job, learner
        self.run, self.section = job.run, job.recipe.checkpoints
        self.progress = Progress()
        self.best: Best = None
        self.start()

    @property
    def total(self) -> int:
        """The recipe's number of steps, of what its algorithm counts."""
        return self.job.recipe.algorithm.total_steps

    @property
    def done(self) -> int:
        """How many of them are done."""
        return getattr(self.progress, self.job.recipe.algorithm.counted)

    @property
    def last(self) -> bool:
        """Whether all of them are."""
        return self.done >= self.total

    @property
    def reached(self) -> bool:
        """Whether an evaluation reached `checkpoints.stop_at_reward`, which ends the run."""
        return reached(self.section, self.progress)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.last or self.reached or self.learner.exhausted(self.progress)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return self.progress.num_timesteps - self._saved >= self.section.every

    def start(self) -> None:
        """Count time and steps from where the progress stands."""
        self._saved = self.progress.num_timesteps
        self._began = time.monotonic() - self.progress.seconds
        self._cpu_began = time.process_time() - self.progress.cpu_seconds
        self._clock = time.perf_counter()

    def spent(self, phase: str | None = None) -> dict[str, float]:
        """Return the scalar that says how long ago the last phase ended, as the time of `phase`, which ends now."""
        before, self._clock = self._clock, time.perf_counter()
        return {} if phase is None else {f"time/{phase}_seconds": self._clock - before}

    def advance(self, steps: int, updates: int) -> None:
        """Note that an update ended after so many environment steps and updates in all."""
        progress = self.progress
        progress.num_timesteps, progress.n_updates = steps, updates
        progress.seconds = time.monotonic() - self._began
        progress.cpu_seconds = time.process_time() - self._cpu_began

    def due(self, number: int) -> dict[str, float]:
        """Return the scalars of the certificate and the evaluation due after update `number` (from 1), and their times.

        Over several ranks the first one makes them, and all know what came of it.

        Raises:
            DivergedError: a figure of the evaluation is NaN or infinite.
        """
        ranks = self.job.ranks
        found = self._due(number) if ranks.first else {}
        if not ranks.alone:
            vars(self.progress).update(ranks.told(vars(self.progress)))
        return found

    def _due(self, number: int) -> dict[str, float]:
        found: dict[str, float] = {}
        every, steps = self.section.certify_every, self.progress.num_timesteps
        self.spent()
        if every and (number % every == 0 or self.last):
            found |= self.learner.certified() | self.spent("certificate")
        if self.last or steps - self.progress.last_evaluation >= self.section.evaluate_every:
            found |= self._evaluate(number) | self.spent("evaluation")
        return found

    def save(self) -> None:
        """Write a checkpoint; older ones than the last two are deleted."""
        learner = self.learner
        self._saved = self.progress.num_timesteps
        tensors, facts = learner.tensors(), learner.facts()
        if self.job.ranks.first:
            write_state(self.run.checkpoints, self.progress, tensors, self.best, facts)

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one; the best policy becomes what it was then.

        Raises:
            CorruptFileError, SchemaError: it cannot be read, or does not fit the recipe.
        """
        ranks = self.job.ranks
        found = told_to_all(ranks, newest_state(self.run.checkpoints) if ranks.first else None)
        if found is None:
            return
        try:
            self.learner.load_tensors(found.tensors, found.facts, found.progress)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise found.damaged(error) from error
        self.progress, self.best = found.progress, found.best
        if self.best is not None:
            # The killed run may have gone on to a better one.
            module = self.learner.module
            current = {name: value.clone() for name, value in module.state_dict().items()}
            module.load_state_dict(self.best)
            self.learner.save(self.run.best)
            module.load_state_dict(current)

    def keep(self) -> None:
        """Put the best weights into the policy if the recipe keeps the best."""
        if self.section.keep == "best" and self.best is not None:
            self.learner.module.load_state_dict(self.best)

    def _evaluate(self, number: int) -> dict[str, float]:
        """Return the scalars of an evaluation; the best policy so far is kept."""
        learner, progress = self.learner, self.progress
        found = learner.evaluate()
        if not all(map(math.isfinite, found.values())):
            # The weights were looked at before: what is left is a reward.
            what = f"{THEIRS}rewards in an evaluation had the mean return {found[learner.score]}"
            raise diverged(what, number, progress.num_timesteps)
        if self.section.policies:
            learner.save(self.run.policy_at(progress.num_timesteps))
        if progress.evaluated(found[learner.score], learner.rank(found)):
            self.best = weights(learner.module)
            learner.save(self.run.best)
        return found


def run_updates(training: Training, learner: Updates) -> None:
    """Make updates until the training is finished.

    Raises:
        TrainingInterruptedError: it was asked to stop; there is a checkpoint of the last whole update.
        DivergedError: something became NaN or infinite; the last checkpoint stays.
    """
    job, progress = training.job, training.progress
    training.start()
    logger = tensorboard_logger(training.run.tensorboard, progress.num_timesteps)
    job.reporter.start(training.total, training.done)
    try:
        with job.stop as stop:
            while not training.finished and not stop.requested:
                found = learner.update(progress)
                training.advance(progress.num_timesteps + learner.steps, progress.n_updates + learner.updates)
                due = training.due(progress.n_updates // learner.updates)
                found |= {name: v for name, v in due.items() if learner.timed or not name.startswith("time/")}
                learner.note(found)
                if training.finished or training.checkpoint_due:
                    training.spent()
                    training.save()
                    found |= training.spent("checkpoint") if learner.timed else {}
                for name, value in found.items():
                    logger.record(name, value)
                logger.dump(progress.num_timesteps)
                job.reporter.update(training.done, found.get(learner.shown), progress.best_reward)
            if not training.finished:
                training.save()
    finally:
        job.reporter.stop()
        logger.close()
    if not training.finished:
        raise job.interrupted(progress)


def trained(
    job: Job, make: Callable[[Job, ExitStack], L], learn: Callable[[Training, L], None], *settings: str
) -> TrainResult:
    """Return the result of a whole training into the job's run folder.

    Args:
        job: what is trained.
        make: returns the learner; what it opens is closed with the stack. Nothing was written yet.
        learn: brings the training to its end; raises `TrainingInterruptedError` where it was asked to stop before.
        settings: of the recipe that decide how much memory is needed.
    """
    with ExitStack() as stack:
        stack.enter_context(memory_of(job.recipe, *settings, device=job.device))
        learner = make(job, stack)
        if job.ranks.first:
            _ask_whether_it_can_be_kept(learner)
        continued = stack.enter_context(job.reserved())
        training = Training(job, learner)
        if continued:
            training.load()
        if not training.finished:
            learn(training, learner)
        if not job.ranks.first:
            return job.result(training.progress)
        training.keep()
        learner.report(job.run)
        result = job.finish(training.progress)
        learner.save(job.run.path)
    return result


def _ask_whether_it_can_be_kept(learner: Learner) -> None:
    """Save what is untrained into a scratch folder and load it; raises what would otherwise end a whole training."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        learner.save(Path(scratch))
        learner.load(Path(scratch))
