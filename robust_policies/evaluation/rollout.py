"""Episodes of a deployed policy under perturbed observations, all sizes and episodes side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from robust_policies.envs.perturb import parse, perturb
from robust_policies.envs.registration import ours, unknown_environment
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import DivergedError, InvalidValueError, ShapeError, UnknownNameError
from robust_policies.evaluation.attacks import FrozenActor, closed_loop_attack, deviation_attack
from robust_policies.evaluation.perturbations import PERTURBATIONS, sphere, unit_noise
from robust_policies.policies.deployed import DeployedPolicy

KINDS = (*PERTURBATIONS, "pgd")
Step = Callable[[], None]


@dataclass(frozen=True)
class Budget:
    """How much an attack may compute: gradient steps, window and horizon in time steps."""

    gradient_steps: int = 8
    window: int = 40
    deviation_steps: int = 4
    horizon: int = 4


@dataclass(frozen=True)
class Episodes:
    """Returns (sizes, episodes), and of the first episode of each size the actions (time, sizes, na)."""

    returns: np.ndarray
    lengths: np.ndarray
    actions: np.ndarray
    attack: str


class Task:
    """A Gymnasium id as a batch of environments whose observations and rewards are float32 tensors."""

    def __init__(
        self, env_id: str, count: int, kwargs: Mapping[str, Any] | None = None, perturbations: Any = ()
    ) -> None:
        options = dict(kwargs or {})
        try:
            if ours(env_id):
                self.env: Any = gymnasium.make_vec(
                    env_id, num_envs=count, autoreset_mode=AutoresetMode.DISABLED, **options
                )
            else:
                makers = [lambda: gymnasium.make(env_id, **options) for _ in range(count)]
                self.env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
        except gymnasium.error.UnregisteredEnv as error:
            raise unknown_environment(env_id) from error
        self.env = perturb(self.env, parse(perturbations))
        inner = self.env.unwrapped
        self.torch_env: TorchVectorEnv | None = inner if isinstance(inner, TorchVectorEnv) else None
        self.action_shape = self.env.single_action_space.shape
        self.count = count

    def reset(self, seeds: list[int]) -> Tensor:
        """Return the first observations (count, nu)."""
        return self._flat(self.env.reset(seed=seeds)[0])

    def step(self, actions: Tensor, ended: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Return (observations, rewards, newly ended); environments in `ended` are reset and their reward ignored."""
        if ended.any():
            # Both contracts refuse to step an ended episode; its new one is never counted.
            self.env.reset(options={"reset_mask": ended})
        given = actions if self.torch_env is not None else actions.numpy().reshape(self.count, *self.action_shape)
        observation, reward, terminated, truncated, _ = self.env.step(given)
        return self._flat(observation), np.asarray(reward, np.float64), np.asarray(terminated) | np.asarray(truncated)

    def _flat(self, observation: Any) -> Tensor:
        return torch.as_tensor(np.asarray(observation, dtype=np.float32)).reshape(self.count, -1)


def run_episodes(
    policy: DeployedPolicy,
    env_id: str,
    kind: str,
    sizes: list[float],
    episodes: int,
    seed: int,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    max_steps: int = 2000,
    on_step: Step | None = None,
    perturbations: Any = (),
) -> Episodes:
    """Return `episodes` episodes at each size of the perturbation `kind`, on top of the wrappers `perturbations`.

    Episode i has the same start, environment noise and unit perturbation at every size (common random numbers). For
    "pgd" an episode's return at a size is the worst found with a budget up to that size, doing nothing included.

    Raises:
        ShapeError: the task does not fit the policy. DivergedError: an action is not finite.
    """
    if kind not in KINDS:
        raise UnknownNameError.among("perturbation", kind, KINDS)
    if not sizes or any(not np.isfinite(size) or size < 0 for size in sizes):
        raise InvalidValueError(f"sizes are {sizes!r}; expected at least one finite number >= 0.")
    budget = budget or Budget()
    order = np.argsort(sizes)
    padded = [0.0, *(float(sizes[i]) for i in order)] if kind == "pgd" else [float(sizes[i]) for i in order]
    returns, lengths, actions, attack = _run(
        policy, env_id, kind, padded, episodes, seed, dict(env_kwargs or {}), budget, max_steps, on_step, perturbations
    )
    if kind == "pgd":
        returns, lengths, actions = np.minimum.accumulate(returns)[1:], lengths[1:], actions[:, 1:]
    back = np.argsort(order)
    return Episodes(returns[back], lengths[back], actions[:, back], attack)


def _run(
    policy: DeployedPolicy, env_id: str, kind: str, sizes: list[float], episodes: int, seed: int,
    env_kwargs: dict[str, Any], budget: Budget, max_steps: int, on_step: Step | None, perturbations: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:  # fmt: skip
    count = len(sizes) * episodes
    task = Task(env_id, count, env_kwargs, perturbations)
    try:
        _check_fit(policy, task, env_id)
        actor = FrozenActor(policy)
        observation = task.reset([seed * 100_003 + i for i in range(episodes)] * len(sizes))
        nu = observation.shape[1]
        size = torch.tensor(sizes, dtype=torch.float32).repeat_interleave(episodes)
        hidden = actor.initial_state(count)
        generator = torch.Generator().manual_seed(seed + 1)
        noise = torch.zeros(0) if kind == "pgd" else unit_noise(kind, (max_steps, episodes, nu), seed + 1)
        plan: Tensor = torch.zeros(0)
        # Gradients need a differentiable plant; the search plans without the wrappers, the episodes run with them.
        inner = task.torch_env
        closed = kind == "pgd" and inner is not None and inner.plant.differentiable
        total, length, ended = np.zeros(count), np.zeros(count, int), np.zeros(count, bool)
        fresh, first = np.zeros(count, bool), []
        for t in range(max_steps):
            if closed and task.torch_env is not None:
                if t % budget.window == 0:
                    left = max(1, min(budget.window, task.torch_env.max_episode_steps - t))
                    start = sphere((left, episodes, nu), generator).repeat(1, len(sizes), 1)
                    plan = closed_loop_attack(
                        actor, task.torch_env.plant, task.torch_env.prepared, task.torch_env.state, hidden, size, start,
                        steps=budget.gradient_steps,
                    )  # fmt: skip
                shift = plan[t % budget.window]
            elif kind == "pgd":
                start = sphere((episodes, nu), generator).repeat(len(sizes), 1)
                shift = deviation_attack(
                    actor, hidden, observation, size, start, horizon=budget.horizon, steps=budget.deviation_steps
                )
            else:
                shift = noise[t].repeat(len(sizes), 1) * size.unsqueeze(-1)
            with torch.no_grad():
                hidden, mean = actor.step(hidden, observation + shift)
                action = actor.clip(mean).float()
            running = torch.as_tensor(~ended)
            if not bool(torch.isfinite(action[running]).all()):
                raise DivergedError(f"The policy's action in {env_id} is NaN or infinite at step {t}; train it again.")
            # An ended episode's environment goes on uncounted, whatever its state.
            action, hidden = torch.nan_to_num(action), torch.nan_to_num(hidden)
            first.append(action[::episodes].numpy().copy())
            observation, reward, done = task.step(action, fresh)
            total += np.where(ended, 0.0, reward)
            length += ~ended
            fresh, ended = done, ended | done
            if on_step is not None:
                on_step()
            if ended.all():
                break
    finally:
        task.env.close()
    shape = (len(sizes), episodes)
    attack = "" if kind != "pgd" else ("closed_loop" if closed else "deviation")
    return total.reshape(shape), length.reshape(shape), np.stack(first), attack


def _check_fit(policy: DeployedPolicy, task: Task, env_id: str) -> None:
    observations, actions = task.env.single_observation_space, task.env.single_action_space
    if not isinstance(actions, gymnasium.spaces.Box):
        raise ShapeError(f"{env_id} has the action space {actions}; evaluation needs a Box.")
    for name, given, wanted in (
        ("observations", observations, policy.observation_space), ("actions", actions, policy.action_space)
    ):  # fmt: skip
        if given.shape != wanted.shape:
            raise ShapeError(f"{env_id} has {name} of shape {given.shape}; the policy was trained for {wanted.shape}.")
