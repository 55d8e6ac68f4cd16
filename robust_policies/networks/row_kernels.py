"""The run of an R2DN over time in compiled loops: samples are rows, features are in SIMD lanes, and one array has all.

The step is that of `kernels`. Everything is flat, row after row, so that every product, those of the
gradients too, is one of register tiles, whatever the batch: a single sample and eight are as well served as hundreds.

    row of S: [u, x, y of the step before];  [x part, y part, h_1] = P [u; x] + c,  h_1 <- act(h_1),
    h_k <- act(W_k h_(k-1) + b_k),  [x+; y] = [x part; y part] + B h_L

The array F of all numbers of a step holds P' (nu + nx, N) with N = nx + ny + n_1, c (N,), B (nx + ny, n_L) and, of each
further layer, W_k' (n_(k-1), n_k) and b_k (n_k,). Neurons that read one another, each all before it, are one layer with
W' (n, n) behind B, of which what is above the diagonal counts. Gradients come in an array of the same places.

Needs numba (the extra `fast`); compiled once, kept on the disk. Whatever is not finite stays so.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks.kernels import activated, times_slope
from robust_policies.networks.tiles import MOST, compiled, product

# Rows after which gradients of arrays are added up: few enough to be in the cache still.
_ROWS = 256


@compiled
def _turned(F, at, m, n, size):
    """Return (m, n) numbers from F's `at` on as (n, size), row after row, with zeros beyond the m-th column."""
    found = np.zeros(n * size, F.dtype)
    for i in range(m):
        for j in range(n):
            found[j * size + i] = F[at + i * n + j]
    return found


@compiled
def _forgotten(keep, at, batch, X, of, row, nx):
    """Zero nx numbers of each row of X where keep (time * batch,) is False, whatever they are."""
    for n in range(batch):
        if not keep[at + n]:
            for i in range(nx):
                X[of + n * row + i] = 0


@compiled
def read(kind, W, at, x):
    """Turn the drives x (n, batch) into neurons that read those before them, by W' (n, n) from `at` on."""
    n, batch = x.shape
    for i in range(n):
        y, j = x[i], 0
        while j + 4 <= i:
            a, b, c, d = W[at + j * n + i], W[at + (j + 1) * n + i], W[at + (j + 2) * n + i], W[at + (j + 3) * n + i]
            x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
            for one in range(batch):
                y[one] += a * x0[one] + b * x1[one] + c * x2[one] + d * x3[one]
            j += 4
        while j < i:
            a, x0 = W[at + j * n + i], x[j]
            for one in range(batch):
                y[one] += a * x0[one]
            j += 1
        activated(kind, x[i : i + 1])


@compiled
def blamed(kind, W, at, values, slopes):
    """Turn the slopes (n, batch) at neurons of given values into those at what drives them."""
    n, batch = slopes.shape
    for i in range(n - 1, -1, -1):
        x = slopes[i]
        times_slope(kind, values[i : i + 1], slopes[i : i + 1])
        for j in range(i):
            a, x0 = W[at + j * n + i], slopes[j]
            for one in range(batch):
                x0[one] += a * x[one]


@compiled
def _read(kind, W, at, H, h, batch, n, lanes):
    """Do `read` for the drives H (batch, n) from `h` on; lanes (n, batch) is room."""
    for i in range(n):
        x = lanes[i]
        for one in range(batch):
            x[one] = H[h + one * n + i]
    read(kind, W, at, lanes)
    for i in range(n):
        x = lanes[i]
        for one in range(batch):
            H[h + one * n + i] = x[one]


@compiled
def _blamed(kind, W, at, H, h, batch, n, delta, lanes, values):
    """Do `blamed` for slopes delta (batch, n) at neurons H; lanes, values (n, batch) are room."""
    for i in range(n):
        x, y = lanes[i], values[i]
        for one in range(batch):
            x[one], y[one] = delta[one * n + i], H[h + one * n + i]
    blamed(kind, W, at, values, lanes)
    for i in range(n):
        x = lanes[i]
        for one in range(batch):
            delta[one * n + i] = x[one]


@compiled
def forward(kind, keep, time, batch, nu, nx, ny, widths, F, S, H, begin, end):
    """Fill S with states and outputs and H with neurons, of steps from `begin` until `end`.

    Args:
        kind: of the activation, `kernels.kind_of` its name.
        keep: (time * batch,) bool, False where the state is zeroed before a step; (0,): nowhere.
        time: how many steps.
        batch: how many samples.
        nu: inputs.
        nx: states.
        ny: outputs.
        widths: (layers,) of the layers.
        F: (numbers,), all numbers of the step.
        S: ((time + 1) batch (nu + nx + ny),) with the inputs and the first state in place.
        H: (time batch (n_1 + ... + n_L),), layer after layer.
        begin: the first step.
        end: the one after the last.
    """
    layers, xy, driving = len(widths), nx + ny, nu + nx
    first, last, all_, row = widths[0], widths[-1], xy + widths[0], nu + nx + ny
    at_c = driving * all_
    at_W = at_c + all_ + xy * last
    BT = _turned(F, at_c + all_, xy, last, xy)
    part, lanes = np.empty(batch * xy, F.dtype), np.empty((first, batch), F.dtype)
    serial = layers == 1 and len(F) > at_W
    for t in range(begin, end):
        s, h = t * batch * row, t * batch * first
        if len(keep):
            _forgotten(keep, t * batch, batch, S, s + nu, row, nx)
        product(batch, xy, driving, part, 0, xy, S, s, row, 1, F, 0, all_, F, at_c, 0, 1)
        product(batch, first, driving, H, h, first, S, s, row, 1, F, xy, all_, F, at_c + xy, 0, 1)
        if serial:
            _read(kind, F, at_W, H, h, batch, first, lanes)
        else:
            activated(kind, H[h : h + batch * first].reshape(1, batch * first))
        at, beyond = at_W, time * batch * first
        for k in range(1, layers):
            m, n = widths[k - 1], widths[k]
            to = beyond + t * batch * n
            product(batch, n, m, H, to, n, H, h, m, 1, F, at, n, F, at + m * n, 0, 1)
            activated(kind, H[to : to + batch * n].reshape(1, batch * n))
            h, at, beyond = to, at + (m + 1) * n, beyond + time * batch * n
        product(batch, xy, last, S, s + batch * row + nu, row, H, h, last, 1, BT, 0, xy, part, 0, xy, 1)


@compiled
def _added(m, n, rows, left, a, of, right, b, b_row, none, part, gF, at):
    """Add left' right to gF (m, n) from `at` on, of `rows` rows of each; left (rows, m) has its rows `of` apart."""
    product(m, n, rows, part, 0, n, left, a, 1 if of else 0, of, right, b, b_row, none, 0, 0, 0)
    for i in range(m * n):
        gF[at + i] += part[i]


@compiled
def blame(kind, t, r, steps, time, batch, widths, xy, F, turned, H, G, D, room):
    """Bring the slopes of step t at its sums [x part, y part], in G from row r on, to what drives its neurons.

    Args:
        kind: of the activation.
        t: the step.
        r: which row of G (steps batch, N) its first sample is.
        steps: how many G has.
        time: how many there are.
        batch: samples.
        widths: (layers,).
        xy: nx + ny.
        F: all numbers of a step.
        turned: `turned_layers` of it.
        H: as `forward` left it.
        G: [x part, y part, h_1]; the last are filled.
        D: (steps batch (n_2 + ... + n_L),), layer after layer, filled.
        room: (3, n_1 batch).
    """
    layers, first, last = len(widths), widths[0], widths[-1]
    all_, total, delta, none = xy + first, len(H) // (time * batch), room[0], turned[len(turned) - MOST :]
    g, at_W = r * all_, len(F) - (len(turned) - MOST)
    h, d, at = (total - last) * time * batch, (total - first - last) * steps * batch, len(F) - at_W
    for k in range(layers - 1, -1, -1):
        n = widths[k]
        if k == layers - 1:
            source, a, of, W, b, m = G, g, all_, F, at_W - xy * last, xy
        else:
            m = widths[k + 1]
            at -= (n + 1) * m
            source, a, of, W, b = D, d + r * m, m, turned, at
            h -= time * batch * n
            d -= steps * batch * n
        values = H[h + t * batch * n : h + (t + 1) * batch * n]
        to = D if k else delta
        at_to = d + r * n if k else 0
        product(batch, n, m, to, at_to, n, source, a, of, 1, W, b, n, none, 0, 0, 0)
        if layers == 1 and at > 0:
            lanes, heights = room[1].reshape(first, batch), room[2].reshape(first, batch)
            _blamed(kind, F, at_W, H, h + t * batch * n, batch, n, delta, lanes, heights)
        else:
            times_slope(kind, values.reshape(1, batch * n), to[at_to : at_to + batch * n].reshape(1, batch * n))
    for n in range(batch):
        for i in range(first):
            G[g + n * all_ + xy + i] = delta[n * first + i]


@compiled
def turned_layers(F, widths, at):
    """Return what is in F (numbers,) from `at` on, each W_k' of widths (layers,) turned, and `MOST` zeros behind."""
    found = np.zeros(len(F) - at + MOST, F.dtype)
    to = 0
    for k in range(1, len(widths)):
        m, n = widths[k - 1], widths[k]
        for i in range(m):
            for j in range(n):
                found[to + j * m + i] = F[at + to + i * n + j]
        to += (m + 1) * n
    return found


@compiled
def backward(kind, keep, time, batch, nu, nx, ny, widths, F, S, H, grad, state, found, gF):
    """Turn `state` (batch nx,), the gradient of the final state, into that of the first; fill gF and found.

    `grad` (time batch ny,) is that of the outputs, `found` (time batch nu,) becomes that of the inputs unless it is
    empty; gF is F's, zeros before. All else is `forward`'s, as it was left.
    """
    layers, xy, driving = len(widths), nx + ny, nu + nx
    first, last, all_, row, kinds = widths[0], widths[-1], xy + widths[0], nu + nx + ny, F.dtype
    at_c = driving * all_
    at_B = at_c + all_
    at_W = at_B + xy * last
    wide = max(nu, 4)  # a narrower product is slower
    by_input = _turned(F, 0, nu, all_, wide)
    by_state = _turned(F, nu * all_, nx, all_, nx)
    turned, behind, deepest = turned_layers(F, widths, at_W), len(H) // (time * batch) - first, 0
    for k in range(1, layers):
        deepest = max(deepest, widths[k - 1] * widths[k])
    steps = max(1, min(time, _ROWS // batch))
    G, D = np.empty(steps * batch * all_, kinds), np.empty(max(1, steps * batch * behind), kinds)
    part = np.empty(max(driving * all_, xy * last, deepest, steps * batch * wide, first * first), kinds)
    none, ones, room = np.zeros(MOST, kinds), np.ones(1, kinds), np.empty((3, batch * first), kinds)
    serial = layers == 1 and len(F) > at_W
    zero, one = np.int64(0), np.int64(1)  # of no literal type, so that one `_added` is compiled for all
    end = time
    while end > 0:
        begin = max(0, end - steps)
        rows = (end - begin) * batch
        for n in range(rows):
            for i in range(ny):
                G[n * all_ + nx + i] = grad[(begin * batch + n) * ny + i]
        for n in range(batch):
            for i in range(nx):
                G[(rows - batch + n) * all_ + i] = state[n * nx + i]
        for t in range(end - 1, begin - 1, -1):
            r = (t - begin) * batch
            g = r * all_
            blame(kind, t, r, steps, time, batch, widths, xy, F, turned, H, G, D, room)
            if t > begin:
                to = g - batch * all_
                product(batch, nx, all_, G, to, all_, G, g, all_, 1, by_state, 0, nx, none, 0, 0, 0)
                if len(keep):
                    _forgotten(keep, t * batch, batch, G, to, all_, nx)
            else:
                product(batch, nx, all_, state, 0, nx, G, g, all_, 1, by_state, 0, nx, none, 0, 0, 0)
                if len(keep):
                    _forgotten(keep, t * batch, batch, state, 0, nx, nx)
        _added(driving, all_, rows, S, begin * batch * row, row, G, zero, all_, none, part, gF, zero)
        _added(one, all_, rows, ones, zero, zero, G, zero, all_, none, part, gF, at_c)
        h, d, at = 0, 0, at_W
        for k in range(1, layers):
            m, n = widths[k - 1], widths[k]
            _added(m, n, rows, H, h + begin * batch * m, m, D, d, n, none, part, gF, at)
            _added(one, n, rows, ones, zero, zero, D, d, n, none, part, gF, at + m * n)
            h, d, at = h + time * batch * m, d + steps * batch * n, at + (m + 1) * n
        if serial:
            of = begin * batch * first
            product(first, first, rows, part, 0, first, H, of, 1, first, G, xy, all_, none, 0, 0, 0)
            for i in range(first):
                for j in range(i + 1, first):
                    gF[at_W + i * first + j] += part[i * first + j]
        _added(xy, last, rows, G, zero, all_, H, h + begin * batch * last, last, none, part, gF, at_B)
        if len(found):
            product(rows, wide, all_, part, 0, wide, G, 0, all_, 1, by_input, 0, wide, none, 0, 0, 0)
            for n in range(rows):
                for i in range(nu):
                    found[(begin * batch + n) * nu + i] = part[n * wide + i]
        end = begin
