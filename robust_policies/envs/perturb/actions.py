"""Perturbations of actions, batched over environments. What goes on to the plant is remembered in `commit` only."""

from __future__ import annotations

from typing import Any

import torch

from robust_policies import checks
from robust_policies.envs.perturb.core import Added, NoiseSource, Perturbation, Signal, Site
from robust_policies.errors import InvalidValueError


class ActionPerturbation(Perturbation):
    """Changes actions (n, size)."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.signal = Signal("action", site.action_space, spec.name)

    def changed(self, action: torch.Tensor) -> torch.Tensor:
        """Return what is applied instead of `action` (n, size)."""
        raise NotImplementedError

    def act(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return applied actions, shaped as given, and their distance from those; raise for what is no action."""
        given = self.signal.checked(action, self.num_envs)
        applied = self.changed(given)
        return applied.reshape(action.shape), self.signal.distance(applied, given)


class Noise(ActionPerturbation):
    """ActionNoise: u + e, e anew each step."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        if self.signal.discrete:
            raise InvalidValueError(
                f"ActionNoise was given discrete actions {checks.space_text(site.action_space)}, to which "
                "nothing can be added; expected a Box of floating numbers (StickyAction, ActionDelay and "
                "ActionDropout work with choices)."
            )
        added = Added(spec, self.signal, site.action_space, self.device, "size")
        self.source = NoiseSource(spec.kind, added, self.random)

    def changed(self, action: torch.Tensor) -> torch.Tensor:
        """Return actions with noise, within the space if asked for."""
        noisy = action + self.source().to(action.dtype)
        return self.source.added.clip(noisy) if self.spec.clip else noisy


class Delay(ActionPerturbation):
    """ActionDelay: u of `steps` steps before."""

    draws = False

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        idle = self.signal.idle(self.device)
        self.idle = idle
        self.waiting = idle.expand(spec.steps, self.num_envs, -1).clone()
        self.place = 0
        self.entering: torch.Tensor | None = None

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fill the delay line with idle actions."""
        self.waiting[:, rows] = self.idle
        return super().start(rows, observation)

    def changed(self, action: torch.Tensor) -> torch.Tensor:
        """Return the actions that come out of the delay line."""
        if not self.spec.steps:
            return action
        self.entering = action
        return self.waiting[self.place].to(action.dtype, copy=True)

    def commit(self) -> None:
        """Let the given actions enter the delay line."""
        if self.entering is not None:
            self.waiting[self.place] = self.entering.to(self.waiting.dtype)
            self.place = (self.place + 1) % self.spec.steps
            self.entering = None


class _Repeating(ActionPerturbation):
    """Remembers the last applied action."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.held = self.signal.idle(self.device).expand(self.num_envs, -1).clone()
        self.first = torch.ones((self.num_envs, 1), dtype=torch.bool, device=self.device)
        self.applied: torch.Tensor | None = None

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Forget the last episode's actions."""
        self.first[rows] = True
        return super().start(rows, observation)

    def repeated(self, action: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Return the last applied action `where` there is one, else the given."""
        self.applied = torch.where(where & ~self.first, self.held.to(action.dtype), action)
        return self.applied

    def commit(self) -> None:
        """Remember what was applied."""
        if self.applied is not None:
            self.held.copy_(self.applied)
            self.first.fill_(False)
            self.applied = None


class Dropout(_Repeating):
    """ActionDropout: u, or the idle or last applied action where it is lost."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.numbers = self.signal.size if spec.per_dimension else 1
        self.idle = self.signal.idle(self.device)

    def changed(self, action: torch.Tensor) -> torch.Tensor:
        """Return actions, replaced where they are lost."""
        lost = self.random.uniform(self.numbers) < self.spec.probability
        if self.spec.fill == "hold":
            return self.repeated(action, lost)
        return torch.where(lost, self.idle.to(action.dtype), action)


class Sticky(_Repeating):
    """StickyAction: u, or the last applied action.

    Source: M. C. Machado and others, "Revisiting the Arcade Learning Environment" (JAIR 61, 2018), section 5.3.
    """

    def changed(self, action: torch.Tensor) -> torch.Tensor:
        """Return actions, the last ones applied where they stick."""
        return self.repeated(action, self.random.uniform(1) < self.spec.probability)
