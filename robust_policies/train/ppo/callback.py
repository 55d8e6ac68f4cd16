"""Stable-Baselines3's `learn` as the loop of a training: what is due between two updates, and a clean stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from robust_policies.errors import DivergedError
from robust_policies.train.ppo.algorithm import TensorRecurrentPPO
from robust_policies.train.ppo.continuation import Moment
from robust_policies.train.run.guard import GradientNorms, diverged, in_buffer, in_weights
from robust_policies.train.run.loop import Training
from robust_policies.train.run.stop import StopRequest


class Momentary(Protocol):
    """What keeps the moment that a checkpoint holds."""

    moment: Moment | None


class RunCallback(BaseCallback):
    """Does what a `Training` has due, shows progress, looks for NaN, and ends the run where that was asked for.

    All of it happens between two updates: there weights, optimizer and counters belong together, so a run resumed from
    a checkpoint repeats no update and skips none. What an update logged is written right after it.

    Attributes:
        interrupted: a `StopRequest` ended the run.
    """

    def __init__(self, training: Training, learner: Momentary, stop: StopRequest) -> None:
        super().__init__()
        self.training, self.learner, self.stop = training, learner, stop
        self.interrupted = self._asked = False
        self.training.start()
        self._norms: GradientNorms | None = None

    def _init_callback(self) -> None:
        model = self._on_policy
        if not isinstance(model, TensorRecurrentPPO) or model.why_numpy is not None:
            self._norms = GradientNorms(list(model.policy.parameters()), model.policy.optimizer, self._diverged)

    @property
    def update(self) -> int:
        """The number of the update that the present rollout is for, from 1."""
        size = self._on_policy.n_steps * self._on_policy.n_envs * self.training.job.ranks.size
        return self.training.progress.num_timesteps // size + 1

    @property
    def _updated(self) -> bool:
        """Whether an update followed the last moment that was taken note of."""
        return self.num_timesteps > self.training.progress.num_timesteps

    def _on_rollout_start(self) -> None:
        updated, training = self._updated, self.training
        if updated:
            self._between()
        self.learner.moment = Moment.of(self._on_policy)
        if updated:
            if training.checkpoint_due and not training.reached:
                training.save()
                self._record(training.spent("checkpoint"))
            self.logger.dump(self.num_timesteps)
        if not training.job.ranks.alone:
            self._asked = training.job.ranks.any(self.stop.requested)
        training.spent()

    def _on_step(self) -> bool:
        if self.n_calls % 8 == 0:
            self._show(self.num_timesteps)
        # Ranks have to stop at the same step: what each was asked is known to all when a rollout begins.
        asked = self.stop.requested if self.training.job.ranks.alone else self._asked
        self.interrupted = asked and not self.training.reached
        return not (self.interrupted or self.training.reached)

    def _on_rollout_end(self) -> None:
        self._record(self.training.spent("rollout"))
        if self._norms is not None:
            found = in_buffer(self._on_policy.rollout_buffer)
            if found:
                raise self._diverged(found)

    def _on_training_end(self) -> None:
        if self.interrupted or self.training.reached:
            # The steps of the rollout under way are given up: the checkpoint stands where it began.
            self.model.num_timesteps = self.training.progress.num_timesteps
        elif self._updated:
            self._between()
            self.learner.moment = Moment.of(self._on_policy)
        self.training.save()
        self.logger.dump(self.model.num_timesteps)
        self._show(self.model.num_timesteps)
        if self._norms is not None:
            self._norms.close()

    @property
    def _on_policy(self) -> OnPolicyAlgorithm:
        assert isinstance(self.model, OnPolicyAlgorithm)
        return self.model

    def _between(self) -> None:
        """Do what is due after an update."""
        self._record(self.training.spent("update"))
        found = in_weights(self.model.policy.state_dict())
        if found:
            raise self._diverged(found)
        number = self.update
        norm = None if self._norms is None else self._norms.mean()
        if norm is not None:
            self.logger.record("train/gradient_norm", norm)
        self.training.advance(self.num_timesteps, int(self.model._n_updates))
        self._record(self.training.due(number))

    def _record(self, found: Mapping[str, Any]) -> None:
        for name, value in found.items():
            self.logger.record(name, value)

    def _diverged(self, found: str) -> DivergedError:
        return diverged(found, self.update, self.num_timesteps)

    def _show(self, steps: int) -> None:
        returns = [info["r"] for info in self.model.ep_info_buffer or ()]
        best = self.training.progress.best_reward
        self.training.job.reporter.update(steps, float(np.mean(returns)) if returns else None, best)
