"""How far a nonlinear plant is from its linear model: the residual's gain, and how it is known.

    x+ = A x + B u + Ep p + Bw w,   p = Delta(q),   q = Fx x + Fu u,   |Delta_i(q1) - Delta_i(q2)| <= delta_i |q1 - q2|

for q in a convex region, Delta(0) = 0. Everything that is said of the nonlinear plant rests on delta, so each delta
carries its kind into the sentences made from it:

    analytic   a formula's bound, stated by whoever derived it
    covering   the largest value on a grid plus a proven Lipschitz bound of the Jacobian times the covering radius
    interval   interval arithmetic through the dynamics
    sampled    the largest value among samples: a LOWER estimate, which proves nothing
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robust_policies import checks
from robust_policies.control.interval import Jet, jacobian_bounds
from robust_policies.control.norms import Array, norm2
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.files import numbers

Kind = Literal["analytic", "covering", "interval", "sampled"]
_HOW = {
    "analytic": "bounded analytically",
    "covering": "bounded by a grid and a Lipschitz bound between its points",
    "interval": "bounded by interval arithmetic",
    "sampled": "only sampled, a lower estimate",
}


@dataclass(frozen=True)
class ResidualGain:
    """delta, the kind of its proof, and the region it holds in, in words such as '|angle| <= 0.8 rad'."""

    value: float
    kind: Kind
    region: str

    def __post_init__(self) -> None:
        checks.finite_float("The residual's gain", self.value, at_least=0.0)
        if self.kind not in _HOW:
            raise InvalidValueError(f"kind is {self.kind!r}; expected one of {', '.join(_HOW)}.")

    @property
    def certified(self) -> bool:
        """Whether it is an upper bound."""
        return self.kind != "sampled"

    def sentence(self) -> str:
        """Return how it is known, as a clause."""
        return f"the residual's gain {numbers.upper(self.value)} in the region {self.region} is {_HOW[self.kind]}"


@dataclass(frozen=True)
class Residual:
    """The nonlinear rest of a plant: Ep (n, k), Fx (k, n), Fu (k, m), and the gain of each channel or of the block.

    With k gains every channel is a scalar function of its own q_i, which is worth much: each gets its own scaling. With
    one gain and k > 1 it is one full block.
    """

    Ep: Array
    Fx: Array
    Fu: Array
    gains: tuple[ResidualGain, ...]

    def __post_init__(self) -> None:
        k = self.Ep.shape[1]
        checks.shape("Fx", self.Fx, (k, self.Ep.shape[0]))
        checks.shape("Fu", self.Fu, (k, None))
        if len(self.gains) not in (1, k):
            raise ShapeError(f"{len(self.gains)} residual gain(s) for {k} channels; expected one, or one a channel.")

    @property
    def sizes(self) -> list[int]:
        """Return the number of channels of each block."""
        k = self.Ep.shape[1]
        return [1] * k if len(self.gains) == k else [k]

    @property
    def certified(self) -> bool:
        """Whether all the gains are upper bounds."""
        return all(gain.certified for gain in self.gains)

    @property
    def region(self) -> str:
        """Return the region in words."""
        return " and ".join(dict.fromkeys(gain.region for gain in self.gains))

    def claim(self, statement: str, inside: bool = False) -> str:
        """Return the sentence in which `statement` may be claimed for the nonlinear plant, with its conditions.

        `inside` says that the statement itself proves that trajectories stay in the region.
        """
        kinds = dict.fromkeys((gain.kind, gain.region) for gain in self.gains)
        worst = [max((g for g in self.gains if (g.kind, g.region) == kind), key=lambda g: g.value) for kind in kinds]
        several = len(self.gains) > len(worst)
        known = "; ".join(gain.sentence() for gain in worst) + (
            f", the largest of {len(self.gains)} channels" if several else ""
        )
        where = "" if inside else f"for trajectories that stay in the region {self.region}, "
        if self.certified:
            return f"For the nonlinear plant without saturation, {where}{statement} ({known})."
        return (
            f"Indication only, not proven: for the nonlinear plant without saturation, {where}it seems that "
            f"{statement} ({known})."
        )


def sector_centred(lowest: float, highest: float, region: str, kind: Kind = "analytic") -> tuple[float, ResidualGain]:
    """Return (slope, gain) of a scalar function whose derivative lies in [lowest, highest] in the region.

    Put `slope`, the middle, into the model (A + slope Ep Fx): the residual is then half as large as the tangent's
    would be. The observer and the feedback must be designed with that model.
    """
    if not lowest <= highest:
        raise InvalidValueError(f"The slopes are [{lowest}, {highest}]; expected the lowest first.")
    return (lowest + highest) / 2, ResidualGain((highest - lowest) / 2 * (1 + 1e-15), kind, region)


def full_block(A: Array, B: Array, gain: ResidualGain) -> Residual:
    """Return the residual of which only the whole Jacobian's distance from [A, B] is known; usually too coarse.

    A is (n, n), B (n, m); `gain` bounds the distance's spectral norm.
    """
    n, m = B.shape
    Ep = np.hstack((np.eye(n), np.zeros((n, m))))
    return Residual(Ep, np.vstack((np.eye(n), np.zeros((m, n)))), np.vstack((np.zeros((n, m)), np.eye(m))), (gain,))


def sampled_gain(
    jacobian: Callable[[Array], Array], center: Array, low: Array, high: Array, samples: int, seed: int, region: str
) -> ResidualGain:
    """Return the largest |J(point) - center| among random points and all corners of the box: a lower estimate.

    `jacobian` maps points (k, d) to (k, rows, d), `center` is (rows, d), such as [A, B]; `low`, `high` (d,).
    """
    low, high = _box(low, high)
    inside = np.random.default_rng(seed).uniform(low, high, (checks.positive_int("samples", samples), len(low)))
    corners = np.array(list(itertools.product(*zip(low, high, strict=True)))) if len(low) <= 12 else inside[:0]
    return ResidualGain(_largest(jacobian, center, np.vstack((inside, corners))), "sampled", region)


def covering_gain(
    jacobian: Callable[[Array], Array],
    center: Array,
    low: Array,
    high: Array,
    cells: Sequence[int],
    slope: float,
    region: str,
) -> ResidualGain:
    """Return the largest |J - center| at the middles of a grid of cells plus slope * (half a cell's diagonal).

    `slope` is a PROVEN bound of the Lipschitz constant of the Jacobian on the box (spectral norm per Euclidean distance
    of points): the result is as true as it. The other arguments are those of `sampled_gain`: `center` (rows, d), `low`
    and `high` (d,); `cells` are the numbers of cells along each coordinate.

    Raises:
        ShapeError: box or cells do not fit one another. InvalidValueError: the slope is no finite number >= 0.
    """
    low, high = _box(low, high)
    checks.finite_float("slope", slope, at_least=0.0)
    if len(cells) != len(low):
        raise ShapeError(f"cells has {len(cells)} number(s); expected {len(low)}, one a coordinate.")
    middles = _middles(low, high, cells)
    distance = 0.5 * float(np.linalg.norm((high - low) / np.asarray(cells)))
    value = _largest(jacobian, center, middles) + slope * distance
    return ResidualGain(value * (1 + 1e-12), "covering", region)


def interval_gain(
    step: Callable[..., Sequence[Jet]], center: Array, low: Array, high: Array, cells: Sequence[int], region: str
) -> ResidualGain:
    """Return an upper bound of |J - center| on a box by interval arithmetic on a grid of cells.

    `step` maps the coordinates to the following state (see `interval`); the other arguments are as above, `center`
    (rows, d), `low` and `high` (d,). On a cell
    with entrywise bounds middle +- radius the spectral norm is at most |middle - center| + |radius|.
    """
    low, high = _box(low, high)
    middles, half = _middles(low, high, cells), 0.5 * (high - low) / np.asarray(cells) * (1 + 1e-12)
    lower, upper = jacobian_bounds(step, middles - half - 1e-15, middles + half + 1e-15)
    distance = np.linalg.norm((lower + upper) / 2 - center, 2, axis=(1, 2))
    return ResidualGain(
        float((distance + np.linalg.norm((upper - lower) / 2, 2, axis=(1, 2))).max()) * (1 + 1e-12), "interval", region
    )


def _box(low: Array, high: Array) -> tuple[Array, Array]:
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if low.shape != high.shape or low.ndim != 1 or not (low <= high).all():
        raise ShapeError(f"The box is from {low} to {high}; expected two lists of one length, the lower corner first.")
    return low, high


def _middles(low: Array, high: Array, cells: Sequence[int]) -> Array:
    axes = [a + (b - a) * (np.arange(k) + 0.5) / k for a, b, k in zip(low, high, cells, strict=True)]
    return np.stack([grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")], -1)


def _largest(jacobian: Callable[[Array], Array], center: Array, points: Array) -> float:
    difference = np.asarray(jacobian(points)) - center
    checks.shape("The Jacobian less its centre", difference, (len(points), *np.shape(center)))
    return max((norm2(each) for each in difference), default=0.0)
