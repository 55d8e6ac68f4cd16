"""What all perturbations share: one batched implementation, of which the single environment's is the N = 1 view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from robust_policies import checks
from robust_policies.envs.perturb.randomness import Randomness
from robust_policies.envs.perturb.specs import Spec
from robust_policies.envs.streams import normals, uniforms_for_normals
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError


@dataclass(frozen=True)
class Site:
    """Where a perturbation acts."""

    num_envs: int
    device: torch.device
    observation_space: gymnasium.Space
    """Of one environment, as the perturbation receives it."""
    action_space: gymnasium.Space
    natural_observation_space: gymnasium.Space
    """The same before perturbations further in widened it: what normalised units are taken from."""
    unwrapped: Any
    position: int
    """How many perturbations of the same name are further in."""


class Signal:
    """A batch of observations or actions as a tensor (n, size), and back."""

    def __init__(self, what: str, space: gymnasium.Space, perturbation: str) -> None:
        self.what, self.space = what, space
        self.discrete = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary))
        if not self.discrete and not isinstance(space, spaces.Box):
            raise InvalidValueError(
                f"{perturbation} was given an environment whose {what}s are {checks.space_text(space)}; expected a Box"
                + (" or a discrete space." if what == "action" else " (flatten them first).")
            )
        self.shape: tuple[int, ...] = tuple(space.shape or ())
        self.size = int(np.prod(self.shape, dtype=np.int64))

    def box(self, perturbation: str) -> spaces.Box:
        """Return the space if numbers can be added in it; raise `InvalidValueError` otherwise."""
        if not isinstance(self.space, spaces.Box) or not np.issubdtype(self.space.dtype or np.int64, np.floating):
            raise InvalidValueError(
                f"{perturbation} was given {self.what}s in {self.space}; expected a Box of floating numbers."
            )
        return self.space

    def flat(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a batch (n, *shape) as (n, size)."""
        return batch.reshape(batch.shape[0], self.size)

    def checked(self, batch: torch.Tensor, count: int) -> torch.Tensor:
        """Return actions (count, *shape) as (count, size); raise if they are not what the space holds."""
        if tuple(batch.shape) != (count, *self.shape):
            raise ShapeError(f"actions have shape {tuple(batch.shape)}; expected {(count, *self.shape)}.")
        if self.discrete == batch.dtype.is_floating_point or batch.dtype is torch.bool:
            wanted = "whole numbers" if self.discrete else "a floating dtype such as float32"
            raise ShapeError(f"actions have dtype {batch.dtype}; expected {wanted}.")
        if not self.discrete and not bool(torch.isfinite(batch).all()):
            raise NonFiniteError("actions hold NaN or infinite values; expected finite numbers.")
        return self.flat(batch)

    def idle(self, device: torch.device) -> torch.Tensor:
        """Return the action (size,) that stands for none: 0 clipped into the space, or the first choice."""
        if isinstance(self.space, spaces.Box):
            idle = np.clip(np.zeros(self.shape), self.space.low, self.space.high)
        else:
            idle = np.broadcast_to(np.asarray(getattr(self.space, "start", 0)), self.shape)
        kind = torch.int64 if self.discrete else torch.float64
        return torch.tensor(idle, dtype=kind, device=device).reshape(self.size)

    def distance(self, changed: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Return the l2 norm (n,) of the change; of choices, the root of how many were changed."""
        if self.discrete:
            return (changed != given).sum(-1, dtype=torch.float64).sqrt()
        return (changed - given).norm(dim=-1) if changed.is_floating_point() else _norm(changed, given)


def _norm(changed: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    return (changed.to(torch.float64) - given.to(torch.float64)).norm(dim=-1)


class Perturbation:
    """What a perturbation does to `num_envs` environments at once; every method is batched.

    The wrapper calls `begin` with the rows that begin an episode and `start` with their first observations; then, every
    step: `act`, `push` before and `pull` after the environment's step, `commit` if that succeeded, `observe`. Nothing
    but the generators may change before `commit`, so that a refused action leaves everything as it was.
    """

    spec: Any
    """The specification; which one depends on the class."""
    draws = True
    """Whether random numbers are needed; without, the environment's generators are not looked at."""

    def __init__(self, spec: Spec, site: Site) -> None:
        self.spec, self.site = spec, site
        self.num_envs, self.device = site.num_envs, site.device
        self.random = Randomness(site.num_envs, site.device, f"{spec.name}:{site.position}")
        self.observation_space: gymnasium.Space | None = None
        """What the wrapper's space becomes, None: stays."""

    def restart(self, rows: torch.Tensor, words: torch.Tensor, seeded: torch.Tensor | None) -> None:
        """Restart the generators of `rows` from the environments' words (5, m); `seeded` (m,): those just seeded."""
        self.random.begin(rows, words, seeded)

    def generators(self) -> list[torch.Tensor]:
        """Return the states of the generators, each (2, n)."""
        return [self.random.streams.state]

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin episodes in `rows`; return their first observations (m, size), perturbed, and realised sizes (m,)."""
        return observation, self.still(observation)

    def act(self, action: Any) -> tuple[Any, torch.Tensor | None]:
        """Return the actions to apply and the realised sizes (n,), None if actions pass."""
        return action, None

    def push(self) -> None:
        """Act on the plant for the coming step."""

    def pull(self) -> None:
        """Take back what `push` did."""

    def commit(self) -> None:
        """Remember the step, which has succeeded."""

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the observations (n, size) of a step, perturbed, and realised sizes (n,)."""
        return observation, self.still(observation)

    def release(self) -> None:
        """Leave the environment as it was found."""

    def more(self) -> dict[str, torch.Tensor]:
        """Return further entries (n,) for the info, by the end of their key."""
        return {}

    @staticmethod
    def still(batch: torch.Tensor) -> torch.Tensor:
        """Return sizes of zero (n,)."""
        kind = batch.dtype if batch.is_floating_point() else torch.float64
        return torch.zeros(batch.shape[0], dtype=kind, device=batch.device)


def kept_generators(perturbation: Perturbation) -> list[torch.Tensor]:
    """Return copies (2, n) of what a refused action would have drawn from: only perturbations of actions draw then."""
    return [state.clone() for state in perturbation.generators()] if perturbation.spec.acts_on == "action" else []


def restore_generators(perturbation: Perturbation, kept: list[torch.Tensor]) -> None:
    """Put back what `kept_generators` returned, (2, n) each."""
    for state, before in zip(perturbation.generators() if kept else [], kept, strict=True):
        state.copy_(before)


class Added:
    """Random numbers or constants (n, size) in the units of a signal, from the fields of a specification."""

    def __init__(self, spec: Any, signal: Signal, natural: gymnasium.Space, device: torch.device, field: str) -> None:
        self.name = spec.name
        self.box = signal.box(spec.name)
        self.count = signal.size
        kind = str(np.dtype(self.box.dtype or np.float32))
        self.dtype = torch.float32 if kind == "float32" else torch.float64
        self.scale = self._scale(spec, natural, device)
        # In the signal's own precision, so that a bound holds there to the last bit.
        self.size = (self._each(field, getattr(spec, field), device) * self.scale).to(self.dtype)
        self.low, self.high = (
            torch.tensor(np.asarray(bound), device=device).reshape(-1) for bound in (self.box.low, self.box.high)
        )

    def _each(self, name: str, value: Any, device: torch.device) -> torch.Tensor:
        if isinstance(value, tuple) and len(value) != self.count:
            raise ShapeError(f"{self.name}: {name} has {len(value)} number(s); expected one, or {self.count}.")
        return torch.tensor(value, dtype=torch.float64, device=device).expand(self.count)

    def _scale(self, spec: Any, natural: gymnasium.Space, device: torch.device) -> torch.Tensor:
        if spec.units == "raw":
            return torch.ones(self.count, dtype=torch.float64, device=device)
        if spec.scale is not None:
            return self._each("scale", spec.scale, device)
        if not isinstance(natural, spaces.Box) or natural.shape != self.box.shape:
            natural = self.box
        half = ((natural.high.astype(np.float64) - natural.low.astype(np.float64)) / 2.0).reshape(-1)
        # Gymnasium writes the largest float32 where it means no bound.
        endless = np.nonzero(~(half < 1e30))[0].tolist()
        if endless:
            raise InvalidValueError(
                f"{self.name}: units 'normalized' needs a scale, because the space has no finite bounds in dimension(s)"
                f" {', '.join(map(str, endless))}; give scale: one number, or {self.count} of them."
            )
        return torch.tensor(half, dtype=torch.float64, device=device)

    def clip(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the batch within the space."""
        return torch.minimum(torch.maximum(batch, self.low.to(batch.dtype)), self.high.to(batch.dtype))

    def widened(self) -> spaces.Box:
        """Return the space without bounds in the dimensions that something is added to."""
        added = (self.size != 0).cpu().numpy().reshape(self.box.shape)
        kind: Any = self.box.dtype
        return spaces.Box(np.where(added, -np.inf, self.box.low), np.where(added, np.inf, self.box.high), dtype=kind)


class NoiseSource:
    """Draws the random numbers that ObservationNoise and ActionNoise add."""

    def __init__(self, kind: str, added: Added, random: Randomness) -> None:
        self.kind, self.added, self.random = kind, added, random
        self.numbers = added.count if kind in {"uniform", "linf"} else uniforms_for_normals(added.count)

    def __call__(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return noise (n, size) for all environments, or for `rows`."""
        uniform, count, size = self.random.uniform(self.numbers, rows), self.added.count, self.added.size
        if self.kind == "uniform":
            return size * (2.0 * uniform - 1.0).to(size.dtype)
        if self.kind == "linf":
            return torch.where(uniform < 0.5, -size, size)
        direction = normals(uniform, count)
        if self.kind == "sphere":
            # All zeros has probability zero in theory and 2^-53 each here.
            direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-300)
        return size * direction.to(size.dtype)
