"""Bounds of single layers, and chains of them as one model without a state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_policies.certificates.lmi import Array, Matrices, growth
from robust_policies.errors import NonFiniteError


def is_r2dn(explicit: Any) -> bool:
    """Return whether a cell's explicit arrays are those of a linear system around a chain of layers.

    It looks at what the arrays hold, not at the cell's class: what is proven must not rest on how a cell was built.
    """
    return hasattr(explicit, "D12") and hasattr(explicit, "layers")


def layer_bound(inner: Array, outer: Array, psi: Array | None = None) -> float:
    """Return a Lipschitz bound of h -> outer act(inner h + b), act with slopes in [0, 1] neuron by neuron.

    With B = psi inner / sqrt 2 and A' = outer / (psi sqrt 2): if A A' + B B' <= s I then the bound is max(1, s). Any
    positive psi (n,) proves a bound; a sandwich layer's own proves 1. `inner` (n, n_in), `outer` (n_out, n).
    """
    scale = np.ones(inner.shape[0]) if psi is None else np.asarray(psi, dtype=np.float64)
    B = scale[:, None] * inner / math.sqrt(2)
    A = (outer / scale).T / math.sqrt(2)
    return max(1.0, _largest_eigenvalue(np.hstack([A, B])))


def layers_bound(layers: Any, entrywise: bool = True) -> float:
    """Return a Lipschitz bound of the chain of layers from the maps that run, never less than 1.

    Of an activation that is not `entrywise` nothing is used but that it is 1-Lipschitz.
    """
    bound = 1.0
    for layer in layers:
        inner = exactly(layer.in_map())
        if layer.psi is None:
            bound *= max(1.0, spectral_bound(inner))
        elif not entrywise:
            bound *= max(1.0, spectral_bound(inner)) * max(1.0, spectral_bound(exactly(layer.out_map())))
        else:
            bound *= layer_bound(inner, exactly(layer.out_map()), exactly(layer.psi))
    return bound * (1 + 1e-15 * (2 * len(layers) + 1))


def spectral_bound(weight: Array) -> float:
    """Return an upper bound of the spectral norm of `weight` (rows, columns), rounding included."""
    return math.sqrt(_largest_eigenvalue(weight if weight.shape[0] <= weight.shape[1] else weight.T)) * (1 + 1e-15)


def exactly(value: Any) -> Array:
    """Return a tensor's numbers as float64, an exact conversion."""
    return value.detach().cpu().double().numpy()


def _largest_eigenvalue(stacked: Array) -> float:
    """Return an upper bound of lambda_max(stacked stacked')."""
    if not np.isfinite(stacked).all():
        raise NonFiniteError("A layer's weights hold NaN or infinite values; expected finite numbers.")
    gram = stacked @ stacked.T
    error = growth(stacked.shape[1] + 8) * float((np.abs(stacked) @ np.abs(stacked).T).sum(axis=1).max())
    return (float(np.linalg.eigvalsh(gram)[-1]) + error) * (1 + 1e-12)


def chain_model(weights: Sequence[Array]) -> Matrices:
    """Return u -> W_L act(.. act(W_0 u)), weights first layer first, as a model with nx = 0 and all neurons in v.

    A weight is (rows, columns), with as many columns as the one before has rows. Layer k's neurons read those of layer
    k - 1 through D11, which is strictly lower triangular.
    """
    widths = [weight.shape[0] for weight in weights[:-1]]
    nv, nu, ny = sum(widths), weights[0].shape[1], weights[-1].shape[0]
    D11, D12, D21, D22 = (np.zeros(shape) for shape in ((nv, nv), (nv, nu), (ny, nv), (ny, nu)))
    if not widths:
        D22 = np.asarray(weights[0], dtype=np.float64)
    else:
        D12[: widths[0]] = weights[0]
        D21[:, nv - widths[-1] :] = weights[-1]
        row = widths[0]
        for weight in weights[1:-1]:
            D11[row : row + weight.shape[0], row - weight.shape[1] : row] = weight
            row += weight.shape[0]
    empty = np.zeros((0, 0))
    return Matrices(
        empty, np.zeros((0, nv)), np.zeros((0, nu)), np.zeros((nv, 0)), D12, np.zeros((ny, 0)), D21, D22, D11
    )


def chain_start(weights: Sequence[Array]) -> Array:
    """Return multipliers (nv,) with which some gain of `chain_model(weights)` is proven.

    Each layer's is the one before over twice the squared norm of the weight between them, so that every pivot of the
    block elimination keeps at least half of its own.
    """
    size, theta = 1.0, []
    for index, weight in enumerate(weights[:-1]):
        if index:
            size /= 2 * max(float(np.linalg.norm(weight, 2)) ** 2, 1e-12)
        theta.append(np.full(weight.shape[0], size))
    return np.concatenate(theta) if theta else np.zeros(0)


def norm_product(weights: Sequence[Array]) -> float:
    """Return the product of the spectral norms of weights (rows, columns), rounding included.

    It is a gain of the chain for every 1-Lipschitz activation.
    """
    return math.prod(spectral_bound(weight) for weight in weights) * (1 + 1e-15 * (len(weights) + 1))
