"""What every attack is: options that are checked, a beginning, and a perturbation for each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor

from robust_policies.envs.batch import Environment
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.evaluation.attacks.budget import Budget, unit
from robust_policies.files.settings import Section, one_line
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.frozen import FrozenActor


class Options(Section):
    """The settings of an attack."""


@dataclass(frozen=True)
class Scene:
    """What an attack knows of the episodes it attacks, all of them side by side.

    Attributes:
        actor: the policy.
        budget: the account; attacks ask it for balls, the rollout books what was spent.
        sizes, episodes: the batch is (sizes, episodes) flattened, episode i with the same randomness at every size.
        observation_size: nu.
        environment: the batch of environments if they are this package's, else None.
        draws: (seed, number of episodes) of the attack's own random numbers, for each group of the episodes in turn.
        rehearse: plays the same episodes with another policy and attack (None: this policy; no attack): observations
            and perturbed observations (time, batch, nu), which stay as they were after an episode's end, and returns
            (batch,), NaN where an episode failed.
    """

    actor: FrozenActor
    budget: Budget
    sizes: int
    episodes: int
    observation_size: int
    environment: TorchVectorEnv | None
    draws: Sequence[tuple[int, int]]
    rehearse: Callable[[DeployedPolicy | None, Attack | None], tuple[Tensor, Tensor, Tensor]]

    @property
    def batch(self) -> int:
        """The number of episodes at all sizes."""
        return self.sizes * self.episodes


@dataclass(frozen=True)
class Moment:
    """One step of the batch: time, clean observations (batch, nu) and the policy's state (batch, nx) before it."""

    t: int
    observation: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Tuning:
    """The episodes an attack may prepare itself on: where, with which budgets and seeds.

    Attributes:
        policy, env_id, env_kwargs, perturbations, max_steps: of the episodes.
        norm, sizes: the budgets that the attack will have.
        seeds: of `run_episodes`, none of which is reported.
        episodes: for each size and seed.
    """

    policy: DeployedPolicy
    env_id: Environment
    norm: str
    sizes: Sequence[float]
    seeds: Sequence[int]
    episodes: int = 10
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    perturbations: Any = ()
    max_steps: int = 2000


class Attack(ABC):
    """Chooses the perturbation of each observation; it may look at everything, and the budget is enforced outside.

    Args:
        options: checked settings.
        prepared: what `prepare` returned, for attacks that learn or record something first.
    """

    Options: ClassVar[type[Options]] = Options
    needs_preparation: ClassVar[bool] = False
    scene: Scene

    def __init__(self, options: Options, prepared: Any = None) -> None:
        self.options: Any = options
        self.prepared = prepared

    @classmethod
    def prepare(cls, options: Any, tuning: Tuning) -> Any:
        """Return what is learned or recorded on the `Tuning` episodes; None where nothing is needed."""
        return None

    def begin(self, scene: Scene) -> None:
        """Start the episodes of `scene`; raises InvalidValueError if this attack cannot attack them."""
        self.scene = scene
        self.seeded(0)

    def seeded(self, offset: int) -> None:
        """Begin the random numbers at the scene's seeds, moved by an offset."""
        device = self.scene.actor.low.device
        self.generators = [torch.Generator(device=device).manual_seed(seed + offset) for seed, _ in self.scene.draws]
        self.generator = self.generators[0]

    def drawn(self, draw: Callable[..., Tensor], before: tuple[int, ...], after: tuple[int, ...] = ()) -> Tensor:
        """Return what `torch.randn` or `torch.rand` draws for all episodes: (..., episodes, ...)."""
        groups = zip(self.generators, self.scene.draws, strict=True)
        device = self.generator.device
        return torch.cat(
            [draw((*before, count, *after), generator=one, device=device) for one, (_, count) in groups], len(before)
        )

    @abstractmethod
    def perturbation(self, moment: Moment) -> Tensor:
        """Return the wanted perturbations (batch, nu) of the observations at this moment."""

    def starts(self, count: int, time: int) -> Tensor:
        """Return random points of the unit ball's surface (count, time, batch, nu), the same at every size."""
        scene, norm = self.scene, self.scene.budget.norm
        noise = self.drawn(torch.randn, (count * time,), (scene.observation_size,))
        pieces = noise.unflatten(0, (count, time))
        return torch.stack([unit(norm, piece) for piece in pieces]).repeat(1, 1, scene.sizes, 1)


def checked(model: type[Options], name: str, options: Mapping[str, Any] | None) -> Options:
    """Return the settings of the attack `name`, checked; raises UnknownNameError, InvalidValueError."""
    try:
        return model.model_validate(dict(options or {}))
    except ValidationError as error:
        raise one_line(error, model, f"attack {name}") from error
