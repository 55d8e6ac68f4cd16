"""Runs the trials of a source on a pool, one failure at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from robust_policies.sweep.folder import SweepFolder
from robust_policies.sweep.jobs import Ended, Job, Pool, Progressed
from robust_policies.sweep.plan import Trial
from robust_policies.train import StopOnSignal

_POLL_SECONDS = 0.2


class Source(Protocol):
    """Decides what is tried next."""

    def next(self) -> Trial | None:
        """Return the next trial; None if there is none now (there may be one when a running trial has ended)."""
        ...

    def progress(self, trial: Trial, fraction: float, reward: float) -> list[str]:
        """Return the names of running trials to end early, now that `trial` has come so far."""
        ...

    def ended(self, trial: Trial, row: dict[str, Any]) -> None:
        """Take note of a trial's row."""

    def summary(self) -> list[str]:
        """Return what there is to say at the end, beside the tables."""
        ...


class Display(Protocol):
    """Shows how far the sweep is."""

    def started(self, name: str) -> None:
        """Show a trial that begins."""

    def progressed(self, event: Progressed) -> None:
        """Show how far a trial is."""

    def ended(self, row: dict[str, Any]) -> None:
        """Show what became of a trial."""


@dataclass
class Planned:
    """A source that runs a list of trials, in order."""

    trials: Sequence[Trial]
    place: int = field(default=0, init=False)

    def next(self) -> Trial | None:
        """Return the next trial of the list."""
        if self.place == len(self.trials):
            return None
        self.place += 1
        return self.trials[self.place - 1]

    def progress(self, trial: Trial, fraction: float, reward: float) -> list[str]:
        """Return nothing: all trials run to their end."""
        return []

    def ended(self, trial: Trial, row: dict[str, Any]) -> None:
        """Do nothing."""

    def summary(self) -> list[str]:
        """Return nothing: the tables say it all."""
        return []


def drive(source: Source, pool: Pool, folder: SweepFolder, display: Display, device: str, evaluate: bool) -> bool:
    """Return whether all trials of `source` ran to their end, failed ones included; False if Ctrl-C stopped them.

    After the first Ctrl-C or SIGTERM running trials write a checkpoint and end; a second one ends everything at once.
    Each trial's row is in the tables of `folder` as soon as it has ended.
    """
    running: dict[str, Trial] = {}
    pruned: set[str] = set()
    stopping = False
    with StopOnSignal() as stop:
        while True:
            if stop.requested and not stopping:
                stopping = True
                for name in running:
                    pool.stop(name)
            while not stopping and len(running) < pool.slots and (trial := source.next()) is not None:
                running[trial.name] = trial
                log = folder.logs / f"{trial.name}.log"
                run_folder = folder.trials / trial.name
                pool.submit(
                    Job(trial.name, trial.recipe.resolved(), run_folder.resolve(), log.resolve(), device, evaluate)
                )
                display.started(trial.name)
            if not running:
                return not stopping
            for event in pool.wait(_POLL_SECONDS):
                if isinstance(event, Ended):
                    trial = running.pop(event.name)
                    if event.name in pruned and event.status == "stopped":
                        event = Ended(event.name, "pruned", "the search gave it up early")
                    row = folder.record(trial.seed, trial.setting, event)
                    source.ended(trial, row)
                    display.ended(row)
                    continue
                display.progressed(event)
                if event.reward is not None:
                    names = source.progress(running[event.name], event.steps / event.total, event.reward)
                    for name in names:
                        pruned.add(name)
                        pool.stop(name)
