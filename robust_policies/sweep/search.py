"""Hyperparameter search with Optuna: which settings are tried, and what it is told of them."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.errors import CorruptFileError, InvalidValueError, UserError
from robust_policies.files.yaml_text import parse_yaml
from robust_policies.sweep.folder import SweepFolder
from robust_policies.sweep.jobs import Ended
from robust_policies.sweep.plan import Trial
from robust_policies.sweep.space import Choice, Space, as_text
from robust_policies.sweep.trial import RUNGS
from robust_policies.train import Recipe

# Figure of the table: whether more of it is better.
OBJECTIVES = {"return": True, "worst": True, "best": True, "gamma": False}
_STUDY = "sweep"


def import_optuna() -> Any:
    """Return the module optuna; raise `InvalidValueError` that says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise InvalidValueError(
            "--search needs Optuna, which is not installed: pip install 'robust-policies[sweep]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Search:
    """A source that tries settings suggested by a tree-structured Parzen estimator, each with all seeds.

    What is suggested depends on the search's seed, the number of the setting and what is known by then, so a search
    that was stopped goes on as it would have. The study is an SQLite file that Optuna's own tools read.
    """

    def __init__(
        self,
        folder: SweepFolder,
        space: Space,
        count: int,
        seeds: Sequence[int],
        objective: str,
        make_recipe: Callable[[list[str], int], Recipe],
        *,
        prune: bool = False,
        evaluate: bool = True,
        rejected: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        """Open or create the study in `folder`.

        Args:
            folder: begun.
            space: keys and what may be tried.
            count: settings in total, earlier ones included.
            seeds: of the recipe; the objective is the mean over them.
            objective: one of `OBJECTIVES`.
            make_recipe: from assignments and a seed.
            prune: end settings early whose mean training return is below the median of the earlier ones.
            evaluate: a trial is complete only with its evaluation.
            rejected: called with the row of a trial whose setting the recipe does not take.
        """
        self.optuna = import_optuna()
        self.folder, self.space, self.count, self.seeds = folder, space, count, list(seeds)
        self.objective, self.make_recipe, self.evaluate, self.rejected = objective, make_recipe, evaluate, rejected
        self.study = self._open(folder.study, prune)
        self.queue: list[Trial] = []
        self.number_of: dict[str, int] = {}
        self.rows: dict[int, dict[int, dict[str, Any]]] = {}
        self.returns: dict[int, dict[int, dict[int, float]]] = {}
        self.pruned: set[int] = set()
        self.unfinished = [
            trial.number for trial in self.study.get_trials(states=(self.optuna.trial.TrialState.RUNNING,))
        ]

    def _open(self, path: Path, prune: bool) -> Any:
        optuna = self.optuna
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=RUNGS // 5) if prune else optuna.pruners.NopPruner()
        direction = "maximize" if OBJECTIVES[self.objective] else "minimize"
        try:
            return optuna.create_study(
                storage=f"sqlite:///{path.resolve()}",
                study_name=_STUDY,
                direction=direction,
                pruner=pruner,
                load_if_exists=True,
            )
        except Exception as error:
            raise CorruptFileError(
                f"{path} cannot be read as the search's study ({type(error).__name__}); restore it, or delete it to "
                "search anew."
            ) from error

    def next(self) -> Trial | None:
        """Return the next trial: of a setting begun earlier, or of a new one."""
        while not self.queue:
            if self.unfinished:
                number = self.unfinished.pop(0)
                self._expand(number, self.study.trials[number].params)
            elif len(self.study.get_trials(deepcopy=False)) < self.count:
                trial = self._ask()
                self._expand(trial.number, trial.params)
            else:
                return None
        return self.queue.pop(0)

    def _ask(self) -> Any:
        number = len(self.study.get_trials(deepcopy=False))
        # One stream a setting: a sampler made anew after an interruption would otherwise repeat its first draws.
        seed = int(np.random.SeedSequence([self.seeds[0], number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.optuna.exceptions.ExperimentalWarning)
            self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        return self.study.ask({key: self._distribution(key) for key in self.space})

    def _distribution(self, key: str) -> Any:
        found, distributions = self.space[key], self.optuna.distributions
        if isinstance(found, Choice):
            return distributions.CategoricalDistribution(found.texts)
        if found.whole:
            return distributions.IntDistribution(int(found.low), int(found.high), log=found.log)
        return distributions.FloatDistribution(found.low, found.high, log=found.log)

    def _expand(self, number: int, params: Mapping[str, Any]) -> None:
        """Queue the seeds of a setting that are not done yet."""
        setting = {key: parse_yaml(as_text(value), f"--search {key}") for key, value in params.items()}
        self.rows[number], self.returns[number] = {}, {}
        for seed in self.seeds:
            name = f"search={number:04d}_seed={seed}"
            self.number_of[name] = number
            if self.folder.is_done(name, self.evaluate):
                self.rows[number][seed] = self.folder.rows[name]
                continue
            try:
                recipe = self.make_recipe([f"{key}={as_text(value)}" for key, value in params.items()], seed)
            except UserError as error:
                self.rows[number][seed] = self.folder.record(seed, setting, Ended(name, "failed", str(error)))
                self.rejected(self.rows[number][seed])
                continue
            self.queue.append(Trial(name, seed, setting, recipe))
        self._tell(number)

    def progress(self, trial: Trial, fraction: float, reward: float) -> list[str]:
        """Return the trials of this setting if its mean training return is below the median at this fraction."""
        number = self.number_of[trial.name]
        rungs = self.returns[number]
        rung = int(fraction * RUNGS)
        at = rungs.setdefault(rung, {})
        if trial.seed in at or number in self.pruned:
            return []
        at[trial.seed] = reward
        if len(at) < len(self.seeds):
            return []
        study_trial = self.optuna.trial.Trial(self.study, self.study.trials[number]._trial_id)
        study_trial.report(float(np.mean(list(at.values()))), rung)
        if not study_trial.should_prune():
            return []
        self.pruned.add(number)
        return [name for name, owner in self.number_of.items() if owner == number]

    def ended(self, trial: Trial, row: dict[str, Any]) -> None:
        """Note a trial's row; the study is told when the setting's last seed has ended."""
        number = self.number_of[trial.name]
        if row["status"] != "stopped":
            self.rows[number][trial.seed] = row
            self._tell(number)

    def _tell(self, number: int) -> None:
        rows = list(self.rows[number].values())
        if len(rows) < len(self.seeds):
            return
        states = self.optuna.trial.TrialState
        if any(row["status"] == "pruned" for row in rows):
            self.study.tell(number, state=states.PRUNED)
            return
        values = [row["metrics"].get(self.objective) for row in rows]
        if any(row["status"] != "done" for row in rows) or None in values:
            self.study.tell(number, state=states.FAIL)
            return
        self.study.tell(number, float(np.mean(values)))

    def summary(self) -> list[str]:
        """Return the line that names the best setting; none if no setting is complete."""
        if not self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.COMPLETE,)):
            return []
        best = self.study.best_trial
        words = shlex.join(f"{key}={as_text(value)}" for key, value in best.params.items())
        return [f"Best setting: {self.objective} {best.value:.4g} in search={best.number:04d}: --set {words}"]
