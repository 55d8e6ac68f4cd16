"""What every attack is: options that are checked, a beginning, and a perturbation for each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.evaluation.attacks.actor import FrozenActor
from robust_policies.evaluation.attacks.budget import Budget, unit


class Options(BaseModel):
    """The settings of an attack: unknown names and wrong values are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Scene:
    """What an attack knows of the episodes it attacks, all of them side by side.

    Attributes:
        actor: the policy.
        budget: the account; attacks ask it for balls, the rollout books what was spent.
        sizes, episodes: the batch is (sizes, episodes) flattened, episode i with the same randomness at every size.
        observation_size: nu.
        environment: the batch of environments if they are this package's, else None.
        seed: of the attack's own random numbers.
        recorded: a function that plays the same episodes unperturbed: clean observations (time, batch, nu).
    """

    actor: FrozenActor
    budget: Budget
    sizes: int
    episodes: int
    observation_size: int
    environment: TorchVectorEnv | None
    seed: int
    recorded: Callable[[], Tensor]

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
    def prepare(cls, options: Any, tuning: Any) -> Any:
        """Return what is learned or recorded on the `Tuning` episodes; None where nothing is needed."""
        return None

    def begin(self, scene: Scene) -> None:
        """Start the episodes of `scene`; raises InvalidValueError if this attack cannot attack them."""
        self.scene = scene
        device = scene.actor.low.device
        self.generator = torch.Generator(device=device).manual_seed(scene.seed)

    @abstractmethod
    def perturbation(self, moment: Moment) -> Tensor:
        """Return the wanted perturbations (batch, nu) of the observations at this moment."""

    def starts(self, count: int, time: int) -> Tensor:
        """Return random points of the unit ball's surface (count, time, batch, nu), the same at every size."""
        scene, norm = self.scene, self.scene.budget.norm
        shape = (count * time, scene.episodes, scene.observation_size)
        noise = torch.randn(shape, generator=self.generator, device=self.generator.device)
        pieces = noise.reshape(count, time, *shape[1:])
        return torch.stack([unit(norm, piece) for piece in pieces]).repeat(1, 1, scene.sizes, 1)
