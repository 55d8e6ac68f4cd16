"""What errors of bounded size at every step can do to each action at any step, for ever."""

from __future__ import annotations

import numpy as np

from robust_policies.certificates.peak import METHOD, METHOD_MEMORYLESS, peak_bounds
from robust_policies.certificates.verify import running_neurons
from robust_policies.control.bounded import between
from robust_policies.networks import Cell
from robust_policies.policies.actor import Actor
from robust_policies.policies.certify import UP, scales_of
from robust_policies.policies.window import WindowCell

_WINDOWED = "each observation of a window counts once"


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
    folded, cell, method = actor.folded(), actor.cell, ""
    if isinstance(cell, WindowCell):
        features = _of_cell(cell.inner, reach)
        if features is None:
            return None
        # A feature that is constant has a unit too, one that matters to nothing.
        reach = np.maximum(features, 1e-9 * max(float(features.max()), 1e-9))
        cell, method = cell.perceptron, f"; {_WINDOWED}"
    neurons = running_neurons(cell)
    if neurons is None:
        return None
    whole = neurons.mapped(lambda model: between(model, np.eye(len(reach)), folded.outward))
    bounds = peak_bounds(whole, reach, _metric(cell))
    if bounds is None:
        return None
    return bounds, (METHOD if neurons.model.A.size or method else METHOD_MEMORYLESS) + method


def _of_cell(cell: Cell, reach: np.ndarray) -> np.ndarray | None:
    neurons = running_neurons(cell)
    return None if neurons is None else peak_bounds(neurons, reach, _metric(cell))


def _metric(cell: Cell) -> np.ndarray | None:
    """Return the metric (nx, nx) of a cell's guarantee, None of one without."""
    if getattr(cell, "guarantee", None) is None or not hasattr(cell, "metric"):
        return None
    metric = cell.metric().detach().cpu().double().numpy()
    return metric if np.isfinite(metric).all() else None
