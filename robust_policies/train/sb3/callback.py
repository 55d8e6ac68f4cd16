"""What is due between two updates of SAC and TD3, which may follow every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from robust_policies.train.ppo.callback import RunCallback
from robust_policies.train.ppo.continuation import Moment
from robust_policies.train.run.guard import THEIRS, in_weights


class OffPolicyCallback(RunCallback):
    """As `RunCallback`, where taking note of the moment before every rollout would cost more than the step it is for.

    A rollout is finished where a stop is asked for; it is given up only where the algorithm cannot end otherwise: after
    the checkpoint the environments do one more step, which nothing remembers.
    """

    def _init_callback(self) -> None:
        parts = (self._off_policy.actor, self._off_policy.critic)
        self._handles = [part.optimizer.register_step_pre_hook(self._refuse) for part in parts]

    @property
    def update(self) -> int:
        """The number of the update that the present rollout is for, from 1; episodes count as their steps."""
        steps, unit = self._off_policy.train_freq
        return self.training.progress.num_timesteps // (steps * self._off_policy.n_envs if unit == "step" else 1) + 1

    @property
    def _off_policy(self) -> Any:
        assert isinstance(self.model, OffPolicyAlgorithm)
        return self.model

    def _on_rollout_start(self) -> None:
        training = self.training
        if not self._updated:
            return
        self._between()
        self.interrupted = self.stop.requested and not training.reached
        if training.checkpoint_due or self.interrupted or training.reached:
            self._save()

    def _on_step(self) -> bool:
        if self.n_calls % 8 == 0:
            self._show(self.num_timesteps)
        if self.interrupted or self.training.reached:
            return False
        for name in ("new_obs", "rewards", "actions"):
            self._look(name, self.locals[name])
        return True

    def _on_rollout_end(self) -> None:
        pass

    def _on_training_end(self) -> None:
        if self.interrupted or self.training.reached:
            self.model.num_timesteps = self.training.progress.num_timesteps
        elif self._updated:
            self._between()
            self._save()
        self.logger.dump(self.model.num_timesteps)
        self._show(self.model.num_timesteps)
        for handle in self._handles:
            handle.remove()

    def _between(self) -> None:
        training = self.training
        number = self.update
        training.advance(self.num_timesteps, int(self._off_policy._n_updates))
        found = training.due(number)
        self._record(found)
        if found:
            self.logger.dump(self.num_timesteps)

    def _save(self) -> None:
        found = in_weights(self.model.policy.state_dict())
        if found:
            raise self._diverged(found)
        self.learner.moment = Moment.of(self.model)
        self.training.save()

    def _look(self, name: str, values: Any) -> None:
        """Raise where a step's observation, reward or action is not finite."""
        if isinstance(values, Mapping):
            for part in values.values():
                self._look(name, part)
            return
        array = np.asarray(values)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            number = float(array[~np.isfinite(array)][0])
            what = {"new_obs": f"{THEIRS}observation", "rewards": f"{THEIRS}reward", "actions": "the action"}[name]
            raise self._diverged(f"{what} in a step was {number}")

    def _refuse(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Raise before a step along a gradient that is not finite: the weights stay as they are."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            raise self._diverged(f"the gradient was {float(norm)}")
