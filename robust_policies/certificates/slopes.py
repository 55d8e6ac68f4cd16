"""Intervals of the values and the slopes of the activations, rounded outwards; all of them never fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from robust_policies.certificates.lmi import Array

# Of torch's leaky ReLU, whose leak is 0.01 in the number type that runs.
_LEAK = 0.01 * (1 - 1e-6), 0.01 * (1 + 1e-6)
# In the last place, by which a function of the mathematical library and what is made of it may be off; and where a
# slope is below the smallest numbers.
_UNITS, _TINY = 8, 1e-300


@dataclass(frozen=True, eq=False)
class Shape:
    """An activation, entry by entry.

    Attributes:
        values: intervals (n,), lows and highs, of what it is given -> those of what it gives.
        slopes: likewise -> those of its slopes; at a kink between two slopes, both.
    """

    values: Callable[[Array, Array], tuple[Array, Array]]
    slopes: Callable[[Array, Array], tuple[Array, Array]]


def _wide(low: Array, high: Array) -> tuple[Array, Array]:
    for _ in range(_UNITS):
        low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    return low, high


def _monotone(function: Callable[[Array], Array]) -> Callable[[Array, Array], tuple[Array, Array]]:
    return lambda low, high: _wide(function(low), function(high))


def _humped(slope: Callable[[Array], Array], top: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Return the intervals of a slope that is largest at 0, where it is `top`, and falls on both sides."""

    def slopes(low: Array, high: Array) -> tuple[Array, Array]:
        ends = slope(low), slope(high)
        least, most = _wide(np.minimum(*ends), np.maximum(*ends))
        return np.maximum(least - _TINY, 0.0), np.where((low <= 0) & (high >= 0), top, np.minimum(most + _TINY, top))

    return slopes


def _secant(x: Array) -> Array:
    """Return the slope of tanh, 1 / cosh^2."""
    with np.errstate(over="ignore"):
        return 1.0 / np.square(np.cosh(x))


def _kinked(below: tuple[float, float], above: float) -> Callable[[Array, Array], tuple[Array, Array]]:
    return lambda low, high: (np.where(low > 0, above, below[0]), np.where(high >= 0, above, below[1]))


def _leaky(low: Array, high: Array) -> tuple[Array, Array]:
    # Below zero the smaller number is the one with the larger leak.
    return _wide(np.where(low > 0, low, low * _LEAK[1]), np.where(high > 0, high, high * _LEAK[0]))


def _elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0.0)))


def _rising(low: Array, high: Array) -> tuple[Array, Array]:
    """Return the intervals of the slope of elu, exp below 0."""
    least, most = _wide(np.exp(np.minimum(low, 0.0)), np.exp(np.minimum(high, 0.0)))
    return np.clip(least, 0.0, 1.0), np.clip(most, 0.0, 1.0)


def _softsign(x: Array) -> Array:
    return x / (1.0 + np.abs(x))


def _softsign_slope(x: Array) -> Array:
    return 1.0 / np.square(1.0 + np.abs(x))


def clipped(limit: float) -> Shape:
    """Return what cuts numbers off at plus and minus a limit."""

    def slopes(low: Array, high: Array) -> tuple[Array, Array]:
        inside, outside = (low > -limit) & (high < limit), (high < -limit) | (low > limit)
        return np.where(inside, 1.0, 0.0), np.where(outside, 0.0, 1.0)

    return Shape(lambda low, high: (np.clip(low, -limit, limit), np.clip(high, -limit, limit)), slopes)


def _flat(low: Array, high: Array) -> tuple[Array, Array]:
    return np.ones_like(low), np.ones_like(high)


IDENTITY = Shape(lambda low, high: (low, high), _flat)
SHAPES: dict[str, Shape] = {
    "identity": IDENTITY,
    "relu": Shape(lambda low, high: (np.maximum(low, 0.0), np.maximum(high, 0.0)), _kinked((0.0, 0.0), 1.0)),
    "leaky_relu": Shape(_leaky, _kinked(_LEAK, 1.0)),
    "tanh": Shape(_monotone(np.tanh), _humped(_secant, 1.0)),
    "sigmoid": Shape(_monotone(expit), _humped(lambda x: 0.25 * _secant(0.5 * x), 0.25)),
    "softsign": Shape(_monotone(_softsign), _humped(_softsign_slope, 1.0)),
    "elu": Shape(_monotone(_elu), _rising),
    "hardtanh": clipped(1.0),
}
"""By name; softplus is none of them: as it runs, it is cut over to the identity at 20 with a jump."""
