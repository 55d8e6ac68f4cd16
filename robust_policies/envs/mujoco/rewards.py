"""Rewards and ends of episodes from the terms that task.yaml lists.

    {term: alive, weight: 1}                      weight, unless the step ends the episode
    {term: progress, joint: rootx, weight: 1}     weight times the joint's displacement by the time step
    {term: control, weight: -0.1}                 weight times the sum of squares of the action
    {term: norm, of: SIGNAL, weight: -1}          weight times the signal's Euclidean length
    {term: square, of: SIGNAL, target: 2, weight: -1}   weight times the sum of squares of signal minus target
    {term: value, of: SIGNAL, weight: 1}          weight times the sum of the signal's entries

Signals are those of the state after the step. An episode ends where a signal named by `termination` leaves its range,
    {of: SIGNAL, above: 0.7, below: 2.0}          either bound may be left out; every entry must be strictly inside
and where the simulation fails.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from robust_policies.envs.mujoco.model import Reading, joint_named
from robust_policies.envs.mujoco.signals import Layout, Signal, SignalItem, readings, signal_item
from robust_policies.envs.mujoco.task import parse
from robust_policies.envs.plant import Number, Section
from robust_policies.errors import InvalidValueError, ShapeError

_WITH_SIGNAL = ("norm", "square", "value")


class TermItem(Section):
    """One term of the reward."""

    term: Literal["alive", "progress", "control", "norm", "square", "value"]
    weight: Number
    joint: str | None = None
    of: dict[str, Any] | None = None
    target: Number | list[Number] = 0.0


class RangeItem(Section):
    """One condition for the episode to go on."""

    of: dict[str, Any]
    above: Number | None = None
    below: Number | None = None


def term_item(given: Any, place: str) -> tuple[TermItem, SignalItem | None]:
    """Return a term of task.yaml and the signal it is about."""
    item = parse(TermItem, given, place)
    for key, needed in (("of", item.term in _WITH_SIGNAL), ("joint", item.term == "progress")):
        if needed != (getattr(item, key) is not None):
            wanted = "is missing; expected it" if needed else "is given; expected none"
            raise InvalidValueError(f"{place}: {key} {wanted} for the term {item.term!r}.")
    return item, None if item.of is None else signal_item(item.of, f"{place}: of")


def range_item(given: Any, place: str) -> tuple[RangeItem, SignalItem]:
    """Return a condition of task.yaml and the signal it is about."""
    item = parse(RangeItem, given, place)
    if item.above is None and item.below is None:
        raise InvalidValueError(f"{place} has neither above nor below; expected at least one of them.")
    if item.above is not None and item.below is not None and item.above >= item.below:
        raise InvalidValueError(f"{place}: above is {item.above:g} and below {item.below:g}; expected above < below.")
    return item, signal_item(item.of, f"{place}: of")


class Judge:
    """The reward and the end of episodes of one task."""

    def __init__(self, reward: list[Any], termination: list[Any]) -> None:
        """Read the two lists of task.yaml; `bind` attaches them to the model."""
        self._terms = [(*term_item(given, _at("reward", i)), _at("reward", i)) for i, given in enumerate(reward)]
        self._ranges = [
            (*range_item(given, _at("termination", i)), _at("termination", i)) for i, given in enumerate(termination)
        ]

    def readings(self) -> list[Reading]:
        """Return what MuJoCo must compute beside the state."""
        items = [(item, place) for _, item, place in (*self._terms, *self._ranges) if item is not None]
        return [reading for item, place in items for reading in readings(item, place)]

    def bind(self, layout: Layout, time_step: float) -> None:
        """Look up everything in the model; raise `UnknownNameError` or `ShapeError` for what does not fit."""
        self.failed = layout.failed
        self.terms = [self._term(term, item, layout, place, time_step) for term, item, place in self._terms]
        self.watched = [Signal(item, layout, place) for _, item, place in self._ranges]
        bounds = [(range_.above, range_.below) for range_, _, _ in self._ranges]
        sizes = [signal.size for signal in self.watched]
        self.above = [low for (low, _), size in zip(bounds, sizes, strict=True) for _ in range(size)]
        self.below = [high for (_, high), size in zip(bounds, sizes, strict=True) for _ in range(size)]
        self._bounds: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    def _term(self, term: TermItem, item: SignalItem | None, layout: Layout, place: str, time_step: float) -> Term:
        if item is not None:
            signal = Signal(item, layout, place)
            if isinstance(term.target, list) and len(term.target) != signal.size:
                raise ShapeError(f"{place}: target has {len(term.target)} numbers; expected {signal.size}.")
            return SignalTerm(term.term, term.weight, signal, term.target)
        if term.term == "progress":
            return Progress(term.weight / time_step, layout.single(joint_named(layout.model, term.joint or "")))
        return Alive(term.weight) if term.term == "alive" else Control(term.weight)

    def terminated(self, state: torch.Tensor) -> torch.Tensor:
        """Return where the episode ends because of the states (..., nx), bool."""
        going = (state[..., self.failed] == 0) & torch.isfinite(state).all(-1)
        if self.watched:
            value = torch.cat([signal(state) for signal in self.watched], dim=-1)
            above, below = self._limits(value)
            going = going & ((value > above) & (value < below)).all(-1)
        return ~going

    def _limits(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = (like.device, like.dtype)
        if key not in self._bounds:
            to = {"dtype": like.dtype, "device": like.device}
            above = [-math.inf if bound is None else bound for bound in self.above]
            below = [math.inf if bound is None else bound for bound in self.below]
            with torch.inference_mode(False):
                self._bounds[key] = torch.tensor(above, **to), torch.tensor(below, **to)
        return self._bounds[key]

    def reward(self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Return the reward of the step from states (..., nx) with actions (..., nu) to `following` (..., nx)."""
        parts = [
            term.weight * (~self.terminated(following)).to(following.dtype)
            if isinstance(term, Alive)
            else term(state, action, following)
            for term in self.terms
        ]
        if not parts:
            return torch.zeros(following.shape[:-1], dtype=following.dtype, device=following.device)
        return sum(parts[1:], start=parts[0])


def _at(section: str, number: int) -> str:
    return f"{section}, item {number + 1}"


class Alive:
    """weight, unless the step ends the episode."""

    def __init__(self, weight: float) -> None:
        self.weight = weight


class Progress:
    """weight (x+ - x) for the position x of one joint."""

    def __init__(self, weight: float, column: int) -> None:
        self.weight, self.column = weight, column

    def __call__(self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Return the term (...)."""
        return self.weight * (following[..., self.column] - state[..., self.column])


class Control:
    """weight |u|^2."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Return the term (...)."""
        return self.weight * action.square().sum(-1)


class SignalTerm:
    """weight |s|, weight |s - target|^2 or weight sum(s), for a signal s of the state after the step."""

    def __init__(self, term: str, weight: float, signal: Signal, target: float | list[float]) -> None:
        self.term, self.weight, self.signal, self.target = term, weight, signal, target
        self._targets: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def __call__(self, state: torch.Tensor, action: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Return the term (...)."""
        value = self.signal(following)
        if self.term == "norm":
            return self.weight * value.square().sum(-1).sqrt()
        if self.term == "value":
            return self.weight * value.sum(-1)
        return self.weight * (value - self._target(value)).square().sum(-1)

    def _target(self, like: torch.Tensor) -> torch.Tensor | float:
        if not isinstance(self.target, list):
            return self.target
        key = (like.device, like.dtype)
        if key not in self._targets:
            with torch.inference_mode(False):
                self._targets[key] = torch.tensor(self.target, dtype=like.dtype, device=like.device)
        return self._targets[key]


Term = Alive | Progress | Control | SignalTerm
