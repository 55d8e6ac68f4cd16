"""A region about an equilibrium that a state feedback keeps a nonlinear plant in, whatever is added to its input.

For x+ = f(x, u0 - K (x - x0) + d) and |x|_P = sqrt((x - x0)'P (x - x0)), with J the Jacobian with respect to x and G
with respect to d anywhere in a box,

    |x+|_P  <=  al |x|_P + b |d|,     al = max |J|_P,  b = max |P^(1/2) G|     (mean value theorem),

so the ellipsoid |x|_P <= c in that box is invariant for |d| <= (1 - al) c / b. J and G are enclosed by interval
arithmetic on a grid of cells, in all of which no input may be clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch

from robust_policies.control.enclosure import Enclosure, UnknownOperationError, enclosed
from robust_policies.control.interval import Interval, Jet
from robust_policies.control.linear_model import Array, LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import radius
from robust_policies.errors import InvalidValueError, ShapeError

_UP = 1 + 1e-9
_CELLS = 4096


@dataclass(frozen=True, eq=False)
class Invariant:
    """{x : (x - x0)'P (x - x0) <= 1} is invariant under u = u0 - K (x - x0) + d for |d| <= admissible, |.| Euclidean.

    Attributes:
        P: (n, n).
        admissible: the largest |d|.
        rate: al, by which |x|_P shrinks a step without d.
        region: half widths (n,) of the box about x0 that the ellipsoid touches from within.
    """

    P: Array
    admissible: float
    rate: float
    region: tuple[float, ...]

    @property
    def claim(self) -> str:
        """The region in words."""
        return f"the ellipsoid of states within {', '.join(f'+-{half:g}' for half in self.region)} of the equilibrium"


def invariant_ellipsoid(plant: Any, model: LinearModel, design: LQGDesign, region: Sequence[float]) -> Invariant:
    """Return the largest ellipsoid of a Lyapunov function of A - B K within a box, and what input it tolerates.

    Args:
        plant: whose step is f.
        model: linear, of all of its states, with the equilibrium.
        design: whose K is the feedback.
        region: half widths (n,) about the equilibrium's state.

    Raises:
        ShapeError: the region does not fit. InvalidValueError: nothing is known of the plant there, an input is clipped
            in it, or the ellipsoid is not invariant even without d.
    """
    half = np.asarray(region, float)
    if half.shape != (model.n,) or model.n != plant.state_size or not (half > 0).all():
        raise ShapeError(f"region is {list(region)}; expected {plant.state_size} half widths > 0.")
    F = model.A - model.B @ design.K
    if not (rho := radius(F)) < 1:
        raise InvalidValueError(f"The feedback leaves A - B K a spectral radius of {rho:.6g}; expected one below 1.")
    scaled = np.diag(1.0 / half**2)
    P = scipy.linalg.solve_discrete_lyapunov((F / (0.5 * (1.0 + rho))).T, scaled)
    P = 0.5 * (P + P.T)
    # The box that {x'P x <= 1} touches has half widths sqrt((P^-1)_ii).
    reach = np.sqrt(np.diag(np.linalg.inv(P)))
    P = P * float((reach / half).max()) ** 2 * _UP
    inner = np.sqrt(np.diag(np.linalg.inv(P))) * _UP
    # |K x| over the ellipsoid; what is left of the actuators' range is the most that d may be.
    used = np.sqrt(np.einsum("ij,jk,ik->i", design.K, np.linalg.inv(P), design.K)) * _UP
    spare = float((np.minimum(plant.action_high - model.u0, model.u0 - plant.action_low) - used).min()) / _UP
    if not spare > 0:
        raise InvalidValueError("The feedback asks for more than the actuators can within this region; give less.")
    W = np.linalg.cholesky(P).T
    turned = np.linalg.inv(W)
    al, b = _slopes(plant, model, design, inner, spare, W, turned)
    left = 1.0 - al - _drift(plant, model, W)
    if not left > 0:
        raise InvalidValueError(f"|x|_P may grow by {al:.6g} in a step within this region; give a smaller one.")
    return Invariant(P, min(spare, left / b / _UP), al, tuple(half.tolist()))


def _drift(plant: Any, model: LinearModel, W: Array) -> float:
    """Return |f(x0, u0) - x0|_P, which is not exactly 0, with its rounding."""
    x, u = torch.as_tensor(model.x0)[None], torch.as_tensor(model.u0)[None]
    moved = (plant.advance(x, u, plant.prepare(plant.nominal())) - x)[0].numpy()
    return float(np.linalg.norm(W @ moved) + 1e-12 * (1.0 + np.linalg.norm(np.abs(W) @ np.abs(model.x0))))


def _within(u: Any, low: float, high: float) -> Enclosure:
    """Return an input cut to its limits, which it keeps on the ellipsoid: corners of the cells lie outside of it."""
    jet = u.jets[0]
    cut = Interval(np.clip(jet.value.low, low, high), np.clip(jet.value.high, low, high))
    return Enclosure([Jet(cut, jet.slopes)], True)


def _slopes(
    plant: Any, model: LinearModel, design: LQGDesign, half: Array, spare: float, W: Array, turned: Array
) -> tuple[float, float]:
    """Return bounds of |W J W^-1| and |W G| over the box of half widths `half` and |d_i| <= spare."""
    params, n, m = plant.prepare(plant.nominal()), model.n, model.m
    high = np.concatenate((model.x0 + half, np.full(m, spare)))
    low = np.concatenate((model.x0 - half, np.full(m, -spare)))
    count = max(1, round(_CELLS ** (1 / len(low))))
    axes = [np.linspace(a, c, count + 1) for a, c in zip(low, high, strict=True)]
    lower, upper = (
        np.stack([grid.ravel() for grid in np.meshgrid(*(axis[part] for axis in axes), indexing="ij")], -1)
        for part in (slice(None, -1), slice(1, None))
    )

    def closed(x: Any, d: Any) -> Any:
        inputs, columns = [], x.unbind(-1)
        for i, extra in enumerate(d.unbind(-1)):
            u = extra + float(model.u0[i])
            for j, column in enumerate(columns):
                u = u - (column - float(model.x0[j])) * float(design.K[i, j])
            inputs.append(_within(u, float(plant.action_low[i]), float(plant.action_high[i])))
        return plant.advance(x, torch.stack(inputs, -1), params)

    try:
        slopes = enclosed(closed, n, lower, upper)[1]
    except UnknownOperationError as error:
        raise InvalidValueError(
            f"Nothing is known of a {plant.kind} plant in this region by interval arithmetic ({error}); give less."
        ) from error
    middle, spread = 0.5 * (slopes.low + slopes.high), 0.5 * (slopes.high - slopes.low)
    J = np.linalg.norm(W @ middle[..., :n] @ turned, 2, axis=(1, 2)) + np.linalg.norm(
        np.abs(W) @ spread[..., :n] @ np.abs(turned), axis=(1, 2)
    )
    G = np.linalg.norm(W @ middle[..., n:], 2, axis=(1, 2)) + np.linalg.norm(np.abs(W) @ spread[..., n:], axis=(1, 2))
    return float(J.max()) * _UP, float(G.max()) * _UP
