"""The activations of `networks.activations`, in NumPy.

What stands in an array's place and records what is done to it has the methods `activated` and `solved`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[[Array], Array]
_LEAK = 0.01


def solved(v: Array, rows: list[Array], name: str) -> Array:
    """Return w (batch, n) of w_i = act(v_i + rows_i w_(<i)), neuron by neuron; `v` (batch, n) is overwritten."""
    if not isinstance(v, np.ndarray):
        return v.solved(rows, name)
    act = ACTIVATIONS[name]
    for i, row in enumerate(rows):
        v[:, i] = act(v[:, i] + v[:, :i] @ row if i else v[:, i])
    return v


def _sigmoid(x: Array) -> Array:
    # exp of what is negative never overflows.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _softplus(x: Array) -> Array:
    # Beyond 20 as torch has it.
    return np.where(x > 20.0, x, np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))))


def _maxmin(x: Array) -> Array:
    found = np.empty_like(x)
    np.maximum(x[..., 0::2], x[..., 1::2], out=found[..., 0::2])
    np.minimum(x[..., 0::2], x[..., 1::2], out=found[..., 1::2])
    return found


def _named(name: str, function: Function) -> Function:
    return lambda x: function(x) if isinstance(x, np.ndarray) else x.activated(name)


_FUNCTIONS: dict[str, Function] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "identity": lambda x: x,
    "leaky_relu": lambda x: np.where(x > 0, x, _LEAK * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "softplus": _softplus,
    "hardtanh": lambda x: np.minimum(np.maximum(x, -1.0), 1.0),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "maxmin": _maxmin,
}
ACTIVATIONS: dict[str, Function] = {name: _named(name, function) for name, function in _FUNCTIONS.items()}
