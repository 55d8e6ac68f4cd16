"""The sentences of a certificate: what holds, in words and numbers that a reader can check, and what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from robust_policies.certificates.loop import loop_claim
from robust_policies.certificates.phrases import OVER_ALL, STEPS, forgetting
from robust_policies.certificates.signals import LOGITS, MEAN_ACTIONS, RAW, Signals
from robust_policies.files import numbers

ERROR = 0.1
"""The error on every sensor of the worked example."""

_NAMED = 6
_WHOLE = 100.0


def claim(certificate: Any) -> str:
    """Return some sentences that say what holds for the policy of a `Certificate` and what does not."""
    gamma, reason = certificate.gamma_raw, certificate.reason
    if certificate.status == "VIOLATED":
        bound = "the claimed bound" if gamma is None else f"the claimed gain {numbers.shown(gamma, 9)}"
        return f"Refuted: {reason or f'a float64 search found inputs above {bound}'}, which is above {bound}."
    if certificate.status != "PASS":
        why = reason or "the check did not succeed"
        return f"Nothing is proven: {why}. This does not mean that the policy is unstable."
    if certificate.closed_loop is not None:
        return loop_claim(certificate)
    signals: Signals | None = certificate.signals
    reads, gives = (RAW, MEAN_ACTIONS) if signals is None else (signals.reads, signals.gives)
    parts = []
    if gamma == 0:
        parts.append(f"the {gives} are constant: they are the same whatever the policy observes")
    elif gamma is not None:
        parts.append(_gain(certificate, gamma, reads, gives))
        if certificate.choices is not None:
            parts.append(_choice(certificate.choices, gamma, reads))
    if certificate.rate is not None:
        parts.append(
            forgetting(certificate, "under the same observations, the states of two copies started differently")
        )
    example = "" if gamma is None or gamma == 0 or signals is None else f" {_example(gamma, signals)}"
    how = f" ({certificate.method})" if certificate.method else ""
    peak = "" if certificate.peak is None or signals is None else f" {_peak(certificate.peak, signals)}"
    return (
        f"Proven for the arrays that run, in exact arithmetic{how}: {'; and '.join(parts)}.{example}{peak} "
        f"{_limits(gives)}"
    )


def _peak(peak: Mapping[str, Any], signals: Signals) -> str:
    """Return what errors of bounded size at every step can do to each action, in the units of both."""
    units, gamma = peak["units"], peak["gamma"]
    each = "a sensor" if signals.reads == RAW else "a number read"
    known = signals.sensors if len(signals.sensors) == len(units) else ()
    sizes = [f"{name} by {unit:g}" for name, unit in zip(known, units, strict=False)] or [f"{unit:g}" for unit in units]
    sizes = [units_of_one] if (units_of_one := _same(units)) and not known else sizes
    names = signals.actuators if len(signals.actuators) == len(gamma) else ()
    bounds = [f"{name} by {numbers.upper(bound)}" for name, bound in zip(names, gamma, strict=False)]
    bounds = bounds or [numbers.upper(bound) for bound in gamma]
    return (
        f"Every step, for ever ({peak['method']}): from equal internal states, if {each} differs at every step by at "
        f"most its unit ({_listed(sizes)}), each mean action differs at every step by at most: {_listed(bounds)}."
    )


def _same(units: Sequence[float]) -> str:
    return f"{units[0]:g} each" if len(set(units)) == 1 and len(units) > 1 else ""


def _gain(certificate: Any, gamma: float, reads: str, gives: str) -> str:
    said = (
        "for any two observation sequences and the same initial state, the l2 norm of the difference of the "
        f"{gives}, {OVER_ALL}, is at most {numbers.upper(gamma)} times the l2 norm of the difference of the {reads}, "
        "likewise"
    )
    if certificate.gamma_weighted is None:
        return said
    units = ", ".join(f"{weight:g}" for weight in certificate.weights or ())
    return f"{said} ({numbers.upper(certificate.gamma_weighted)} times, with the sensors in units of {units})"


def _choice(choices: Mapping[str, Any], gamma: float, reads: str) -> str:
    """Return how far observations must move before another choice is the most likely."""
    bits = choices["space"] == "MultiBinary"
    gap = "size of the smallest logit" if bits else "gap between the best and the second logit"
    gap += ", the least over all choices," if choices["space"] == "MultiDiscrete" else ""
    over = ", summed over all steps so far," if choices["memory"] else " at that step"
    return (
        f"before the choice at a step can change, the l2 norm of the difference of the {reads}{over} must be at least "
        f"the {gap} at that step divided by {numbers.upper(choices['divisor'] * gamma)}"
    )


def _example(gamma: float, signals: Signals) -> str:
    """Return the worked number: what an error on every sensor in some steps may do, as a norm and as a share."""
    norm = ERROR * math.sqrt(signals.inputs * STEPS)
    changed = gamma * norm
    one = changed / math.sqrt(signals.outputs * STEPS)
    # Behind a normaliser the numbers are no longer those of sensors, nor in their units.
    what = "sensor" if signals.reads == RAW else "number read"
    sensors = f"the {what}" if signals.inputs == 1 else f"each {what} ({signals.inputs} of them)"
    if signals.reads == RAW and signals.inputs > 1:
        sensors = f"each of the {signals.inputs} sensors"
    if signals.sensors:
        sensors += f" ({_listed(signals.sensors)})"
    said = (
        f"An error of {ERROR:g} on {sensors} in {STEPS} steps has the norm "
        f"{ERROR:g} * sqrt({signals.inputs} * {STEPS}) = {numbers.shown(norm)}, and the {signals.gives} "
        f"change by a norm of at most {numbers.upper(changed)}"
    )
    several = signals.outputs > 1
    if signals.gives != MEAN_ACTIONS:
        return f"{said}."
    who = "actuators" if several else "actuator"
    names = f" ({_listed(signals.actuators)})" if signals.actuators else ""
    said += f": over those steps at most {numbers.upper(one)} of the {who}{names}, root mean square"
    if not signals.ranges:
        return f"{said}."
    whole = math.sqrt(sum(width * width for width in signals.ranges) / signals.outputs)
    share = _WHOLE * one / whole if whole > 0 else math.inf
    ranges = "ranges" if several else "range"
    if share >= _WHOLE:
        return f"{said}, {numbers.upper(share)}% of the {ranges}: at this size of error the bound excludes nothing."
    return f"{said}, {numbers.upper(share)}% of the {ranges}."


def _limits(gives: str) -> str:
    if gives == LOGITS:
        return (
            "This is about the logits and the most likely choice only (exploration is not part of it) and about "
            "the policy alone, open loop: it does not bound the return or prove stability of the closed loop."
        )
    if gives != MEAN_ACTIONS:
        return f"This is about the {gives} alone: it bounds no action and no return and proves no stability."
    return (
        "This is about the mean action only (exploration noise is not part of it) and about "
        "the policy alone, open loop: it does not bound the return or prove stability of the closed loop."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
