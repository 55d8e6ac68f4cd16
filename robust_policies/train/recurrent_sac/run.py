"""A recipe of recurrent SAC -> run folder, with checkpoints that continue exactly, the replay buffer in them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_policies.checks import SEEDS
from robust_policies.envs.snapshot import Snapshot, capture, restore
from robust_policies.files.tensors import under
from robust_policies.networks import make_cell
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.train.recipe.recipe import Recipe
from robust_policies.train.recipe.recurrent_sac import RecurrentSacSection
from robust_policies.train.recipe.sb3 import entropy_weight
from robust_policies.train.recurrent_sac.algorithm import Networks, RecurrentSAC, deterministic
from robust_policies.train.recurrent_sac.networks import SequenceCritic, StochasticActor
from robust_policies.train.recurrent_sac.stage import Stage
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.job import Job, TrainResult
from robust_policies.train.run.loop import RETURN, Training, Updates, run_updates, trained

_CRITIC = {"cell": "gru", "state_size": 32}
_WIDTHS = [64, 64]


def make_networks(recipe: Recipe[RecurrentSacSection], stage: Stage) -> Networks:
    """Return the untrained networks that the recipe describes; the same seed gives the same weights.

    Raises:
        UserError: the options of a cell do not fit.
    """
    policy, sizes = recipe.policy, (stage.observation_size, stage.action_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        linear = policy.cell_output_size is not None
        outputs = policy.cell_output_size or stage.action_size
        cell = make_cell(policy.cell, stage.observation_size, outputs, **policy.cell_kwargs())
        head = MeanHead(outputs, stage.action_size, linear, stage.scale, stage.offset, squash=True)
        scaling = Scaling(stage.observation_size, policy.observation_scale, policy.observation_offset)
        actor = StochasticActor(Actor(ScaledCell(cell, scaling), head), policy.log_std_init)
        given = dict(policy.critic_kwargs)
        widths = given.pop("net_arch", _WIDTHS)
        given = given if "cell" in given else {**_CRITIC, **given}
        kind, width = given.pop("cell"), given.pop("output_size", 32)
        bounded = None if isinstance(policy.critic, str) else policy.critic.model_dump(exclude={"cell"})
        critic = SequenceCritic(*sizes, scaling, kind, given, width, widths, bounded)
        return Networks(actor, critic, entropy_weight(recipe.algorithm.ent_coef)[0]).to(stage.device)


class RecurrentSacRun(Updates):
    """Recurrent SAC on a recipe's task.

    Args:
        job: what to train, and where.
        stack: closes the environments.

    Raises:
        UserError: the recipe's task or policy does not fit.
    """

    updates = 1
    shown = "rollout/ep_rew_mean"
    timed = False

    def __init__(self, job: Job, stack: ExitStack) -> None:
        recipe = self.recipe = job.recipe
        self.stage = Stage(recipe.task, recipe.task.num_envs, job.device, recipe.seed)
        stack.callback(self.stage.close)
        self.watched = Stage(recipe.task, recipe.checkpoints.evaluate_episodes, job.device, job.eval_seed)
        stack.callback(self.watched.close)
        self.networks = make_networks(recipe, self.stage)
        self.algorithm = RecurrentSAC(self.stage, self.networks, recipe.algorithm, recipe.seed)
        self.steps = self.algorithm.steps_per_update
        self._number = math.ceil(recipe.algorithm.total_steps / self.steps)
        self._began: tuple[float, int] | None = None
        self._facts: dict[str, Any] = {}

    @property
    def module(self) -> nn.Module:
        """Actor, critics and their target."""
        return self.networks

    def update(self, progress: Progress) -> dict[str, Any]:
        """Return the scalars of one update made at `progress`; raises `DivergedError`."""
        began, first = self._began = self._began or (time.monotonic(), progress.num_timesteps)
        found: dict[str, Any] = self.algorithm.update(1.0 - progress.n_updates / self._number)
        found["time/fps"] = (progress.num_timesteps + self.steps - first) / max(time.monotonic() - began, 1e-9)
        if self.algorithm.episodes:
            mean, length = np.mean(np.array(self.algorithm.episodes), axis=0)
            found |= {self.shown: float(mean), "rollout/ep_len_mean": float(length)}
        return found

    def note(self, found: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def deployed(self) -> DeployedPolicy:
        """Return a copy of the policy as it is, without its noise, on the CPU."""
        return deterministic(self.networks.actor).deployed(self.stage.observation_space, self.stage.action_space)

    def evaluate(self) -> dict[str, float]:
        """Return the scalars of an evaluation; its episodes begin the same every time."""
        returns, lengths = self.watched.play(self.networks.actor.actor)
        return {RETURN: float(returns.mean()), "eval/mean_ep_length": float(lengths.mean())}

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, optimizers, the replay buffer and environments, by name."""
        found = self.algorithm.tensors()
        if not self.stage.torch:
            return found
        snapshot = capture(env=self.stage.env)
        self._facts = {"values": snapshot.values, "same": snapshot.same}
        return found | {f"env.{name}": value for name, value in snapshot.tensors.items()}

    def facts(self) -> dict[str, Any]:
        """Return the numbers of the environments that `tensors` looked at."""
        return self._facts

    def load_tensors(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], progress: Progress) -> None:
        """Go on from what `tensors` returned, of the same shapes, and `facts`; raises as `Learner`'s."""
        if self.stage.torch:
            restore(Snapshot(under("env", tensors), facts["values"], facts["same"]), env=self.stage.env)
        else:
            self.stage.seed = (self.recipe.seed + progress.num_timesteps) % SEEDS
            self.algorithm.now["observation"] = self.stage.reset()
            warnings.warn(
                f"The state of {self.recipe.task.id} cannot be read: its episodes begin anew, so the run will not be "
                "number for number the one that was not interrupted.",
                stacklevel=4,
            )
        self.algorithm.load_tensors(tensors, begun=self.stage.torch)


def train_recurrent_sac(job: Job) -> TrainResult:
    """Return the result of training by recurrent SAC; see `train`."""

    def begin(training: Training, learner: RecurrentSacRun) -> None:
        replay = learner.algorithm.replay
        job.reporter.note(
            f"Replay buffer: {replay.rows * replay.count} steps, {replay.bytes / 1e6:.4g} MB when it is full, and as "
            "much in each of the last two checkpoints."
        )
        run_updates(training, learner)

    settings = ("algorithm.buffer_size", "task.num_envs", "algorithm.batch_size")
    return trained(job, RecurrentSacRun, begin, *settings)
