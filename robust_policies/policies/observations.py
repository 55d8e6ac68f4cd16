"""Observation spaces as flat vectors, the one place: what a policy reads, in which order.

A Box is read in C order, a choice (Discrete, each of MultiDiscrete) one-hot, a bit of MultiBinary as 0 or 1; the parts
of a Dict follow one another in the order of its keys. This is what Stable-Baselines3's CombinedExtractor does, and
Gymnasium's `spaces.flatten`. Gymnasium sorts the keys of a Dict that is made of a plain dict, and of no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError

READABLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def parts_of(space: spaces.Space) -> list[tuple[str, spaces.Space]]:
    """Return (key, space) of what a flat observation is made of, in order; ("", space) alone if it is no Dict.

    Raises:
        InvalidValueError: it holds what has no flat form; the message says what and why.
    """
    if not isinstance(space, spaces.Dict):
        if not isinstance(space, READABLE):
            raise InvalidValueError(
                f"The observation space is a {type(space).__name__}; expected a Box, Discrete, MultiDiscrete, "
                "MultiBinary, or a Dict of these."
            )
        _flat_shape("The observation space", space)
        return [("", space)]
    parts = list(space.spaces.items())
    for key, part in parts:
        if not isinstance(part, READABLE):
            raise InvalidValueError(
                f"Entry {key!r} of the observations is a {type(part).__name__}; expected a Box, Discrete, "
                "MultiDiscrete or MultiBinary: flatten what is nested."
            )
        if is_image(part):
            raise InvalidValueError(
                f"Entry {key!r} of the observations is an image of shape {part.shape}, which has no flat form: no gain "
                "of a cell is about pixels. Remove it, or train with RecurrentCellMultiInputPolicy and keep its zip."
            )
        _flat_shape(f"Entry {key!r} of the observations", part)
    if not parts or not all(isinstance(key, str) for key, _ in parts):
        raise InvalidValueError("The observations are a Dict without entries or with keys that are no text.")
    return parts


def is_image(space: spaces.Space) -> bool:
    """Return whether Stable-Baselines3 takes a space for an image: 3 axes of bytes from 0 to 255."""
    pixels = isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8
    return pixels and bool((space.low == 0).all() and (space.high == 255).all())  # type: ignore[attr-defined]


def flat_size(space: spaces.Space) -> int:
    """Return nu, how many numbers a flat observation has; raises InvalidValueError."""
    return sum(_width(part) for _, part in parts_of(space))


def flat_box(space: spaces.Space) -> spaces.Box:
    """Return the Box (nu,) float32 of flat observations; raises InvalidValueError."""
    lows, highs = [], []
    for _, part in parts_of(space):
        box = isinstance(part, spaces.Box)
        lows.append(part.low.flatten() if box else np.zeros(_width(part)))  # type: ignore[attr-defined]
        highs.append(part.high.flatten() if box else np.ones(_width(part)))  # type: ignore[attr-defined]
    low, high = (np.concatenate(values).astype(np.float32) for values in (lows, highs))
    return spaces.Box(low, high, dtype=np.float32)


def flat_names(space: spaces.Space) -> list[str]:
    """Return a name for each number of a flat observation: "levels[0]", or "floor=2" for a choice."""
    names: list[str] = []
    for key, part in parts_of(space):
        name = key or "observation"
        if not isinstance(part, spaces.Discrete | spaces.MultiDiscrete):
            count = _width(part)
            names += [name] if key and part.shape == () else [f"{name}[{i}]" for i in range(count)]
            continue
        for i, (start, width) in enumerate(zip(*choices_of(part), strict=True)):
            which = name if isinstance(part, spaces.Discrete) else f"{name}[{i}]"
            names += [f"{which}={start + k}" for k in range(width)]
    return names


def measured(space: spaces.Space) -> np.ndarray:
    """Return which numbers of a flat observation are measured (nu,) bool: a choice is not off by a little."""
    parts = parts_of(space)
    return np.concatenate([np.full(_width(part), isinstance(part, spaces.Box)) for _, part in parts])


def choices_of(space: spaces.Space) -> tuple[list[int], list[int]]:
    """Return the first value and the number of values of each choice in a Discrete or MultiDiscrete."""
    if isinstance(space, spaces.Discrete):
        return [int(space.start)], [int(space.n)]
    assert isinstance(space, spaces.MultiDiscrete)
    return [int(n) for n in np.ravel(space.start)], [int(n) for n in np.ravel(space.nvec)]


def encode(space: spaces.Space, observations: Any, *, precise: bool = False) -> Tensor:
    """Return flat observations (batch, nu) float32 of a batch as an environment gives it, a mapping for a Dict.

    With `precise` they are float64 if some of the numbers are: what is far from zero keeps its digits.

    Raises:
        InvalidValueError: a choice is none of the space's.
    """
    if isinstance(space, spaces.Dict):
        return torch.cat([encode(part, observations[key], precise=precise) for key, part in parts_of(space)], dim=-1)
    values = torch.as_tensor(observations)
    values = values.reshape(len(values), -1)
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return values if precise and values.dtype == torch.float64 else values.to(torch.float32)
    firsts, widths = choices_of(space)
    columns = []
    for column, first, width in zip(values.unbind(-1), firsts, widths, strict=True):
        wrong = (column < first) | (column >= first + width) | (column != column.round())
        if bool(wrong.any()):
            raise InvalidValueError(
                f"An observation is {column[wrong][0].item():g}; expected a whole number {first} to "
                f"{first + width - 1}."
            )
        columns.append(torch.nn.functional.one_hot(column.long() - first, width))
    return torch.cat(columns, dim=-1).to(torch.float32)


def read(space: spaces.Space, observation: Any, dtype: Any = np.float32) -> tuple[np.ndarray, bool]:
    """Return one observation or a batch as flat ones (batch, nu), and whether there was only one.

    Their dtype is `dtype`; None: float32 where they are given so (choices too), else float64.

    Raises:
        ShapeError, NonFiniteError, InvalidValueError: it is none of the space; the message says why.
    """
    if not isinstance(space, spaces.Dict):
        return _read_part("The observation", space, observation, dtype)
    keys = [key for key, _ in parts_of(space)]
    if not isinstance(observation, Mapping) or set(observation) != set(keys):
        given = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
        raise ShapeError(f"The observation is {given}; expected a mapping with {', '.join(keys)}.")
    found = [_read_part(f"Entry {key!r}", part, observation[key], dtype) for key, part in parts_of(space)]
    if len({(len(array), single) for array, single in found}) > 1:
        raise ShapeError(f"The entries {', '.join(keys)} are not of equally many observations; expected one batch.")
    return np.concatenate([array for array, _ in found], axis=1), found[0][1]


def alone(observation: Any) -> Any:
    """Return a batch that holds one observation."""
    if isinstance(observation, Mapping):
        return {key: alone(value) for key, value in observation.items()}
    return np.asarray(observation)[None]


def _read_part(name: str, space: spaces.Space, observation: Any, dtype: Any) -> tuple[np.ndarray, bool]:
    shape = space.shape or ()
    try:
        array = np.asarray(observation)
        if dtype is None and not isinstance(space, spaces.Box):
            dtype = np.float32
        wide = dtype is None and array.dtype != np.float32
        array = array.astype(np.float64 if wide else dtype or np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name} is not an array of numbers of shape {shape} ({error}).") from error
    if array.shape != shape and (array.shape[1:] != shape or array.ndim != len(shape) + 1 or array.shape[0] == 0):
        raise ShapeError(f"{name} has shape {array.shape}; expected {shape}, or (n, ...) of it for a batch.")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name} holds NaN or infinite values: {array.tolist()}; expected finite numbers.")
    single = array.shape == shape
    array = array.reshape(1 if single else array.shape[0], -1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        array = encode(space, array).numpy().astype(array.dtype)
    return array, single


def _width(space: spaces.Space) -> int:
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return sum(choices_of(space)[1])
    return int(np.prod(space.shape or ()))


def _flat_shape(what: str, space: spaces.Space) -> None:
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary) and len(space.shape) != 1:
        raise InvalidValueError(f"{what} is {type(space).__name__} of shape {space.shape}; expected one axis.")
