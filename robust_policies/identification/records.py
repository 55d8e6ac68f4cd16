"""Measured records in memory: experiments with named channels, and pieces of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

Array = NDArray[np.float64]
_PIECE = re.compile(r"^(?P<name>[^\[\]]*)(\[(?P<start>\d*):(?P<stop>\d*)\])?$")


@dataclass(frozen=True, eq=False)
class Experiment:
    """One record without a gap.

    Attributes:
        name: what a split calls it.
        inputs: (time, nu) in the units of the file.
        outputs: (time, ny).
        start: index of its first sample in the record it was cut from.
    """

    name: str
    inputs: Array
    outputs: Array
    start: int = 0

    def __post_init__(self) -> None:
        if self.inputs.ndim != 2 or self.outputs.ndim != 2 or len(self.inputs) != len(self.outputs):
            raise ShapeError(
                f"Experiment {self.name!r} has inputs {self.inputs.shape} and outputs {self.outputs.shape}; expected "
                "(time, nu) and (time, ny)."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def piece(self, start: int, stop: int) -> Experiment:
        """Return the samples from `start` to below `stop`, counted from this record's first."""
        cut = slice(start, stop)
        return replace(self, inputs=self.inputs[cut], outputs=self.outputs[cut], start=self.start + start)

    @property
    def label(self) -> str:
        """Its name and where it begins and ends, as a split writes it."""
        return f"{self.name}[{self.start}:{self.start + len(self)}]"


@dataclass(frozen=True, eq=False)
class Split:
    """What is learnt from, what decides which model is kept, and what neither has seen."""

    train: tuple[Experiment, ...]
    validation: tuple[Experiment, ...]
    test: tuple[Experiment, ...]

    def parts(self) -> dict[str, tuple[Experiment, ...]]:
        """Return the three by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


SHARES = (0.7, 0.15, 0.15)
"""Of the experiments, or of each where there are fewer than three: training, validation, test."""


def split(experiments: Sequence[Experiment], named: Mapping[str, Sequence[str]]) -> Split:
    """Return experiments as training, validation and test.

    Args:
        experiments: all that were read.
        named: pieces of each part, "train", "validation" and "test": NAME, NAME[START:STOP], or [START:STOP] of the
            only record; all three empty: whole experiments by `SHARES` where there are three or more, else consecutive
            pieces of each. Where the validation is left out it is the last fifth of every piece of the training.

    Raises:
        UnknownNameError: a piece of an experiment that is not there.
        InvalidValueError: a piece is empty or overlaps another, or nothing is left to learn from.
    """
    given = {
        part: [_piece(text, experiments) for text in named.get(part, ())] for part in ("train", "validation", "test")
    }
    if not any(given.values()):
        return _by_shares(experiments)
    if not given["train"]:
        raise InvalidValueError("--validation or --test was given without --train; name what to learn from too.")
    _no_overlap(given)
    if not given["validation"]:
        cut = [
            (one.piece(0, len(one) - len(one) // 5), one.piece(len(one) - len(one) // 5, len(one)))
            for one in given["train"]
        ]
        given["train"], given["validation"] = [first for first, _ in cut], [last for _, last in cut]
    return Split(*(tuple(given[part]) for part in ("train", "validation", "test")))


def _piece(text: str, experiments: Sequence[Experiment]) -> Experiment:
    match = _PIECE.match(text.strip())
    if match is None:
        raise InvalidValueError(f"A piece of the data is {text!r}; expected NAME, NAME[START:STOP] or [START:STOP].")
    name, known = match["name"], {one.name: one for one in experiments}
    if not name and len(experiments) > 1:
        raise InvalidValueError(f"{text!r} names no experiment and there are {len(experiments)}; write NAME{text}.")
    if name and name not in known:
        raise UnknownNameError.among("experiment", name, known)
    whole = known[name] if name else experiments[0]
    start, stop = int(match["start"] or 0), min(int(match["stop"] or len(whole)), len(whole))
    if start >= stop:
        raise InvalidValueError(f"The piece {text!r} is empty: {whole.name!r} has {len(whole)} samples.")
    return whole.piece(start, stop)


def _no_overlap(given: Mapping[str, Sequence[Experiment]]) -> None:
    for one in given["train"]:
        for part in ("validation", "test"):
            for other in given[part]:
                apart = other.start >= one.start + len(one) or one.start >= other.start + len(other)
                if one.name == other.name and not apart:
                    raise InvalidValueError(
                        f"{other.label} of the {part} overlaps {one.label} of the training; give pieces that do not."
                    )


def _by_shares(experiments: Sequence[Experiment]) -> Split:
    count = len(experiments)
    if count >= 3:
        held = max(1, round(SHARES[2] * count))
        return Split(
            tuple(experiments[: count - 2 * held]),
            tuple(experiments[count - 2 * held : count - held]),
            tuple(experiments[count - held :]),
        )
    parts: tuple[list[Experiment], ...] = ([], [], [])
    for one in experiments:
        ends = [0, round(SHARES[0] * len(one)), round((SHARES[0] + SHARES[1]) * len(one)), len(one)]
        for part, start, stop in zip(parts, ends[:-1], ends[1:], strict=True):
            part.append(one.piece(start, stop))
    return Split(*map(tuple, parts))
