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

from robust_policies.networks.chunk_jacobians import carried, jacobians, numbers, put, times
from robust_policies.networks.kernels import activated, times_slope
from robust_policies.networks.row_kernels import blamed, read
from robust_policies.networks.tiles import MOST, compiled, gram

# Steps of a block, after each of which a chunk's further steps may turn out to be as before.
_BLOCK = 16


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
    inner = numbers(widths)[0]
    size, read_, at_W = (inner + driving + last) * lanes, driving + last, (driving + 1) * all_ + xy * last
    serial = layers == 1 and len(F) > at_W
    for t in range(begin, end):
        driven = t * size + inner * lanes
        if len(keep):
            _forgotten(keep, t, lanes, Z, driven + nu * lanes, nx)
        to = t * size if layers > 1 else driven + driving * lanes
        times(first, lanes, driving, Z, to, F, xy, one, all_, Z, driven, c, xy * lanes, lanes, one)
        if serial:
            read(kind, F, at_W, Z[to : to + first * lanes].reshape(first, lanes))
        else:
            activated(kind, Z[to : to + first * lanes].reshape(1, first * lanes))
        at, bias = at_W, all_
        for k in range(1, layers):
            m, n, h = widths[k - 1], widths[k], to
            to = h + m * lanes if k < layers - 1 else driven + driving * lanes
            times(n, lanes, m, Z, to, F, at, one, n, Z, h, c, bias * lanes, lanes, one)
            activated(kind, Z[to : to + n * lanes].reshape(1, n * lanes))
            at, bias = at + (m + 1) * n, bias + n
        to = (t + 1) * size + (inner + nu) * lanes
        times(nx, lanes, read_, Z, to, E, zero, read_, one, Z, driven, c, zero, lanes, one)


@compiled
def _back(kind, keep, lanes, nu, nx, ny, widths, F, Z, D, begin, end):
    """Fill D from the slope of the state after step `end` - 1 on, down to that before step `begin`."""
    layers, xy, driving = len(widths), nx + ny, nu + nx
    zero, one = np.int64(0), np.int64(1)
    first, last, all_ = widths[0], widths[-1], xy + widths[0]
    inner, above = numbers(widths)
    size = (inner + driving + last) * lanes
    sizes, at_B = (above + all_) * lanes, (driving + 1) * all_
    at_W, none = at_B + xy * last, np.zeros(MOST, F.dtype)
    serial = layers == 1 and len(F) > at_W
    for t in range(end - 1, begin - 1, -1):
        slopes = (t + 1) * sizes + above * lanes
        to = (t + 1) * sizes if layers > 1 else slopes + xy * lanes
        times(last, lanes, xy, D, to, F, at_B, one, last, D, slopes, none, zero, zero, zero)
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
            times(m, lanes, n, D, to, F, at, n, one, D, source, none, zero, zero, zero)
            values, found = Z[h : h + m * lanes], D[to : to + m * lanes]
            times_slope(kind, values.reshape(1, m * lanes), found.reshape(1, m * lanes))
        to = t * sizes + above * lanes
        times(nx, lanes, all_, D, to, F, nu * all_, all_, one, D, slopes, none, zero, zero, zero)
        if len(keep):
            _forgotten(keep, t, lanes, D, to, nx)


@compiled
def _largest(X, at, size, count, neighbours):
    """Return the largest finite size of neighbouring numbers from `at` on, `count` times and `size` apart."""
    found, end = np.zeros(neighbours, X.dtype), X.dtype.type(np.inf)
    for t in range(count):
        here = at + t * size
        for i in range(neighbours):
            value = abs(X[here + i])
            found[i] = max(found[i], value if value < end else found[i])
    most = found[0]
    for i in range(neighbours):
        most = max(most, found[i])
    return most


@compiled
def _within(X, limit):
    """Return whether no number of X (n,) is above the limit in size, or NaN."""
    good = True
    for i in range(len(X)):
        good &= abs(X[i]) <= limit
    return good


@compiled
def _again(kind, keep, steps, lanes, samples, nu, nx, ny, widths, F, E, c, Z, D, M, limit, back):
    """Run the chunks again from where those beside them ended until they agree; return how often, in part by steps."""
    inner, above = numbers(widths)
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
        carried(M, missing, samples, back)
        if _within(flat, limit):
            break
        for i in range(count):
            beginning[i] += flat[i]
        put(X, begin, beginning)
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
                put(X, at, before)
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
    inner, above = numbers(widths)
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
    M = jacobians(kind, keep, steps, lanes, nu, nx, ny, widths, F, Z)
    more = _again(kind, keep, steps, lanes, samples, nu, nx, ny, widths, F, E, c, Z, Z, M, limit, False)
    Y = np.empty(steps * ny * lanes, F.dtype)
    for t in range(steps):
        driven = t * size + inner * lanes
        at, plus = t * ny * lanes, nx * lanes
        times(ny, lanes, read_, Y, at, E, nx * read_, read_, one, Z, driven, c, plus, lanes, one)
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
    inner, above = numbers(widths)
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
        times(nu, lanes, all_, found, t * nu * lanes, F, zero, all_, one, D, here, none, zero, zero, zero)
