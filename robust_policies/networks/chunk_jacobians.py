"""What chunks side by side (`chunk_kernels`) hand on to one another: Jacobians lane by lane, from mean slopes.

The layout is that of `chunk_kernels`. Needs numba (the extra `fast`); compiled once, kept on the disk.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks.kernels import times_slope
from robust_policies.networks.tiles import MOST, compiled, composed, product


@compiled
def times(m, lanes, k, to, o, left, a, a_row, a_column, right, b, plus, c, c_row, c_column):
    """Overwrite `to` (m, lanes) from `o` on with plus + left right (k, lanes), as `tiles.product`.

    Whoever calls it has no literal zero and one, of each combination of which it would be compiled once more.
    """
    product(m, lanes, k, to, o, lanes, left, a, a_row, a_column, right, b, lanes, plus, c, c_row, c_column)


@compiled
def put(X, at, Y):
    """Overwrite X from `at` on with Y (n,)."""
    for i in range(len(Y)):
        X[at + i] = Y[i]


@compiled
def numbers(widths):
    """Return the numbers of all neurons but the last layer's, and but the first's."""
    before, after = 0, 0
    for k in range(1, len(widths)):
        before, after = before + widths[k - 1], after + widths[k]
    return before, after


@compiled
def _scaled(X, at, by, of, count, lanes):
    """Multiply each of `count` rows of lanes of X from `at` on by that of `by` from `of` on."""
    for j in range(count):
        for r in range(lanes):
            X[at + j * lanes + r] *= by[of + r]


@compiled
def _cut(X):
    """Zero what is below 1e-15, before further products of it are so small that they are slow."""
    small = X.dtype.type(1e-15)
    for i in range(len(X)):
        X[i] = X[i] if abs(X[i]) > small else 0


@compiled
def jacobians(kind, keep, steps, lanes, nu, nx, ny, widths, F, Z):
    """Return each lane's Jacobian (nx nx lanes,), its end by its beginning, from mean slopes of every second step."""
    layers, xy, dtype, driving = len(widths), nx + ny, F.dtype, nu + nx
    zero, one = np.int64(0), np.int64(1)
    first, last, all_ = widths[0], widths[-1], xy + widths[0]
    inner = numbers(widths)[0]
    size, at_B = (inner + driving + last) * lanes, (driving + 1) * all_
    at_W = at_B + xy * last
    serial = layers == 1 and len(F) > at_W
    row, none = nx * lanes, np.zeros(MOST, dtype)
    means, at, h = np.zeros((inner + last) * lanes, dtype), 0, 0
    for k in range(layers):
        count = widths[k] * lanes
        if k == layers - 1:
            h = (inner + driving) * lanes
        slope = np.empty((1, count), dtype)
        for t in range(0, steps, 2):
            for i in range(count):
                slope[0, i] = 1
            times_slope(kind, Z[t * size + h : t * size + h + count].reshape(1, count), slope)
            for i in range(count):
                means[at + i] += slope[0, i]
        at, h = at + count, h + count
    means *= dtype.type(1.0 / ((steps + 1) // 2))
    R, Q = np.empty((inner + last) * row, dtype), np.empty((inner + last) * row, dtype)
    J, K, found = np.empty(nx * row, dtype), np.empty(nx * row, dtype), np.empty(nx * row, dtype)
    for j in range(nx):
        for i in range(nx):
            for r in range(lanes):
                K[i * row + j * lanes + r] = F[(nu + j) * all_ + i]
                found[i * row + j * lanes + r] = 1 if i == j else 0
        for i in range(first):
            for r in range(lanes):
                R[i * row + j * lanes + r] = F[(nu + j) * all_ + xy + i]
    for i in range(first):
        for q in range(i if serial else 0):
            a = F[at_W + q * first + i]
            for n in range(row):
                R[i * row + n] += a * R[q * row + n]
        _scaled(R, i * row, means, i * lanes, nx, lanes)
    at, of = first, at_W
    for k in range(1, layers):
        m, n = widths[k - 1], widths[k]
        times(n, row, m, Q, zero, F, of, one, n, R, zero, none, zero, zero, zero)
        R, Q = Q, R
        for i in range(n):
            _scaled(R, i * row, means, (at + i) * lanes, nx, lanes)
        at, of = at + n, of + (m + 1) * n
    times(nx, row, last, J, zero, F, at_B, last, one, R, zero, K, zero, row, one)
    left = steps
    while left:
        if left % 2:
            composed(nx, lanes, J, found, K)
            found, K = K, found
        left //= 2
        if left:
            composed(nx, lanes, J, J, K)
            J, K = K, J
            _cut(J)
    for t in range(steps if len(keep) else 0):
        for r in range(lanes):
            if not keep[t * lanes + r]:
                for i in range(nx * nx):
                    found[i * lanes + r] = 0
    return found


@compiled
def carried(M, missing, samples, back):
    """Hand on what is missing (nx, lanes) from chunk to chunk, in place: d_s += M_(s-1) d_(s-1), M (nx nx lanes,).

    `back`: from the last to the first, d_s += M_(s+1)' d_(s+1). A chunk has `samples` lanes.
    """
    nx, lanes = missing.shape
    for one in range(samples, lanes):
        r = lanes - 1 - one if back else one
        before = r + samples if back else r - samples
        for i in range(nx):
            total = missing[i, r]
            for j in range(nx):
                total += M[(j * nx + i if back else i * nx + j) * lanes + before] * missing[j, before]
            missing[i, r] = total
