"""Numbers as a reader sees them, the same on every page and line: four digits, bounds rounded to their safe side."""

from __future__ import annotations

import math

DIGITS = 4


def shown(value: float, digits: int = DIGITS) -> str:
    """Return a number with `digits` significant digits, without powers of ten from 0.0001 to 1e9."""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text and abs(value) < 1e9 else text


def upper(value: float, digits: int = DIGITS) -> str:
    """Return an upper bound as a reader sees it, rounded up: what is printed is still a bound."""
    return shown(upward(value, digits), digits)


def lower(value: float, digits: int = DIGITS) -> str:
    """Return a limit, or what was found at least, rounded down."""
    return shown(downward(value, digits), digits)


def rate(value: float) -> str:
    """Return a rate of decay, rounded up so that its distance from 1 keeps four digits: 0.99999 is not 1."""
    if not 0.5 < value < 1:
        return upper(value)
    return f"{1 - downward(1 - value):.15g}"


def upward(value: float, digits: int = DIGITS) -> float:
    """Return `value` rounded up to `digits` significant digits, so that a printed bound is still a bound."""
    if value < 0:
        return -downward(-value, digits)
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit - 1e-9) * unit if abs(value / unit - round(value / unit)) > 1e-9 else value


def downward(value: float, digits: int = DIGITS) -> float:
    """Return `value` rounded down to `digits` significant digits, so that a printed limit is still a limit."""
    if value < 0:
        return -upward(-value, digits)
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.floor(value / unit + 1e-9) * unit
