"""The run of an LSTM or a GRU over time in compiled loops: one call forward, one backward, the batch in SIMD lanes.

Both read s = [h; 1; u] by one matrix, four rows for each of n hidden values:

    LSTM: i, f, g, o = act(W s),          c+ = f c + i g,  h+ = o tanh(c+)
    GRU:  r, z, a, b = (act, act, id, id)(W s),  q = tanh(b + r a),  h+ = (1 - z) q + z h

where of the GRU's last two, a has no part of u and b none of h. The output is y = C h+ + d. Arrays are (time, features,
batch), as in `kernels`, which also has the activations.

Needs numba (the extra `fast`); compiled once, kept on the disk. Whatever is not finite stays so.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks.kernels import _copied, _filled, _kept, _sums, activated, kind_of
from robust_policies.networks.tiles import MOST, compiled, product

__all__ = ["backward", "forward", "kind_of"]


@compiled
def _times(W, X, zeros, Y):
    """Overwrite Y (m, batch) with W X, (m, k) and (k, batch)."""
    m, k = W.shape
    n = X.shape[1]
    product(m, n, k, Y, 0, n, W, 0, k, 1, X, 0, n, zeros, 0, 0, 0)


@compiled
def _added_product(D, X, turned, found, zeros, G):
    """Add D X' to G (m, k), for D (m, batch) and X (k, batch), by way of `turned` (batch, k) and `found` (m, k)."""
    (m, n), k = D.shape, X.shape[0]
    for j in range(k):
        x = X[j]
        for i in range(n):
            turned[i, j] = x[i]
    product(m, k, n, found, 0, k, D, 0, n, 1, turned, 0, k, zeros, 0, 0, 0)
    for i in range(m):
        f, g = found[i], G[i]
        for j in range(k):
            g[j] += f[j]


@compiled
def forward(gru, sigmoid, tanh, keep, inputs, h, c, W, C, d, S, Z, K):
    """Return the outputs (time, ny, batch); `h` (n, batch) and `c` (n, batch), of an LSTM, become the final ones.

    Args:
        gru: of a GRU, not of an LSTM.
        sigmoid: its kind, of `kernels`.
        tanh: its kind.
        keep: (time, batch), 0 where the state is zeroed before a step, else 1; (0, batch): nowhere.
        inputs: (time, nu, batch).
        h: (n, batch).
        c: (n, batch), or (0, batch).
        W: (4 n, n + 1 + nu).
        C: (ny, n).
        d: (ny,).
        S: (time, n + 1 + nu, batch), which gets s.
        Z: (time, 4 n, batch), which gets the gates i, f, g, o, or r, z, a, q.
        K: (time, n, batch), which gets h after a step; of an LSTM (time, 3 n, batch), c before and tanh(c) after.
    """
    time, _, batch = inputs.shape
    n = len(h)
    outputs, zeros = np.empty((time, len(d), batch), h.dtype), np.zeros(MOST, h.dtype)
    one = h.dtype.type(1)
    ones = np.ones(1, h.dtype)
    for t in range(time):
        s, z = S[t], Z[t]
        if len(keep):
            _kept(keep[t], h)
            _kept(keep[t], c)
        _copied(h, s[:n])
        _filled(ones, s[n : n + 1])
        _copied(inputs[t], s[n + 1 :])
        _times(W, s, zeros, z)
        activated(sigmoid, z[: 2 * n])
        if gru:
            for i in range(n):
                r, a, q = z[i], z[2 * n + i], z[3 * n + i]
                for b in range(batch):
                    q[b] += r[b] * a[b]
            activated(tanh, z[3 * n :])
            for i in range(n):
                g, q, x = z[n + i], z[3 * n + i], h[i]
                for b in range(batch):
                    x[b] = (one - g[b]) * q[b] + g[b] * x[b]
        else:
            activated(tanh, z[2 * n : 3 * n])
            activated(sigmoid, z[3 * n :])
            _copied(c, K[t, n : 2 * n])
            for i in range(n):
                e, f, g, x = z[i], z[n + i], z[2 * n + i], c[i]
                for b in range(batch):
                    x[b] = f[b] * x[b] + e[b] * g[b]
            _copied(c, K[t, 2 * n :])
            activated(tanh, K[t, 2 * n :])
            for i in range(n):
                o, x, y = z[3 * n + i], K[t, 2 * n + i], h[i]
                for b in range(batch):
                    y[b] = o[b] * x[b]
        _copied(h, K[t, :n])
        product(len(d), batch, n, outputs[t], 0, batch, C, 0, n, 1, h, 0, batch, zeros, 0, 0, 0)
        for i in range(len(d)):
            y, x = outputs[t, i], d[i]
            for b in range(batch):
                y[b] += x
    return outputs


@compiled
def backward(gru, keep, grad, gh, gc, WT, CT, S, Z, K):
    """Return the gradients of inputs (time, nu, batch), W, C and d.

    `grad` (time, ny, batch) is that of the outputs; `gh` (n, batch) and `gc` (n, batch), those of the final state,
    become those of the first. WT and CT are the transposes of `forward`'s W and C; all else is as there.
    """
    time, size, batch = S.shape
    n, ny, kinds = len(gh), CT.shape[1], S.dtype
    nu, one, zeros = size - n - 1, S.dtype.type(1), np.zeros(MOST, kinds)
    gW, gC, gd = np.zeros((4 * n, size), kinds), np.zeros((ny, n), kinds), np.zeros(ny, kinds)
    g_inputs, D, gs = (
        np.empty((time, nu, batch), kinds),
        np.empty((4 * n, batch), kinds),
        np.empty((size, batch), kinds),
    )
    turned, found = np.empty((batch, size), kinds), np.empty((4 * n, size), kinds)
    turned_h, found_h, more = np.empty((batch, n), kinds), np.empty((ny, n), kinds), np.empty((n, batch), kinds)
    for t in range(time - 1, -1, -1):
        s, z, gy = S[t], Z[t], grad[t]
        _sums(gy, gd)
        _added_product(gy, K[t, :n], turned_h, found_h, zeros, gC)
        product(n, batch, ny, more, 0, batch, CT, 0, ny, 1, gy, 0, batch, gh, 0, batch, 1)
        if gru:
            for i in range(n):
                r, u, a, q = z[i], z[n + i], z[2 * n + i], z[3 * n + i]
                dr, du, da, dq, x, g, y = D[i], D[n + i], D[2 * n + i], D[3 * n + i], s[i], more[i], gh[i]
                for b in range(batch):
                    du[b] = g[b] * (x[b] - q[b]) * (u[b] - u[b] * u[b])
                    dq[b] = g[b] * (one - u[b]) * (one - q[b] * q[b])
                    da[b] = dq[b] * r[b]
                    dr[b] = dq[b] * a[b] * (r[b] - r[b] * r[b])
                    y[b] = g[b] * u[b]
        else:
            for i in range(n):
                e, f, p, o = z[i], z[n + i], z[2 * n + i], z[3 * n + i]
                de, df, dp, do = D[i], D[n + i], D[2 * n + i], D[3 * n + i]
                before, after, g, x, y = K[t, n + i], K[t, 2 * n + i], more[i], gc[i], gh[i]
                for b in range(batch):
                    do[b] = g[b] * after[b] * (o[b] - o[b] * o[b])
                    w = x[b] + g[b] * o[b] * (one - after[b] * after[b])
                    de[b] = w * p[b] * (e[b] - e[b] * e[b])
                    df[b] = w * before[b] * (f[b] - f[b] * f[b])
                    dp[b] = w * e[b] * (one - p[b] * p[b])
                    x[b] = w * f[b]
                    y[b] = S.dtype.type(0)
        _added_product(D, s, turned, found, zeros, gW)
        _times(WT, D, zeros, gs)
        for i in range(n):
            x, y = gs[i], gh[i]
            for b in range(batch):
                y[b] += x[b]
        _copied(gs[n + 1 :], g_inputs[t])
        if len(keep):
            _kept(keep[t], gh)
            _kept(keep[t], gc)
    return g_inputs, gW, gC, gd
