"""The adjoint of a compiled run alone: what the state's gradient becomes, without any gradient of arrays or inputs."""

from __future__ import annotations

import numpy as np

from robust_policies.networks.kernels import _copied, _filled, _kept, _product, _turned, compiled, times_slope


@compiled
def turned_blocks(weights, blocks):
    """Return flat weights with the matrix of each block transposed; arguments as `kernels.forward` has them."""
    found = np.empty(len(weights), weights.dtype)
    for k in range(len(blocks)):
        r0, r1, c0, c1, at = blocks[k]
        end = at + (r1 - r0) * (c1 - c0)
        found[at:end] = _turned(weights[at:end].reshape(r1 - r0, c1 - c0)).ravel()
    return found


@compiled
def adjoint(kind, keep, grad, state, PT, BT, QT, RT, turned, blocks, H):
    """Turn `state` (nx, batch), the gradient of the final state, into that of the first one.

    Args:
        kind: of the activation.
        keep: (time, batch), 0 where the state is zeroed before a step; (0, batch): nowhere.
        grad: (time, ny, batch), of the outputs, or (0, ny, batch) where it is zero.
        state: overwritten.
        PT: P', and so on: BT, QT and RT as `kernels.backward` has them.
        BT: (n, nx).
        QT: (nx + nu, ny).
        RT: (n, ny).
        turned: `turned_blocks` of the weights.
        blocks: (count, 5).
        H: (time, neurons, batch), of the forward run.
    """
    (time, total, batch), nx = H.shape, len(state)
    driven, last = PT.shape[1] - nx, total - len(BT)
    gz, gh = np.empty((nx + driven, batch), H.dtype), np.empty((total, batch), H.dtype)
    none = np.zeros(max(nx, total), H.dtype)
    for t in range(time - 1, -1, -1):
        hidden = H[t]
        _filled(none, gh)
        _product(BT, state, gh[last:])
        if len(grad):
            _product(RT, grad[t], gh[last:])
        for k in range(len(blocks) - 1, -1, -1):
            r0, r1, c0, c1, at = blocks[k]
            delta, end = gh[r0:r1], at + (r1 - r0) * (c1 - c0)
            times_slope(kind, hidden[r0:r1], delta)
            if c1 > c0:
                _product(turned[at:end].reshape(c1 - c0, r1 - r0), delta, gh[c0:c1])
        _copied(state, gz[:nx])
        _copied(gh[:driven], gz[nx:])
        _filled(none, state)
        _product(PT[:nx], gz, state)
        if len(grad):
            _product(QT[:nx], grad[t], state)
        if len(keep):
            _kept(keep[t], state)
