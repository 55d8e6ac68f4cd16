"""One step of a policy as a short list of operations on vectors and constants: what every format of export writes.

A program is straight-line: (observation (nu,), state (nx,)) -> (action (na,), next state (nx,)), in one number type.
Its constants are the arrays that run. The kinds of operations, with vectors a, b of one width (or of width 1):

    linear (x, W[, b])   W x + b, W (rows, columns)          add, sub, mul, div, max, min (a, b)
    act (x)              an activation, by name              round (x)   to the nearest whole number, halves to even
    solve (v, D)         w_i = act(v_i + sum_(j<i) D_ij w_j)  argmax (x)  the place of the first largest entry
    concat (a, ...)      one behind the other                gather (x)  entries at fixed places
    select (f, a, b)     a where the number f is above 0.5, else b
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.certificates.lmi import Array
from robust_policies.runtime.activations import ACTIVATIONS, solved

OBSERVATION, STATE = "observation", "state"
KINDS = {"float32": np.float32, "float64": np.float64}


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: see the module.
        inputs: names of values or constants.
        output: the name of what it gives.
        width: of what it gives.
        name: of an activation.
        places: of `gather`.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    width: int
    name: str = ""
    places: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """A policy's step.

    Attributes:
        ops: in their order.
        constants: vectors (n,) and matrices (rows, columns) of the program's number type, by name.
        observations, states: nu and nx.
        action, following: the names of the action and the next state, and `mean` of the action before it is clipped.
        actions: na.
        whole: the actions are whole numbers.
    """

    ops: tuple[Op, ...]
    constants: Mapping[str, Array]
    observations: int
    states: int
    action: str
    following: str
    mean: str
    actions: int
    whole: bool
    dtype: str

    @property
    def sha256(self) -> str:
        """One hash of all constants and of what is done with them."""
        words = {f"op {k}": np.frombuffer(repr(op).encode(), dtype=np.uint8) for k, op in enumerate(self.ops)}
        sizes = np.array([self.observations, self.states, self.actions], dtype=np.int64)
        return digest(array_hashes({**self.constants, **words, "sizes": sizes}))

    @property
    def kind(self) -> np.dtype:
        """The number type."""
        return np.dtype(KINDS[self.dtype])

    @property
    def multiply_adds(self) -> int:
        """The multiplications with an addition in one step."""
        sizes = {op: self.constants[op.inputs[1]].shape for op in self.ops if op.kind in ("linear", "solve")}
        return sum(m * n if op.kind == "linear" else n * (n - 1) // 2 for op, (m, n) in sizes.items())

    @property
    def unclipped(self) -> tuple[Op, ...]:
        """The operations up to the mean action and the next state, without the last clip."""
        return needed(self.ops, (self.mean, self.following))

    def widths(self) -> dict[str, int]:
        """Return the width of every value and of every constant that is a vector."""
        found = {OBSERVATION: self.observations, STATE: self.states}
        found |= {name: len(array) for name, array in self.constants.items() if array.ndim == 1}
        return found | {op.output: op.width for op in self.ops}

    def run(self, observation: Array, state: Array, dtype: Any = None) -> tuple[Array, Array, dict[str, Array]]:
        """Return (action (batch, na), next state (batch, nx), all values by name), in `dtype` in place of its own.

        Args:
            observation: (batch, nu).
            state: (batch, nx).
            dtype: float64 rounds less than the program would; constants stay what they are.
        """
        kind = self.kind if dtype is None else np.dtype(dtype)
        known: dict[str, Array] = {name: np.asarray(array, dtype=kind) for name, array in self.constants.items()}
        batch = len(observation)
        known |= {OBSERVATION: np.asarray(observation, dtype=kind), STATE: np.asarray(state, dtype=kind)}
        for op in self.ops:
            known[op.output] = np.broadcast_to(calculated(op, [known[name] for name in op.inputs]), (batch, op.width))
        return known[self.action], known[self.following], known


def needed(ops: Sequence[Op], wanted: Sequence[str]) -> tuple[Op, ...]:
    """Return the operations that values of these names need, in their order."""
    names, kept = set(wanted), []
    for op in reversed(ops):
        if op.output in names:
            kept.append(op)
            names |= set(op.inputs)
    return tuple(reversed(kept))


def calculated(op: Op, given: list[Array]) -> Array:
    """Return what an operation gives, (batch, width), for its inputs: values (batch, n) and constants."""
    x = given[0]
    if op.kind == "linear":
        y = x @ given[1].T
        return y + given[2] if len(given) > 2 else y
    if op.kind == "act":
        return ACTIVATIONS[op.name](x)
    if op.kind == "solve":
        return solved(x.copy(), [row[:i] for i, row in enumerate(given[1])], op.name)
    if op.kind == "concat":
        batch = max((len(part) for part in given if part.ndim == 2), default=1)
        return np.concatenate([np.broadcast_to(part, (batch, part.shape[-1])) for part in given], axis=1)
    if op.kind == "gather":
        return np.atleast_2d(x)[:, list(op.places)]
    if op.kind == "select":
        return np.where(x > 0.5, given[1], given[2])
    if op.kind == "argmax":
        return x.argmax(1)[:, None].astype(x.dtype)
    if op.kind == "round":
        return np.round(x)
    return _ENTRYWISE[op.kind](x, given[1])


_ENTRYWISE: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}
