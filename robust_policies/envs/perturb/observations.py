"""Perturbations of observations, batched over environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from robust_policies.envs.perturb.core import Added, NoiseSource, Perturbation, Signal, Site


class ObservationPerturbation(Perturbation):
    """Changes observations (n, size)."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.signal = Signal("observation", site.observation_space, spec.name)
        if self.signal.discrete:
            self.signal.box(spec.name)

    def added(self, field: str) -> Added:
        """Return what is added, by the fields `field`, units and scale of the specification."""
        return Added(self.spec, self.signal, self.site.natural_observation_space, self.device, field)


class Noise(ObservationPerturbation):
    """ObservationNoise: y + e, e anew each step."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.source = NoiseSource(spec.kind, self.added("size"), self.random)
        if not spec.clip:
            self.observation_space = self.source.added.widened()

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first observations with noise."""
        return self._add(observation, self.source(rows))

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return observations with noise."""
        return self._add(observation, self.source())

    def _add(self, observation: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = noise.to(observation.dtype)
        if not self.spec.clip:
            return observation + noise, noise.norm(dim=-1)
        noisy = self.source.added.clip(observation + noise)
        return noisy, (noisy - observation).norm(dim=-1)


class Bias(ObservationPerturbation):
    """ObservationBias: y + b, b the same for an episode."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.offset = self.added("size")
        self.draws = spec.kind == "uniform"
        self.bias = self.offset.size.expand(self.num_envs, -1).clone()
        if not spec.clip:
            self.observation_space = self.offset.widened()

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first observations with a bias, drawn now if it is random."""
        if self.draws:
            uniform = self.random.uniform(self.offset.count, rows)
            self.bias[rows] = self.offset.size * (2.0 * uniform - 1.0).to(self.bias.dtype)
        return self._add(observation, self.bias[rows])

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return observations with the episode's bias."""
        return self._add(observation, self.bias)

    def _add(self, observation: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        bias = bias.to(observation.dtype)
        if not self.spec.clip:
            return observation + bias, bias.norm(dim=-1)
        biased = self.offset.clip(observation + bias)
        return biased, (biased - observation).norm(dim=-1)


class Dropout(ObservationPerturbation):
    """ObservationDropout: y, or zeros or the last delivered y where it is lost."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.numbers = self.signal.size if spec.per_dimension else 1
        self.held: torch.Tensor | None = None
        space = self.signal.space
        assert isinstance(space, spaces.Box)
        if spec.fill == "zero" and not ((space.low <= 0) & (space.high >= 0)).all():
            kind: Any = space.dtype
            self.observation_space = spaces.Box(np.minimum(space.low, 0), np.maximum(space.high, 0), dtype=kind)

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first observations: zeros where lost; holding, nothing is lost yet."""
        lost = self.random.uniform(self.numbers, rows) < self.spec.probability
        if self.held is None:
            self.held = observation.new_zeros((self.num_envs, self.signal.size))
        delivered = observation
        if self.spec.fill == "zero":
            delivered = observation.masked_fill(lost, 0)
        self.held[rows] = delivered
        return delivered, self.signal.distance(delivered, observation)

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return observations, replaced where they are lost."""
        lost = self.random.uniform(self.numbers) < self.spec.probability
        if self.spec.fill == "zero":
            delivered = observation.masked_fill(lost, 0)
        else:
            assert self.held is not None
            delivered = torch.where(lost, self.held, observation)
            self.held.copy_(delivered)
        return delivered, self.signal.distance(delivered, observation)


class Delay(ObservationPerturbation):
    """ObservationDelay: y of `steps` steps before."""

    draws = False

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.waiting: torch.Tensor | None = None
        self.place = 0

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first observations as they are; they fill the delay line."""
        if self.waiting is None:
            self.waiting = observation.new_zeros((self.spec.steps, self.num_envs, self.signal.size))
        self.waiting[:, rows] = observation
        return observation, self.still(observation)

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the observations that come out of the delay line."""
        if not self.spec.steps:
            return observation, self.still(observation)
        assert self.waiting is not None
        late = self.waiting[self.place].clone()
        self.waiting[self.place] = observation
        self.place = (self.place + 1) % self.spec.steps
        return late, self.signal.distance(late, observation)


class Quantize(ObservationPerturbation):
    """ObservationQuantize: the nearest multiple of the step."""

    draws = False

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        added = self.added("step")
        self.step = added.size
        self.rounds = self.step > 0
        self.divisor = torch.where(self.rounds, self.step, torch.ones_like(self.step))
        box = added.box
        bounds = [self._rounded(bound).cpu().numpy().reshape(box.shape) for bound in (added.low, added.high)]
        low, high = np.minimum(box.low, bounds[0]), np.maximum(box.high, bounds[1])
        if (low < box.low).any() or (high > box.high).any():
            kind: Any = box.dtype
            self.observation_space = spaces.Box(low, high, dtype=kind)

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return first observations, rounded."""
        return self.observe(observation)

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return observations, rounded."""
        rounded = self._rounded(observation)
        return rounded, self.signal.distance(rounded, observation)

    def _rounded(self, value: torch.Tensor) -> torch.Tensor:
        step = self.divisor.to(value.dtype)
        return torch.where(self.rounds, torch.round(value / step) * step, value)
