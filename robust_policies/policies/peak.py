"""What errors of bounded size at every step can do to each action at any step, for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from robust_policies.certificates import positive
from robust_policies.certificates.lmi import Matrices
from robust_policies.certificates.peak import METHOD, METHOD_MEMORYLESS, peak_bounds
from robust_policies.certificates.verify import running_neurons, running_rows
from robust_policies.control.bounded import between
from robust_policies.errors import NotCertifiableError
from robust_policies.networks import Cell
from robust_policies.networks.once import once
from robust_policies.policies.actor import Actor
from robust_policies.policies.certify import UP, scales_of
from robust_policies.policies.window import WindowCell

_WINDOWED = "each observation of a window counts once"
# By how much another proof must be better to be named, relative: two that end alike may differ by rounding.
_BETTER = 1e-4


def action_peaks(actor: Actor, units: np.ndarray) -> tuple[np.ndarray, str] | None:
    """Return how far each mean action (na,) may differ at any step, and the method's name; None without a proof.

    Args:
        actor: its mean action is judged, before it is clipped.
        units: (nu,) how far each observation may differ at every step, > 0.

    A frozen normalizer and the observation scale divide channel by channel, a clip and tanh have a slope of at most 1,
    and the head and the action scale are part of the inequality. In a window an observation is read again and again,
    but always differs by its unit at most: it counts once.
    """
    reach = units / scales_of(actor).unit * UP * UP
    folded, cell, windowed = actor.folded(), actor.cell, ""
    if isinstance(cell, WindowCell):
        features = _least(cell.inner, reach, lambda model: model)
        if features is None:
            return None
        # A feature that is constant has a unit too, one that matters to nothing.
        reach = np.maximum(features[0], 1e-9 * max(float(features[0].max()), 1e-9))
        cell, windowed = cell.perceptron, f"; {_WINDOWED}"
    found = _least(cell, reach, lambda model: between(model, np.eye(len(reach)), folded.outward))
    if found is None:
        return None
    bounds, method = found
    return bounds, (METHOD if windowed else method) + windowed


def _least(cell: Cell, reach: np.ndarray, around: Callable[[Matrices], Matrices]) -> tuple[np.ndarray, str] | None:
    """Return the least bound of each output of a cell with what is `around` it, and the names of the proofs."""
    found: list[tuple[np.ndarray, str]] = []
    rows = running_rows(cell)
    if rows is not None:
        bounds = positive.peaks(positive.positive_system(around(rows.model), rows.block_size), reach)
        found += [] if bounds is None else [(bounds, positive.METHOD)]
    neurons = running_neurons(cell)
    if neurons is not None:
        bounds = peak_bounds(neurons.mapped(around), reach, metric_of(cell, rows))
        found += [] if bounds is None else [(bounds, METHOD if neurons.model.A.size else METHOD_MEMORYLESS)]
    if not found:
        return None
    (best, _), *others = found
    used = {found[0][1]}
    for bounds, method in others:
        better = bounds < best * (1 - _BETTER)
        used = (used if (~better).any() else set()) | ({method} if better.any() else set())
        best = np.where(better, bounds, best)
    return best, "; ".join(method for _, method in found if method in used)


def metric_of(cell: Cell, rows: Any) -> np.ndarray | None:
    """Return a metric (nx, nx) in which a cell contracts, None of one without."""
    if rows is not None:
        hints = rows.hints()
        return None if hints is None else hints[0]
    if getattr(cell, "guarantee", None) is None or not hasattr(cell, "metric"):
        return None
    try:
        metric = once(cell, "metric").detach().cpu().double().numpy()
    except NotCertifiableError:
        return None
    return metric if np.isfinite(metric).all() else None
