"""The certified return of a smoothed policy, in any environment: Gaussian noise on what it reads, and many episodes.

`certificates.smoothing` says what follows from their returns, for which attackers, and whose theorem it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies import checks
from robust_policies.certificates.smoothing import Band
from robust_policies.envs.batch import Environment
from robust_policies.envs.known import seeds_of
from robust_policies.envs.perturb.listing import parse
from robust_policies.errors import InvalidValueError
from robust_policies.policies.batch import Task, steps_of
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.frozen import FrozenActor
from robust_policies.policies.smoothed import GIVEN, OF_THE_TASK, SmoothedReturn, SmoothedRow

# Environments of this package are tensors, many at once; others are objects of Python.
_TOGETHER, _APART = 10_000, 64
# Fewer do not prove that a policy is good nine times of ten.
FEWEST = 100
MOST_STEPS = 2000
MULTIPLES = (0.25, 0.5, 1.0, 2.0)
"""Of sigma: sizes for whoever names none."""


def smoothed_return(
    policy: DeployedPolicy,
    env_id: Environment,
    sigma: float,
    sizes: Sequence[float] | None = None,
    episodes: int = 10_000,
    confidence: float = 0.99,
    *,
    floor: float | None = None,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    perturbations: Any = (),
    max_steps: int = MOST_STEPS,
) -> SmoothedReturn:
    """Return what is certified of a policy behind Gaussian noise, under every attack of each size.

    Args:
        policy: its deterministic actions are judged, numbers or choices; it may have a memory. Where observations also
            hold choices, noise and attacks are of the measured entries alone.
        env_id: any environment: an id, `module:id`, an environment, or a function that makes one.
        sigma: standard deviation of the noise, in the observation's own unit, the same for every entry.
        sizes: of the attacks, the l2 norm over the whole episode, in the same unit; None: `MULTIPLES` of sigma.
        episodes: independent ones; their number must not depend on what they return.
        confidence: with which all bounds hold together.
        floor: a number that no return of an episode is below; None: that of this package's environments that state a
            least reward of a step, and for the others no mean is certified.
        seed: of environments and noise.
        env_kwargs: options of the environment.
        perturbations: wrappers around it, as `envs.perturb.parse` takes them; attacks come after them.
        max_steps: episodes are cut here.

    An episode in which an action or a reward is not finite counts as below every threshold, and as the floor in a mean.

    Raises:
        InvalidValueError, UnknownNameError, ShapeError: an argument is wrong, the policy does not fit, nothing that it
            reads is measured, or an episode returned less than the floor.
        DivergedError: all episodes failed.
    """
    if not isinstance(policy, DeployedPolicy):
        raise InvalidValueError(
            f"The policy is a {type(policy).__name__}; expected a deployed one: load_policy(folder), deploy(model)."
        )
    sigma = checks.finite_float("sigma", sigma, above=0.0)
    given = [multiple * sigma for multiple in MULTIPLES] if sizes is None else sizes
    asked = sorted(checks.finite_float("a size", size, at_least=0.0) for size in given)
    if not asked:
        raise InvalidValueError("sizes is empty; expected at least one number >= 0.")
    checks.positive_int("episodes", episodes, minimum=FEWEST)
    if not 0.0 < checks.finite_float("confidence", confidence) < 1.0:
        raise InvalidValueError(f"confidence is {confidence!r}; expected a number between 0 and 1, such as 0.99.")
    _refuse_other_than_measured(policy)
    checks.positive_int("max_steps", max_steps)
    playing = _Playing(policy, env_id, dict(env_kwargs or {}), parse(perturbations), max_steps, seed)
    task = playing.described()
    floor, origin = (task.floor, OF_THE_TASK) if floor is None else (checks.finite_float("floor", floor), GIVEN)
    nominal = playing.returns(min(episodes, max(FEWEST, episodes // 10)), 0.0, task.together)
    returns = playing.returns(episodes, sigma, task.together)
    _check_floor(floor, nominal, returns)
    band = Band(returns, confidence)
    rows = tuple(
        SmoothedRow(
            size,
            None if floor is None else band.mean(size / sigma, floor),
            band.quantile(size / sigma, 0.5),
            band.quantile(size / sigma, 0.9),
        )
        for size in asked
    )
    without, without_error = _average(nominal)
    smoothed, error = _average(returns)
    return SmoothedReturn(
        status="PASS" if any(row.said for row in rows) else "NOT_CERTIFIED",
        sigma=sigma,
        confidence=float(confidence),
        episodes=episodes,
        steps=task.steps,
        floor=floor,
        floor_from="" if floor is None else origin,
        nominal=without,
        nominal_error=without_error,
        smoothed=smoothed,
        smoothed_error=error,
        failed=int(np.isneginf(returns).sum()),
        rows=rows,
        task=task.name,
        seed=seed,
    )


class _Described(NamedTuple):
    """A task: its name, the length of its episodes, how many are played at once, and a floor of returns."""

    name: str
    steps: int
    together: int
    floor: float | None


@dataclass(frozen=True)
class _Playing:
    """Whose episodes are played, and where."""

    policy: DeployedPolicy
    env: Environment
    kwargs: dict[str, Any]
    wrappers: Any
    max_steps: int
    seed: int

    def described(self) -> _Described:
        """Return what is known of the task; raises ShapeError if the policy does not fit it."""
        task = self._task(1, FrozenActor(self.policy))
        try:
            task.check_fit(self.policy)
        finally:
            task.close()
        steps, ours = min(self.max_steps, task.limit or self.max_steps), task.torch_env is not None
        around = [wrapper.name for wrapper in self.wrappers]
        # A wrapper may change rewards.
        least = task.torch_env.plant.least_reward if task.torch_env is not None and not around else None
        return _Described(
            f"{task.name} inside {', '.join(around)}" if around else task.name,
            steps,
            _TOGETHER if ours else _APART,
            None if least is None else min(0.0, steps * least),
        )

    def returns(self, episodes: int, sigma: float, together: int) -> np.ndarray:
        """Return the returns (episodes,) with noise of this size, `together` at once; -inf where an episode failed."""
        actor = FrozenActor(self.policy)
        seeds = seeds_of(self.seed, episodes)
        # Numbers of their own: neither the environments' nor those of an evaluation.
        generator = torch.Generator().manual_seed(self.seed + 7)
        parts = [
            self._some(seeds[first : first + together], sigma, generator, actor)
            for first in range(0, episodes, together)
        ]
        return np.concatenate(parts)

    def _some(self, seeds: list[int], sigma: float, generator: torch.Generator, actor: FrozenActor) -> np.ndarray:
        task = self._task(len(seeds), actor)

        def noisy(t: int, observation: Tensor, hidden: Tensor) -> Tensor:
            noise = torch.randn(observation.shape, generator=generator).to(observation.device)
            return observation + sigma * (noise if actor.measured is None else noise * actor.measured)

        try:
            task.check_fit(self.policy)
            total = torch.zeros(len(seeds), dtype=torch.float64, device=actor.low.device)
            failed = torch.zeros(len(seeds), dtype=torch.bool, device=actor.low.device)
            limit = min(self.max_steps, task.limit or self.max_steps)
            perturb = noisy if sigma else lambda t, observation, hidden: observation
            for step in steps_of(task, actor, seeds, limit, perturb):
                total += torch.where(step.counted, step.reward, 0.0)
                failed = step.failed
        finally:
            task.close()
        return torch.where(failed, -torch.inf, total).cpu().numpy()

    def _task(self, count: int, actor: FrozenActor) -> Task:
        return Task(self.env, count, self.kwargs, self.wrappers, actor.low.device, actor.precise)


def _refuse_other_than_measured(policy: DeployedPolicy) -> None:
    space = policy.observation_space
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    if not any(isinstance(part, spaces.Box) for part in parts):
        raise InvalidValueError(
            f"The observations are {checks.space_text(space)}, choices alone: Gaussian noise on them and the l2 norm "
            "of an attack mean nothing. Expected a Box among them."
        )


def _check_floor(floor: float | None, *played: np.ndarray) -> None:
    lowest = min(float(returns.min(where=np.isfinite(returns), initial=math.inf)) for returns in played)
    if floor is not None and lowest < floor - 1e-6 * max(1.0, abs(floor)):
        raise InvalidValueError(f"An episode returned {lowest:.6g}, below the floor {floor:.6g}; give a lower one.")


def _average(returns: np.ndarray) -> tuple[float, float]:
    """Return the mean of the returns that are finite, and its standard error."""
    finite = returns[np.isfinite(returns)]
    return float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else 0.0
