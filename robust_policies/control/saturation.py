"""How much of a saturating actuator the base controller needs, and what is left for a Youla parameter.

With ut clipped to +-reserve the rest, limit - reserve, is the base controller's. If |A - B K|_P <= rate < 1 and the
innovation obeys |yt| <= largest at every step, {xh'P xh <= level} is invariant and no input saturates in it, because

    max |B ut|_P + |(L - B K M) yt|_P  <=  (1 - rate) sqrt(level),   |K_i xh| + |(K M)_i yt| + reserve_i <= limit_i.

Outside it nothing is claimed: an unstable plant with a bounded input is not globally stable under any controller.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import scipy

from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import Array, norm2, radius
from robust_policies.control.youla import direct_gain
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.files import numbers


@dataclass(frozen=True)
class SaturationBudget:
    """What the actuator's limits leave.

    Attributes:
        limit: (m,) the largest |u_i|.
        reserve: (m,) the largest |ut_i|.
        innovation: the largest |yt| at which no input ever saturates; negative: the reserve alone is too much.
        level: c of the invariant set {xh'P xh <= c}; both are infinite where K uses no input that has a limit.
        rate: the bound of |A - B K|_P.
        P: (n, n) its metric.
    """

    limit: Array
    reserve: Array
    innovation: float
    level: float
    rate: float
    P: Array

    @property
    def exhausted(self) -> bool:
        """Whether no innovation at all is covered."""
        return self.innovation <= 0.0

    def report(self) -> str:
        """Return one sentence with the numbers."""
        limits, reserves = ([float(f"{x:.4g}") for x in side] for side in (self.limit, self.reserve))
        start = f"With inputs limited to {limits} and {reserves} reserved for the Youla parameter,"
        if self.exhausted:
            return (
                f"{start} the budget for innovations is {self.innovation:.4g}: exhausted. That inputs never saturate "
                "is not proven; reserve less for the Youla parameter, or use a smaller feedback gain."
            )
        if math.isinf(self.innovation):
            why = "K = 0, and the guarantee holds with saturation"
            if not np.isfinite(self.limit).all():
                why = "it uses no input that has a limit"
            return f"{start} the base controller needs none: {why}."
        return (
            f"{start} no input saturates while |innovation| <= {numbers.lower(self.innovation)} at every step and the "
            f"estimate starts in xh'P xh <= {numbers.lower(self.level)}."
        )

    def check(self, innovation: float) -> None:
        """Raise InvalidValueError unless innovations up to `innovation` are covered."""
        if not innovation <= self.innovation or self.exhausted:
            raise InvalidValueError(f"Innovations up to {innovation:.6g} are expected. {self.report()}")


def saturation_budget(model: LinearModel, design: LQGDesign, limit: Array, reserve: Array | float) -> SaturationBudget:
    """Return the budget at the rate, among twenty tried, that leaves the most for innovations.

    Args:
        model: the plant.
        design: the gains.
        limit: (m,) the largest |u_i|, > 0, as a deviation from the equilibrium's input.
        reserve: (m,) or one number for all: the largest |ut_i|, from 0 up to the limit.

    Raises:
        InvalidValueError: a limit or reserve out of range, or A - B K is not stable.
    """
    A, B, K = model.A, model.B, design.K
    n, m = B.shape
    limit = np.asarray(limit, dtype=np.float64)
    if limit.shape != (m,) or np.ndim(reserve) > 1 or np.size(reserve) not in (1, m):
        raise ShapeError(f"limit has shape {limit.shape} and reserve {np.shape(reserve)}; expected ({m},).")
    reserve = np.broadcast_to(np.asarray(reserve, dtype=np.float64), (m,))
    if not (limit > 0).all() or not ((reserve >= 0) & (reserve <= limit)).all():
        raise InvalidValueError(
            f"limit is {limit.tolist()} and reserve {reserve.tolist()}; expected 0 <= reserve <= limit and limit > 0."
        )
    closed = A - B @ K
    if not (rho := radius(closed)) < 1.0:
        raise InvalidValueError(f"A - B K has spectral radius {rho:.6g}; expected one below 1.")
    rates = [math.sqrt(rho * rho + (1 - rho * rho) * share) for share in np.linspace(0.02, 0.98, 20)]
    budgets = [
        _at(model, design, limit, reserve, rate, scipy.linalg.solve_discrete_lyapunov((closed / rate).T, np.eye(n)))
        for rate in rates
    ]
    return max(budgets, key=lambda budget: budget.innovation)


def _at(model: LinearModel, design: LQGDesign, limit: Array, reserve: Array, rate: float, P: Array) -> SaturationBudget:
    B, K, KM = model.B, design.K, direct_gain(design)
    factor = np.linalg.cholesky(P).T
    gains = np.sqrt(np.einsum("ij,ji->i", K, np.linalg.solve(P, K.T)))
    direct = np.linalg.norm(KM, axis=1)
    used = (gains > 0) & np.isfinite(limit)
    if not used.any():
        return SaturationBudget(limit, reserve, math.inf, math.inf, rate, P)
    corners = reserve * np.array(list(itertools.product((-1.0, 1.0), repeat=len(limit))))
    pushed = float(np.linalg.norm(factor @ B @ corners.T, axis=0).max())
    per_innovation = norm2(factor @ (design.L - B @ KM))
    room = (limit - reserve)[used]
    # Linear in |yt| for each input: pushed + per_innovation y <= (1 - rate) (room - direct y) / gain.
    left = (1 - rate) * room / gains[used] - pushed
    innovation = float((left / (per_innovation + (1 - rate) * direct[used] / gains[used])).min())
    level = float(np.clip((room - direct[used] * max(innovation, 0.0)) / gains[used], 0.0, None).min()) ** 2
    return SaturationBudget(limit, reserve, innovation, level, rate, P)
