"""What is proven of a closed loop: plant, observer, state feedback and Youla parameter; and its sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from robust_policies.certificates.phrases import OVER_ALL, STEPS, forgetting
from robust_policies.files import numbers

NUMBERS = ("T0", "T1", "T2", "triangle", "scaled", "closed_loop", "neurons", "parameter_gain")
SAID = ("converges", "quantum", "plant", "saturation")
"""What the sentence is made of."""


def loop_claim(certificate: Any) -> str:
    """Return the sentences of a certificate whose `closed_loop` is not None and whose status is PASS.

    Args:
        certificate: a `Certificate`; its gamma_raw is the gain from disturbance to performance, its rate that of the
            loop's contraction (None: proven without a number).
    """
    loop: Mapping[str, Any] = certificate.closed_loop
    parts = []
    if certificate.gamma_raw is not None:
        parts.append(
            "for any two disturbances d = (process noise, measurement noise), in units of their square-rooted "
            "covariances, and the same initial state, the l2 norm of the difference of the performance "
            f"z = (Q^1/2 x, R^1/2 u), {OVER_ALL}, is at most {numbers.upper(certificate.gamma_raw)} times that of the "
            f"disturbances{_example(certificate.gamma_raw, loop.get('channels'))}"
        )
    if certificate.rate is not None and certificate.rate < 1:
        parts.append(forgetting(certificate, "under the same disturbance any two trajectories"))
    elif loop["converges"]:
        parts.append("under the same disturbance any two trajectories converge, a cascade of contracting parts")
    clipped = "while neither an input nor the Youla input is clipped"
    if loop["quantum"]:
        clipped += f", and but for the rounding of inputs to multiples of {loop['quantum']}"
    return (
        "Proven for the linear model of the closed loop (plant, observer, feedback and the arrays of the Youla "
        f"parameter that run), in exact arithmetic ({certificate.method}), {clipped}: {'; and '.join(parts)}. "
        f"{loop['plant']} {loop['saturation']} This is about the mean action only, and does not bound the return."
    )


def _example(gain: float, channels: Any) -> str:
    """Return the norm of one standard deviation on every channel for some steps, and what it may do."""
    if not isinstance(channels, int) or isinstance(channels, bool):
        return ""
    norm = math.sqrt(channels * STEPS)
    return (
        f" (one standard deviation on each of {channels} channels in {STEPS} steps has the norm "
        f"{numbers.shown(norm)}, and changes z by a norm of at most {numbers.upper(gain * norm)})"
    )
