"""A perceptron's layers in compiled loops: rows in blocks that stay in the cache, products by BLAS.

A block is small enough that BLAS does not start threads for it. Nothing is kept but what each layer gives.
Needs numba (the extra `fast`); compiled once, kept on the disk.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks import kernels
from robust_policies.networks.kernels import activated, compiled, times_slope

SILU = 100
"""The kind of x sigmoid(x), whose slope is not known from its value alone."""

# OpenBLAS starts threads above this number of multiply-adds of one product.
_PRODUCT = 2**18
_ROWS = 128


def kind_of(name: str, dtype: np.dtype) -> int:
    """Return the kind of an activation for numbers of a dtype: of `kernels`, or SILU."""
    return SILU + kernels.kind_of("sigmoid", dtype) if name == "silu" else kernels.kind_of(name, dtype)


@compiled
def _applied(kind, z, kept):
    """Overwrite z (m, n) with the activation of its entries; `kept` (m, n) gets them where the slope needs them."""
    if kind < SILU:
        activated(kind, z)
        return
    for i in range(len(z)):
        for j in range(z.shape[1]):
            kept[i, j] = z[i, j]
    activated(kind - SILU, z)
    for i in range(len(z)):
        for j in range(z.shape[1]):
            z[i, j] *= kept[i, j]


@compiled
def _chained(kind, h, kept, delta):
    """Multiply delta (m, n) by the slope where the activation gave h (m, n) of `kept` (m, n)."""
    if kind < SILU:
        times_slope(kind, h, delta)
        return
    one = delta.dtype.type(1)
    gates = kept.copy()
    activated(kind - SILU, gates)
    for i in range(len(h)):
        for j in range(h.shape[1]):
            delta[i, j] *= gates[i, j] * (one + kept[i, j] * (one - gates[i, j]))


@compiled
def _block(widths):
    """Return the number of rows of a block for layers of these widths."""
    most = 1
    for k in range(len(widths) - 1):
        most = max(most, widths[k] * widths[k + 1])
    return max(8, min(_ROWS, _PRODUCT // most))


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
        kept: as long as `hidden` where an activation is SILU, else as it may be; gets what the slopes are of.
    """
    rows, size = len(inputs), _block(widths)
    for start in range(0, rows, size):
        end = min(start + size, rows)
        before, at, first, bias = inputs[start:end], 0, 0, 0
        for k in range(1, len(widths)):
            width, below = widths[k], widths[k - 1]
            W = weights[at : at + width * below].reshape(width, below)
            b = biases[bias : bias + width]
            z = hidden[first + start * width : first + end * width].reshape(end - start, width)
            np.dot(before, W.T, z)
            for i in range(end - start):
                row = z[i]
                for j in range(width):
                    row[j] += b[j]
            chosen = last if k == len(widths) - 1 else kind
            p = kept[first + start * width : first + end * width].reshape(end - start, width) if chosen >= SILU else z
            _applied(chosen, z, p)
            before, at, first, bias = z, at + width * below, first + rows * width, bias + width


@compiled
def backward(kind, last, inputs, widths, weights, hidden, kept, grad, wanted):
    """Return the gradients of inputs (rows, widths[0]), if `wanted`, else (0, widths[0]), weights and biases, flat.

    The arguments are those of `forward`, with the gradient of the last layer, (rows, widths[-1]).
    """
    rows, size, count, total = len(inputs), _block(widths), len(widths) - 1, 0
    for width in widths[1:]:
        total += width
    gx = np.empty((rows if wanted else 0, widths[0]), inputs.dtype)
    gW, gb = np.zeros_like(weights), np.zeros(total, inputs.dtype)
    part = np.empty_like(weights)
    above, below_ = np.empty(size * max(widths), inputs.dtype), np.empty(size * max(widths), inputs.dtype)
    for start in range(0, rows, size):
        end = min(start + size, rows)
        length = end - start
        delta = above[: length * widths[count]].reshape(length, widths[count])
        for i in range(length):
            for j in range(widths[count]):
                delta[i, j] = grad[start + i, j]
        at, first, bias = len(weights), len(hidden), total
        for k in range(count, 0, -1):
            width, under = widths[k], widths[k - 1]
            at, first, bias = at - width * under, first - rows * width, bias - width
            chosen = last if k == count else kind
            h = hidden[first + start * width : first + end * width].reshape(length, width)
            p = kept[first + start * width : first + end * width].reshape(length, width) if chosen >= SILU else h
            _chained(chosen, h, p, delta)
            b = gb[bias : bias + width]
            for i in range(length):
                row = delta[i]
                for j in range(width):
                    b[j] += row[j]
            product = part[at : at + width * under].reshape(width, under)
            if k > 1:
                place = first - rows * under
                given = hidden[place + start * under : place + end * under].reshape(length, under)
                np.dot(delta.T, given, product)
            else:
                np.dot(delta.T, inputs[start:end], product)
            for n in range(at, at + width * under):
                gW[n] += part[n]
            if k > 1 or wanted:
                W = weights[at : at + width * under].reshape(width, under)
                lower = below_[: length * under].reshape(length, under)
                np.dot(delta, W, lower)
                delta = lower
                above, below_ = below_, above
        if wanted:
            for i in range(length):
                for j in range(widths[0]):
                    gx[start + i, j] = delta[i, j]
    return gx, gW, gb
