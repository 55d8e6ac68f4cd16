"""Whether what a file says is what was computed again, on this machine or another."""

from __future__ import annotations

import math
import re

SENTENCE = "the claim is not the sentence that these numbers make"
# Recomputed on another machine, sums may round differently.
TOLERANCE = 1e-6
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
# Four digits, rounded up or down.
_PRINTED = 1.1e-3


def same(given: float | None, again: float | None, tolerance: float = TOLERANCE) -> bool:
    """Return whether two numbers differ by rounding alone; None is the same as None only."""
    if given is None or again is None:
        return given is again
    # NumPy's isclose of two numbers takes as long as the product of two matrices.
    return given == again or (math.isfinite(again) and abs(given - again) <= tolerance * abs(again))


def same_words(given: str, again: str) -> bool:
    """Return whether two sentences are the same but for how many digits their numbers were rounded to."""
    if _NUMBER.sub("#", given) != _NUMBER.sub("#", again):
        return False
    pairs = zip(_NUMBER.findall(given), _NUMBER.findall(again), strict=True)
    return all(same(float(a), float(b), _PRINTED) for a, b in pairs)


def differs(name: str, given: object, again: object) -> str:
    """Return the line that says what of a file is not so."""
    return f"{name} is {given!r} in the file and {again!r} when computed again"
