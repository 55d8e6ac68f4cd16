"""What a run in chunks side by side (`parallel`) needs beside the loops of `row_kernels`: adjoint, Jacobians, carrying.

Rows are chunks times samples, one chunk after the other. The symbols and the layout are those of `row_kernels`.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks.kernels import times_slope
from robust_policies.networks.row_kernels import _forgotten, _turned, blame, turned_layers
from robust_policies.networks.tiles import MOST, compiled, product


@compiled
def adjoint(kind, keep, time, batch, nu, nx, ny, widths, F, H, grad, state, begin, end):
    """Turn `state` (batch nx,), the gradient of the state before step `end`, into that before step `begin`.

    `grad` (time batch ny,) is that of the outputs, or empty where it is zero; all else is
    as for `row_kernels.backward`.
    """
    xy, first = nx + ny, widths[0]
    all_ = xy + first
    at_W = (nu + nx + 1) * all_ + xy * widths[-1]
    by_state, turned = _turned(F, nu * all_, nx, all_, nx), turned_layers(F, widths, at_W)
    G, none = np.zeros(batch * all_, F.dtype), np.zeros(MOST, F.dtype)
    D = np.empty(max(1, len(H) // time - batch * first), F.dtype)
    room = np.empty((3, batch * first), F.dtype)
    for t in range(end - 1, begin - 1, -1):
        for n in range(batch):
            for i in range(nx):
                G[n * all_ + i] = state[n * nx + i]
        if len(grad):
            for n in range(batch):
                for i in range(ny):
                    G[n * all_ + nx + i] = grad[(t * batch + n) * ny + i]
        blame(kind, t, 0, 1, time, batch, widths, xy, F, turned, H, G, D, room)
        product(batch, nx, all_, state, 0, nx, G, 0, all_, 1, by_state, 0, nx, none, 0, 0, 0)
        if len(keep):
            _forgotten(keep, t * batch, batch, state, 0, nx, nx)


@compiled
def jacobians(kind, keep, time, batch, nu, nx, ny, widths, F, H):
    """Return each row's Jacobian (batch, nx, nx), its end by its beginning, from mean slopes of every second step."""
    xy, first, layers, dtype = nx + ny, widths[0], len(widths), F.dtype
    all_ = xy + first
    at_B = (nu + nx + 1) * all_
    at_W = at_B + xy * widths[-1]
    serial = layers == 1 and len(F) > at_W
    found, none = np.empty((batch, nx, nx), dtype), np.zeros(MOST, dtype)
    means, at = np.zeros(len(H) // time, dtype), 0
    widest = 0
    for k in range(layers):
        count = batch * widths[k]
        slope, total = np.empty((1, count), dtype), means[at : at + count]
        for t in range(0, time, 2):
            one = slope[0]
            for i in range(count):
                one[i] = 1
            begin = time * at + t * count
            times_slope(kind, H[begin : begin + count].reshape(1, count), slope)
            for i in range(count):
                total[i] += one[i]
        share = dtype.type(1.0 / ((time + 1) // 2))
        for i in range(count):
            total[i] *= share
        at, widest = at + count, max(widest, widths[k])
    A, C = np.empty(nx * nx, dtype), np.empty(first * nx, dtype)
    for j in range(nx):
        for i in range(nx):
            A[i * nx + j] = F[(nu + j) * all_ + i]
        for i in range(first):
            C[i * nx + j] = F[(nu + j) * all_ + xy + i]
    R, Q = np.empty(widest * nx, dtype), np.empty(widest * nx, dtype)
    J, K = np.empty(nx * nx, dtype), np.empty(nx * nx, dtype)
    for r in range(batch):
        reset = False
        for t in range(time if len(keep) else 0):
            reset |= not keep[t * batch + r]
        if reset:
            found[r] = 0
            continue
        for i in range(first):
            for j in range(nx):
                R[i * nx + j] = C[i * nx + j]
            if serial:
                for q in range(i):
                    a = F[at_W + q * first + i]
                    for j in range(nx):
                        R[i * nx + j] += a * R[q * nx + j]
            for j in range(nx):
                R[i * nx + j] *= means[r * first + i]
        at, of = batch * first, at_W
        for k in range(1, layers):
            m, n = widths[k - 1], widths[k]
            product(n, nx, m, Q, 0, nx, F, of, 1, n, R, 0, nx, none, 0, 0, 0)
            for i in range(n):
                for j in range(nx):
                    R[i * nx + j] = Q[i * nx + j] * means[at + r * n + i]
            at, of = at + batch * n, of + (m + 1) * n
        product(nx, nx, widths[-1], J, 0, nx, F, at_B, widths[-1], 1, R, 0, nx, A, 0, nx, 1)
        whole, left = found[r].reshape(nx * nx), time
        for i in range(nx * nx):
            whole[i] = 1 if i % (nx + 1) == 0 else 0
        while left:
            if left % 2:
                product(nx, nx, nx, K, 0, nx, J, 0, nx, 1, whole, 0, nx, none, 0, 0, 0)
                for i in range(nx * nx):
                    whole[i] = K[i]
            left //= 2
            if left:
                product(nx, nx, nx, K, 0, nx, J, 0, nx, 1, J, 0, nx, none, 0, 0, 0)
                for i in range(nx * nx):
                    J[i] = K[i]
    return found


@compiled
def carried(M, missing, samples, back):
    """Hand on what is missing (rows, nx) from chunk to chunk, in place: d_s += M_(s-1) d_(s-1), M (rows, nx, nx).

    `back`: from the last to the first, d_s += M_(s+1)' d_(s+1). A chunk has `samples` rows.
    """
    rows, nx = missing.shape
    for one in range(samples, rows):
        r = rows - 1 - one if back else one
        before = r + samples if back else r - samples
        J, x, to = M[before], missing[before], missing[r]
        for i in range(nx):
            for j in range(nx):
                to[i] += (J[j, i] if back else J[i, j]) * x[j]
