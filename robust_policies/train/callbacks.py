"""What happens between updates: evaluation, checkpoints, progress, and a clean stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from robust_policies.errors import DivergedError
from robust_policies.policies import save_policy
from robust_policies.train.checkpoints import Progress, normalizer_state, random_state, weights, write_checkpoint
from robust_policies.train.folder import RunFolder
from robust_policies.train.progress import Reporter
from robust_policies.train.recipe import CheckpointSection
from robust_policies.train.tensor_ppo import TensorRecurrentPPO


class StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop at the next step; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        sys.stderr.write("\nStopping after this step and saving a checkpoint; once more stops at once.\n")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class RunCallback(BaseCallback):
    """Evaluates, keeps the best policy, writes checkpoints and shows progress.

    All of it happens between two updates: there weights, optimizer and counters belong together, so a run resumed from
    a checkpoint repeats no update and skips none.
    """

    def __init__(
        self,
        run: RunFolder,
        section: CheckpointSection,
        seed: int,
        eval_env: VecEnv,
        reporter: Reporter,
        stop: StopRequest,
        progress: Progress,
        best: dict[str, torch.Tensor] | None,
    ) -> None:
        super().__init__()
        self.run, self.section, self.seed, self.eval_env = run, section, seed, eval_env
        self.reporter, self.stop = reporter, stop
        self.state, self.best = progress, best
        self.interrupted = False
        self._saved = progress.num_timesteps
        self._began = time.monotonic() - progress.seconds
        self._cpu_began = time.process_time() - progress.cpu_seconds
        self._snapshot: dict[str, Any] = {}

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self.state.num_timesteps:
            self._mark()
            if self.num_timesteps - self.state.last_evaluation >= self.section.evaluate_every:
                self._evaluate()
            if self.num_timesteps - self._saved >= self.section.every:
                self._take_snapshot()
                self._save()
        self._take_snapshot()

    def _on_step(self) -> bool:
        if self.n_calls % 8 == 0:
            returns = [info["r"] for info in self.model.ep_info_buffer or ()]
            self.reporter.update(
                self.num_timesteps, float(np.mean(returns)) if returns else None, self.state.best_reward
            )
        self.interrupted = self.stop.requested
        return not self.interrupted

    def _on_training_end(self) -> None:
        if self.interrupted:
            # The steps of the rollout under way are given up: the checkpoint stands where it began.
            self.model.num_timesteps = self.state.num_timesteps
            self._save()
            return
        if self.num_timesteps > self.state.num_timesteps:
            self._mark()
        if self.state.last_evaluation < self.num_timesteps:
            self._evaluate()
        self._take_snapshot()
        self._save()

    @property
    def _on_policy(self) -> OnPolicyAlgorithm:
        assert isinstance(self.model, OnPolicyAlgorithm)
        return self.model

    def _mark(self) -> None:
        bad = [name for name, value in self.model.policy.state_dict().items() if not torch.isfinite(value).all()]
        if bad:
            raise DivergedError(
                f"Training diverged: {bad[0]} holds NaN or infinity after {self.num_timesteps} steps. Lower "
                "algorithm.learning_rate or algorithm.max_grad_norm."
            )
        self.state.num_timesteps, self.state.n_updates = self.num_timesteps, int(self.model._n_updates)
        self.state.seconds = time.monotonic() - self._began
        self.state.cpu_seconds = time.process_time() - self._cpu_began

    def _take_snapshot(self) -> None:
        self._snapshot = {
            "random": random_state(),
            "normalizer": normalizer_state(self.model.get_vec_normalize_env()),
            "on_device": self.model.normalization_state() if isinstance(self.model, TensorRecurrentPPO) else {},
        }

    def _save(self) -> None:
        self._saved = self.state.num_timesteps
        write_checkpoint(self.run.checkpoints, self._on_policy, self.state, self.best, self._snapshot)

    def _evaluate(self) -> None:
        # The same starts every time, so that two evaluations differ by the policy alone.
        self.eval_env.seed(self.seed)
        returns, lengths = evaluate_policy(
            self.model, self.eval_env, self.section.evaluate_episodes, return_episode_rewards=True, warn=False
        )
        mean = float(np.mean(returns))
        if not np.isfinite(mean):
            raise DivergedError(
                f"The evaluation after {self.num_timesteps} steps returned {mean}; lower algorithm.learning_rate."
            )
        self.logger.record("eval/mean_reward", mean)
        self.logger.record("eval/mean_ep_length", float(np.mean(lengths)))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.state.evaluated(mean):
            self.best = weights(self._on_policy)
            save_policy(self.model, self.run.checkpoints / "best")


def diverging(error: ValueError, finite: Callable[[], bool]) -> Exception:
    """Return a `DivergedError` if the weights are not finite any more (torch complains first), else `error` itself."""
    if finite():
        return error
    return DivergedError("Training diverged: the policy's weights are NaN or infinite. Lower algorithm.learning_rate.")
