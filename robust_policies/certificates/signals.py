"""What a certificate is about: the signal whose change it bounds, and the signal that causes the change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from gymnasium import spaces

from robust_policies.errors import InvalidValueError

RAW = "raw observations"
GIVEN = "observations as the policy is given them, behind whatever its environment does to them"
BEFORE_NORMALISATION = "observations as the policy's normaliser is given them, before it"
WINDOWED = "observations that fill the policy's windows"
FEATURES = "features that the extractor gives"
MEAN_ACTIONS = "mean actions"
LOGITS = "logits of the choices"


@dataclass(frozen=True)
class Signals:
    """The two signals of a gain.

    Attributes:
        reads: what is changed, in words.
        gives: what changes with it, in words.
        inputs, outputs: how many numbers they are at each time step.
        sensors, actuators: a name with its unit for each, () where they are not known.
        ranges: how far each actuator can move, from its lower limit to its upper one; () where one has no limits.
    """

    reads: str
    gives: str
    inputs: int
    outputs: int
    sensors: tuple[str, ...] = ()
    actuators: tuple[str, ...] = ()
    ranges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, wanted in (("sensors", self.inputs), ("actuators", self.outputs), ("ranges", self.outputs)):
            if len(getattr(self, name)) not in (0, wanted):
                raise InvalidValueError(
                    f"The signals have {len(getattr(self, name))} {name}; expected {wanted}, or none if not known."
                )

    @classmethod
    def between(cls, reads: str, inputs: int, action_space: spaces.Space) -> Self:
        """Return the signals from what a policy reads to its mean actions in a Box, or to the logits of its choices."""
        if not isinstance(action_space, spaces.Box):
            return cls(reads, LOGITS, inputs, int(spaces.flatdim(action_space)))
        outputs = int(np.prod(action_space.shape or (1,)))
        ranges: Sequence[float] = ()
        widths = (action_space.high.astype(np.float64) - action_space.low).reshape(-1)
        ranges = widths.tolist() if np.isfinite(widths).all() else ()
        return cls(reads, MEAN_ACTIONS, inputs, outputs, ranges=tuple(ranges))

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Return the signals of an entry of certificate.json; raises TypeError, ValueError where it is none."""
        lists = {name: tuple(content[name]) for name in ("sensors", "actuators", "ranges") if name in content}
        made = cls(**{**content, **lists})
        numbers = [made.inputs, made.outputs, *made.ranges]
        words = [made.reads, made.gives, *made.sensors, *made.actuators]
        if not all(isinstance(word, str) for word in words):
            raise ValueError("its signals have names that are no words")
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
            raise ValueError("its signals have numbers that are none")
        return made

    def named(self, sensors: Sequence[str], actuators: Sequence[str]) -> Self:
        """Return these signals with the names of a task, where there are as many as numbers."""
        return replace(
            self,
            sensors=tuple(sensors) if len(sensors) == self.inputs else self.sensors,
            actuators=tuple(actuators) if len(actuators) == self.outputs else self.actuators,
        )
