"""Words that several certificates share."""

from __future__ import annotations

import math
from typing import Any

from robust_policies.files import numbers

OVER_ALL = "summed over all time steps and channels"
STEPS = 200
"""How long the disturbance of a worked example lasts."""


def is_peak(entry: Any) -> bool:
    """Return whether this is the entry `peak` of a certificate: units, gamma and method, and what a search adds."""
    names = set(entry) if isinstance(entry, dict) else set()
    if not {"units", "gamma", "method"} <= names <= {"units", "gamma", "method", "found", "witness"}:
        return False
    lists = [entry["units"], entry["gamma"], entry.get("found", entry["gamma"])]
    return (
        isinstance(entry["method"], str)
        and all(isinstance(numbers, list) for numbers in lists)
        and len(lists[1]) == len(lists[2])
        and all(type(number) in (int, float) and math.isfinite(number) and number >= 0 for n in lists for number in n)
    )


def forgetting(certificate: Any, what: str) -> str:
    """Return how fast `what` (two states, trajectories) come together, for a certificate with a rate."""
    if certificate.rate >= 1:
        return f"{what} never move apart in the certificate's metric (they need not approach each other)"
    over = "" if certificate.overshoot is None else f" {numbers.upper(certificate.overshoot)} *"
    said = f"{what} approach each other like{over} {numbers.rate(certificate.rate)}^t times their first distance"
    if certificate.forgets is None:
        return said
    entry = certificate.forgets
    return f"{said}: {entry['percent']:g}% of a difference is forgotten within {entry['steps']} steps"
