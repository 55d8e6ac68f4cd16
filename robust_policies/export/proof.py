"""The certificate of what is exported: of exactly its constants, their rounding as they run included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from robust_policies.certificates import positive
from robust_policies.certificates.certificate import (
    Certificate,
    Factor,
    array_hashes,
    claim,
    forgotten,
    not_certified,
)
from robust_policies.certificates.decay import least_decay
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.neurons import METHOD, Neurons, least_by_neurons
from robust_policies.certificates.search import Search
from robust_policies.certificates.verify import ROUNDING_OF_SEARCHES, running_neurons
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.export.loop import loop_certificate
from robust_policies.export.neurons import neurons_of
from robust_policies.export.program import Program
from robust_policies.export.rounding import rounding_of
from robust_policies.export.window import window_certificate, window_rounding
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.peak import metric_of
from robust_policies.policies.window import WindowCell
from robust_policies.policies.youla.policy import YoulaPolicy
from robust_policies.runtime import RuntimePolicy

_SIZES = 10.0
"""Of a sensor without limits: so many of its scales to both sides are what rounding is bounded for."""
_LARGE = 1e6


def exported_certificate(
    program: Program, policy: DeployedPolicy, source: Certificate, limits: tuple[Array, Array], format: str
) -> Certificate:
    """Return what is proven of an exported program's constants, as `certify` says it of the run's arrays.

    Args:
        program: what is exported.
        policy: that it was made of.
        source: the certificate of that, whose signals are named.
        limits: low and high (nu,) of the observations for which rounding is bounded.
        format: in which it is written: C sums in the order that is written, ONNX has activations of its own.
    """
    try:
        found = _judged(program, policy, source)
    except (InvalidValueError, NotCertifiableError) as error:
        found = _nothing(str(error), source)
    rounding = _rounding(program, policy, limits, format)
    return replace(found, arrays_sha256=array_hashes(program.constants), rounding=rounding)


def _judged(program: Program, policy: DeployedPolicy, source: Certificate) -> Certificate:
    if isinstance(policy, YoulaPolicy):
        if source.status != "PASS" or source.closed_loop is None:
            raise NotCertifiableError(source.reason or "nothing is proven of the run's own loop")
        return loop_certificate(program, policy, source)
    if isinstance(policy.cell, WindowCell):
        return window_certificate(program, policy.cell, source)
    return _proven(program, _with_multipliers(neurons_of(program), policy), policy, source)


def _rounding(
    program: Program, policy: DeployedPolicy, limits: tuple[Array, Array], format: str
) -> dict[str, Any] | None:
    """Return the entry of the certificate: the bound of rounding, or why there is none."""
    absolute, ordered = format == "onnx", format == "c"
    try:
        if isinstance(policy.cell, WindowCell) and not isinstance(policy, YoulaPolicy):
            bound = window_rounding(program, policy.cell, *limits, absolute, ordered)
        else:
            neurons = _with_multipliers(neurons_of(program), policy)
            bound = rounding_of(program, neurons, *limits, absolute=absolute, ordered=ordered)
    except NotCertifiableError as error:
        return {"bound": None, "reason": f"no bound for all time, as contraction is not proven: {error}"}
    return bound.entry(program, absolute, ordered)


def _nothing(reason: str, source: Certificate) -> Certificate:
    """Return the certificate of exported constants of which nothing is proven; it says what is of the run's arrays."""
    of = "" if source.status != "PASS" else f" Of the run's own arrays, before they were exported: {source.claim}"
    found = not_certified(reason)
    return replace(found, claim=found.claim + of)


def limits_of(policy: RuntimePolicy, units: tuple[Array, Array]) -> tuple[Array, Array]:
    """Return the low and high (nu,) of flat observations: their space's, else `_SIZES` units about their centre."""
    ends, begin = [], 0
    for part in policy.observation_space.parts.values():
        centre, size = (unit[begin : begin + part.size] for unit in units)
        begin += part.size
        low, high = np.zeros(part.size), np.ones(part.size)
        if part.low is not None and part.high is not None:
            low, high = (bound.astype(np.float64).reshape(-1) for bound in (part.low, part.high))
            free = ~((np.abs(low) < _LARGE) & (np.abs(high) < _LARGE))
            low, high = (np.where(free, centre + sign * _SIZES * size, end) for sign, end in ((-1, low), (1, high)))
        ends.append((low, high))
    return np.concatenate([low for low, _ in ends]), np.concatenate([high for _, high in ends])


def units_of(policy: DeployedPolicy) -> tuple[Array, Array]:
    """Return the centre and the size (nu,) of each flat observation that a policy was scaled for."""
    actor = policy.actor
    if policy.kind == "youla_policy":
        return np.zeros(actor.cell.input_size), np.ones(actor.cell.input_size)
    folded = actor.folded()
    if actor.normalizer is not None:
        mean, std = (getattr(actor.normalizer, name).double().cpu().numpy() for name in ("mean", "std"))
        return mean + std * folded.offset, std * folded.scale
    return folded.offset, folded.scale


def _with_multipliers(neurons: Neurons, policy: DeployedPolicy) -> Neurons:
    """Return the system with the multipliers that its cell was made with, to start from."""
    rows = _rows(neurons, policy)
    hints = None if rows is None else rows.hints()
    if hints is not None:
        return neurons._replace(theta=hints[1])
    known = running_neurons(policy)
    fits = known is not None and known.theta.shape == neurons.theta.shape and bool(np.isfinite(known.theta).all())
    return neurons._replace(theta=known.theta) if known is not None and fits else neurons


def _proven(program: Program, neurons: Neurons, policy: DeployedPolicy, source: Certificate) -> Certificate:
    """Return the gain and the rate that are proven of the exported constants."""
    rows = _rows(neurons, policy)
    metric = metric_of(policy.cell, rows) if program.states else None
    # A policy whose gain has no meaning (choices of another space, gSDE) has none when it is exported either.
    if source.status != "PASS":
        raise NotCertifiableError(source.reason or "nothing is proven of the run's own arrays")
    search, gamma = Search(neurons.model, neurons.family, 1.0), None
    if not neurons.family.size and not program.states:
        gamma = float(np.linalg.norm(np.abs(neurons.model.D22) + _error(neurons))) * (1 + 1e-9)
    else:
        gamma = least_by_neurons(neurons, metric)
        start = np.zeros((0, 0)) if not program.states else metric
        if gamma is None and start is not None:
            gamma = search.least(start, neurons.theta)
    decay = least_decay(search, neurons.theta, [] if metric is None else [metric]) if program.states else None
    method, peak = METHOD, None
    if gamma is None and metric is None and decay is not None:
        gamma = least_by_neurons(neurons, decay.metric)
    if rows is not None:
        bound, slower = positive.gain(rows.system), positive.decay(rows.system)
        if bound is not None and (gamma is None or bound < gamma * (1 - ROUNDING_OF_SEARCHES)):
            gamma, method = bound, positive.METHOD
        if slower is not None and (decay is None or slower.rate < decay.rate):
            decay = slower
        peak = _peak(rows.system, source)
    if gamma is None and decay is None:
        raise NotCertifiableError("no metric was found with which the exported constants are proven")
    found = replace(
        source,
        **_UNPROVEN,
        gamma_core=None,
        gamma_raw=gamma,
        rate=None if decay is None else decay.rate,
        overshoot=None if decay is None else decay.overshoot,
        forgets=forgotten(None if decay is None else decay.steps),
        factors=() if gamma is None else (Factor("exported program", gamma, "its constants, in one inequality"),),
        method=method,
        peak=peak,
    )
    return replace(found, claim=claim(found))


def _rows(neurons: Neurons, policy: DeployedPolicy) -> positive.Rows | None:
    """Return a program as rows that bound its increments, None of a cell that is not made of such."""
    size = getattr(policy.cell, "block_size", None)
    if size is None or len(neurons.model.A) != policy.cell.state_size:
        return None
    return positive.rows_of(neurons.model, size)


def _peak(system: positive.Positive, source: Certificate) -> dict[str, Any] | None:
    """Return how far each action moves at most at any step, for the units of the run's own certificate."""
    bounds = None if source.peak is None else positive.peaks(system, np.asarray(source.peak["units"]))
    if source.peak is None or bounds is None:
        return None
    return {"units": source.peak["units"], "gamma": bounds.tolist(), "method": positive.METHOD}


_UNPROVEN: dict[str, Any] = dict.fromkeys(
    ("empirical_lower", "ratio", "witness", "margin", "weights", "gamma_weighted")
)


def _error(neurons: Neurons) -> Array:
    error = neurons.model.error
    return np.zeros_like(neurons.model.D22) if error is None else error.D22
