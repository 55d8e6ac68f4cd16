"""How far an output of a chain of layers can move where its inputs stay in a box: interval Jacobians, the box split.

A chain is z -> act_k(W_k z + b_k), layer by layer. On a box of inputs u the Jacobian J is in an interval [lo, hi],
entry by entry, and the box is convex, so for two inputs a, b in it that differ by at most units_l in entry l

    |y_i(a) - y_i(b)|  <=  max over the box of  sum_l |J_il| units_l.

Before an activation lie the values v(c) +- max |J| r (mean value theorem, centre c and half widths r), cut with what
interval arithmetic says of them; the activation's slopes there multiply the Jacobian, forwards from the inputs and
backwards from the outputs, and both are cut. The box with the largest bound is split in half where it matters most; a
line from a to b passes some of the boxes, so the largest bound of all of them holds.

Every operation rounds outwards: products by their error bound (N. J. Higham, "Accuracy and Stability of Numerical
Algorithms", 2nd edition, 2002, chapter 3), functions of the mathematical library by eight units in the last place.
Source: Z. Shi, Y. Wang, H. Zhang, J. Z. Kolter and C.-J. Hsieh, "Efficiently computing local Lipschitz constants of
neural networks via bound propagation", NeurIPS 2022 (arXiv 2210.07394), for the interval Jacobian and the splitting.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from robust_policies.certificates.lmi import UP, Array, growth, product
from robust_policies.certificates.slopes import IDENTITY, Shape

METHOD = "interval Jacobian in split boxes, rounded outwards"
# Beside relative errors, for products of numbers near the smallest ones.
_TINY = 1e-290


class Layer(NamedTuple):
    """z -> act(W z + b): W (rows, columns), b (rows,), and how many rows in turn have which activation.

    `error` (rows, columns) says how far the exact W may lie from it, entry by entry, and `shift` (rows,) how far the
    exact b may; None: it is exact.
    """

    weight: Array
    bias: Array
    pieces: tuple[tuple[Shape, int], ...]
    error: Array | None = None
    shift: Array | None = None

    @property
    def is_linear(self) -> bool:
        """Whether it has no activation."""
        return all(shape is IDENTITY for shape, _ in self.pieces)

    def after(self, other: Layer) -> Layer:
        """Return self(other(z)) for a linear `other`, as one layer."""
        weight, error = product(self.weight, other.weight, left_error=self.error, right_error=other.error)
        column, shift = other.bias[:, None], None if other.shift is None else other.shift[:, None]
        moved, slack = product(self.weight, column, left_error=self.error, right_error=shift)
        bias = moved[:, 0] + self.bias
        off = slack[:, 0] + 2.0 * growth(2) * np.abs(bias) + (0.0 if self.shift is None else self.shift)
        return Layer(weight, bias, self.pieces, error, off * UP)

    def values(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return the intervals (rows,) of act on intervals (rows,) of what it is given."""
        return self._each("values", low, high)

    def slopes(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return the intervals (rows,) of its slopes there."""
        return self._each("slopes", low, high)

    def _each(self, what: str, low: Array, high: Array) -> tuple[Array, Array]:
        ends = np.cumsum([0, *(count for _, count in self.pieces)])
        found = [
            getattr(shape, what)(low[first:last], high[first:last])
            for (shape, _), first, last in zip(self.pieces, ends, ends[1:], strict=False)
        ]
        return np.concatenate([lows for lows, _ in found]), np.concatenate([highs for _, highs in found])


class Box(NamedTuple):
    """A box: centre (n,) and half widths (n,), rounded up."""

    centre: Array
    radius: Array

    @classmethod
    def between(cls, low: Array, high: Array) -> Box:
        """Return a box that holds what lies between two corners (n,)."""
        centre = low + 0.5 * (high - low)
        return cls(centre, np.nextafter(np.maximum(high - centre, centre - low), np.inf))

    def halves(self, axis: int) -> tuple[Box, Box]:
        """Return two boxes that cover this one, split across `axis`."""
        radius = self.radius.copy()
        radius[axis] = np.nextafter(0.5 * radius[axis], np.inf)
        step = np.zeros_like(radius)
        step[axis] = 0.5 * self.radius[axis]
        # Centres round by less than the half widths are widened.
        wide = radius + np.spacing(np.abs(self.centre) + self.radius)
        radius[axis] = wide[axis]
        return Box(self.centre - step, radius), Box(self.centre + step, radius)


def local_peaks(chain: Sequence[Layer], low: Array, high: Array, units: Array, boxes: int) -> tuple[Array, int]:
    """Return how far each output (ny,) may move, and how many boxes that took.

    Args:
        chain: its layers, first layer first.
        low: (n,) the lower corner of the box of its inputs.
        high: (n,) the upper one.
        units: (n,) how far two inputs may differ in each entry; by the box's width at most they do.
        boxes: so many are judged at most, for each output.
    """
    chain = merged(chain)
    reach = np.minimum(units, np.nextafter(high - low, np.inf))
    whole = Box.between(low, high)
    first = jacobian(chain, whole)
    bounds, most = [], 1
    for output in range(len(chain[-1].bias)):
        bound, used = _split(chain, whole, first, reach, output, boxes)
        bounds.append(bound)
        most = max(most, used)
    return np.array(bounds), most


def merged(chain: Sequence[Layer]) -> list[Layer]:
    """Return the same chain with linear layers multiplied into the one after them: intervals lose what is between."""
    found = [chain[0]]
    for layer in chain[1:]:
        if found[-1].is_linear:
            found[-1] = layer.after(found[-1])
        else:
            found.append(layer)
    return found


def jacobian(chain: Sequence[Layer], box: Box) -> tuple[Array, Array]:
    """Return the intervals (ny, n), lows and highs, that hold the chain's Jacobian everywhere in a box."""
    centre, radius = box
    low, high = np.nextafter(centre - radius, -np.inf), np.nextafter(centre + radius, np.inf)
    values, points = (low, high), (centre, centre)
    forward: tuple[Array, Array] | None = None
    slopes: list[tuple[Array, Array]] = []
    for layer in chain:
        if forward is None:
            forward = _widened(layer.weight, np.zeros_like(layer.weight), layer.error)
        else:
            forward = times(layer, *forward)
        points, inside = affine(layer, *points), affine(layer, *values)
        moved = _up(np.maximum(np.abs(forward[0]), np.abs(forward[1])) @ radius, len(radius))
        before = (
            np.maximum(inside[0], np.nextafter(points[0] - moved, -np.inf)),
            np.minimum(inside[1], np.nextafter(points[1] + moved, np.inf)),
        )
        slopes.append(layer.slopes(*before))
        values, points = layer.values(*before), layer.values(*points)
        forward = scaled(*forward, *(slope[:, None] for slope in slopes[-1]))
    assert forward is not None
    count = len(chain[-1].bias)
    backward: tuple[Array, Array] = (np.eye(count), np.eye(count))
    for layer, slope in zip(reversed(chain), reversed(slopes), strict=True):
        backward = _before(layer, *scaled(*backward, *slope))
    return np.maximum(forward[0], backward[0]), np.minimum(forward[1], backward[1])


def _split(
    chain: Sequence[Layer], whole: Box, first: tuple[Array, Array], reach: Array, output: int, boxes: int
) -> tuple[float, int]:
    """Return the largest bound of an output over the boxes of a cover, and their number."""
    queue = [(-_bound(first, reach, output), 0, whole, _sizes(first, output))]
    count = 1
    while count + 2 <= boxes:
        above, _, box, sizes = heapq.heappop(queue)
        axis = int(np.argmax(box.radius * sizes))
        if not above or not box.radius[axis] * sizes[axis] > 0:
            heapq.heappush(queue, (above, count, box, sizes))
            break
        for half in box.halves(axis):
            count += 1
            found = jacobian(chain, half)
            # What holds in a box holds in its part.
            bound = max(above, -_bound(found, reach, output))
            heapq.heappush(queue, (bound, count, half, _sizes(found, output)))
    return -queue[0][0], count


def _bound(found: tuple[Array, Array], reach: Array, output: int) -> float:
    return float(_up(_sizes(found, output) @ reach, len(reach)))


def _sizes(found: tuple[Array, Array], output: int) -> Array:
    return np.maximum(np.abs(found[0][output]), np.abs(found[1][output]))


def _up(total: Array, count: int) -> Array:
    """Return a sum of `count` products of numbers >= 0 that is no smaller than the exact one."""
    return total * (1.0 + 2.0 * growth(count + 2)) + _TINY


def _widened(value: Array, slack: Array, error: Array | None) -> tuple[Array, Array]:
    slack = slack if error is None else slack + error
    if not slack.any():
        return value, value
    slack = slack * UP + _TINY
    return np.nextafter(value - slack, -np.inf), np.nextafter(value + slack, np.inf)


def affine(layer: Layer, low: Array, high: Array) -> tuple[Array, Array]:
    """Return the intervals (rows, ...) of W z + b for z in intervals (columns, ...)."""
    bias, error, shift = layer.bias, layer.error, layer.shift
    if low.ndim > 1:
        bias, shift = bias[:, None], None if shift is None else shift[:, None]
    positive, negative = np.maximum(layer.weight, 0.0), np.minimum(layer.weight, 0.0)
    size = np.maximum(np.abs(low), np.abs(high))
    slack = 2.0 * growth(len(low) + 4) * (np.abs(layer.weight) @ size + np.abs(bias))
    slack = slack if error is None else slack + error @ size
    slack = (slack if shift is None else slack + shift) * UP + _TINY
    found = positive @ low + negative @ high + bias, positive @ high + negative @ low + bias
    return np.nextafter(found[0] - slack, -np.inf), np.nextafter(found[1] + slack, np.inf)


def times(layer: Layer, low: Array, high: Array) -> tuple[Array, Array]:
    """Return the intervals (rows, n) of W J for J in intervals (columns, n)."""
    positive, negative = np.maximum(layer.weight, 0.0), np.minimum(layer.weight, 0.0)
    size = np.maximum(np.abs(low), np.abs(high))
    slack = 2.0 * growth(len(low) + 4) * (np.abs(layer.weight) @ size)
    slack = (slack if layer.error is None else slack + layer.error @ size) * UP + _TINY
    return (
        np.nextafter(positive @ low + negative @ high - slack, -np.inf),
        np.nextafter(positive @ high + negative @ low + slack, np.inf),
    )


def _before(layer: Layer, low: Array, high: Array) -> tuple[Array, Array]:
    """Return the intervals (ny, columns) of J W for J in intervals (ny, rows)."""
    error = None if layer.error is None else layer.error.T
    turned = Layer(layer.weight.T, layer.bias, layer.pieces, error)
    found = times(turned, low.T, high.T)
    return found[0].T, found[1].T


def scaled(low: Array, high: Array, least: Array, most: Array) -> tuple[Array, Array]:
    """Return the intervals (..., n) of J s for J in intervals and slopes s in [least, most], >= 0, that broadcast."""
    found = np.minimum(low * least, low * most), np.maximum(high * least, high * most)
    return np.nextafter(found[0], -np.inf), np.nextafter(found[1], np.inf)
