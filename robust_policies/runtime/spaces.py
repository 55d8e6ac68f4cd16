"""Spaces as a policy's file describes them: what an observation is read into, and numbers are made actions of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robust_policies.errors import CorruptFileError, InvalidValueError, NonFiniteError, ShapeError, UnknownNameError
from robust_policies.runtime.activations import ACTIVATIONS, Array

_KINDS = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")


@dataclass(frozen=True, eq=False)
class Part:
    """A space that is no Dict.

    Attributes:
        kind: Gymnasium's name of it.
        shape: of one value.
        dtype: of an action.
        low, high: of a Box, of this shape; else None.
        firsts, widths: the first value of each choice and how many it has; empty where there are none.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    low: Array | None = None
    high: Array | None = None
    firsts: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """How many flat numbers stand for a value."""
        return sum(self.widths) if self.widths else int(np.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Space:
    """A space: its parts by key in the order in which they are read; one part under "" where it is no Dict."""

    parts: dict[str, Part]

    @property
    def alone(self) -> Part:
        """The part of a space that is no Dict."""
        return self.parts[""]

    def read(self, observation: Any, dtype: np.dtype | None) -> tuple[Array, bool]:
        """Return one observation or a batch as flat numbers (batch, nu), and whether there was only one.

        `dtype` None: float32 where they are given so, else float64. Raises ShapeError, NonFiniteError,
        InvalidValueError.
        """
        if "" in self.parts:
            return _read("The observation", self.parts[""], observation, dtype)
        if not isinstance(observation, Mapping) or set(observation) != set(self.parts):
            given = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
            raise ShapeError(f"The observation is {given}; expected a mapping with {', '.join(self.parts)}.")
        found = [_read(f"Entry {key!r}", part, observation[key], dtype) for key, part in self.parts.items()]
        if len({(len(array), single) for array, single in found}) > 1:
            raise ShapeError(
                f"The entries {', '.join(self.parts)} are not of equally many observations; expected one batch."
            )
        return np.concatenate([array for array, _ in found], axis=1), found[0][1]


def space_of(content: Any) -> Space:
    """Return the space of a description in policy.json; raises UnknownNameError, CorruptFileError."""
    kind = content.get("type") if isinstance(content, Mapping) else None
    if kind == "Dict":
        return Space({str(key): _part(part) for key, part in content["entries"]})
    return Space({"": _part(content)})


def choose(part: Part, numbers: Array, log_std: Array | None, deterministic: bool, draw: np.random.Generator) -> Array:
    """Return actions (batch, *shape) for an actor's numbers (batch, n): the mean or most likely one, or a sample."""
    if part.kind == "Box":
        if not deterministic:
            if log_std is None:
                raise InvalidValueError("This policy has no stored exploration noise; use deterministic=True.")
            noise = draw.standard_normal(numbers.shape).astype(numbers.dtype)
            numbers = numbers + np.exp(log_std) * noise
        assert part.low is not None and part.high is not None
        return np.minimum(np.maximum(numbers.reshape(-1, *part.shape), part.low), part.high)
    if part.kind == "MultiBinary":
        likely = ACTIVATIONS["sigmoid"](numbers)
        chosen = np.round(likely) if deterministic else (draw.random(numbers.shape) < likely).astype(numbers.dtype)
        return chosen.reshape(-1, *part.shape)
    columns, begin = [], 0
    for first, width in zip(part.firsts, part.widths, strict=True):
        logits = numbers[:, begin : begin + width]
        if not deterministic:
            logits = logits + draw.gumbel(size=logits.shape)
        columns.append(logits.argmax(1) + first)
        begin += width
    return np.stack(columns, 1).reshape(-1, *part.shape).astype(np.int64)


def _part(content: Any) -> Part:
    kind = content.get("type") if isinstance(content, Mapping) else None
    if kind not in _KINDS:
        raise UnknownNameError.among("space", str(kind), _KINDS)
    try:
        if kind == "Box":
            shape, dtype = tuple(int(n) for n in content["shape"]), np.dtype(content["dtype"])
            low, high = (
                np.array([float(x) for x in content[key]]).reshape(shape).astype(dtype) for key in ("low", "high")
            )
            return Part(kind, shape, dtype, low, high)
        whole = np.dtype(np.int64)
        if kind == "Discrete":
            return Part(kind, (), whole, firsts=(int(content["start"]),), widths=(int(content["n"]),))
        if kind == "MultiDiscrete":
            counts = tuple(int(n) for n in np.ravel(content["nvec"]))
            starts = tuple(int(n) for n in np.ravel(content.get("start") or [0] * len(counts)))
            return Part(kind, np.shape(content["nvec"]), whole, firsts=starts, widths=counts)
        shape = tuple(int(n) for n in np.ravel(content["n"]))
        return Part(kind, shape, np.dtype(np.int8))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"The stored {kind} space is not whole ({error!r}); save the policy again.") from error


def _read(name: str, part: Part, observation: Any, dtype: np.dtype | None) -> tuple[Array, bool]:
    try:
        array = np.asarray(observation)
        kind = dtype
        if kind is None:
            wide = array.dtype != np.float32 and part.kind == "Box"
            kind = np.dtype(np.float64 if wide else np.float32)
        if array.dtype != kind:
            array = array.astype(kind)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} is not an array of numbers of shape {part.shape} ({error}).") from error
    single = array.shape == part.shape
    if not single and (array.shape[1:] != part.shape or array.ndim != len(part.shape) + 1 or not array.shape[0]):
        raise ShapeError(f"{name} has shape {array.shape}; expected {part.shape}, or (n, ...) of it for a batch.")
    flat = array.ravel()
    # The sum of squares is found in a third of the time, and is finite but for numbers of which it may overflow.
    if not math.isfinite(flat.dot(flat)) and not np.isfinite(flat).all():
        raise NonFiniteError(f"{name} holds NaN or infinite values: {array.tolist()}; expected finite numbers.")
    array = array.reshape(1 if single else array.shape[0], -1)
    return (_one_hot(part, array) if part.widths else array), single


def _one_hot(part: Part, values: Array) -> Array:
    columns = []
    for column, first, width in zip(values.T, part.firsts, part.widths, strict=True):
        wrong = (column < first) | (column >= first + width) | (column != np.round(column))
        if wrong.any():
            raise InvalidValueError(
                f"An observation is {column[wrong][0]:g}; expected a whole number {first} to {first + width - 1}."
            )
        columns.append(column[:, None] == np.arange(first, first + width))
    return np.concatenate(columns, axis=1).astype(values.dtype)
