"""Perturbations of the plant itself: forces, and changed physical parameters."""

from __future__ import annotations

import math
from typing import Any

import torch

from robust_policies.envs.perturb.core import Perturbation, Site
from robust_policies.envs.perturb.targets import ManyTargets, MujocoTarget, Target, channel_sizes, target_of
from robust_policies.errors import InvalidValueError

_FOREVER = 1 << 62


class Force(Perturbation):
    """ForceDisturbance: a force as a function of each environment's own time since its episode began.

    Step j of an episode, at time j times the time step, is pushed from the first step not before `start` on, for
    `duration` (rounded up to whole steps).
    """

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.target = target_of(site.unwrapped, spec.name, spec.body)
        first = self.target.targets[0] if isinstance(self.target, ManyTargets) else self.target
        if isinstance(first, MujocoTarget) and first.body is None:
            model = first.env.model
            names = ", ".join(model.body(i).name for i in range(1, model.nbody))
            raise InvalidValueError(f"ForceDisturbance: body is missing; expected one of {names}.")
        if not self.target.channels:
            raise InvalidValueError(
                f"ForceDisturbance was given a {site.unwrapped.plant.kind} task, which has no disturbance input; use "
                "ActionNoise or DynamicsShift, or a task with one."
            )
        self.h = self.target.time_step
        self.size = channel_sizes(self.target, spec.size).to(site.device)
        self.draws = isinstance(spec.start, tuple)
        steps = 1 if spec.kind == "impulse" else _FOREVER
        self.steps = steps if spec.duration is None else self._steps(spec.duration, 1)
        self.begins = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.elapsed = torch.zeros_like(self.begins)
        self.realized = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        if not self.draws:
            self.begins.fill_(self._steps(spec.start, 0))

    def _steps(self, seconds: float, least: int) -> int:
        # The small number forgives the rounding of 0.3 / 0.1.
        return max(least, math.ceil(seconds / self.h - 1e-6))

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Begin the time anew, and draw when the force starts if that is random."""
        self.elapsed[rows] = 0
        self.realized[rows] = 0.0
        if self.draws:
            low, high = self.spec.start
            seconds = low + (high - low) * self.random.uniform(1, rows).squeeze(-1)
            self.begins[rows] = (seconds / self.h - 1e-6).ceil().long().clamp_min(0)
        return super().start(rows, observation)

    def push(self) -> None:
        """Apply this step's force."""
        self.target.push(self.force())

    def force(self) -> torch.Tensor:
        """Return this step's force (n, channels)."""
        since = self.elapsed - self.begins
        active = ((since >= 0) & (since < self.steps)).to(torch.float64)
        if self.spec.kind == "impulse":
            active = active / (self.steps * self.h)
        elif self.spec.kind == "sine":
            active = active * torch.sin(2.0 * math.pi * self.spec.frequency * self.h * since)
        force = active.unsqueeze(-1) * self.size
        self.pushed = force.norm(dim=-1)
        return force

    def pull(self) -> None:
        """Take the force back."""
        self.target.pull()

    def commit(self) -> None:
        """Let a step pass."""
        self.realized = self.pushed
        self.elapsed += 1

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return observations as they are, and the norm of the force that acted."""
        return observation, self.realized.clone()


class Ledger:
    """The value of one physical parameter before and after all shifts of it, in the order of the stack."""

    def __init__(self, target: Target, name: str) -> None:
        self.target, self.name = target, name
        self.base = target.get(name).clone()
        self.written = self.base.clone()
        self.shifts: list[Shift] = []
        self.seen = target.shared(name)

    def refresh(self, rows: torch.Tensor, again: bool) -> None:
        """Compute the parameter in `rows` (n,); `again`: a shift has changed, so that it must be written.

        Whoever else assigned it since (the user, or domain randomization at a reset) has set a new base.
        """
        if not again and self.seen is not None and self.target.shared(self.name) is self.seen:
            return
        current = self.target.get(self.name)
        same = _flat(current[rows] == self.written[rows]).all(-1)
        if not again and bool(same.all()):
            return
        same = same.reshape(-1, *(1,) * (current.ndim - 1))
        value = self.base[rows] = torch.where(same, self.base[rows], current[rows])
        for shift in self.shifts:
            value = shift.applied(value, rows)
        whole = current.clone()
        whole[rows] = value
        self.target.put(self.name, whole)
        # What was kept may be rounded; compare with that next time.
        self.written[rows] = self.target.get(self.name)[rows]
        self.seen = self.target.shared(self.name)


class Shift(Perturbation):
    """DynamicsShift: value * factor + offset, in memory."""

    def __init__(self, spec: Any, site: Site) -> None:
        super().__init__(spec, site)
        self.target = target_of(site.unwrapped, spec.name)
        nominal = self.target.get(spec.parameter)
        self.shape = (1,) * (nominal.ndim - 1)
        self.drawn = [isinstance(value, tuple) for value in (spec.factor, spec.offset)]
        self.draws = any(self.drawn)
        ends = [value if isinstance(value, tuple) else (value, value) for value in (spec.factor, spec.offset)]
        self.ends = ends
        for factor in ends[0]:
            for offset in ends[1]:
                self.target.check(spec.parameter, nominal[0] * factor + offset)
        kind: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        # A drawn shift has not begun before the first reset.
        idle = (1.0, 0.0)
        self.factor, self.offset = (
            torch.full((self.num_envs,), idle[i] if self.drawn[i] else ends[i][0], **kind) for i in (0, 1)
        )
        self.change = torch.zeros(self.num_envs, **kind)
        ledgers: dict[str, Ledger] = site.unwrapped.__dict__.setdefault("_shifted_parameters", {})
        if spec.parameter not in ledgers:
            ledgers[spec.parameter] = Ledger(self.target, spec.parameter)
        self.ledgers = ledgers
        self.ledger = ledgers[spec.parameter]
        self.ledger.shifts.append(self)
        self.everywhere = torch.arange(self.num_envs, device=self.device)
        if not self.draws:
            self.ledger.refresh(self.everywhere, again=True)

    def start(self, rows: torch.Tensor, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw factor and offset if they are random, and see to it that the parameter has its value."""
        if self.draws:
            uniform = self.random.uniform(2, rows)
            for column, values in enumerate((self.factor, self.offset)):
                low, high = self.ends[column]
                values[rows] = low + (high - low) * uniform[:, column]
        self.ledger.refresh(rows, again=self.draws)
        self.push()
        return observation, self.change[rows]

    def push(self) -> None:
        """Note what holds in the coming step, in which a shift further in may already begin another episode."""
        self.acting = self.change.clone()
        self.value = self.target.get(self.spec.parameter).clone()

    def observe(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return observations as they are, and the norm of the parameter's change."""
        return observation, self.acting

    def applied(self, value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the values (m, ...) of `rows`, shifted."""
        factor, offset = (one[rows].reshape(-1, *self.shape) for one in (self.factor, self.offset))
        shifted = value * factor + offset
        self.change[rows] = _flat(shifted - value).norm(dim=-1)
        return shifted

    def more(self) -> dict[str, torch.Tensor]:
        """Return the parameter's value, if it is one number."""
        return {"value": self.value.clone()} if self.value.ndim == 1 else {}

    def release(self) -> None:
        """Give the parameter the value it would have without this shift."""
        if self in self.ledger.shifts:
            self.ledger.shifts.remove(self)
            self.ledger.refresh(self.everywhere, again=True)
            if not self.ledger.shifts:
                del self.ledgers[self.spec.parameter]


def _flat(rows: torch.Tensor) -> torch.Tensor:
    """Return rows (n, ...) as (n, numbers of one); n may be 0, as where a GPU is not asked whether episodes ended."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))
