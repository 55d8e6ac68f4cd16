"""What happens between updates: evaluation, checkpoints, progress, and a clean stop."""

from __future__ import annotations

import time

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from robust_policies.errors import DivergedError
from robust_policies.policies import save_policy
from robust_policies.policies.sb3.deploy import deploy
from robust_policies.policies.youla.deploy import deploy_trained
from robust_policies.train.ppo.algorithm import TensorRecurrentPPO
from robust_policies.train.ppo.continuation import Moment, write_checkpoint
from robust_policies.train.recipe.sections import CheckpointSection
from robust_policies.train.run.checkpoints import Best, Progress, reached, weights
from robust_policies.train.run.folder import RunFolder
from robust_policies.train.run.guard import GradientNorms, diverged, in_buffer, in_weights
from robust_policies.train.run.monitor import certified
from robust_policies.train.run.progress import Reporter
from robust_policies.train.run.stop import StopRequest


class RunCallback(BaseCallback):
    """Evaluates, keeps the best policy, writes checkpoints, logs, shows progress, and looks for NaN.

    All of it happens between two updates: there weights, optimizer and counters belong together, so a run resumed from
    a checkpoint repeats no update and skips none. What an update logged is written right after it.

    Attributes:
        interrupted: a `StopRequest` ended the run.
        reached: an evaluation reached `checkpoints.stop_at_reward`, which ends the run.
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
        best: Best,
    ) -> None:
        super().__init__()
        self.run, self.section, self.seed, self.eval_env = run, section, seed, eval_env
        self.reporter, self.stop = reporter, stop
        self.state, self.best = progress, best
        self.interrupted = self.reached = False
        self._saved = progress.num_timesteps
        self._began = time.monotonic() - progress.seconds
        self._cpu_began = time.process_time() - progress.cpu_seconds
        self._clock = time.perf_counter()
        self._moment: Moment | None = None
        self._norms: GradientNorms | None = None

    def _init_callback(self) -> None:
        model = self._on_policy
        if not isinstance(model, TensorRecurrentPPO) or model.why_numpy is not None:
            self._norms = GradientNorms(list(model.policy.parameters()), model.policy.optimizer, self._diverged)

    @property
    def update(self) -> int:
        """The number of the update that the present rollout is for, from 1."""
        return self.state.num_timesteps // (self._on_policy.n_steps * self._on_policy.n_envs) + 1

    def _on_rollout_start(self) -> None:
        updated = self.num_timesteps > self.state.num_timesteps
        if updated:
            self._between()
        self._moment = Moment.of(self._on_policy)
        if updated:
            if self.num_timesteps - self._saved >= self.section.every and not self.reached:
                self._save()
                self._spent("checkpoint")
            self.logger.dump(self.num_timesteps)
        self._clock = time.perf_counter()

    def _on_step(self) -> bool:
        if self.n_calls % 8 == 0:
            self._show(self.num_timesteps)
        self.interrupted = self.stop.requested and not self.reached
        return not (self.interrupted or self.reached)

    def _on_rollout_end(self) -> None:
        self._spent("rollout")
        if self._norms is not None:
            found = in_buffer(self._on_policy.rollout_buffer)
            if found:
                raise self._diverged(found)

    def _on_training_end(self) -> None:
        if self.interrupted or self.reached:
            # The steps of the rollout under way are given up: the checkpoint stands where it began.
            self.model.num_timesteps = self.state.num_timesteps
        elif self.num_timesteps > self.state.num_timesteps:
            self._between(last=True)
            self._moment = Moment.of(self._on_policy)
        self._save()
        self.logger.dump(self.model.num_timesteps)
        self._show(self.model.num_timesteps)
        if self._norms is not None:
            self._norms.close()

    @property
    def _on_policy(self) -> OnPolicyAlgorithm:
        assert isinstance(self.model, OnPolicyAlgorithm)
        return self.model

    def _between(self, last: bool = False) -> None:
        """Do what is due after an update."""
        self._spent("update")
        found = in_weights(self.model.policy.state_dict())
        if found:
            raise self._diverged(found)
        number = self.update
        norm = None if self._norms is None else self._norms.mean()
        if norm is not None:
            self.logger.record("train/gradient_norm", norm)
        self.state.num_timesteps, self.state.n_updates = self.num_timesteps, int(self.model._n_updates)
        self.state.seconds = time.monotonic() - self._began
        self.state.cpu_seconds = time.process_time() - self._cpu_began
        every = self.section.certify_every
        if every and (number % every == 0 or last):
            for name, value in certified(deploy(self.model)).items():
                self.logger.record(name, value)
            self._spent("certificate")
        if last or self.num_timesteps - self.state.last_evaluation >= self.section.evaluate_every:
            self._evaluate()
            self._spent("evaluation")

    def _diverged(self, found: str) -> DivergedError:
        return diverged(found, self.update, self.num_timesteps)

    def _spent(self, phase: str) -> None:
        """Log the time since the last phase ended as that of `phase`."""
        now = time.perf_counter()
        self.logger.record(f"time/{phase}_seconds", now - self._clock)
        self._clock = now

    def _show(self, steps: int) -> None:
        returns = [info["r"] for info in self.model.ep_info_buffer or ()]
        self.reporter.update(steps, float(np.mean(returns)) if returns else None, self.state.best_reward)

    def _save(self) -> None:
        assert self._moment is not None
        self._saved = self.state.num_timesteps
        write_checkpoint(self.run.checkpoints, self._on_policy, self.state, self.best, self._moment)

    def _evaluate(self) -> None:
        # The same starts every time, so that two evaluations differ by the policy alone.
        self.eval_env.seed(self.seed)
        returns, lengths = evaluate_policy(
            self.model, self.eval_env, self.section.evaluate_episodes, return_episode_rewards=True, warn=False
        )
        mean = float(np.mean(returns))
        if not np.isfinite(mean):
            raise diverged(f"the evaluation's mean return was {mean}", self.update - 1, self.num_timesteps)
        if self.section.policies:
            save_policy(deploy_trained(self.model), self.run.policy_at(self.num_timesteps))
        self.logger.record("eval/mean_reward", mean)
        self.logger.record("eval/mean_ep_length", float(np.mean(lengths)))
        if self.state.evaluated(mean):
            self.best = weights(self.model.policy)
            save_policy(deploy_trained(self.model), self.run.checkpoints / "best")
        self.reached = reached(self.section, self.state)
