"""Weights for a design where none are given: the task's own cost and noise, else what its ranges suggest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robust_policies.control.linear_model import LinearModel
from robust_policies.control.riccati import UNREACHED, pbh_margin

Array = np.ndarray

SEEN = 1e-6
GIVEN = "given"


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a design, and where each is from; printed, it shows them."""

    Q: Array
    R: Array
    W: Array
    V: Array
    sources: dict[str, str]

    def __str__(self) -> str:
        return "\n".join(f"  {name} = {_shown(getattr(self, name))}: {self.sources[name]}" for name in "QRWV")


def choose(
    model: LinearModel, Q: Array | None = None, R: Array | None = None, W: Array | None = None, V: Array | None = None
) -> Weights:
    """Return the given weights Q (n, n), R (m, m), W (n, n) and V (p, p), and for the others the defaults.

    In this order: the task's own cost or noise; Bryson's rule, 1 / range^2 for each state and input; a process noise
    of a tenth of the inputs' range where they enter plus a thousandth of the states' range, a measurement noise of a
    hundredth of what the outputs show of that range. Where the task's own leave a mode that does not decay without
    weight or noise, or an input or output without any, a thousandth of the rule is added.
    """
    states = np.ones(model.n) if model.state_range is None else model.state_range
    inputs = _input_range(model)
    outputs = np.sqrt((model.C**2) @ states**2)
    # An output that shows nothing to first order (a cosine) is not for that one without noise.
    outputs = np.maximum(outputs, 0.01 * np.median(outputs[outputs > 0]) if outputs.any() else 1.0)
    bryson_q, bryson_r = np.diag(states**-2.0), np.diag(inputs**-2.0)
    driven = (model.B * (0.1 * inputs)) @ (model.B * (0.1 * inputs)).T + np.diag((1e-3 * states) ** 2)
    rule = "1 / range^2 (Bryson's rule)"
    chosen = {
        "Q": _state_weight(model.A.T, Q, model.Q, bryson_q, "the task's cost", rule),
        "R": _positive(R, model.R if Q is not None or _some(model.Q) else None, bryson_r, "the task's cost", rule),
        "W": _state_weight(
            model.A, W, model.W, driven, "the task's noise", "a tenth of the inputs' range, a thousandth of the states'"
        ),
        "V": _positive(
            V, model.V, np.diag((1e-2 * outputs) ** 2), "the task's noise", "a hundredth of the outputs' range"
        ),
    }
    weights = {name: weight for name, (weight, _) in chosen.items()}
    return Weights(**weights, sources={name: source for name, (_, source) in chosen.items()})


def _input_range(model: LinearModel) -> Array:
    """Return how far each input can go from its equilibrium both ways; 1 where nothing bounds it."""
    reach = np.minimum(model.action_high - model.u0, model.u0 - model.action_low)
    return np.where(np.isfinite(reach) & (reach > 0), reach, 1.0)


def _some(weight: Array | None) -> bool:
    return weight is not None and bool(np.any(weight))


def _state_weight(
    A: Array, given: Array | None, own: Array | None, rule: Array, source: str, rule_source: str
) -> tuple[Array, str]:
    """Return Q, or for the dual problem W (A for A'), and where it is from."""
    if given is not None:
        return given, GIVEN
    if own is None or not np.any(own):
        return rule, rule_source
    values, vectors = np.linalg.eigh(own)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    if pbh_margin(A, root)[0] >= SEEN:
        return own, source
    return own + 1e-3 * rule * _ratio(own, rule), f"{source}, plus what sees every mode: 0.001 of {rule_source}"


def _positive(given: Array | None, own: Array | None, rule: Array, source: str, rule_source: str) -> tuple[Array, str]:
    """Return R or V, and where it is from."""
    if given is not None:
        return given, GIVEN
    if own is None or not np.any(own):
        return rule, rule_source
    values = np.linalg.eigvalsh(own)
    if values[0] > UNREACHED * values[-1]:
        return own, source
    return own + 1e-3 * rule * _ratio(own, rule), f"{source}, plus 0.001 of {rule_source}"


def _ratio(own: Array, rule: Array) -> float:
    """Return the factor that makes `rule` as large as `own` where `own` weighs something."""
    values, vectors = np.linalg.eigh(own)
    top = vectors[:, -1]
    return float(values[-1] / (top @ rule @ top))


def _shown(weight: Array) -> str:
    diagonal = np.diag(weight)
    beside = np.abs(weight - np.diag(diagonal)).max()
    coupled = f" and up to {beside:.3g} beside the diagonal" if beside > 1e-12 * np.abs(diagonal).max() else ""
    return f"diag({', '.join(f'{number:.4g}' for number in diagonal)}){coupled}"
