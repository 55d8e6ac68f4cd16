"""Cells written as chains of layers z -> act(W z + b): memoryless ones, and others over a window of inputs.

Over a window the state, the inputs still to come and a step's neurons are one vector that passes through the layers;
what a layer does not touch it carries along. No matrices are multiplied here: every weight is one that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_policies.certificates.layers import exactly, is_r2dn
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.local import Layer
from robust_policies.certificates.slopes import IDENTITY, SHAPES, Shape
from robust_policies.networks.activations import GroupActivation


def linear(weight: Array, bias: Array | None = None, shape: Shape = IDENTITY, error: Array | None = None) -> Layer:
    """Return the layer z -> shape(weight z + bias); weight (rows, columns), bias (rows,), error as of `Layer`."""
    rows = len(weight)
    return Layer(weight, np.zeros(rows) if bias is None else bias, ((shape, rows),), error)


def chain_of(cell: Any, explicit: Any = None) -> list[Layer] | None:
    """Return a memoryless cell as a chain, None of another one, or of an activation whose slopes are not known."""
    explicit = cell.explicit() if explicit is None else explicit
    if hasattr(explicit, "weights"):
        return _perceptron(cell.activation, explicit)
    if not hasattr(explicit, "scale"):
        return None
    activation = cell.network.activation
    shape = SHAPES.get(activation.name)
    if shape is None and not _pairs(activation):
        return None
    layers = _sandwiches(explicit.layers, shape)
    scale = float(explicit.scale.detach().double())
    sizes = layers[0].weight.shape[1], len(layers[-1].bias)
    return [linear(scale * np.eye(sizes[0])), *layers, linear(scale * np.eye(sizes[1]))]


def chain_over(cell: Any, steps: int, explicit: Any = None) -> list[Layer] | None:
    """Return the chain from `steps` inputs, the first one first, to the last output; None where there is none.

    The cell begins in its initial state, which is zero.
    """
    explicit = cell.explicit() if explicit is None else explicit
    memoryless = chain_of(cell, explicit)
    if memoryless is not None:
        nu = cell.input_size
        last = np.hstack((np.zeros((nu, nu * (steps - 1))), np.eye(nu)))
        return [linear(last), *memoryless]
    if not (is_r2dn(explicit) or hasattr(explicit, "D11")):
        return None
    shape = SHAPES.get(cell.activation.name)
    if shape is None:
        return None
    arrays = {name: exactly(getattr(explicit, name)) for name in explicit._fields if name != "layers"}
    nx, nu, inputs = len(arrays["A"]), arrays["B2"].shape[1], steps * cell.input_size
    chain = [linear(np.vstack((np.zeros((nx, inputs)), np.eye(inputs))))]
    for step in range(steps):
        carried = nx + inputs - step * nu
        rest = carried - nx - nu
        chain.append(_carrying(linear(_beside(arrays["C1"], arrays["D12"], rest), arrays["bv"]), carried))
        chain += _neurons(arrays, explicit, shape, carried)
        weights = _beside(arrays["B1"], arrays["A"], arrays["B2"], rest)
        kept = np.hstack((np.zeros((rest, weights.shape[1] - rest)), np.eye(rest)))
        if step + 1 < steps:
            chain.append(linear(np.vstack((weights, kept)), np.concatenate((arrays["bx"], np.zeros(rest)))))
        else:
            chain.append(linear(_beside(arrays["D21"], arrays["C2"], arrays["D22"], rest), arrays["by"]))
    return chain


def chain_of_step(cell: Any, explicit: Any = None) -> list[Layer] | None:
    """Return the chain from (state, input), (nx + nu,), to the next state (nx,) of an R2DN or a REN, else None."""
    explicit = cell.explicit() if explicit is None else explicit
    shape = SHAPES.get(cell.activation.name) if hasattr(cell, "activation") else None
    if shape is None or not (is_r2dn(explicit) or hasattr(explicit, "D11")):
        return None
    arrays = {name: exactly(getattr(explicit, name)) for name in explicit._fields if name != "layers"}
    both = len(arrays["A"]) + arrays["B2"].shape[1]
    before = _carrying(linear(_beside(arrays["C1"], arrays["D12"]), arrays["bv"]), both)
    after = linear(_beside(arrays["B1"], arrays["A"], arrays["B2"]), arrays["bx"])
    return [before, *_neurons(arrays, explicit, shape, both), after]


def _neurons(arrays: dict[str, Array], explicit: Any, shape: Shape, carried: int) -> list[Layer]:
    """Return what a step's neurons do to what they read, `carried` numbers beside them."""
    if hasattr(explicit, "layers"):
        return [_beside_carried(layer, carried) for layer in _sandwiches(explicit.layers, shape)]
    count, chain = len(arrays["D11"]), []
    for neuron in range(count):
        weight = np.eye(count + carried)
        weight[neuron, :neuron] = arrays["D11"][neuron, :neuron]
        pieces = ((IDENTITY, neuron), (shape, 1), (IDENTITY, count - neuron - 1 + carried))
        chain.append(Layer(weight, np.zeros(count + carried), pieces))
    return chain


def _sandwiches(layers: Sequence[Any], shape: Shape | None) -> list[Layer]:
    """Return layers as a chain; without a shape, pairs are sorted."""
    chain = []
    for layer in layers:
        inner, bias = exactly(layer.in_map()), exactly(layer.b)
        if layer.psi is None:
            chain.append(linear(inner, bias))
        else:
            chain += [*_activated(inner, bias, shape), linear(exactly(layer.out_map()))]
    return chain


def _activated(weight: Array, bias: Array, shape: Shape | None) -> list[Layer]:
    """Return weight (rows, columns) z + bias (rows,) behind its activation; without a shape, pairs are sorted."""
    return [linear(weight, bias), *_sorted(len(bias) // 2)] if shape is None else [linear(weight, bias, shape)]


def _pairs(activation: Any) -> bool:
    return isinstance(activation, GroupActivation) and activation.group == 2


def _perceptron(activation: Any, explicit: Any) -> list[Layer] | None:
    shape = SHAPES.get(activation.name)
    if shape is None and not _pairs(activation):
        return None
    chain = []
    weights, biases = ([exactly(each) for each in both] for both in explicit)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        chain += _activated(weight, bias, shape)
    return [*chain, linear(weights[-1], biases[-1])]


def _sorted(pairs: int) -> list[Layer]:
    """Return what puts the larger of each pair (a, b) first: b + relu(a - b), a - relu(a - b)."""
    first, second = np.eye(2 * pairs)[0::2], np.eye(2 * pairs)[1::2]
    apart = Layer(
        np.vstack((second, first, first - second)),
        np.zeros(3 * pairs),
        ((IDENTITY, 2 * pairs), (SHAPES["relu"], pairs)),
    )
    lower, upper, more = np.eye(3 * pairs).reshape(3, pairs, -1)
    return [apart, linear(np.stack((lower + more, upper - more), axis=1).reshape(2 * pairs, -1))]


def _beside(*parts: Array | int) -> Array:
    """Return matrices (rows, ...) side by side; a number stands for so many columns of zeros."""
    rows = next(len(part) for part in parts if not isinstance(part, int))
    return np.hstack([np.zeros((rows, part)) if isinstance(part, int) else part for part in parts])


def _carrying(layer: Layer, carried: int) -> Layer:
    """Return z -> (layer(z), z) for z of `carried` numbers."""
    pieces = (*layer.pieces, (IDENTITY, carried))
    return Layer(np.vstack((layer.weight, np.eye(carried))), np.concatenate((layer.bias, np.zeros(carried))), pieces)


def _beside_carried(layer: Layer, carried: int) -> Layer:
    """Return (z, c) -> (layer(z), c) for c of `carried` numbers."""
    rows, columns = layer.weight.shape
    weight = np.zeros((rows + carried, columns + carried))
    weight[:rows, :columns], weight[rows:, columns:] = layer.weight, np.eye(carried)
    return Layer(weight, np.concatenate((layer.bias, np.zeros(carried))), (*layer.pieces, (IDENTITY, carried)))
