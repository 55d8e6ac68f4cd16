"""A chain of layers behind another function, on many boxes at once: intervals of its values and its Jacobian.

With z = g(v) the chain's inputs, J the Jacobian of the whole with respect to v and r half widths of a box of v about
c, what lies before an activation is that at the centre +- max |J| r (mean value theorem), cut with what interval
arithmetic says of it. Rounding as in `local`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robust_policies.certificates.lmi import Array, growth
from robust_policies.certificates.local import Layer, affine, scaled, times

Pair = tuple[Array, Array]
# Beside relative errors, for products of numbers near the smallest ones.
_TINY = 1e-290


def through(chain: Sequence[Layer], centre: Pair, inside: Pair, slopes: Pair, radius: Array) -> tuple[Pair, Pair]:
    """Return the intervals of the values at the centres (ny, k) and of the whole's Jacobian on k boxes (ny, d, k).

    Args:
        chain: its layers, first layer first.
        centre: (n, k) lows and highs of its inputs at the boxes' centres.
        inside: (n, k) of its inputs anywhere in the boxes.
        slopes: (n, d, k) of the Jacobian of its inputs there.
        radius: (d, k) half widths of the boxes of v.
    """
    d, boxes = radius.shape
    for layer in chain:
        flat = times(layer, *(end.reshape(len(end), -1) for end in slopes))
        slopes = flat[0].reshape(-1, d, boxes), flat[1].reshape(-1, d, boxes)
        centre, inside = affine(layer, *centre), affine(layer, *inside)
        size = np.maximum(np.abs(slopes[0]), np.abs(slopes[1]))
        moved = (size * radius).sum(1) * (1.0 + 2.0 * growth(d + 2)) + _TINY
        inside = (
            np.maximum(inside[0], np.nextafter(centre[0] - moved, -np.inf)),
            np.minimum(inside[1], np.nextafter(centre[1] + moved, np.inf)),
        )
        steep = layer.slopes(*inside)
        centre, inside = layer.values(*centre), layer.values(*inside)
        slopes = scaled(*slopes, *(end[:, None] for end in steep))
    return centre, slopes
