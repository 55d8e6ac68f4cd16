"""Learning rates that fall, as a recipe writes them."""

from __future__ import annotations

import math
from typing import Any


def schedule(value: float | str) -> Any:
    """Return what Stable-Baselines3 takes for a positive number or `lin_NUMBER` (falling linearly to 0).

    Raises `ValueError` for anything else.
    """
    text = value.removeprefix("lin_") if isinstance(value, str) else value
    try:
        start = float(text)
    except ValueError:
        start = -1.0
    if not 0 < start < float("inf") or (isinstance(value, str) and not value.startswith("lin_")):
        raise ValueError("expected a number > 0, or lin_NUMBER (such as lin_1e-3) to fall linearly to 0")
    if isinstance(value, str):
        return lambda remaining: remaining * start
    return start


_DECAYS = ("lin", "cos", "drop")


_WHERE_DROPPED = 0.25


def rate_at(value: float | str, remaining: float) -> float:
    """Return a learning rate when the share `remaining` (1 to 0) of the training is left.

    A number is kept; lin_NUMBER falls linearly to 0, cos_NUMBER along half a cosine, and drop_NUMBER is a tenth of
    NUMBER in the last quarter. Raises `ValueError` for anything else.
    """
    kind, text = "", value
    if isinstance(value, str):
        kind, _, text = value.partition("_")
    try:
        start = float(text)
    except ValueError:
        start = -1.0
    if not 0 < start < float("inf") or (isinstance(value, str) and kind not in _DECAYS):
        raise ValueError("expected a number > 0, or lin_NUMBER, cos_NUMBER or drop_NUMBER (such as drop_5e-3)")
    if kind == "lin":
        return start * remaining
    if kind == "cos":
        return start * 0.5 * (1.0 - math.cos(math.pi * remaining))
    # A last update that begins exactly at the quarter must not depend on rounding.
    return start * (0.1 if kind == "drop" and remaining <= _WHERE_DROPPED + 1e-9 else 1.0)
