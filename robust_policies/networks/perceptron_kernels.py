"""A perceptron's layers in compiled loops: rows in blocks that stay in the cache, products in register tiles.

Nothing is kept but what each layer gives. Needs numba (the extra `fast`); compiled once, kept on the disk.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks import kernels
from robust_policies.networks.kernels import activated, compiled, times_slope
from robust_policies.networks.tiles import MOST, product

SILU = 100
"""The kind of x sigmoid(x), whose slope is not known from its value alone."""

# Of a block.
_ROWS = 64
# Narrower layers are no tiles.
_NARROW = 4


def kind_of(name: str, dtype: np.dtype) -> int:
    """Return the kind of an activation for numbers of a dtype: of `kernels`, or SILU."""
    return SILU + kernels.kind_of("sigmoid", dtype) if name == "silu" else kernels.kind_of(name, dtype)


@compiled
def _applied(kind, z, kept):
    """Overwrite z (m, n) with the activation of its entries; of SILU `kept` (m, n) gets their sigmoids."""
    if kind < SILU:
        activated(kind, z)
        return
    for i in range(len(z)):
        for j in range(z.shape[1]):
            kept[i, j] = z[i, j]
    activated(kind - SILU, kept)
    for i in range(len(z)):
        for j in range(z.shape[1]):
            z[i, j] *= kept[i, j]


@compiled
def _chained(kind, h, kept, delta):
    """Multiply delta (m, n) by the slope where the activation gave h (m, n), and `kept` (m, n)."""
    if kind < SILU:
        times_slope(kind, h, delta)
        return
    one = delta.dtype.type(1)
    for i in range(len(h)):
        for j in range(h.shape[1]):
            # (x s)' = s + x s (1 - s), and x s is h.
            delta[i, j] *= kept[i, j] + h[i, j] * (one - kept[i, j])


@compiled
def _turned(widths, weights):
    """Return all weights, flat, with each layer's matrix transposed."""
    found, at = np.empty_like(weights), 0
    for k in range(1, len(widths)):
        width, below = widths[k], widths[k - 1]
        for i in range(width):
            for j in range(below):
                found[at + j * width + i] = weights[at + i * below + j]
        at += width * below
    return found


@compiled
def _dots(rows, m, k, X, x, W, w, plus, c, Z, z):
    """Overwrite Z (rows, m) with plus (m,) + X (rows, k) W' for W (m, k), each flat from its first number on."""
    for i in range(rows):
        given = X[x + i * k : x + i * k + k]
        for j in range(m):
            row, total = W[w + j * k : w + j * k + k], plus[c + j]
            for p in range(k):
                total += given[p] * row[p]
            Z[z + i * m + j] = total


@compiled
def _outer(rows, m, n, X, x, Y, y, G, g):
    """Add X' Y to G (m, n) for X (rows, m) and Y (rows, n), each flat from its first number on; m is small."""
    whole = rows - rows % 4
    for p in range(m):
        to = G[g + p * n : g + p * n + n]
        for i in range(0, whole, 4):
            a, b, at = x + i * m + p, y + i * n, 2 * m
            q, r, s, t = X[a], X[a + m], X[a + at], X[a + at + m]
            y0, y1, y2, y3 = Y[b : b + n], Y[b + n : b + 2 * n], Y[b + 2 * n : b + 3 * n], Y[b + 3 * n : b + 4 * n]
            for j in range(n):
                to[j] += (q * y0[j] + r * y1[j]) + (s * y2[j] + t * y3[j])
        for i in range(whole, rows):
            q, y0 = X[x + i * m + p], Y[y + i * n : y + i * n + n]
            for j in range(n):
                to[j] += q * y0[j]


@compiled
def _copied(count, X, x, Y, y):
    """Overwrite `count` numbers of Y from its y-th on with those of X; both flat."""
    given, to = X[x : x + count], Y[y : y + count]
    for i in range(count):
        to[i] = given[i]


@compiled
def _padded(rows, n, X, x, found):
    """Overwrite found (rows, 4), flat, with X (rows, n), flat from its first number on, and zeros."""
    for i in range(rows):
        for j in range(4):
            found[4 * i + j] = X[x + i * n + j] if j < n else X.dtype.type(0)


@compiled
def forward(kind, last, inputs, widths, weights, biases, hidden, kept):
    """Write what each layer gives into `hidden`, layer by layer, each (rows, width) and flat.

    Args:
        kind: of the activation, `kernels.kind_of` its name.
        last: of the last layer's activation, which may be another.
        inputs: (rows, widths[0]).
        widths: (layers + 1,).
        weights: of each layer, (width, the one before), flat, one after the other.
        biases: of each layer, one after the other.
        hidden: (rows * sum(widths[1:]),).
        kept: as long as `hidden` where an activation is SILU, else as it may be; gets what the slopes need besides.
    """
    rows, turned = len(inputs), _turned(widths, weights)
    given = inputs.reshape(rows * widths[0])
    for start in range(0, rows, _ROWS):
        length = min(_ROWS, rows - start)
        at, first, bias = 0, 0, 0
        before, place = given, start * widths[0]
        for k in range(1, len(widths)):
            width, below = widths[k], widths[k - 1]
            here = first + start * width
            if width < _NARROW:
                _dots(length, width, below, before, place, weights, at, biases, bias, hidden, here)
            else:
                product(
                    length, width, below, hidden, here, width, before, place, below, 1, turned, at, width, biases, bias,
                    0, 1,
                )  # fmt: skip
            z = hidden[here : here + length * width].reshape(length, width)
            chosen = last if k == len(widths) - 1 else kind
            p = kept[here : here + length * width].reshape(length, width) if chosen >= SILU else z
            _applied(chosen, z, p)
            before, place = hidden, here
            at, first, bias = at + width * below, first + rows * width, bias + width


@compiled
def backward(kind, last, inputs, widths, weights, hidden, kept, grad, wanted):
    """Return the gradients of inputs (rows, widths[0]), if `wanted`, else (0, widths[0]), weights and biases, flat.

    The arguments are those of `forward`, with the gradient of the last layer, (rows, widths[-1]).
    """
    rows, count, total = len(inputs), len(widths) - 1, 0
    for width in widths[1:]:
        total += width
    gx = np.empty((rows if wanted else 0) * widths[0], inputs.dtype)
    gW, gb = np.zeros_like(weights), np.zeros(total, inputs.dtype)
    part, zeros, ones = np.zeros_like(weights), np.zeros(MOST, inputs.dtype), np.ones(_ROWS, inputs.dtype)
    given, slopes = inputs.reshape(rows * widths[0]), grad.reshape(rows * widths[count])
    above, under_ = np.empty(_ROWS * max(widths), inputs.dtype), np.empty(_ROWS * max(widths), inputs.dtype)
    # Of a first layer that reads less than four numbers, for four of them: turned.
    four, sums = np.empty(_NARROW * _ROWS, inputs.dtype), np.zeros(_NARROW * max(widths), inputs.dtype)
    more = np.empty_like(sums)
    for start in range(0, rows, _ROWS):
        length = min(_ROWS, rows - start)
        _copied(length * widths[count], slopes, start * widths[count], above, 0)
        at, first, bias = len(weights), len(hidden), total
        for k in range(count, 0, -1):
            width, below = widths[k], widths[k - 1]
            at, first, bias = at - width * below, first - rows * width, bias - width
            chosen, here = last if k == count else kind, first + start * width
            h = hidden[here : here + length * width].reshape(length, width)
            p = kept[here : here + length * width].reshape(length, width) if chosen >= SILU else h
            _chained(chosen, h, p, above[: length * width].reshape(length, width))
            _outer(length, 1, width, ones, 0, above, 0, gb, bias)
            read, place = (hidden, first - rows * below + start * below) if k > 1 else (given, start * below)
            if min(width, below) >= _NARROW:
                product(width, below, length, part, at, below, above, 0, 1, width, read, place, below, gW, at, below, 1)
                _copied(width * below, part, at, gW, at)
            elif width < _NARROW:
                _outer(length, width, below, above, 0, read, place, gW, at)
            elif k > 1:
                _outer(length, below, width, read, place, above, 0, part, at)
            else:
                _padded(length, below, read, place, four)
                product(_NARROW, width, length, more, 0, width, four, 0, 1, _NARROW, above, 0, width, sums, 0, width, 1)
                sums, more = more, sums
                _copied(below * width, sums, 0, part, at)
            if k > 1 or wanted:
                product(length, below, width, under_, 0, below, above, 0, width, 1, weights, at, below, zeros, 0, 0, 0)
                above, under_ = under_, above
        if wanted:
            _copied(length * widths[0], above, 0, gx, start * widths[0])
    at = 0
    for k in range(1, count + 1):
        width, below = widths[k], widths[k - 1]
        if below < _NARROW <= width:
            for i in range(width):
                for j in range(below):
                    gW[at + i * below + j] = part[at + j * width + i]
        at += width * below
    return gx.reshape(len(gx) // widths[0], widths[0]), gW, gb
