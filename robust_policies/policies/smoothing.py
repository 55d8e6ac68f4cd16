"""The certified return of a smoothed policy, in any environment: Gaussian noise on what it reads, and many episodes.

`certificates.smoothing` says what follows from their returns, for which attackers, and whose theorem it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies import checks
from robust_policies.certificates.smoothing import Band
from robust_policies.envs.batch import Environment
from robust_policies.envs.known import seeds_of
from robust_policies.errors import CorruptFileError, InvalidValueError
from robust_policies.files import numbers
from robust_policies.files.atomic import read_json, write_json
from robust_policies.files.versions import versions
from robust_policies.policies.batch import Task, steps_of
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.frozen import FrozenActor

SCHEMA = 1
# Environments of this package are tensors, many at once; others are objects of Python.
_TOGETHER, _APART = 10_000, 64
# Fewer do not prove that a policy is good nine times of ten.
_FEWEST = 100
_MOST_STEPS = 2000


@dataclass(frozen=True)
class SmoothedRow:
    """What holds under every attack of one size.

    Attributes:
        size: the attack's l2 norm over the whole episode, in the observation's own unit.
        mean: the mean return is at least this; None where no floor of the return is known.
        median: at least every second episode returns this or more; None where nothing is known.
    """

    size: float
    mean: float | None
    median: float | None


@dataclass(frozen=True)
class SmoothedReturn:
    """A lower bound of the return of a policy behind Gaussian noise, whoever perturbs what it reads.

    Attributes:
        status: "PASS" where a row holds a bound, else "NOT_CERTIFIED".
        sigma: standard deviation of the noise, of every entry at every step.
        confidence: with which all rows hold together.
        episodes: the number played.
        floor: no return is below it; None: none is known.
        nominal, nominal_error: mean return without noise and its standard error.
        smoothed, smoothed_error: the same with it.
        rows: one for each size.
        task: the environment's name.
        seed: of the episodes.
    """

    status: str
    sigma: float
    confidence: float
    episodes: int
    floor: float | None
    nominal: float
    nominal_error: float
    smoothed: float
    smoothed_error: float
    rows: tuple[SmoothedRow, ...]
    task: str
    seed: int

    @property
    def claim(self) -> str:
        """The sentence that holds."""
        parts = []
        for row in self.rows:
            bounds = []
            if row.mean is not None:
                bounds.append(f"the mean return is at least {numbers.lower(row.mean)}")
            if row.median is not None:
                bounds.append(f"every second episode returns at least {numbers.lower(row.median)}")
            if bounds:
                parts.append(f"{' and '.join(bounds)} where the attack's size is at most {row.size:.6g}")
        if not parts:
            return (
                f"Nothing is proven of the smoothed policy in {self.task} at these sizes: give a floor of the return, "
                "more noise, more episodes or smaller sizes."
            )
        return (
            f"Of the policy that reads its observations in {self.task} with Gaussian noise of standard deviation "
            f"{self.sigma:.6g} added to every measured entry at every step: {'; '.join(parts)}. The size is the l2 "
            "norm over all steps and entries of an episode of what an attacker adds before the noise, who may know the "
            "policy, the environment and all that happened, but not the noise to come. It holds with confidence "
            f"{self.confidence:.6g}, of {self.episodes} independent episodes (seed {self.seed}), and says nothing of "
            "the policy without the noise."
        )

    def to_json(self, path: str | Path) -> Path:
        """Return `path` after writing the certificate there, whole or not at all."""
        return write_json(path, {"schema": SCHEMA, "claim": self.claim, **asdict(self), "versions": versions()})

    @classmethod
    def from_json(cls, path: str | Path) -> SmoothedReturn:
        """Return the certificate in a file; raises MissingFileError, CorruptFileError, SchemaError."""
        content = read_json(path, "smoothed return", SCHEMA)
        try:
            fields = {name: content[name] for name in cls.__dataclass_fields__}
            fields["rows"] = tuple(SmoothedRow(**row) for row in content["rows"])
        except (KeyError, TypeError) as error:
            raise CorruptFileError(f"{path} lacks or garbles {error}; write it with `certify --smooth`.") from error
        return cls(**fields)


def smoothed_return(
    policy: DeployedPolicy,
    env_id: Environment,
    sigma: float,
    sizes: Sequence[float],
    episodes: int = 10_000,
    confidence: float = 0.99,
    *,
    floor: float | None = None,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    perturbations: Any = (),
    max_steps: int = _MOST_STEPS,
) -> SmoothedReturn:
    """Return what is certified of a policy behind Gaussian noise, under every attack of each size.

    Args:
        policy: with a Box, discrete or mixed observations; noise and attacks are of what is measured, not of choices.
        env_id: any environment: an id, `module:id`, an environment, or a function that makes one.
        sigma: standard deviation of the noise, in the observation's own unit, the same for every entry.
        sizes: of the attacks, the l2 norm over the whole episode, in the same unit.
        episodes: independent ones; their number must not depend on what they return.
        confidence: with which all bounds hold together.
        floor: a number that no return of an episode is below; None: only medians are certified, unless the
            environment is this package's and states a least reward of a step.
        seed: of environments and noise.
        env_kwargs: options of the environment.
        perturbations: wrappers around it, as `envs.perturb.parse` takes them; attacks come after them.
        max_steps: episodes are cut here.

    An episode in which an action or a reward is not finite counts as below every threshold, as the floor in a mean.

    Raises:
        InvalidValueError, UnknownNameError, ShapeError: an argument is wrong, the policy does not fit, an observation
            holds nothing that is measured, or an episode returned less than the floor.
        DivergedError: all episodes failed.
    """
    sigma = checks.finite_float("sigma", sigma, above=0.0)
    asked = [checks.finite_float("a size", size, at_least=0.0) for size in sizes]
    if not asked:
        raise InvalidValueError("sizes is empty; expected at least one number >= 0.")
    checks.positive_int("episodes", episodes, minimum=_FEWEST)
    if not 0.0 < confidence < 1.0:
        raise InvalidValueError(f"confidence is {confidence!r}; expected a number between 0 and 1, such as 0.99.")
    played = _Episodes(policy, env_id, dict(env_kwargs or {}), perturbations, max_steps, seed)
    name, least = played.described()
    floor = least if floor is None else checks.finite_float("floor", floor)
    nominal, returns = played.returns(max(_FEWEST, episodes // 10), 0.0), played.returns(episodes, sigma)
    for what in (nominal, returns):
        lowest = what.min(where=np.isfinite(what), initial=math.inf)
        if floor is not None and lowest < floor - 1e-6 * max(1.0, abs(floor)):
            raise InvalidValueError(f"An episode returned {lowest:.6g}, below the floor {floor:.6g}; give a lower one.")
    band = Band(returns, confidence)
    rows = tuple(
        SmoothedRow(size, None if floor is None else band.mean(size / sigma, floor), band.quantile(size / sigma, 0.5))
        for size in sorted(asked)
    )
    proven = any(row.mean is not None or row.median is not None for row in rows)
    return SmoothedReturn(
        "PASS" if proven else "NOT_CERTIFIED",
        sigma,
        float(confidence),
        episodes,
        floor,
        *_average(nominal),
        *_average(returns),
        rows,
        name,
        seed,
    )


@dataclass(frozen=True)
class _Episodes:
    """Whose episodes are played, and where."""

    policy: DeployedPolicy
    env: Environment
    kwargs: dict[str, Any]
    perturbations: Any
    max_steps: int
    seed: int

    def described(self) -> tuple[str, float | None]:
        """Return the task's name, and a number below every return where its plant states one."""
        actor = FrozenActor(self.policy)
        if actor.measured is not None and not bool(actor.measured.any()):
            raise InvalidValueError("The observations are choices alone; noise on them has no meaning.")
        task = self._task(1, actor)
        try:
            task.check_fit(self.policy)
            limit = min(self.max_steps, task.limit or self.max_steps)
            least = None if task.torch_env is None else task.torch_env.plant.least_reward
            # A wrapper may change rewards.
            known = least is not None and not self.perturbations
            return task.name, min(0.0, limit * least) if known and least is not None else None
        finally:
            task.close()

    def returns(self, episodes: int, sigma: float) -> np.ndarray:
        """Return the returns (episodes,) with noise of this size, -inf where an episode failed."""
        actor = FrozenActor(self.policy)
        seeds = seeds_of(self.seed, episodes)
        # Numbers of their own: neither the environments' nor those of an evaluation.
        generator = torch.Generator().manual_seed(self.seed + 7)
        at_once = _TOGETHER if self._tensors(actor) else _APART
        parts = []
        for first in range(0, episodes, at_once):
            parts.append(self._some(seeds[first : first + at_once], sigma, generator, actor))
        return np.concatenate(parts)

    def _some(self, seeds: list[int], sigma: float, generator: torch.Generator, actor: FrozenActor) -> np.ndarray:
        task = self._task(len(seeds), actor)

        def noisy(t: int, observation: Tensor, hidden: Tensor) -> Tensor:
            noise = torch.randn(observation.shape, generator=generator).to(observation.device)
            noise = noise if actor.measured is None else noise * actor.measured
            return observation + sigma * noise

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
        return Task(self.env, count, self.kwargs, self.perturbations, actor.low.device, actor.precise)

    def _tensors(self, actor: FrozenActor) -> bool:
        task = self._task(1, actor)
        task.close()
        return task.torch_env is not None


def _average(returns: np.ndarray) -> tuple[float, float]:
    """Return the mean of the returns that are finite, and its standard error."""
    finite = returns[np.isfinite(returns)]
    return float(finite.mean()), float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else 0.0
