"""One rollout: a policy acts in environments for some steps, and what happens goes into a buffer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.train.ppo.buffer import TensorRolloutBuffer
from robust_policies.train.ppo.policy import Arrays, RolloutPolicy, States, TensorPolicy
from robust_policies.train.run.ranks import Ranks


class Now(NamedTuple):
    """What a rollout goes on from."""

    observations: Tensor
    """(env, nu)"""
    starts: Tensor
    """(env,) bool: an episode begins."""
    states: States


class Step(NamedTuple):
    """What was done and seen in one step of all environments; see `SB3VecEnv`."""

    actions: Tensor
    clipped_actions: Tensor
    rewards: Tensor
    dones: Tensor
    info: dict[str, Any]


class Truncation(NamedTuple):
    """Episodes that their time limit cut off in step `step`: which (env,), and their last observations' latents."""

    step: int
    rows: Tensor
    latent: Tensor


class Played(NamedTuple):
    """A rollout that was played to its end."""

    acting: RolloutPolicy
    now: Now
    cut_off: list[Truncation]


class Stage:
    """Where rollouts are played.

    Args:
        tensors: the policy.
        env: the environments.
        buffer: for what happens; its number of steps is the rollout's.
        bounds: of the actions, (na,) each; None: there are none.
        ranks: who trains together.
        seconds: time spent on "policy" and "environment", which is added to.
    """

    def __init__(
        self,
        tensors: TensorPolicy,
        env: SB3VecEnv,
        buffer: TensorRolloutBuffer,
        bounds: tuple[Tensor, Tensor] | None,
        ranks: Ranks,
        seconds: dict[str, float],
    ) -> None:
        self.tensors, self.env, self.buffer, self.bounds = tensors, env, buffer, bounds
        self.ranks, self.seconds = ranks, seconds

    def play(self, now: Now, told: Callable[[int, Step], bool], arrays: Arrays | None = None) -> Played | None:
        """Play a rollout; None where `told`, called after every step, returns False. `arrays` as `RolloutPolicy`'s."""
        clock, seconds, buffer, vector = time.perf_counter, self.seconds, self.buffer, self.env.env
        observations, starts, states = now
        buffer.actor_state.copy_(states.actor)
        buffer.critic_state.copy_(states.critic)
        acting = RolloutPolicy(self.tensors, states, buffer.buffer_size, self.ranks, arrays)
        acting.begin(starts)
        cut_off: list[Truncation] = []
        nobody = torch.zeros_like(starts)
        buffer.dones.zero_()
        buffer.starts[0] = starts
        before = clock()
        for n in range(buffer.buffer_size):
            actions = acting.act(observations, n)
            buffer.observations[n] = observations
            buffer.actions[n] = actions
            clipped_actions = actions if self.bounds is None else actions.clamp(*self.bounds)
            middle = clock()
            observations, rewards, terminated, truncated, info = vector.step(clipped_actions)
            after = clock()
            seconds["policy"] += middle - before
            seconds["environment"] += after - middle
            before = after
            dones = info.get("_final_obs", nobody)
            buffer.rewards[n] = rewards
            if not told(n, Step(actions, clipped_actions, rewards, dones, info)):
                return None
            if dones is not nobody:
                buffer.dones[n] = dones
                cut_off.append(Truncation(n, truncated & ~terminated, acting.latent(info["final_obs"])))
                acting.begin(dones)
        buffer.starts[1:] = buffer.dones[:-1]
        seconds["policy"] += clock() - before
        return Played(acting, Now(observations, buffer.dones[-1].clone(), acting.states), cut_off)

    def value(self, played: Played) -> None:
        """Write the values and log-probabilities of a rollout's steps into the buffer."""
        buffer = self.buffer
        played.acting.write_values(buffer.observations, buffer.values)
        buffer.log_probs.copy_(played.acting.all_log_probs())

    def estimate(self, played: Played, rewards: Tensor, discount: float, gae_lambda: float) -> None:
        """Compute advantages and returns of a rollout that has its values, from rewards (time, env), which change."""
        tensors = self.tensors
        for step, rows, latent in played.cut_off:
            rewards[step] += torch.where(rows, discount * tensors.values(latent), 0.0)
        last = tensors.values(played.acting.latent(played.now.observations))
        self.buffer.estimate(rewards, last, discount, gae_lambda)
