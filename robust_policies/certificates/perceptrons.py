"""The gain of perceptrons: linear layers with one activation between each two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_policies.certificates.certificate import Verification
from robust_policies.certificates.layers import chain_model, chain_start, norm_product
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.neurons import MOST_NEURONS, Neurons
from robust_policies.certificates.reflected import householder_chain, maxmin_chain
from robust_policies.certificates.search import Search
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError

SLOPE_RESTRICTED = frozenset(
    {"relu", "tanh", "sigmoid", "identity", "leaky_relu", "elu", "softplus", "hardtanh", "softsign"}
)
SORTING = "maxmin"
REFLECTING = "householder"
LARGEST_CHAIN = MOST_NEURONS


def verify_layers(
    weights: Sequence[Array], activation: str = "relu", normals: Sequence[Array] | None = None
) -> Verification:
    """Return the least gain that is proven of u -> W_L act(.. act(W_0 u + b_0)), weights first layer first.

    Args:
        weights: float32 or float64 arrays (rows, columns), with as many columns as the one before has rows.
        activation: a name in `SLOPE_RESTRICTED`, "maxmin", or "householder": v -> v - 2 n min(n'v, 0) in groups.
        normals: for "householder", of each layer but the last the n of each group, (groups, group size).

    Raises InvalidValueError where the normals do not go with the activation or are not of norm 1.
    """
    if (activation == REFLECTING) != (normals is not None):
        raise InvalidValueError("`normals` are those of the activation 'householder'; give them with it, and only so.")
    if activation not in SLOPE_RESTRICTED and activation not in (SORTING, REFLECTING):
        return Verification("NOT_CERTIFIED", reason=unknown_slope(activation))
    return chain_verification(tuple(np.asarray(weight, dtype=np.float64) for weight in weights), activation, normals)


def chain_verification(
    weights: tuple[Array, ...], activation: str, normals: Sequence[Array] | None = None
) -> Verification:
    """Return the smaller of a chain's LipSDP gain and the product of its spectral norms; arguments as `verify_layers`.

    Weights are (rows, columns), normals (groups, group size).
    """
    try:
        product = norm_product(weights)
        neurons = chain_neurons(weights, activation, normals)
    except (NonFiniteError, ShapeError) as error:
        return Verification("NOT_CERTIFIED", reason=str(error).rstrip("."))
    if normals is not None:
        # Each normal may be longer than 1 by a hair, and its reflection then longer than what it reflects.
        longest = [max(1.0, abs(2 * float(np.square(array).sum(axis=1).max()) - 1)) for array in normals]
        product *= math.prod(longest) * (1 + 1e-12)
    proven = Verification("PASS", product, method="product of spectral norms")
    if product == 0 or not neurons.family.size or neurons.family.size > LARGEST_CHAIN:
        return proven
    gamma = Search(neurons.model, neurons.family, 1.0).least(np.zeros((0, 0)), neurons.theta)
    if gamma is None or gamma >= product:
        return proven
    return Verification("PASS", gamma, method="LipSDP: a multiplier for each neuron, rounding-error bound")


def chain_neurons(weights: Sequence[Array], activation: str, normals: Sequence[Array] | None = None) -> Neurons:
    """Return a chain of linear layers with an activation between each two as a system around single neurons.

    Weights are (rows, columns), normals (groups, group size).
    """
    if activation == SORTING:
        return maxmin_chain(weights)
    if normals is not None:
        return householder_chain(weights, normals)
    return Neurons(chain_model(weights), chain_start(weights))


def unknown_slope(activation: Any) -> str:
    """Return why nothing is known of an activation."""
    return f"the slope of the activation {activation!r} is not known to be in [0, 1]"
