"""One step of every cell, in NumPy, from the explicit arrays that its policy was saved with.

A step is a function (input (batch, nu), state (batch, nx)) -> (output (batch, ny), next state (batch, nx)). What is
linear between two activations is multiplied out once, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.runtime.activations import ACTIVATIONS, Array, solved

Step = Callable[[Array, Array], tuple[Array, Array]]
Arrays = Mapping[str, Any]


class RunningCell(NamedTuple):
    """A cell that runs: the width of its state, and its step."""

    state_size: int
    step: Step


def running_cell(config: Mapping[str, Any], arrays: Arrays) -> RunningCell:
    """Return the cell of a configuration with its explicit arrays, nested as the cell nests them.

    Raises UnknownNameError where there is no such cell.
    """
    kind = str(config.get("type"))
    make = _MAKERS.get(kind) or OWN_STEPS.get(kind)
    if make is None:
        raise UnknownNameError(
            f"No step in NumPy is known of the cell {kind!r}; one of your own needs "
            f"robust_policies.runtime.register_step({kind!r}, make) first, which its package can call when imported."
        )
    return make(config, arrays)


def register_step(name: str, make: Callable[[Mapping[str, Any], Arrays], RunningCell]) -> None:
    """Let a cell of another package run here, and be exported.

    Args:
        name: the `name` of its class, of which its stored configuration is.
        make: (configuration, explicit arrays by name) -> RunningCell(nx, step). The step computes with NumPy, on rows;
            it is exported where it does nothing but what `export.record` knows: @, + - * /, maximum, minimum, clip,
            where, concatenate, columns, and `runtime.activations`.

    Raises InvalidValueError where a cell of this package has that name, or `make` cannot be called.
    """
    if name in _MAKERS or not callable(make):
        why = "is a cell of this package" if name in _MAKERS else f"was given {make!r}; expected a function"
        raise InvalidValueError(f"Cell {name!r} {why}; register a step of a cell of your own.")
    OWN_STEPS[name] = make


def _r2dn(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    layers, kind = e["layers"], e["A"].dtype
    nx, act = len(e["A"]), ACTIVATIONS[config["activation"]]
    first = _inward(layers[0])
    before = np.hstack((first @ _wide(e["C1"]), first @ _wide(e["D12"])))
    biases = [first @ _wide(e["bv"]) + _wide(layers[0]["b"])]
    maps, active = [before], layers if layers[-1]["A"] is not None else layers[:-1]
    for previous, layer in pairwise(active):
        maps.append(_inward(layer) @ _outward(previous))
        biases.append(_wide(layer["b"]))
    out, constant = _outward(active[-1]), np.zeros(len(_wide(e["B1"])[0]))
    if len(active) < len(layers):
        out, constant = _wide(layers[-1]["B"]) @ out, _wide(layers[-1]["b"])
    top = np.hstack((_wide(e["C2"]), _wide(e["D22"]), _wide(e["D21"]) @ out))
    bottom = np.hstack((_wide(e["A"]), _wide(e["B2"]), _wide(e["B1"]) @ out))
    after = np.vstack((top, bottom)).T.astype(kind)
    shift = np.concatenate((_wide(e["by"]) + _wide(e["D21"]) @ constant, _wide(e["bx"]) + _wide(e["B1"]) @ constant))
    weights = [(np.ascontiguousarray(W.T.astype(kind)), b.astype(kind)) for W, b in zip(maps, biases, strict=True)]
    known, hidden = after[: nx + e["B2"].shape[1]].copy(), after[nx + e["B2"].shape[1] :].copy()
    ny, shift = len(e["by"]), shift.astype(kind)

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        both = np.concatenate((state, input), axis=1)
        h = both
        for W, b in weights:
            h = act(h.dot(W) + b)
        found = both.dot(known) + h.dot(hidden) + shift
        return found[:, :ny], found[:, ny:]

    return RunningCell(nx, step)


def _ren(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    name, kind, nx = config["activation"], e["A"].dtype, len(e["A"])
    if name not in ACTIVATIONS:
        raise KeyError(name)
    before = np.hstack((e["C1"], e["D12"])).T.copy()
    known = np.vstack((np.hstack((e["C2"], e["D22"])), np.hstack((e["A"], e["B2"])))).T.copy()
    hidden = np.vstack((e["D21"], e["B1"])).T.copy()
    shift, ny = np.concatenate((e["by"], e["bx"])).astype(kind), len(e["by"])
    rows, bv = [np.ascontiguousarray(row[:i]) for i, row in enumerate(e["D11"])], e["bv"]

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        both = np.concatenate((state, input), axis=1)
        w = solved(both.dot(before) + bv, rows, name)
        found = both.dot(known) + w.dot(hidden) + shift
        return found[:, :ny], found[:, ny:]

    return RunningCell(nx, step)


def _layers_of_neurons(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    """Return a cell whose neurons are found in passes from zero: as many as it has layers, or as it runs."""
    act, kind, nx = ACTIVATIONS[config["activation"]], e["A"].dtype, len(e["A"])
    before, inside = np.hstack((e["C1"], e["D12"])).T.copy(), e["D11"].T.copy()
    known = np.vstack((np.hstack((e["C2"], e["D22"])), np.hstack((e["A"], e["B2"])))).T.copy()
    hidden = np.vstack((e["D21"], e["B1"])).T.copy()
    shift, ny = np.concatenate((e["by"], e["bx"])).astype(kind), len(e["by"])
    bv = e["bv"]
    passes = int(config.get("passes") or config.get("layers") or 1 + (config.get("method") == "rk2"))

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        both = np.concatenate((state, input), axis=1)
        v = both.dot(before) + bv
        w = act(v)
        for _ in range(passes - 1):
            w = act(v + w.dot(inside))
        found = both.dot(known) + w.dot(hidden) + shift
        return found[:, :ny], found[:, ny:]

    return RunningCell(nx, step)


def _l2ru(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    act, kind, size = ACTIVATIONS[config["activation"]], e["size"].dtype, _wide(e["size"])
    inward, entering = (size * _wide(e["inward"]["B"])).T.astype(kind), e["inward"]["b"]
    outward, leaving = (_wide(e["outward"]["B"]).T * size).astype(kind), (size * _wide(e["outward"]["b"])).astype(kind)
    units, at = [], 0
    for unit, layer in zip(e["linear"], e["layers"], strict=True):
        count, reads = 2 * len(unit["poles"]), _inward(layer)
        known = np.hstack((reads @ _wide(unit["C"]), reads @ _wide(unit["D"]))).T.astype(kind)
        onward = _outward(layer).T.astype(kind)
        (c, s), other = unit["poles"].T, np.arange(count) ^ 1
        turn = np.repeat(c, 2), np.stack((-s, s), axis=1).ravel(), other
        units.append((at, at + count, *turn, unit["B"].T.copy(), known, layer["b"], onward))
        at += count

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        h, following = input.dot(inward) + entering, []
        for begin, end, c, s, other, B, known, b, onward in units:
            x = state[:, begin:end]
            following.append(c * x + s * x[:, other] + h.dot(B))
            h = act(np.concatenate((x, h), axis=1).dot(known) + b).dot(onward)
        return h.dot(outward) + leaving, np.concatenate(following, axis=1)

    return RunningCell(at, step)


def _mlp(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    act = _between(config)
    *layers, (last, bias) = [(W.T.copy(), b) for W, b in zip(e["weights"], e["biases"], strict=True)]

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        for W, b in layers:
            input = act(input.dot(W) + b)
        return input.dot(last) + bias, state

    return RunningCell(0, step)


def _lbdn(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    act, scale, kind = _between(config), e["scale"], e["scale"].dtype
    layers = [
        (_inward(layer).T.astype(kind), layer["b"], None if layer["A"] is None else _outward(layer).T.astype(kind))
        for layer in e["layers"]
    ]

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        h = input * scale
        for inward, b, outward in layers:
            h = h.dot(inward) + b
            h = h if outward is None else act(h).dot(outward)
        return h * scale, state

    return RunningCell(0, step)


def _lstm(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    size, sigmoid = int(config["state_size"]) // 2, ACTIVATIONS["sigmoid"]
    weights, bias = np.vstack((e["weight_ih"].T, e["weight_hh"].T)), e["bias_ih"] + e["bias_hh"]
    C, by = e["C"].T.copy(), e["by"]

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        gates = np.concatenate((input, state[:, :size]), axis=1).dot(weights) + bias
        i, f, g, o = (gates[:, k * size : (k + 1) * size] for k in range(4))
        c = sigmoid(f) * state[:, size:] + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        return h.dot(C) + by, np.concatenate((h, c), axis=1)

    return RunningCell(2 * size, step)


def _gru(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    size, sigmoid = int(config["state_size"]), ACTIVATIONS["sigmoid"]
    inward, onward, C, by = e["weight_ih"].T.copy(), e["weight_hh"].T.copy(), e["C"].T.copy(), e["by"]

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        given, kept = input.dot(inward) + e["bias_ih"], state.dot(onward) + e["bias_hh"]
        both = sigmoid(given[:, : 2 * size] + kept[:, : 2 * size])
        r, z = both[:, :size], both[:, size:]
        n = np.tanh(given[:, 2 * size :] + r * kept[:, 2 * size :])
        h = (1.0 - z) * n + z * state
        return h.dot(C) + by, h

    return RunningCell(size, step)


def _window(config: Mapping[str, Any], e: Arrays) -> RunningCell:
    inner, perceptron = running_cell(config["inner"], e["cell"]), running_cell(config["perceptron"], e["perceptron"])
    length, masked, blank = int(config["window"]), bool(config["masked"]), e["blank"]
    width = len(blank) + 1

    def step(input: Array, state: Array) -> tuple[Array, Array]:
        count = len(input)
        row = np.concatenate((input, np.ones((count, 1), input.dtype)), axis=1)
        window = np.concatenate((state[:, width:], row.astype(state.dtype)), axis=1)
        rows = window.reshape(count, length, width)
        hidden = np.zeros((count, inner.state_size), blank.dtype)
        output = blank
        for k in range(length):
            values, observed = rows[:, k, :-1], rows[:, k, -1:] > 0.5
            if not masked:
                values = np.where(observed, values, blank)
            elif k:
                # The cell begins where the episode did.
                begun = rows[:, k - 1, -1:] > 0.5
                hidden = np.where(begun, hidden, 0.0).astype(blank.dtype)
            output, hidden = inner.step(values.astype(blank.dtype), hidden)
        return perceptron.step(output, np.zeros((count, 0), blank.dtype))[0], window

    return RunningCell(length * width, step)


_MAKERS: dict[str, Callable[[Mapping[str, Any], Arrays], RunningCell]] = {
    "r2dn": _r2dn,
    "ren": _ren,
    "nemon": _layers_of_neurons,
    "l2ru": _l2ru,
    "convex": _layers_of_neurons,
    "lipschitz_rnn": _layers_of_neurons,
    "mlp": _mlp,
    "lbdn": _lbdn,
    "lstm": _lstm,
    "gru": _gru,
    "window": _window,
}


OWN_STEPS: dict[str, Callable[[Mapping[str, Any], Arrays], RunningCell]] = {}


def _between(config: Mapping[str, Any]) -> Any:
    """Return the activation between stored weights; Householder's are turned, so that between them it is MaxMin."""
    return ACTIVATIONS["maxmin" if config["activation"] == "householder" else config["activation"]]


def _wide(array: Array) -> Array:
    return np.asarray(array, dtype=np.float64)


def _inward(layer: Arrays) -> Array:
    """Return the matrix in front of a sandwich layer's activation, of a linear layer its own."""
    B = _wide(layer["B"])
    return B if layer["psi"] is None else (math.sqrt(2.0) / _wide(layer["psi"]))[:, None] * B


def _outward(layer: Arrays) -> Array:
    """Return the matrix after a sandwich layer's activation."""
    return math.sqrt(2.0) * _wide(layer["A"]).T * _wide(layer["psi"])
