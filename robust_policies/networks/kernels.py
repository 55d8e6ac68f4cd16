"""The run of an R2DN or a REN over time in compiled loops: one call forward, one backward, the batch in SIMD lanes.

With everything linear between two activations collapsed, a step of either in s = [x; u] is

    [x part; h] = P s + c,   h <- act(h + W h),   x+ = x part + B h,   y = Q s + R h + d

with neurons h and W strictly lower triangular in blocks: an R2DN's are its layers, each of which reads the one before,
and the last one goes on to B and R; a REN's are its neurons, each of which reads all before it.

At the sizes of policies a step is a few hundred multiply-adds, less than the call of one operation of PyTorch. Arrays
are (time, features, batch), so that neighbouring numbers belong to neighbouring samples and every loop over them is
vectorised. The derivative is the same loop backwards, with the neurons that were kept.

tanh of float32 is a rational function here, within 4e-7 of the true one; of float64 it is the C library's.

Needs numba (the extra `fast`); compiled once, kept on the disk. Whatever is not finite stays so.
"""

from __future__ import annotations

import math

import numpy as np

from robust_policies.networks.tiles import compiled, product

ACTIVATIONS = ("relu", "tanh", "sigmoid", "identity", "leaky_relu", "hardtanh", "softsign")
_LEAK = 0.01
# Added to the kind of an activation made of tanh where the C library's is wanted.
_EXACT = 10
# x p(x^2) / q(x^2) for tanh on [-9.02, 9.02]: the least largest relative error (7e-9) of these degrees, by Lawson's
# reweighted least squares; beyond, tanh is 1 to float32.
_BOUND = 9.02
_P = (
    0.9999999932291532, 0.1308315701247275, 0.003103001498936144, 1.1144257632040212e-05, -2.018397456534798e-08,
    5.257782333509831e-11, -8.436054498656316e-14,
)  # fmt: skip
_Q = (1.0, 0.4641648397433102, 0.02449138163917271, 0.0002544751398427181)


def kind_of(name: str, dtype: np.dtype) -> int:
    """Return the kind of an activation, its place in `ACTIVATIONS`, with the tanh of a dtype."""
    kind = ACTIVATIONS.index(name)
    return kind + _EXACT if dtype == np.float64 and name in ("tanh", "sigmoid") else kind


@compiled
def turned_blocks(weights, blocks):
    """Return the flat weights of `forward` with those of each block of neurons (count, 5) turned."""
    found = np.empty(len(weights), weights.dtype)
    for k in range(len(blocks)):
        r0, r1, c0, c1, at = blocks[k]
        rows, columns = r1 - r0, c1 - c0
        for i in range(rows):
            for j in range(columns):
                found[at + j * rows + i] = weights[at + i * columns + j]
    return found


@compiled
def _copied(X, Y):
    """Overwrite Y (m, batch) with X."""
    m, batch = X.shape
    for i in range(m):
        x, y = X[i], Y[i]
        for n in range(batch):
            y[n] = x[n]


@compiled
def _product(W, X, Y):
    """Add W X to Y: (m, k), (k, batch), (m, batch)."""
    m, k = W.shape
    batch = X.shape[1]
    if min(m, k, batch) >= 4:
        # Not into Y itself: the last tiles reach back over numbers that are there.
        found = np.empty((m, batch), Y.dtype)
        product(m, batch, k, found, 0, batch, W, 0, k, 1, X, 0, batch, Y, 0, batch, 1)
        _copied(found, Y)
        return
    for i in range(m):
        y = Y[i]
        j = 0
        while j + 4 <= k:
            a, b, c, d = W[i, j], W[i, j + 1], W[i, j + 2], W[i, j + 3]
            x0, x1, x2, x3 = X[j], X[j + 1], X[j + 2], X[j + 3]
            for n in range(batch):
                y[n] += a * x0[n] + b * x1[n] + c * x2[n] + d * x3[n]
            j += 4
        while j < k:
            a, x0 = W[i, j], X[j]
            for n in range(batch):
                y[n] += a * x0[n]
            j += 1


@compiled
def _outer(D, X, G):
    """Add D X' to G: (m, batch), (k, batch), (m, k)."""
    m, batch = D.shape
    k = X.shape[0]
    zero = D.dtype.type(0)
    for i in range(m):
        d = D[i]
        j = 0
        while j + 4 <= k:
            x0, x1, x2, x3 = X[j], X[j + 1], X[j + 2], X[j + 3]
            a, b, c, e = zero, zero, zero, zero
            for n in range(batch):
                a += d[n] * x0[n]
                b += d[n] * x1[n]
                c += d[n] * x2[n]
                e += d[n] * x3[n]
            G[i, j] += a
            G[i, j + 1] += b
            G[i, j + 2] += c
            G[i, j + 3] += e
            j += 4
        while j < k:
            x0, a = X[j], zero
            for n in range(batch):
                a += d[n] * x0[n]
            G[i, j] += a
            j += 1


@compiled
def _sums(D, g):
    """Add the sums of the rows of D (m, batch) to g (m,)."""
    m, batch = D.shape
    for i in range(m):
        d, a = D[i], D.dtype.type(0)
        for n in range(batch):
            a += d[n]
        g[i] += a


@compiled
def _filled(x, Y):
    """Overwrite the rows of Y (m, batch) with the entries of x (m,)."""
    m, batch = Y.shape
    for i in range(m):
        y, a = Y[i], x[i]
        for n in range(batch):
            y[n] = a


@compiled
def _kept(keep, X):
    """Zero the samples of X (m, batch) where keep (batch,) is 0, whatever they are."""
    m, batch = X.shape
    zero = X.dtype.type(0)
    for i in range(m):
        x = X[i]
        for n in range(batch):
            x[n] = x[n] if keep[n] != zero else zero


@compiled
def _rational(x):
    f = np.float32
    x = min(max(x, f(-_BOUND)), f(_BOUND)) if x == x else x
    t = x * x
    p = f(_P[6])
    p = p * t + f(_P[5])
    p = p * t + f(_P[4])
    p = p * t + f(_P[3])
    p = p * t + f(_P[2])
    p = p * t + f(_P[1])
    p = p * t + f(_P[0])
    q = f(_Q[3])
    q = q * t + f(_Q[2])
    q = q * t + f(_Q[1])
    q = q * t + f(_Q[0])
    return x * p / q


@compiled
def activated(kind, Z):
    """Overwrite Z (m, batch) with the activation of its entries."""
    m, batch = Z.shape
    one, half, leak = Z.dtype.type(1), Z.dtype.type(0.5), Z.dtype.type(_LEAK)
    for i in range(m):
        z = Z[i]
        if kind == 0:
            for n in range(batch):
                z[n] = max(z[n], z.dtype.type(0))
        elif kind == 1:
            for n in range(batch):
                z[n] = _rational(z[n])
        elif kind == 2:
            for n in range(batch):
                z[n] = half + half * _rational(half * z[n])
        elif kind == 1 + _EXACT:
            for n in range(batch):
                z[n] = math.tanh(z[n])
        elif kind == 2 + _EXACT:
            for n in range(batch):
                z[n] = half + half * math.tanh(half * z[n])
        elif kind == 4:
            for n in range(batch):
                z[n] = max(z[n], leak * z[n])
        elif kind == 5:
            for n in range(batch):
                z[n] = min(max(z[n], -one), one)
        elif kind == 6:
            for n in range(batch):
                z[n] = z[n] / (abs(z[n]) + one)


@compiled
def times_slope(kind, H, G):
    """Multiply G (m, batch) by the activation's derivative where its value is H (m, batch)."""
    m, batch = H.shape
    zero, one, leak = H.dtype.type(0), H.dtype.type(1), H.dtype.type(_LEAK)
    for i in range(m):
        h, g = H[i], G[i]
        if kind == 0:
            for n in range(batch):
                g[n] = g[n] if h[n] > zero else zero
        elif kind == 1 or kind == 1 + _EXACT:
            for n in range(batch):
                g[n] *= one - h[n] * h[n]
        elif kind == 2 or kind == 2 + _EXACT:
            for n in range(batch):
                g[n] *= h[n] - h[n] * h[n]
        elif kind == 4:
            for n in range(batch):
                g[n] *= one if h[n] > zero else leak
        elif kind == 5:
            for n in range(batch):
                g[n] = g[n] if abs(h[n]) < one else zero
        elif kind == 6:
            for n in range(batch):
                g[n] *= (one - abs(h[n])) * (one - abs(h[n]))


@compiled
def forward(kind, keep, inputs, state, P, c, B, Q, R, d, weights, biases, blocks, S, H):
    """Return the outputs (time, ny, batch); `state` (nx, batch) becomes the final one.

    Args:
        kind: of the activation, `kind_of` its name.
        keep: (time, batch), 0 where the state is zeroed before a step, else 1; (0, batch): nowhere.
        inputs: (time, nu, batch).
        state: (nx, batch).
        P: (nx + n_1, nx + nu), of the state and the first n_1 neurons, which s drives.
        c: (nx + n_1,), added to it.
        B: (nx, n), of the last n neurons.
        Q: (ny, nx + nu).
        R: (ny, n).
        d: (ny,).
        weights: of each block of neurons, by which it reads others before it; flat, one after the other.
        biases: of the neurons after the first n_1.
        blocks: (count, 5), in order: the block's first and last neuron, the first and last it reads (the last ones are
            not part of them), and where its weights begin.
        S: (time, nx + nu, batch), which gets s.
        H: (time, neurons, batch), which gets the neurons.
    """
    time, _, batch = inputs.shape
    nx, total = state.shape[0], H.shape[1]
    outputs = np.empty((time, len(d), batch), inputs.dtype)
    driven, last = len(c) - nx, total - B.shape[1]
    for t in range(time):
        s, hidden, y = S[t], H[t], outputs[t]
        _copied(state, s[:nx])
        if len(keep):
            _kept(keep[t], s[:nx])
        _copied(inputs[t], s[nx:])
        _filled(c[:nx], state)
        _filled(c[nx:], hidden[:driven])
        _filled(biases, hidden[driven:])
        _filled(d, y)
        _product(P[:nx], s, state)
        _product(P[nx:], s, hidden[:driven])
        for k in range(len(blocks)):
            r0, r1, c0, c1, at = blocks[k]
            rows = hidden[r0:r1]
            if c1 > c0:
                W = weights[at : at + (r1 - r0) * (c1 - c0)].reshape(r1 - r0, c1 - c0)
                _product(W, hidden[c0:c1], rows)
            activated(kind, rows)
        _product(Q, s, y)
        _product(R, hidden[last:], y)
        _product(B, hidden[last:], state)
    return outputs


@compiled
def backward(kind, keep, nu, grad, state, PT, BT, QT, RT, weights, blocks, S, H):
    """Return the gradients of inputs (time, nu, batch), P, c, B, Q, R, d, weights and biases.

    `grad` (time, ny, batch) is that of the outputs; `state` (nx, batch), that of the final state, becomes that of the
    first. PT, BT, QT, RT are the transposes of `forward`'s P, B, Q, R, all else is as there.
    """
    time, size, batch = S.shape
    nx, total, kinds = size - nu, H.shape[1], S.dtype
    driven, last = PT.shape[1] - nx, total - BT.shape[0]
    turned = turned_blocks(weights, blocks)
    gP, gc = np.zeros((nx + driven, size), kinds), np.zeros(nx + driven, kinds)
    gB, gQ = np.zeros((nx, total - last), kinds), np.zeros((QT.shape[1], size), kinds)
    gR, gd = np.zeros((QT.shape[1], total - last), kinds), np.zeros(QT.shape[1], kinds)
    gW, gb = np.zeros(len(weights), kinds), np.zeros(total - driven, kinds)
    g_inputs, gs = np.empty((time, nu, batch), kinds), np.empty((size, batch), kinds)
    gz, gh = np.empty((nx + driven, batch), kinds), np.empty((total, batch), kinds)
    none = np.zeros(max(size, total), kinds)
    for t in range(time - 1, -1, -1):
        s, hidden, gy = S[t], H[t], grad[t]
        _filled(none, gh)
        _product(BT, state, gh[last:])
        _product(RT, gy, gh[last:])
        _outer(gy, s, gQ)
        _outer(gy, hidden[last:], gR)
        _outer(state, hidden[last:], gB)
        _sums(gy, gd)
        for k in range(len(blocks) - 1, -1, -1):
            r0, r1, c0, c1, at = blocks[k]
            delta, end = gh[r0:r1], at + (r1 - r0) * (c1 - c0)
            times_slope(kind, hidden[r0:r1], delta)
            if c1 > c0:
                _outer(delta, hidden[c0:c1], gW[at:end].reshape(r1 - r0, c1 - c0))
                _product(turned[at:end].reshape(c1 - c0, r1 - r0), delta, gh[c0:c1])
        _sums(gh[driven:], gb)
        _copied(state, gz[:nx])
        _copied(gh[:driven], gz[nx:])
        _outer(gz, s, gP)
        _sums(gz, gc)
        _filled(none, gs)
        _product(PT, gz, gs)
        _product(QT, gy, gs)
        _copied(gs[nx:], g_inputs[t])
        _copied(gs[:nx], state)
        if len(keep):
            _kept(keep[t], state)
    return g_inputs, gP, gc, gB, gQ, gR, gd, gW, gb
