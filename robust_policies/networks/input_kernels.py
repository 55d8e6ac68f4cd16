"""The gradient of a run's inputs alone, in a compiled loop backward through time: for attacks, which move no parameter.

A plant may be part of the loop. The symbols and the layout (time, features, batch) are those of `kernels`.
"""

from __future__ import annotations

import numpy as np

from robust_policies.networks.kernels import _copied, _filled, _product, compiled, times_slope, turned_blocks


@compiled
def input_gradient(kind, nu, PT, BT, QT, RT, weights, blocks, H, gained, moved, sensor, state):
    """Return the gradient (time, nu, batch) of an objective with respect to the cell's inputs.

    The plant has m states z, none where it is not part of the loop: z+ = f(z, y) with the cell's output y, and the cell
    reads g(z) beside the input that the gradient is of.

    Args:
        kind: of the activation, as for `kernels.forward`.
        nu: number of inputs.
        PT: (nx + nu, nx + n_1), the transpose of `kernels.forward`'s P.
        BT: (n, nx), that of B.
        QT: (nx + nu, ny), that of Q.
        RT: (n, ny), that of R.
        weights: flat, as `kernels.forward` takes them.
        blocks: (count, 5), the same.
        H: (time, neurons, batch), as it filled them.
        gained: (time, m + ny, batch), slopes of the objective in z and y of each step.
        moved: (time, m, m + ny, batch), slopes of z+ in z and y.
        sensor: (time, nu, m, batch), slopes of g(z).
        state: (nx, batch), slopes in the final state of the cell; becomes that in its first.
    """
    time, total, batch = H.shape
    nx, m, kinds = PT.shape[0] - nu, moved.shape[1], H.dtype
    size, ny = PT.shape[0], gained.shape[1] - m
    driven, last = PT.shape[1] - nx, total - BT.shape[0]
    turned = turned_blocks(weights, blocks)
    found = np.empty((time, nu, batch), kinds)
    both, later = np.empty((m + ny, batch), kinds), np.zeros((m, batch), kinds)
    gz, gh, gs = np.empty((nx + driven, batch), kinds), np.empty((total, batch), kinds), np.empty((size, batch), kinds)
    none = np.zeros(max(size, total), kinds)
    for t in range(time - 1, -1, -1):
        _copied(gained[t], both)
        for i in range(m):
            z = later[i]
            for j in range(m + ny):
                slope, sum_ = moved[t, i, j], both[j]
                for n in range(batch):
                    sum_[n] += z[n] * slope[n]
        _filled(none, gh)
        _product(BT, state, gh[last:])
        _product(RT, both[m:], gh[last:])
        for k in range(len(blocks) - 1, -1, -1):
            r0, r1, c0, c1, at = blocks[k]
            delta, end = gh[r0:r1], at + (r1 - r0) * (c1 - c0)
            times_slope(kind, H[t, r0:r1], delta)
            if c1 > c0:
                _product(turned[at:end].reshape(c1 - c0, r1 - r0), delta, gh[c0:c1])
        _copied(state, gz[:nx])
        _copied(gh[:driven], gz[nx:])
        _filled(none, gs)
        _product(PT, gz, gs)
        _product(QT, both[m:], gs)
        _copied(gs[:nx], state)
        _copied(gs[nx:], found[t])
        for i in range(m):
            _copied(both[i : i + 1], later[i : i + 1])
            for k in range(nu):
                slope, z, read = sensor[t, k, i], later[i], found[t, k]
                for n in range(batch):
                    z[n] += slope[n] * read[n]
    return found
