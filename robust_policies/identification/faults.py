"""What is wrong with the data, said before a model is made of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.signal import fftconvolve

from robust_policies.errors import InvalidValueError
from robust_policies.identification.reading import stacked
from robust_policies.identification.records import Array, Split

REPEATS = 0.999
"""Correlation above which a record repeats another."""
_FEWEST = 16


def check_split(split: Split, inputs: Sequence[str], outputs: Sequence[str], burn_in: int) -> list[str]:
    """Return warnings about the parts of the data, one line each.

    Raises:
        InvalidValueError: a channel is constant in the training, or a piece is too short for the burn-in.
    """
    for part, names in (("inputs", inputs), ("outputs", outputs)):
        values = stacked(split.train, part)
        for name, column in zip(names, values.T, strict=True):
            if not np.ptp(column) > 1e-12 * max(1e-300, float(np.abs(column).max())):
                raise InvalidValueError(
                    f"Column {name!r} is constant ({column[0]:g}) in the training data, so nothing can be learnt from "
                    "it; leave it out, or train on a record in which it moves."
                )
    for name, pieces in split.parts().items():
        for one in pieces:
            if len(one) < burn_in + _FEWEST:
                lower = "lower algorithm.burn_in, or " if burn_in > 1 else ""
                raise InvalidValueError(
                    f"{one.label} of the {name} has {len(one)} samples and the burn-in is {burn_in}; expected at least "
                    f"{burn_in + _FEWEST}: {lower}give longer pieces."
                )
    return [*_constant(split, inputs, outputs), *_repeated(split)]


def _constant(split: Split, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    found = []
    for part in ("validation", "test"):
        for one in split.parts()[part]:
            columns = zip((*inputs, *outputs), (*one.inputs.T, *one.outputs.T), strict=True)
            still = [name for name, column in columns if not np.ptp(column)]
            if still:
                found.append(f"{one.label} of the {part}: {', '.join(still)} constant.")
    return found


def _repeated(split: Split) -> list[str]:
    found = []
    for part in ("validation", "test"):
        for one in split.parts()[part]:
            for other in split.train:
                likeness = repetition(one.inputs, other.inputs)
                if likeness > REPEATS:
                    found.append(
                        f"{one.label} of the {part} repeats the input of {other.label}, which is trained on "
                        f"(correlation {likeness:.6f}): its error is of a repeated measurement, not of a new input."
                    )
    return found


def repetition(one: Array, other: Array) -> float:
    """Return the largest correlation of the shorter of two signals (time, nu) with a part of the longer.

    Means are taken out, of the longer one over each part; channels, each in units of its deviation, are taken together.
    """
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    size = long.std(0)
    keep = size > 0
    if not keep.any():
        return 0.0
    short, long = short[:, keep] / size[keep], long[:, keep] / size[keep]
    count, centred = len(short), short - short.mean(0)
    norm = float((centred**2).sum())
    if norm <= 1e-12 * count:
        return 0.0
    products = sum(fftconvolve(b, a[::-1], mode="valid") for a, b in zip(centred.T, long.T, strict=True))
    sums = np.concatenate((np.zeros((1, long.shape[1])), np.cumsum(long, 0)))
    squares = np.concatenate((np.zeros((1, long.shape[1])), np.cumsum(long**2, 0)))
    means = (sums[count:] - sums[:-count]) / count
    energy = ((squares[count:] - squares[:-count]) - count * means**2).sum(1)
    # A part that hardly moves correlates with anything by rounding alone.
    steady = energy <= 1e-9 * count
    return float(np.where(steady, 0.0, products / np.sqrt(np.where(steady, 1.0, energy) * norm)).max())
