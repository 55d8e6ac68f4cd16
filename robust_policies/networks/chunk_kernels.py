"""A run over time in chunks side by side (`parallel`) in compiled loops: chunks and samples are in SIMD lanes.

The step is that of `row_kernels`, and so is the array F of its numbers. A lane is a sample of a chunk, one chunk's
after the other's; arrays are (steps + 1, rows, lanes), flat:

    Z: [h_1 .. h_(L-1), u, x, h_L] of each step, of which x alone beyond the last
    D: [d_L .. d_2, slope of the state after the step, of its outputs, d_1]; step t is at t + 1, and at 0 is only the
       slope of the state that the run begins with

so that what is read together lies together. d_k is the slope at what drives the k-th layer.

Needs numba (the extra `fast`); compiled once, kept on the disk. Whatever is not finite stays so.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks.kernels import activated, times_slope
from robust_policies.networks.row_kernels import blamed, read
from robust_policies.networks.tiles import MOST, compiled, composed, gram, product

# Steps of a block, after each of which a chunk's further steps may turn out to be as before.
_BLOCK = 16


@compiled
def _times(m, lanes, k, to, o, left, a, a_row, a_column, right, b, plus, c, c_row, c_column):
    """Overwrite `to` (m, lanes) from `o` on with plus + left right (k, lanes), as `tiles.product`.

    Whoever calls it has no literal zero and one, of each combination of which it would be compiled once more.
    """
    product(m, lanes, k, to, o, lanes, left, a, a_row, a_column, right, b, lanes, plus, c, c_row, c_column)


@compiled
def _put(X, at, Y):
    """Overwrite X from `at` on with Y (n,)."""
    for i in range(len(Y)):
        X[at + i] = Y[i]


@compiled
def _numbers(widths):
    """Return the numbers of all neurons but the last layer's, and but the first's."""
    before, after = 0, 0
    for k in range(1, len(widths)):
        before, after = before + widths[k - 1], after + widths[k]
    return before, after


@compiled
def _forgotten(keep, t, lanes, X, at, nx):
    """Zero the states X (nx, lanes) from `at` on where keep (steps * lanes,) is False before step t."""
    for n in range(lanes):
        if not keep[t * lanes + n]:
            for i in range(nx):
                X[at + i * lanes + n] = 0


@compiled
def _ahead(kind, keep, lanes, nu, nx, ny, widths, F, E, c, Z, begin, end):
    """Fill Z from the state before step `begin` on, until `end`.

    E (nx + ny, nu + nx + n_L) is [P B] of states and outputs, c (N + n_2 + ... , lanes) the biases.
    """
    layers, xy, driving = len(widths), nx + ny, nu + nx
    zero, one = np.int64(0), np.int64(1)
    first, last, all_ = widths[0], widths[-1], xy + widths[0]
    inner = _numbers(widths)[0]
    size, read_, at_W = (inner + driving + last) * lanes, driving + last, (driving + 1) * all_ + xy * last
    serial = layers == 1 and len(F) > at_W
    for t in range(begin, end):
        driven = t * size + inner * lanes
        if len(keep):
            _forgotten(keep, t, lanes, Z, driven + nu * lanes, nx)
        to = t * size if layers > 1 else driven + driving * lanes
        _times(first, lanes, driving, Z, to, F, xy, one, all_, Z, driven, c, xy * lanes, lanes, one)
        if serial:
            read(kind, F, at_W, Z[to : to + first * lanes].reshape(first, lanes))
        else:
            activated(kind, Z[to : to + first * lanes].reshape(1, first * lanes))
        at, bias = at_W, all_
        for k in range(1, layers):
            m, n, h = widths[k - 1], widths[k], to
            to = h + m * lanes if k < layers - 1 else driven + driving * lanes
            _times(n, lanes, m, Z, to, F, at, one, n, Z, h, c, bias * lanes, lanes, one)
            activated(kind, Z[to : to + n * lanes].reshape(1, n * lanes))
            at, bias = at + (m + 1) * n, bias + n
        to = (t + 1) * size + (inner + nu) * lanes
        _times(nx, lanes, read_, Z, to, E, zero, read_, one, Z, driven, c, zero, lanes, one)


@compiled
def _back(kind, keep, lanes, nu, nx, ny, widths, F, Z, D, begin, end):
    """Fill D from the slope of the state after step `end` - 1 on, down to that before step `begin`."""
    layers, xy, driving = len(widths), nx + ny, nu + nx
    zero, one = np.int64(0), np.int64(1)
    first, last, all_ = widths[0], widths[-1], xy + widths[0]
    inner, above = _numbers(widths)
    size = (inner + driving + last) * lanes
    sizes, at_B = (above + all_) * lanes, (driving + 1) * all_
    at_W, none = at_B + xy * last, np.zeros(MOST, F.dtype)
    serial = layers == 1 and len(F) > at_W
    for t in range(end - 1, begin - 1, -1):
        slopes = (t + 1) * sizes + above * lanes
        to = (t + 1) * sizes if layers > 1 else slopes + xy * lanes
        _times(last, lanes, xy, D, to, F, at_B, one, last, D, slopes, none, zero, zero, zero)
        h = t * size + (inner + driving) * lanes
        values, found = Z[h : h + last * lanes], D[to : to + last * lanes]
        if serial:
            blamed(kind, F, at_W, values.reshape(first, lanes), found.reshape(first, lanes))
        else:
            times_slope(kind, values.reshape(1, last * lanes), found.reshape(1, last * lanes))
        at, h = len(F), t * size + inner * lanes
        for k in range(layers - 2, -1, -1):
            m, n = widths[k], widths[k + 1]
            at -= (m + 1) * n
            h -= m * lanes
            source, to = to, to + n * lanes if k else slopes + xy * lanes
            _times(m, lanes, n, D, to, F, at, n, one, D, source, none, zero, zero, zero)
            values, found = Z[h : h + m * lanes], D[to : to + m * lanes]
            times_slope(kind, values.reshape(1, m * lanes), found.reshape(1, m * lanes))
        to = t * sizes + above * lanes
        _times(nx, lanes, all_, D, to, F, nu * all_, all_, one, D, slopes, none, zero, zero, zero)
        if len(keep):
            _forgotten(keep, t, lanes, D, to, nx)


@compiled
def _largest(X, at, size, count, numbers):
    """Return the largest finite size of `numbers` neighbours from `at` on, `count` times and `size` apart."""
    found = np.zeros(numbers, X.dtype)
    for t in range(count):
        for i in range(numbers):
            value = abs(X[at + t * size + i])
            found[i] = max(found[i], value if value < np.inf else found[i])
    return found.max()


@compiled
def _within(X, limit):
    """Return whether no number of X (n,) is above the limit in size, or NaN."""
    good = True
    for i in range(len(X)):
        good &= abs(X[i]) <= limit
    return good


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
def _jacobians(kind, keep, steps, lanes, nu, nx, ny, widths, F, Z):
    """Return each lane's Jacobian (nx nx lanes,), its end by its beginning, from mean slopes of every second step."""
    layers, xy, dtype, driving = len(widths), nx + ny, F.dtype, nu + nx
    zero, one = np.int64(0), np.int64(1)
    first, last, all_ = widths[0], widths[-1], xy + widths[0]
    inner = _numbers(widths)[0]
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
        _times(n, row, m, Q, zero, F, of, one, n, R, zero, none, zero, zero, zero)
        R, Q = Q, R
        for i in range(n):
            _scaled(R, i * row, means, (at + i) * lanes, nx, lanes)
        at, of = at + n, of + (m + 1) * n
    _times(nx, row, last, J, zero, F, at_B, last, one, R, zero, K, zero, row, one)
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
def _carried(M, missing, samples, back):
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


@compiled
def _again(kind, keep, steps, lanes, samples, nu, nx, ny, widths, F, E, c, Z, D, M, limit, back):
    """Run the chunks again from where those beside them ended until they agree; return how often, in part by steps."""
    inner, above = _numbers(widths)
    X = D if back else Z
    size = len(X) // (steps + 1)
    of = (above if back else inner + nu) * lanes
    begin, end = (steps * size + of, of) if back else (of, steps * size + of)
    count, done = nx * lanes, 0
    beginning, before = X[begin : begin + count].copy(), np.empty(count, F.dtype)
    missing = np.empty((nx, lanes), F.dtype)
    flat = missing.reshape(count)
    for _ in range(lanes // samples - 1):
        for i in range(nx):
            at = i * lanes
            for n in range(lanes):
                neighbour = n + samples if back else n - samples
                inside = 0 <= neighbour < lanes
                missing[i, n] = X[end + at + neighbour] - beginning[at + n] if inside else 0
        _carried(M, missing, samples, back)
        if _within(flat, limit):
            break
        for i in range(count):
            beginning[i] += flat[i]
        _put(X, begin, beginning)
        for block in range(0, steps, _BLOCK):
            further = min(block + _BLOCK, steps)
            at = (steps - further if back else further) * size + of
            for i in range(count):
                before[i] = X[at + i]
            if back:
                _back(kind, keep, lanes, nu, nx, ny, widths, F, Z, D, steps - further, steps - block)
            else:
                _ahead(kind, keep, lanes, nu, nx, ny, widths, F, E, c, Z, block, further)
            done += further - block
            if further == steps:
                break
            for i in range(count):
                flat[i] = X[at + i] - before[i]
            if len(keep) and not back:
                # A reset there has touched what the next block began with before.
                _forgotten(keep, further, lanes, flat, 0, nx)
            if _within(flat, limit):
                _put(X, at, before)
                break
    return done / steps


@compiled
def forward(kind, keep, steps, lanes, samples, nu, nx, ny, widths, F, Z, tolerance):
    """Fill Z, return the outputs (steps ny lanes,), the Jacobians (nx nx lanes,) and how often the chunks ran.

    Args:
        kind: of the activation, `kernels.kind_of` its name.
        keep: (steps * lanes,) bool, False where the state is zeroed before a step; (0,): nowhere.
        steps: of a chunk.
        lanes: chunks times samples, a multiple of `tiles.LANES`.
        samples: of a chunk.
        nu: inputs.
        nx: states.
        ny: outputs.
        widths: (layers,) of the layers.
        F: (numbers,), all numbers of the step.
        Z: ((steps + 1) rows lanes,) with the inputs in place and the states that chunks are to begin with.
        tolerance: what does not count of a state, relative to the largest.
    """
    layers, xy, driving = len(widths), nx + ny, nu + nx
    one, last, all_ = np.int64(1), widths[-1], xy + widths[0]
    inner, above = _numbers(widths)
    size, read_, at_c = (inner + driving + last) * lanes, driving + last, driving * all_
    E, c = np.empty(xy * read_, F.dtype), np.empty((all_ + above) * lanes, F.dtype)
    for i in range(xy):
        for j in range(driving):
            E[i * read_ + j] = F[j * all_ + i]
        for j in range(last):
            E[i * read_ + driving + j] = F[at_c + all_ + i * last + j]
    for i in range(all_):
        for r in range(lanes):
            c[i * lanes + r] = F[at_c + i]
    at, row = at_c + all_ + xy * last, all_
    for k in range(1, layers):
        m, n = widths[k - 1], widths[k]
        for i in range(n):
            for r in range(lanes):
                c[(row + i) * lanes + r] = F[at + m * n + i]
        at, row = at + (m + 1) * n, row + n
    _ahead(kind, keep, lanes, nu, nx, ny, widths, F, E, c, Z, 0, steps)
    of = (inner + nu) * lanes
    limit = tolerance * max(F.dtype.type(1), _largest(Z, of, size, steps + 1, nx * lanes))
    M = _jacobians(kind, keep, steps, lanes, nu, nx, ny, widths, F, Z)
    more = _again(kind, keep, steps, lanes, samples, nu, nx, ny, widths, F, E, c, Z, Z, M, limit, False)
    Y = np.empty(steps * ny * lanes, F.dtype)
    for t in range(steps):
        driven = t * size + inner * lanes
        at, plus = t * ny * lanes, nx * lanes
        _times(ny, lanes, read_, Y, at, E, nx * read_, read_, one, Z, driven, c, plus, lanes, one)
    return Y, M, 1 + more


@compiled
def _added(m, n, steps, lanes, left, a, a_row, a_step, right, b, b_step, part, gF, at, turn):
    """Add the sums over steps and lanes of m rows times n to gF (m, n) from `at` on; `turn`: to (n, m)."""
    gram(m, n, steps, lanes, part, left, a, a_row, a_step, right, b, lanes, b_step)
    for i in range(m):
        for j in range(n):
            gF[at + (j * m + i if turn else i * n + j)] += part[i * n + j]


@compiled
def backward(kind, keep, steps, lanes, samples, nu, nx, ny, widths, F, Z, M, tolerance, D, found, gF):
    """Fill D, gF (numbers,), zeros before, and found (steps nu lanes,), the gradient of the inputs unless it is empty.

    D ((steps + 1) rows lanes,) has the gradients of the outputs in place, and of the states after the chunks those of
    the last; M is `forward`'s. All else is as there.
    """
    layers, xy, driving = len(widths), nx + ny, nu + nx
    zero, one = np.int64(0), np.int64(1)
    first, last, all_ = widths[0], widths[-1], xy + widths[0]
    inner, above = _numbers(widths)
    size, sizes = (inner + driving + last) * lanes, (above + all_) * lanes
    at_c, at_B = driving * all_, (driving + 1) * all_
    at_W, none = at_B + xy * last, np.zeros(MOST, F.dtype)
    _back(kind, keep, lanes, nu, nx, ny, widths, F, Z, D, 0, steps)
    of = above * lanes
    limit = tolerance * _largest(D, of, steps * sizes, 2, nx * lanes)
    _again(kind, keep, steps, lanes, samples, nu, nx, ny, widths, F, none, none, Z, D, M, limit, True)
    deepest = max(driving * all_, xy * last, first * first)
    for k in range(1, layers):
        deepest = max(deepest, widths[k - 1] * widths[k])
    part, ones = np.empty(deepest, F.dtype), np.ones(lanes, F.dtype)
    slopes, driven, h = sizes + of, inner * lanes, (inner + driving) * lanes
    _added(driving, all_, steps, lanes, Z, driven, lanes, size, D, slopes, sizes, part, gF, zero, False)
    _added(one, all_, steps, lanes, ones, zero, zero, zero, D, slopes, sizes, part, gF, at_c, False)
    _added(last, xy, steps, lanes, Z, h, lanes, size, D, slopes, sizes, part, gF, at_B, True)
    if layers == 1 and len(F) > at_W:
        gram(first, first, steps, lanes, part, Z, h, lanes, size, D, slopes + xy * lanes, lanes, sizes)
        for i in range(first):
            for j in range(i + 1, first):
                gF[at_W + i * first + j] += part[i * first + j]
    at, h, d = at_W, 0, sizes + of
    for k in range(1, layers):
        m, n = widths[k - 1], widths[k]
        d -= n * lanes
        _added(m, n, steps, lanes, Z, h, lanes, size, D, d, sizes, part, gF, at, False)
        _added(one, n, steps, lanes, ones, zero, zero, zero, D, d, sizes, part, gF, at + m * n, False)
        h, at = h + m * lanes, at + (m + 1) * n
    for t in range(steps if len(found) else 0):
        here = slopes + t * sizes
        _times(nu, lanes, all_, found, t * nu * lanes, F, zero, all_, one, D, here, none, zero, zero, zero)
