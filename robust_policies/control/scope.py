"""For what plant, and where, that which is proven of a linear model says something: its scope.

The Jacobian (n, n + m) of the plant's step is bounded entry by entry over a box of states about the equilibrium and
all inputs that the actuators allow. The mean value theorem makes each entry that varies a scalar residual of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from robust_policies.certificates.lmi import Array
from robust_policies.control.enclosure import enclosed_jacobian
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.linearize import StepPlant
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.residual import Kind, Residual, ResidualGain
from robust_policies.control.small_gain import allowed_gain
from robust_policies.errors import InvalidValueError

SAMPLES = 4096
CELLS = 4096
_UNKNOWN: dict[str, str] = {
    "unknown": "nothing but the linear model is known of it",
    "unstated": "no region is stated in which its nonlinearity is to be bounded (youla.region)",
    "outputs": "its outputs are not linear in the state",
    "states": "the linear model leaves out some of its states",
    "switching": "contacts and friction switch, so that no finite residual gain exists and its returns are empirical "
    "only",
}


@dataclass(frozen=True, eq=False)
class Scope:
    """What is known of the plant beside its linear model.

    `kind` is "linear" where the plant is the model, the kind of a residual's gain where the entries of the Jacobian
    are bounded by `lower` and `upper` (n, n + m) in the region, and otherwise why nothing is known.
    """

    kind: str = "unknown"
    lower: Array | None = None
    upper: Array | None = None

    def residual(self, model: LinearModel, region: Sequence[float]) -> Residual | None:
        """Return a scalar channel for every entry of the Jacobian that is not the model's, None without bounds."""
        if self.lower is None or self.upper is None:
            return None
        n, J = model.n, np.hstack((model.A, model.B))
        distance = np.maximum(np.abs(self.upper - J), np.abs(self.lower - J)) * (1.0 + 1e-12)
        rows, columns = np.nonzero(distance)
        select = np.eye(J.shape[1])[columns]
        kind = cast(Kind, self.kind)
        where = words(model, region)
        gains = tuple(ResidualGain(float(value), kind, where) for value in distance[rows, columns])
        return Residual(np.eye(n)[:, rows], select[:, :n], select[:, n:], gains)

    def claim(
        self,
        model: LinearModel,
        design: LQGDesign,
        region: Sequence[float],
        gain: float | None,
        scales: tuple[Array, Array],
    ) -> str:
        """Return what holds of the plant itself, with a Youla parameter of gain `gain` between normalised signals."""
        if self.kind == "linear":
            return "The plant is this linear model, so this holds everywhere."
        residual = self.residual(model, region)
        if residual is None:
            return f"Of the plant itself nothing is proven: {_UNKNOWN.get(self.kind, self.kind)}."
        if not residual.gains:
            return f"In the region {words(model, region)} the plant is this linear model."
        if gain is None:
            return "Of the nonlinear plant nothing is proven: the Youla parameter has no known gain."
        try:
            return allowed_gain(model, design, residual, scales).claim(gain)
        except InvalidValueError as error:
            return f"Of the nonlinear plant nothing is proven: {error}"


def words(model: LinearModel, region: Sequence[float]) -> str:
    """Return a region of states in words, such as '|angle [rad]| <= 0.1'."""
    parts = []
    for name, centre, width in zip(model.state_names, model.x0, region, strict=True):
        shifted = f"{name} - {centre:g}" if centre else name
        parts.append(f"|{shifted}| <= {width:g}")
    return ", ".join(parts)


def scope_of(plant: StepPlant | None, model: LinearModel, region: Sequence[float]) -> Scope:
    """Return what is known of a plant, at its nominal parameters, in a region of half widths about the equilibrium.

    The Jacobian's bounds are those of interval arithmetic through the plant's own step where its operations are known
    to it, else the extremes of 4,096 samples and are called so.
    """
    if model.exact:
        return Scope("linear")
    if plant is None:
        return Scope("unknown")
    if not getattr(plant, "differentiable", True):
        return Scope("switching")
    if not region:
        return Scope("unstated")
    if (n := plant.state_size) != model.n:
        return Scope("states")
    low = np.concatenate((model.x0 - region, plant.action_low))
    high = np.concatenate((model.x0 + region, plant.action_high))
    if not np.isfinite((low, high)).all():
        return Scope("unstated")
    points = _points(low, high)
    params = plant.prepare(plant.nominal())
    observed = _jacobians(lambda z: plant.observe(z[:, :n], params), points)
    if np.abs(observed - observed[:1]).max() > 1e-12:
        return Scope("outputs")
    found = _jacobians(lambda z: plant.advance(z[:, :n], z[:, n:], params), points)
    sampled = found.min(0), found.max(0)
    enclosed = _enclosed(plant, params, low, high, _cells(lambda z: plant.advance(z[:, :n], z[:, n:], params), points))
    if enclosed is None:
        return Scope("sampled", *sampled)
    return Scope("interval", *enclosed)


def enclosed_plant(plant: StepPlant, low: Array, high: Array) -> tuple[Array, Array] | None:
    """Return bounds (n + p, n + m) of the Jacobian of (next state, observation), rounding included, None without.

    `low` and `high` (n + m,) are corners of a box of states and actions, in which the plant clips nothing; nothing is
    known where it does, or where an operation of the plant is not known to the interval arithmetic.
    """
    n, params, points = plant.state_size, plant.prepare(plant.nominal()), _points(low, high)

    def advance(x: Any, u: Any) -> Any:
        return plant.advance(x, u, params)

    def observe(x: Any, u: Any) -> Any:
        return plant.observe(x, params)

    found = [
        enclosed_jacobian(function, n, low, high, _cells(lambda z, f=function: f(z[:, :n], z[:, n:]), points))
        for function in (advance, observe)
    ]
    if found[0] is None or found[1] is None:
        return None
    return np.vstack((found[0][0], found[1][0])), np.vstack((found[0][1], found[1][1]))


def _enclosed(plant: StepPlant, params: Any, low: Array, high: Array, cells: list[int]) -> tuple[Array, Array] | None:
    """Return the step's Jacobian bounds by interval arithmetic, None where it or linear outputs cannot be shown."""
    n = plant.state_size
    observed = enclosed_jacobian(lambda x, u: plant.observe(x, params), n, low, high, [1] * len(low))
    if observed is None or np.abs(observed[1] - observed[0]).max() > 1e-12:
        return None
    return enclosed_jacobian(lambda x, u: plant.advance(x, u, params), n, low, high, cells)


def _cells(function: Any, points: torch.Tensor) -> list[int]:
    """Return into how many cells each side of the box is cut: one where the Jacobian does not depend on it."""
    some = points[: 64 + SAMPLES // 2][-128:]
    before = _jacobians(function, some)
    matters = []
    for column in range(some.shape[1]):
        moved = some.clone()
        moved[:, column] = some[:, column].roll(1)
        matters.append(bool(np.abs(_jacobians(function, moved) - before).max() > 0))
    count = int(CELLS ** (1.0 / max(sum(matters), 1)))
    return [count if matter else 1 for matter in matters]


def _points(low: Array, high: Array) -> torch.Tensor:
    """Return random points in the box, within the actuators' limits, where clipping would hide the input's effect."""
    drawn = np.random.default_rng(0).uniform(0.0, 1.0, (SAMPLES, len(low)))
    corner = drawn[: SAMPLES // 2] > 0.5
    drawn[: SAMPLES // 2] = np.where(corner, 1.0 - 1e-9, 1e-9)
    return torch.as_tensor(low + drawn * (high - low))


def _jacobians(function: Any, points: torch.Tensor) -> Array:
    """Return the Jacobians (points, k, d) of a function of rows (points, d) -> (points, k)."""
    at = points.clone().requires_grad_(True)
    outputs = function(at)
    rows = [
        torch.autograd.grad(column.sum(), at, retain_graph=True, allow_unused=True)[0] for column in outputs.unbind(-1)
    ]
    return torch.stack([torch.zeros_like(at) if row is None else row for row in rows], 1).numpy()
