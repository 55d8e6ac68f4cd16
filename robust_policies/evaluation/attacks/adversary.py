"""The attacked policy seen from its adversary: environments whose action is the perturbation, the reward the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch import Tensor

from robust_policies.evaluation.attacks.budget import Budget
from robust_policies.policies.frozen import FrozenActor
from robust_policies.policies.observations import alone, encode
from robust_policies.policies.spaces import given

_SPENDING = 3.0
_AMPLIFIED = 3.0


def wish(norm: str, raw: Tensor, size: Tensor, horizon: int) -> Tensor:
    """Return the perturbation (batch, nu) that an adversary's action `raw` (batch, nu) stands for.

    Per step: three times the action, in the unit ball, times the size, for most of what harms lies on the surface. Of a
    total budget up to three times as much as an even spread over the horizon would take; the account limits the sum.
    """
    raw = _AMPLIFIED * raw
    if norm == "per_step_linf":
        return raw.clamp(-1.0, 1.0) * size.unsqueeze(-1)
    inside = raw / raw.norm(dim=-1, keepdim=True).clamp(min=1.0)
    scale = size if norm == "per_step_l2" else _SPENDING * size / horizon**0.5
    return inside * scale.unsqueeze(-1)


def seen(actor: FrozenActor, observation: Tensor, hidden: Tensor, budget: Budget) -> Tensor:
    """Return what an adversary reads (batch, nu + na + 2): observation, clean action, size and what is left of it."""
    with torch.no_grad():
        action = actor.clip(actor.step(observation, hidden)[0])
    share = budget.left / budget.size.double().clamp(min=1e-12)
    return torch.cat((observation, action, budget.size.unsqueeze(-1), share.unsqueeze(-1)), dim=-1).float()


class Victim:
    """A batch of copies of the attacked policy between its adversary and the environments."""

    def __init__(self, actor: FrozenActor, norm: str, size: Tensor, horizon: int) -> None:
        self.actor, self.norm, self.size, self.horizon = actor, norm, size, horizon
        self.begin_all()

    def begin_all(self) -> None:
        """Begin new episodes everywhere."""
        self.budget = Budget(self.norm, self.size, self.horizon, self.actor.measured)
        self.hidden = self.actor.initial_state(len(self.size))

    def begin(self, ended: Tensor) -> None:
        """Begin new episodes where `ended` (batch,) is True."""
        self.hidden = self.hidden.masked_fill(ended.unsqueeze(-1), 0.0)
        self.budget.left = torch.where(ended, self.budget.limit, self.budget.left)

    def seen(self, observation: Tensor) -> Tensor:
        """Return what the adversary reads for observations (batch, nu)."""
        return seen(self.actor, observation, self.hidden, self.budget)

    def act(self, observation: Tensor, raw: Tensor) -> Tensor:
        """Return what the environments are sent, (batch, *shape), by the policy on perturbed observations."""
        perturbed = self.budget.apply(observation, wish(self.norm, raw, self.size, self.horizon))
        with torch.no_grad():
            numbers, self.hidden = self.actor.step(perturbed, self.hidden)
        if self.actor.choices:
            return given(self.actor.space, self.actor.applied(numbers)[0])
        return self.actor.clip(numbers).float()

    def spaces(self) -> tuple[spaces.Box, spaces.Box]:
        """Return the adversary's observation and action space."""
        nu = self.actor.actor.cell.input_size
        width = nu + self.actor.low.numel() + 2
        return spaces.Box(-np.inf, np.inf, (width,), np.float32), spaces.Box(-1.0, 1.0, (nu,), np.float32)


class AdversaryVectorEnv(VectorWrapper):
    """One of this package's SAME_STEP environments with the policy in it, for its adversary."""

    def __init__(self, env: VectorEnv, victim: Victim, scale: float) -> None:
        super().__init__(env)
        self.victim, self.scale = victim, scale
        self.single_observation_space, self.single_action_space = victim.spaces()
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Return what the adversary reads at the start."""
        self.last, info = self.env.reset(seed=seed, options=options)
        self.victim.begin_all()
        return self.victim.seen(self.last), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return what the adversary reads, minus the scaled rewards, terminations, truncations and info."""
        raw = torch.as_tensor(actions, device=self.last.device)
        self.last, reward, terminated, truncated, info = self.env.step(self.victim.act(self.last, raw))
        if "final_obs" in info:
            info = {**info, "final_obs": self.victim.seen(info["final_obs"])}
            self.victim.begin(info["_final_obs"])
        return self.victim.seen(self.last), -self.scale * reward, terminated, truncated, info


class AdversaryVecEnv(VecEnvWrapper):
    """The same around a Stable-Baselines3 VecEnv of any environments."""

    def __init__(self, venv: VecEnv, victim: Victim, scale: float) -> None:
        self.victim, self.scale = victim, scale
        super().__init__(venv, *victim.spaces())

    def reset(self) -> np.ndarray:
        """Return what the adversary reads at the start."""
        self.last = self._tensor(self.venv.reset())
        self.victim.begin_all()
        return self.victim.seen(self.last).cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """Let the policy act on the observations perturbed by `actions`, (n, nu)."""
        raw = torch.as_tensor(actions, dtype=torch.float32, device=self.last.device)
        applied = self.victim.act(self.last, raw).cpu().numpy()
        self.venv.step_async(applied.reshape(len(applied), *(self.venv.action_space.shape or ())))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return what the adversary reads, minus the scaled rewards, dones and infos."""
        observation, reward, done, infos = self.venv.step_wait()
        final = self._tensor(observation).clone()
        for row in np.flatnonzero(done):
            final[row] = self._tensor(alone(infos[row]["terminal_observation"]))[0]
        if done.any():
            terminal = self.victim.seen(final).cpu().numpy()
            for row in np.flatnonzero(done):
                infos[row] = {**infos[row], "terminal_observation": terminal[row]}
        self.victim.begin(torch.as_tensor(done, device=final.device))
        self.last = self._tensor(observation)
        return self.victim.seen(self.last).cpu().numpy(), (-self.scale * reward).astype(np.float32), done, infos

    def _tensor(self, observation: Any) -> Tensor:
        space, precise = self.victim.actor.policy.observation_space, self.victim.actor.precise
        if not isinstance(space, spaces.Box):
            return encode(space, observation, precise=precise).to(self.victim.size.device)
        array = np.asarray(observation)
        if not (precise and array.dtype == np.float64):
            array = array.astype(np.float32, copy=False)
        return torch.as_tensor(array, device=self.victim.size.device).reshape(len(array), -1)
