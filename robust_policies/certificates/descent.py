"""Descent for convex functions that are known at feasible points only: the dual bounds of trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from robust_policies.certificates.lmi import Array


def descend(
    at: Callable[[Array], tuple[float, Array] | None], start: Array, iterations: int, rate: float
) -> Array | None:
    """Return the best point (size,) that Adam met, None where the start is not feasible.

    Args:
        at: a point -> (value, gradient (size,)), None where the value is infinite; there the descent goes back to the
            best point, and on more slowly.
        start: (size,).
        iterations: number of points.
        rate: the length of a step, of each entry.
    """
    point, slope = start, np.zeros_like(start)
    first, second, count = np.zeros_like(start), np.zeros_like(start), 0
    least, best, kept = math.inf, None, (point, slope)
    for _ in range(iterations):
        found = at(point)
        if found is None:
            if best is None:
                return None
            (point, slope), rate, first, second, count = kept, 0.4 * rate, 0.0 * first, 0.0 * second, 0
        else:
            value, slope = found
            if value < least:
                least, best, kept = value, point, (point, slope)
        count += 1
        first = 0.9 * first + 0.1 * slope
        second = 0.99 * second + 0.01 * np.square(slope)
        step = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.99**count)) + 1e-12 * max(least, 1e-300))
        point = point - rate * step
    return best
