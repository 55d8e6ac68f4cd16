"""Interval arithmetic with derivatives: what a formula's Jacobian can be anywhere in a box, rounding included.

Write the dynamics with +, -, *, / and the `sin`, `cos` and `square` of this module:

    def step(theta, speed, torque):
        speed = speed + 0.05 * (15.0 * sin(theta) + 3.0 * torque)
        return theta + 0.05 * speed, speed

    lower, upper = jacobian_bounds(step, low, high)

Source: R. E. Moore, "Interval Analysis" (1966). Every operation rounds outwards by one unit in the last place, the
functions of the mathematical library by four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from robust_policies.errors import InvalidValueError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Interval:
    """The numbers from `low` to `high`, arrays of one shape: one interval an entry."""

    low: Array
    high: Array

    @classmethod
    def hull(cls, *values: Array, units: int = 1) -> Interval:
        """Return the interval around all `values`, widened by that many units in the last place."""
        low, high = np.minimum.reduce(values), np.maximum.reduce(values)
        for _ in range(units):
            low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
        return cls(low, high)

    def __add__(self, other: Interval) -> Interval:
        return Interval.hull(self.low + other.low, self.high + other.high)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __mul__(self, other: Interval) -> Interval:
        return Interval.hull(self.low * other.low, self.low * other.high, self.high * other.low, self.high * other.high)

    def reciprocal(self) -> Interval:
        """Return 1 / self; raises InvalidValueError if zero is among the numbers."""
        if bool(((self.low <= 0) & (self.high >= 0)).any()):
            raise InvalidValueError("A divisor's interval holds zero; expected a smaller box, or more pieces.")
        return Interval.hull(1.0 / self.low, 1.0 / self.high)

    def square(self) -> Interval:
        """Return self^2, which is tighter than self * self."""
        wide = Interval.hull(self.low * self.low, self.high * self.high)
        return Interval(np.where((self.low <= 0) & (self.high >= 0), 0.0, np.maximum(wide.low, 0.0)), wide.high)

    def sin(self) -> Interval:
        """Return the sine."""
        ends = np.sin(self.low), np.sin(self.high)
        wide = Interval.hull(*ends, units=4)
        low = np.where(_holds(self, -0.5 * np.pi), -1.0, np.maximum(wide.low, -1.0))
        return Interval(low, np.where(_holds(self, 0.5 * np.pi), 1.0, np.minimum(wide.high, 1.0)))

    def cos(self) -> Interval:
        """Return the cosine."""
        ends = np.cos(self.low), np.cos(self.high)
        wide = Interval.hull(*ends, units=4)
        low = np.where(_holds(self, np.pi), -1.0, np.maximum(wide.low, -1.0))
        return Interval(low, np.where(_holds(self, 0.0), 1.0, np.minimum(wide.high, 1.0)))


def _holds(interval: Interval, point: float) -> Array:
    """Return where the interval may hold point + 2 pi k; doubtful cases count as held."""
    slack = 1e-12 * (1.0 + np.abs(interval.low) + np.abs(interval.high))
    first = np.ceil((interval.low - point - slack) / (2 * np.pi))
    return point + 2 * np.pi * first <= interval.high + slack


class Jet:
    """An interval together with the intervals of its derivatives."""

    def __init__(self, value: Interval, slopes: Sequence[Interval]) -> None:
        self.value, self.slopes = value, tuple(slopes)

    def constant(self, number: float) -> Jet:
        """Return a number as a jet of the same shape."""
        like = np.full_like(self.value.low, float(number))
        return Jet(Interval(like, like), [Interval(0 * like, 0 * like)] * len(self.slopes))

    def chain(self, value: Interval, slope: Interval) -> Jet:
        """Return the jet of f(self) from f and f' on the value."""
        return Jet(value, [slope * each for each in self.slopes])

    def _with(self, other: Jet | float) -> Jet:
        return other if isinstance(other, Jet) else self.constant(other)

    def __add__(self, other: Jet | float) -> Jet:
        other = self._with(other)
        return Jet(self.value + other.value, [a + b for a, b in zip(self.slopes, other.slopes, strict=True)])

    def __neg__(self) -> Jet:
        return Jet(-self.value, [-slope for slope in self.slopes])

    def __sub__(self, other: Jet | float) -> Jet:
        return self + (-self._with(other))

    def __mul__(self, other: Jet | float) -> Jet:
        other = self._with(other)
        pairs = zip(self.slopes, other.slopes, strict=True)
        return Jet(self.value * other.value, [a * other.value + self.value * b for a, b in pairs])

    def __truediv__(self, other: Jet | float) -> Jet:
        other = self._with(other)
        inverse = other.value.reciprocal()
        return self * other.chain(inverse, -inverse.square())

    def __rtruediv__(self, other: float) -> Jet:
        return self.constant(other) / self

    def __rsub__(self, other: float) -> Jet:
        return (-self) + other

    __radd__, __rmul__ = __add__, __mul__


def sin(x: Jet) -> Jet:
    """Return the sine of a jet."""
    return x.chain(x.value.sin(), x.value.cos())


def cos(x: Jet) -> Jet:
    """Return the cosine of a jet."""
    return x.chain(x.value.cos(), -x.value.sin())


def square(x: Jet) -> Jet:
    """Return the square of a jet."""
    two = np.full_like(x.value.low, 2.0)
    return x.chain(x.value.square(), Interval(two, two) * x.value)


def bounds(function: Callable[..., Sequence[Jet]], low: Array, high: Array) -> tuple[Interval, Interval]:
    """Return the intervals of the values (k, outputs) and the Jacobian (k, outputs, inputs) of `function` on boxes.

    Args:
        function: takes one jet for each input, and gives a sequence of them, one for each output.
        low: (k, inputs) for k boxes, or (inputs,) for one; the lower corner.
        high: likewise, the upper corner.
    """
    low, high = np.atleast_2d(np.asarray(low, dtype=np.float64)), np.atleast_2d(np.asarray(high, dtype=np.float64))
    boxes, inputs = low.shape
    fixed = {number: Interval(np.full(boxes, number), np.full(boxes, number)) for number in (0.0, 1.0)}
    jets = [Jet(Interval(low[:, i], high[:, i]), [fixed[float(i == j)] for j in range(inputs)]) for i in range(inputs)]
    outputs = function(*jets)
    values = Interval(*(np.stack([getattr(out.value, end) for out in outputs], 1) for end in ("low", "high")))
    slopes = [
        np.stack([np.stack([getattr(slope, end) for slope in out.slopes], -1) for out in outputs], 1)
        for end in ("low", "high")
    ]
    return values, Interval(*slopes)


def jacobian_bounds(function: Callable[..., Sequence[Jet]], low: Array, high: Array) -> tuple[Array, Array]:
    """Return the entries' bounds of the Jacobian of `function` on boxes, (k, outputs, inputs) each; see `bounds`."""
    slopes = bounds(function, low, high)[1]
    return slopes.low, slopes.high
