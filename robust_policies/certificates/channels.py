"""A nonlinear plant as a linear model and scalar channels: each varying entry of its Jacobian is one more neuron.

Between two states and actions in a convex box the plant's increments are J(z1 - z2), J an average of its Jacobian over
the segment, so every entry of J lies between the bounds of the box. An entry in [a, b] beside the model's own entry c
adds p = (a - c) q + (b - a) w to its row, q the increment of its column, w = s q with 0 <= s <= 1: a neuron as those of
the policy, with a multiplier of its own. Between steps the s may change in any way, so what is proven with a multiplier
for each holds for all of them.

Source: S. Boyd, L. El Ghaoui, E. Feron and V. Balakrishnan, "Linear Matrix Inequalities in System and Control Theory"
(1994), section 4.3, for the global linearization.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import Neurons

# Entries that vary by less, relative to their size, are those that interval arithmetic widened by rounding alone.
_ROUNDING = 1e-12


class Channels(NamedTuple):
    """Entries (k,) of a Jacobian that are not the model's: where, and from how far below to how much further above."""

    rows: Array
    columns: Array
    lower: Array
    width: Array


def channels_of(low: Array, high: Array, model: Array) -> Channels:
    """Return the entries in which a Jacobian between `low` and `high` (rows, columns) may differ from the model's."""
    far = np.maximum(np.abs(low - model), np.abs(high - model))
    rows, columns = np.nonzero(far > _ROUNDING * np.maximum(1.0, np.abs(model)))
    return Channels(rows, columns, (low - model)[rows, columns], (high - low)[rows, columns])


def closed(neurons: Neurons, lower: Array, width: Array, late: Array) -> Neurons:
    """Return a system (p, d) -> (y, q) with p = lower q + width w, w the new neurons of q, as a system d -> y.

    Args:
        neurons: the system; p is its first k inputs and q its last k outputs.
        lower: (k,).
        width: (k,).
        late: (k,) whether a channel sees neurons of the step; the others come before all neurons.
    """
    model, k = neurons.model, len(lower)
    nx, nv, _, ny = model.sizes
    end = ny - k
    q = np.hstack((model.C2[end:], model.D21[end:], model.D22[end:]))
    # From p to q no way leads back, so that the inverse is a finite sum.
    turned = np.linalg.inv(np.eye(k) - lower[:, None] * model.D22[end:, :k])
    p = turned @ np.hstack((lower[:, None] * q, np.diag(width)))
    p[:, nx + nv : nx + nv + k] = 0.0

    def parts(state: Array, inner: Array, inputs: Array) -> tuple[Array, Array, Array, Array]:
        """Return the maps of (x, neurons, w, d) into rows."""
        added = inputs[:, :k] @ p
        return (
            state + added[:, :nx],
            inner + added[:, nx : nx + nv],
            added[:, -k:] if k else np.zeros((len(state), 0)),
            inputs[:, k:] + added[:, nx + nv + k : added.shape[1] - k],
        )

    A, Bn, Bw, Bd = parts(model.A, model.B1, model.B2)
    Cn, Dnn, Dnw, Dnd = parts(model.C1, model.D11, model.D12)
    C, Dn, Dw, Dd = parts(model.C2, model.D21, model.D22)
    early = np.flatnonzero(~late)
    order = np.concatenate((nv + early, np.arange(nv), nv + np.flatnonzero(late))).astype(int)
    inside = np.vstack((np.hstack((Dnn, Dnw)), np.hstack((Dn[end:], Dw[end:]))))
    made = Matrices(
        A=A,
        B1=np.hstack((Bn, Bw))[:, order],
        B2=Bd,
        C1=np.vstack((Cn, C[end:]))[order],
        D11=inside[np.ix_(order, order)],
        D12=np.vstack((Dnd, Dd[end:]))[order],
        C2=C[:end],
        D21=np.hstack((Dn[:end], Dw[:end]))[:, order],
        D22=Dd[:end],
    )
    return Neurons(made, np.concatenate((neurons.theta, np.ones(k)))[order])
