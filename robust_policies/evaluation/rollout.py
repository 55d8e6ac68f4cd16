"""Episodes of a deployed policy under perturbed observations, all sizes and episodes side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies import checks
from robust_policies.envs.batch import Environment
from robust_policies.envs.known import seeds_of
from robust_policies.errors import InvalidValueError
from robust_policies.evaluation.attacks.attack import Attack, Moment, Scene
from robust_policies.evaluation.attacks.budget import Budget
from robust_policies.evaluation.deviation import action_deviation
from robust_policies.evaluation.noise import unit_noise
from robust_policies.policies.batch import Step, Task, steps_of
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.frozen import FrozenActor

OnStep = Callable[[], None]
Perturb = Callable[[Moment], Tensor]


@dataclass(frozen=True)
class Episodes:
    """What happened, (sizes, episodes) each.

    Attributes:
        returns: sums of rewards; NaN where `failed`.
        lengths: numbers of steps.
        deviations: |applied actions - clean actions| / |perturbation|, l2 over the episode, choices as vectors of 0
            and 1; NaN if none was made.
        gains: the same before clipping, of choices of the logits: what a proven gain of the policy bounds.
        failed: the policy or the environment gave NaN or infinity there.
        attack: the name of the attack, "" for noise.
        monitored: of a Youla policy "region_exits" and "saturations", in numbers of steps; else empty.
        recorded: of the first `record` episodes "observations", "perturbed", "actions" (time, sizes, record, n) and
            "rewards" (time, sizes, record), float32; after an episode's end they are repeated, rewards zero.
    """

    returns: np.ndarray
    lengths: np.ndarray
    deviations: np.ndarray
    gains: np.ndarray
    failed: np.ndarray
    attack: str
    recorded: dict[str, np.ndarray] = field(default_factory=dict)
    monitored: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What is played: the same for the attacked episodes and for a recording without attack."""

    policy: DeployedPolicy
    env_id: Environment
    env_kwargs: Mapping[str, Any]
    perturbations: Any
    episodes: int
    draws: Sequence[tuple[int, int]]
    max_steps: int
    on_step: OnStep | None
    episode_seeds: list[int]
    factors: Mapping[str, Sequence[float]]
    known: dict[Any, tuple[Tensor, Tensor]]

    def task(self, count: int, actor: FrozenActor) -> Task:
        """Return `count` environments on the actor's device, in the precision that it reads."""
        return Task(self.env_id, count, self.env_kwargs, self.perturbations, actor.low.device, actor.precise)


@dataclass(frozen=True)
class _Played:
    observations: Tensor
    perturbed: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor
    failed: Tensor

    def counted(self) -> Tensor:
        """Return which steps (time, batch) belong to the episode."""
        return torch.arange(len(self.rewards), device=self.rewards.device).unsqueeze(1) < self.lengths

    def returns(self) -> Tensor:
        """Return the sums of rewards (batch,), NaN where the episode failed."""
        return torch.where(self.counted(), self.rewards, 0.0).sum(0).masked_fill(self.failed, torch.nan)

    def until_end(self, values: Tensor) -> Tensor:
        """Return `values` (time, batch, n) that stay as they were at an episode's last step."""
        last = (self.lengths - 1).clamp(min=0)
        index = torch.minimum(torch.arange(len(values), device=values.device).unsqueeze(1), last)
        return values.gather(0, index.unsqueeze(-1).expand_as(values))


def attacked(setting: Setting, attack: Attack | None, kinds: list[str], sizes: list[float], norm: str) -> _Played:
    """Return the episodes at all sizes under an attack, or each under the noise of `kinds`."""
    actor = FrozenActor(setting.policy)
    count = len(sizes) * setting.episodes
    exact = torch.tensor(sizes, dtype=torch.float64, device=actor.low.device).repeat_interleave(setting.episodes)

    def rehearse(policy: DeployedPolicy | None, other: Attack | None) -> tuple[Tensor, Tensor, Tensor]:
        rehearsed = setting if policy is None else replace(setting, policy=policy)
        if other is not None:
            played = attacked(rehearsed, other, kinds, sizes, norm)
            return played.until_end(played.observations), played.until_end(played.perturbed), played.returns()
        # Without an attack all sizes are alike.
        found = _known(setting) if policy is None else None
        if found is None:
            task = setting.task(setting.episodes, actor)
            try:
                played = _play(rehearsed, task, FrozenActor(rehearsed.policy), lambda moment: moment.observation)
            finally:
                task.close()
            found = played.until_end(played.observations), played.returns()
            if policy is None:
                _remember(setting, *found)
        clean = found[0].repeat(1, len(sizes), 1)
        return clean, clean, found[1].repeat(len(sizes))

    task = setting.task(count, actor)
    try:
        horizon = min(setting.max_steps, task.limit or setting.max_steps)
        nu = setting.policy.cell.input_size
        if attack is None:
            noise, scale = {kind: _noise(setting, actor, kind, horizon) for kind in kinds}, exact.float().unsqueeze(-1)

            def perturbed(moment: Moment) -> Tensor:
                return moment.observation + torch.cat([noise[kind][moment.t] for kind in kinds]) * scale

            played = _play(setting, task, actor, perturbed)
            if sizes == [0.0] and not setting.factors:
                _remember(setting, played.until_end(played.observations), played.returns())
            return played
        budget = Budget(norm, exact, horizon, actor.measured)
        task.check_fit(setting.policy)
        draws = [(seed + 1, number) for seed, number in setting.draws]
        attack.begin(Scene(actor, budget, len(sizes), setting.episodes, nu, task.torch_env, draws, rehearse))
        return _play(setting, task, actor, lambda m: budget.apply(m.observation, attack.perturbation(m)))
    finally:
        task.close()


def _noise(setting: Setting, actor: FrozenActor, kind: str, horizon: int) -> Tensor:
    """Return the noise of size 1 (time, episodes, nu)."""
    nu = setting.policy.cell.input_size
    groups = [unit_noise(kind, (horizon, number, nu), seed + 1) for seed, number in setting.draws]
    noise = torch.cat(groups, 1).to(actor.low.device)
    return noise if actor.measured is None else noise * actor.measured


def _remember(setting: Setting, observations: Tensor, returns: Tensor) -> None:
    """Keep unperturbed episodes: observations (time, episodes, nu) and returns (episodes,)."""
    setting.known[repr(setting.perturbations), setting.max_steps, tuple(setting.episode_seeds)] = observations, returns


def _known(setting: Setting) -> tuple[Tensor, Tensor] | None:
    """Return what was remembered of the same unperturbed episodes, None if that is not known of all of them."""
    for (around, limit, seeds), (observations, returns) in setting.known.items():
        wanted = setting.episode_seeds
        if (around, limit) == (repr(setting.perturbations), setting.max_steps) and set(wanted) <= set(seeds):
            rows = torch.tensor([seeds.index(seed) for seed in wanted], device=returns.device)
            return observations[:, rows], returns[rows]
    return None


def _play(setting: Setting, task: Task, actor: FrozenActor, perturb: Perturb) -> _Played:
    """Return the episodes in which the policy reads what `perturb` makes of each moment's observations."""
    task.check_fit(setting.policy)
    for name, values in setting.factors.items():
        task.scale(name, torch.tensor(values).repeat_interleave(setting.episodes))
    seeds = setting.episode_seeds * (task.count // setting.episodes)
    limit = min(setting.max_steps, task.limit or setting.max_steps)
    steps: list[Step] = []
    for step in steps_of(task, actor, seeds, limit, lambda t, seen, hidden: perturb(Moment(t, seen, hidden))):
        steps.append(step)
        if setting.on_step is not None:
            setting.on_step()
    columns = (torch.stack(values) for values in zip(*(step[:5] for step in steps), strict=True))
    observations, seen, actions, rewards, counted = columns
    return _Played(observations, seen, actions, rewards, counted.sum(0), steps[-1].failed)


def play_episodes(
    policy: DeployedPolicy,
    env_id: Environment,
    perturbation: Attack | str | Sequence[str],
    sizes: Sequence[float],
    episodes: int,
    seed: int,
    *,
    attack_name: str = "",
    norm: str = "per_step_l2",
    env_kwargs: Mapping[str, Any] | None = None,
    perturbations: Any = (),
    max_steps: int = 2000,
    on_step: OnStep | None = None,
    record: int = 0,
    episode_seeds: Sequence[int] | None = None,
    draws: Sequence[tuple[int, int]] | None = None,
    factors: Mapping[str, Sequence[float]] | None = None,
    known: dict[Any, Any] | None = None,
) -> Episodes:
    """Return episodes under an attack, or under noise that is given by its name; else as `run_episodes`."""
    sizes = [float(size) for size in sizes]
    if not sizes or any(not np.isfinite(size) or size < 0 for size in sizes):
        raise InvalidValueError(f"sizes are {sizes!r}; expected at least one finite number >= 0.")
    checks.positive_int("episodes", episodes)
    record = min(checks.positive_int("record", record, minimum=0), episodes)
    attack, kinds = (perturbation, []) if isinstance(perturbation, Attack) else (None, perturbation)
    kinds = [kinds] * len(sizes) if isinstance(kinds, str) else list(kinds)
    if attack is None and len(kinds) != len(sizes):
        raise InvalidValueError(
            f"{len(kinds)} kinds of noise were given for {len(sizes)} sizes; expected one for each."
        )
    setting = Setting(
        policy,
        env_id,
        dict(env_kwargs or {}),
        perturbations,
        episodes,
        [(seed, episodes)] if draws is None else list(draws),
        checks.positive_int("max_steps", max_steps),
        on_step,
        seeds_of(seed, episodes) if episode_seeds is None else list(episode_seeds),
        dict(factors or {}),
        {} if known is None else known,
    )
    if len(setting.episode_seeds) != episodes:
        raise InvalidValueError(
            f"{len(setting.episode_seeds)} episode seeds were given; expected one for each of {episodes} episodes."
        )
    if sum(number for _, number in setting.draws) != episodes:
        raise InvalidValueError(f"draws are {setting.draws}; expected (seed, number) of {episodes} episodes in all.")
    if any(len(values) != len(sizes) for values in setting.factors.values()) or (factors and attack is not None):
        raise InvalidValueError(f"factors are {dict(factors or {})}; expected one for each size, and no attack.")
    played = attacked(setting, attack, kinds, sizes, norm)
    shape = (len(sizes), episodes)
    lengths, failed = played.lengths.cpu().numpy(), played.failed.cpu().numpy()
    returns = played.returns().cpu().numpy()
    deviations, gains = action_deviation(policy, played.observations, played.perturbed, lengths)
    for values in (deviations, gains):
        values[failed] = np.nan
    monitored = policy.monitored(played.perturbed, played.actions, lengths)
    recorded = {}
    if record:
        kept = {name: played.until_end(getattr(played, name)) for name in ("observations", "perturbed", "actions")}
        kept["rewards"] = torch.where(played.counted(), played.rewards, 0.0).float()
        recorded = {
            name: value.unflatten(1, shape)[:, :, :record].cpu().numpy().astype(np.float32)
            for name, value in kept.items()
        }
    return Episodes(
        returns.reshape(shape),
        lengths.reshape(shape),
        deviations.reshape(shape),
        gains.reshape(shape),
        failed.reshape(shape),
        attack_name,
        recorded,
        {key: value.reshape(shape) for key, value in monitored.items()},
    )
