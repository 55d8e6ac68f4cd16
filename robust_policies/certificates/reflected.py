"""Perceptrons whose activation sorts pairs (MaxMin) or reflects groups (Householder), written with one ReLU a group.

A group's activation reflects v where n'v < 0: w = v - c n min(n'v, 0), with p = relu(n'v) = n'v - (its part below 0)

    w = (I - c n n') v + c n p.

MaxMin is n = (1, -1), c = 1: max(a, b) = b + p, min(a, b) = a - p, p = relu(a - b). Householder is c = 2, |n| = 1. All
but p is linear, so the net is one of ReLU neurons with linear paths around them, half as many as MaxMin's and fewer
for larger groups. Of a group's increment nothing is known beyond p = delta n'v with delta in [0, 1], and one multiplier
a neuron says all of that: the multipliers for sums of a group (P. Pauli et al., "Novel quadratic constraints for
extending LipSDP beyond slope-restricted activations", ICLR 2024, arXiv 2401.14033) follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from robust_policies.certificates.layers import exactly
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import Neurons, Rounded
from robust_policies.errors import InvalidValueError, ShapeError

HOUSEHOLDER = 2.0


def maxmin_chain(weights: Sequence[Array]) -> Neurons:
    """Return u -> W_L maxmin(.. maxmin(W_0 u)) around its ReLU neurons.

    `weights` are (rows, columns), as for `layers.chain_model`. Raises ShapeError where a layer cannot be paired.
    """
    return _maxmin([Rounded.exact(weight) for weight in weights])


def maxmin_layers(layers: Any, scale: float) -> Neurons:
    """Return u -> scale layers(scale u), maxmin inside each layer that is not linear, around its ReLU neurons.

    Arguments as of `neurons.chain_of_layers`. Raises ShapeError where a layer cannot be paired.
    """
    nu, ny = layers[0].in_map().shape[1], len(layers[-1].b)
    weights, pending = [], Rounded.exact(scale * np.eye(nu))
    for layer in layers:
        pending = Rounded.exact(exactly(layer.in_map())).after(pending)
        if layer.psi is not None:
            weights.append(pending)
            pending = Rounded.exact(exactly(layer.out_map()))
    return _maxmin([*weights, Rounded.exact(scale * np.eye(ny)).after(pending)])


def _maxmin(weights: Sequence[Rounded]) -> Neurons:
    rows = [len(weight.value) for weight in weights[:-1]]
    if odd := next((count for count in rows if count % 2), None):
        raise ShapeError(f"A layer before a maxmin has {odd} rows; expected an even number.")
    return _chain(weights, [_across(np.tile([1.0, -1.0], (count // 2, 1))) for count in rows], 1.0)


def householder_chain(weights: Sequence[Array], normals: Sequence[Array]) -> Neurons:
    """Return u -> W_L act(.. act(W_0 u)) around its ReLU neurons, act(v) = v - 2 n min(n'v, 0) group by group.

    Args:
        weights: (rows, columns), as for `layers.chain_model`.
        normals: for each layer but the last, (groups, group size): the n of each group, of norm 1.

    Raises:
        ShapeError: the normals do not fit the layers. InvalidValueError: one is not of norm 1 but for rounding.
    """
    if [array.size for array in normals] != [len(weight) for weight in weights[:-1]]:
        raise ShapeError(
            f"The normals have {[array.size for array in normals]} numbers and the layers before them "
            f"{[len(weight) for weight in weights[:-1]]} rows; expected as many."
        )
    for array in normals:
        if not np.allclose(np.square(array).sum(axis=1), 1.0, rtol=0.0, atol=1e-6):
            raise InvalidValueError("A normal of a Householder activation has not the norm 1; divide it by its norm.")
    across = [_across(np.asarray(array, dtype=np.float64)) for array in normals]
    return _chain([Rounded.exact(weight) for weight in weights], across, HOUSEHOLDER)


def _across(normals: Array) -> Array:
    """Return the matrix (groups, rows of the layer) from a layer's values to n'v of each group."""
    groups, size = normals.shape
    across = np.zeros((groups, groups * size))
    for group, normal in enumerate(normals):
        across[group, group * size : (group + 1) * size] = normal
    return across


def _chain(weights: Sequence[Rounded], across: Sequence[Array], factor: float) -> Neurons:
    widths = [len(rows) for rows in across]
    offsets, nu = np.cumsum([0, *widths]), weights[0].value.shape[1]
    count = int(offsets[-1])
    # The signal between layers is of_input u + of_neurons p.
    of_input, of_neurons = Rounded.exact(np.eye(nu)), Rounded.exact(np.zeros((nu, count)))
    D12, D11 = Rounded.exact(np.zeros((count, nu))), Rounded.exact(np.zeros((count, count)))
    for weight, rows, offset in zip(weights, across, offsets, strict=False):
        of_input, of_neurons = (weight.after(part) for part in (of_input, of_neurons))
        read = Rounded.exact(rows)
        D12 = D12.plus(read.after(of_input).placed(D12.value.shape, offset, 0))
        D11 = D11.plus(read.after(of_neurons).placed(D11.value.shape, offset, 0))
        reflect = _reflection(rows, factor)
        # Doubling or not is exact, and so is adding columns of neurons that the signal has not met before.
        met = Rounded.exact(factor * rows.T).placed((len(weight.value), count), 0, offset)
        of_input, of_neurons = reflect.after(of_input), reflect.after(of_neurons).plus(met)
    last = weights[-1]
    D22, D21 = last.after(of_input), last.after(of_neurons)
    ny, none = len(last.value), np.zeros

    def model(part: str) -> Matrices:
        a, b, c, d = (getattr(matrix, part) for matrix in (D12, D21, D22, D11))
        empty = none((0, 0)), none((0, count)), none((0, nu)), none((count, 0))
        return Matrices(*empty, a, none((ny, 0)), b, c, d, error=model("error") if part == "value" else None)

    return Neurons(model("value"), _start(D11.value, offsets))


def _reflection(rows: Array, factor: float) -> Rounded:
    """Return I - factor rows' rows, where the difference rounds once more."""
    outer = Rounded.exact(factor * rows.T).after(Rounded.exact(rows))
    value = np.eye(rows.shape[1]) - outer.value
    return Rounded(value, outer.error + 2.0**-52 * np.abs(value) * (rows.T @ rows != 0))


def _start(D11: Array, offsets: Array) -> Array:
    """Return multipliers with which some gain is proven: each layer's outweighs what the later ones read of it."""
    parts = list(pairwise(offsets))
    sizes = [1.0] * len(parts)
    for k in range(len(parts) - 1, -1, -1):
        for j in range(k + 1, len(parts)):
            between = D11[slice(*parts[j]), slice(*parts[k])]
            sizes[k] += 2 * len(parts) * float(np.linalg.norm(between, 2)) ** 2 * sizes[j]
    return np.concatenate([np.full(end - start, size) for (start, end), size in zip(parts, sizes, strict=True)] or [[]])
