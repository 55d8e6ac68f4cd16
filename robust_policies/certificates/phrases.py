"""Words that several certificates share."""

from __future__ import annotations

from typing import Any

from robust_policies.files import numbers

OVER_ALL = "summed over all time steps and channels"
STEPS = 200
"""How long the disturbance of a worked example lasts."""


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
