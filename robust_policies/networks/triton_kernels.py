"""The scan of `scan` as one kernel each way: time runs inside it, a program has some rows of the batch.

All widths are padded with zeros to one power of two, N: what a padded neuron gives is multiplied by columns of zeros.
Products are `ieee`: a GPU's default, TF32, rounds far above a certificate's margin. Importing this imports Triton.
"""

# Triton's functions are compiled from their source, which a type checker reads as Python.
# pyright: reportMissingImports=false, reportOperatorIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

ACTIVATIONS = ("relu", "tanh", "sigmoid", "identity", "leaky_relu", "elu", "softplus", "hardtanh", "softsign")
"""Their numbers are their places here."""


@triton.jit
def _activated(x, KIND: tl.constexpr):
    if KIND == 0:
        x = tl.maximum(x, 0.0)
    elif KIND == 1:
        # Triton's interpreter has no tanh.
        x = 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    elif KIND == 2:
        x = 1.0 / (1.0 + tl.exp(-x))
    elif KIND == 4:
        x = tl.where(x > 0.0, x, 0.01 * x)
    elif KIND == 5:
        x = tl.where(x > 0.0, x, tl.exp(tl.minimum(x, 0.0)) - 1.0)
    elif KIND == 6:
        x = tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    elif KIND == 7:
        x = tl.minimum(tl.maximum(x, -1.0), 1.0)
    elif KIND == 8:
        x = x / (1.0 + tl.abs(x))
    return x


@triton.jit
def _slope(h, KIND: tl.constexpr):
    if KIND == 0:
        s = tl.where(h > 0.0, 1.0, 0.0)
    elif KIND == 1:
        s = 1.0 - h * h
    elif KIND == 2:
        s = h - h * h
    elif KIND == 4:
        s = tl.where(h > 0.0, 1.0, 0.01)
    elif KIND == 5:
        s = tl.minimum(h + 1.0, 1.0)
    elif KIND == 6:
        s = 1.0 - tl.exp(-h)
    elif KIND == 7:
        s = tl.where(tl.abs(h) < 1.0, 1.0, 0.0)
    elif KIND == 8:
        s = (1.0 - tl.abs(h)) * (1.0 - tl.abs(h))
    else:
        s = 0.0 * h + 1.0
    return s


@triton.jit
def _product(x, matrix, square):
    return tl.dot(x, tl.load(matrix + square), input_precision="ieee")


@triton.jit
def _one_by_one(v, matrix, columns, n1, N: tl.constexpr, KIND: tl.constexpr):
    """Return w with w_i = act(v_i + sum over j < i of matrix_ij w_j)."""
    w = 0.0 * v
    for i in range(n1):
        this = columns[None, :] == i
        row = tl.load(matrix + i * N + columns)[None, :]
        total = tl.sum(tl.where(this, v, 0.0) + w * row, axis=1)
        w = tl.where(this, _activated(total, KIND)[:, None], w)
    return w


@triton.jit
def _one_by_one_back(g, slope, matrix, columns, n1, N: tl.constexpr):
    """Return d with d_i = slope_i (g_i + sum over j > i of matrix_ji d_j)."""
    d = 0.0 * g
    for back in range(n1):
        i = n1 - 1 - back
        this = columns[None, :] == i
        column = tl.load(matrix + columns * N + i)[None, :]
        total = tl.sum(tl.where(this, g, 0.0) + d * column, axis=1)
        d = tl.where(this, total[:, None] * slope, d)
    return d


@triton.jit
def forward(
    drive, state, keep, arrays, biases, states, hidden, final, time, batch, nx, n1,
    L: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, RESETS: tl.constexpr,
    SERIAL: tl.constexpr,
):  # fmt: skip
    """Write states (time, batch, nx), hidden (L, time, batch, N) and the final state (batch, nx).

    `arrays` (L + 2, N, N) holds A', M', W_2', ..., W_L' and B'; `biases` (L - 1, N); drive is (time, batch, nx + n1),
    keep (time, batch). Of SERIAL neurons, each of which reads all before it, W stands before B' in its place.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, N)
    square = columns[:, None] * N + columns[None, :]
    there = rows[:, None] < batch
    of_state, of_first = there & (columns[None, :] < nx), there & (columns[None, :] < n1)
    x = tl.load(state + rows[:, None] * nx + columns[None, :], mask=of_state, other=0.0)
    for t in range(time):
        at = t * batch + rows
        if RESETS:
            x = x * tl.load(keep + at, mask=rows < batch, other=0.0)[:, None]
        tl.store(states + at[:, None] * nx + columns[None, :], x, mask=of_state)
        given = drive + at[:, None] * (nx + n1) + columns[None, :]
        following = tl.load(given, mask=of_state, other=0.0) + _product(x, arrays, square)
        h = tl.load(given + nx, mask=of_first, other=0.0) + _product(x, arrays + N * N, square)
        if SERIAL:
            h = _one_by_one(h, arrays + 2 * N * N, columns, n1, N, KIND)
        else:
            h = _activated(h, KIND)
        kept = hidden + at[:, None] * N + columns[None, :]
        tl.store(kept, h, mask=there)
        for k in tl.static_range(1, L):  # pyright: ignore[reportGeneralTypeIssues]
            h = _product(h, arrays + (k + 1) * N * N, square) + tl.load(biases + (k - 1) * N + columns)[None, :]
            h = _activated(h, KIND)
            kept += time * batch * N
            tl.store(kept, h, mask=there)
        x = following + _product(h, arrays + (L + 1 + SERIAL) * N * N, square)
    tl.store(final + rows[:, None] * nx + columns[None, :], x, mask=of_state)


@triton.jit
def backward(
    by_states, by_last, by_final, keep, arrays, hidden, by_drive, deltas, by_state, time, batch, nx, n1, last,
    L: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, RESETS: tl.constexpr,
    SERIAL: tl.constexpr,
):  # fmt: skip
    """Write the gradients of drive (time, batch, nx + n1), of each layer's product (L, time, batch, N) and the state.

    `arrays` (L + 2, N, N) holds A, M, W_2, ..., W_L and B; by_states (time, batch, nx), by_last (time, batch, last) and
    by_final (batch, nx) are the gradients of what `forward` gave.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, N)
    square = columns[:, None] * N + columns[None, :]
    there = rows[:, None] < batch
    of_state, of_first = there & (columns[None, :] < nx), there & (columns[None, :] < n1)
    of_last = there & (columns[None, :] < last)
    layer = time * batch * N
    gx = tl.load(by_final + rows[:, None] * nx + columns[None, :], mask=of_state, other=0.0)
    for back in range(time):
        at = (time - 1 - back) * batch + rows
        g = tl.load(by_last + at[:, None] * last + columns[None, :], mask=of_last, other=0.0)
        g += _product(gx, arrays + (L + 1 + SERIAL) * N * N, square)
        place = at[:, None] * N + columns[None, :] + (L - 1) * layer
        for k in tl.static_range(L - 1):  # pyright: ignore[reportGeneralTypeIssues]
            d = g * _slope(tl.load(hidden + place, mask=there, other=0.0), KIND)
            tl.store(deltas + place, d, mask=there)
            g = _product(d, arrays + (L - k) * N * N, square)
            place -= layer
        slope = _slope(tl.load(hidden + place, mask=there, other=0.0), KIND)
        if SERIAL:
            d = _one_by_one_back(g, slope, arrays + 2 * N * N, columns, n1, N)
        else:
            d = g * slope
        tl.store(deltas + place, d, mask=there)
        given = by_drive + at[:, None] * (nx + n1) + columns[None, :]
        tl.store(given, gx, mask=of_state)
        tl.store(given + nx, d, mask=of_first)
        gx = _product(gx, arrays, square) + _product(d, arrays + N * N, square)
        gx += tl.load(by_states + at[:, None] * nx + columns[None, :], mask=of_state, other=0.0)
        if RESETS:
            gx = gx * tl.load(keep + at, mask=rows < batch, other=0.0)[:, None]
    tl.store(by_state + rows[:, None] * nx + columns[None, :], gx, mask=of_state)
