"""How far an estimate can be from the state, and what follows for a loop that a Youla parameter is in.

For e+ = (A - L C) e + d with |d|_P <= D at every step and al = |A - L C|_P < 1, |x|_P = sqrt(x'P x):

    |e_t|_P <= al^t |e_0|_P + D (1 - al^t) / (1 - al),     |e_i| <= |e|_P sqrt((P^-1)_ii).

Of the noise v an output-injection observer makes d = [phi(C x + v, u) - phi(C x, u)] - Bw w + L v, which is bounded
uniformly in u; the bound here takes L v and a bound of the bracket that its caller knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from robust_policies.certificates.lmi import prove_positive
from robust_policies.control.linear_model import Array
from robust_policies.control.norms import radius
from robust_policies.errors import InvalidValueError
from robust_policies.files import numbers

_UP = 1 + 1e-9


@dataclass(frozen=True, eq=False)
class ErrorBound:
    """|e_t|_P <= al^t |e_0|_P + steady (1 - al^t), for the error e of an observer.

    Attributes:
        P: (n, n) the metric.
        rate: al, below 1.
        start: |e_0|_P at most.
        steady: where it ends, in |.|_P: the disturbance's bound divided by 1 - al.
        kind: "proven", or "statistical" where a part of it was only seen in runs.
        claim: of which trajectories it holds, in words; "" where that is the caller's.
    """

    P: Array
    rate: float
    start: float
    steady: float
    kind: Literal["proven", "statistical"] = "proven"
    claim: str = ""

    def at(self, step: int) -> float:
        """Return the bound of |e_t|_P after so many steps."""
        left = self.rate**step
        return (left * self.start + (1.0 - left) * self.steady) * _UP

    def each(self, step: int) -> Array:
        """Return the bounds (n,) of the entries of the error after so many steps."""
        return self.at(step) * np.sqrt(np.diag(np.linalg.inv(self.P))) * _UP

    def gain_of(self, K: Array) -> float:
        """Return the largest |K e| (Euclidean) of an error with |e|_P = 1, K (m, n): the Lipschitz constant there."""
        return float(np.linalg.norm(np.linalg.solve(np.linalg.cholesky(self.P), np.asarray(K).T), 2)) * _UP

    @property
    def largest(self) -> float:
        """The bound of |e|_P over all time."""
        return max(self.start, self.steady) * _UP


def error_bound(
    A: Array, L: Array, C: Array, start: Array, disturbance: float = 0.0, rate: float | None = None
) -> ErrorBound:
    """Return a bound on e+ = (A - L C) e + d from an error that begins in a box.

    Args:
        A: (n, n).
        L: (n, p).
        C: (p, n).
        start: (n,) how far each entry of the estimate is from the state at most at the beginning.
        disturbance: largest |d| of a step, in the Euclidean norm.
        rate: al; None: halfway from the spectral radius of A - L C to 1.

    Raises:
        InvalidValueError: no such rate holds.
    """
    F = np.asarray(A) - np.asarray(L) @ np.asarray(C)
    rho = radius(F)
    al = 0.5 * (1.0 + rho) if rate is None else float(rate)
    if not rho < al < 1:
        raise InvalidValueError(
            f"rate is {al:.6g}; expected one between the spectral radius {rho:.6g} of A - L C and 1."
        )
    # P = sum (F/al)'^k (F/al)^k: al^2 P - F'P F = al^2 I.
    P = scipy.linalg.solve_discrete_lyapunov((F / al).T, np.eye(len(F)))
    P = 0.5 * (P + P.T)
    n = len(F)
    rounding = 4.0 * np.finfo(float).eps * (np.abs(A) + len(C) * np.abs(L) @ np.abs(C))
    rows, error = np.vstack((F, np.eye(n))), np.vstack((rounding, np.zeros((n, n))))
    if not prove_positive(rows, np.asarray(scipy.linalg.block_diag(-P, al**2 * P)), error).holds:
        raise InvalidValueError(f"The rate {al:.6g} could not be proven; expected a larger one.")
    return ErrorBound(P, al, box_size(P, start), largest_size(P) * disturbance / (1.0 - al) * _UP)


def box_size(P: Array, half: Array) -> float:
    """Return a bound of |e|_P over the box of half widths `half` (n,), P (n, n)."""
    half = np.asarray(half, float)
    # The largest over a box is at one of its corners; the sum bounds them all.
    return math.sqrt(float(half @ np.abs(P) @ half)) * _UP


def largest_size(P: Array) -> float:
    """Return the largest |e|_P of an error e of Euclidean norm 1, P (n, n)."""
    return math.sqrt(float(np.linalg.eigvalsh(P)[-1])) * _UP


@dataclass(frozen=True)
class Boundedness:
    """Whether every Youla parameter keeps the loop's trajectories in a region, and why.

    `proven` needs what `claim` lists; no gain and no Lipschitz constant of the loop is part of it.
    """

    proven: bool
    claim: str


def boundedness(youla: float, gain: float, error: float, admissible: float, region: str) -> Boundedness:
    """Return what holds of x+ = f(x, k(xh) + Q(y - h(xh))) for every Youla parameter Q whose output is clipped.

    With u = k(x) + d the loop sees |d| <= youla + gain * error, whatever Q is, stable or not: there is no circle in the
    argument, as the error's bound does not depend on Q.

    Args:
        youla: largest Euclidean norm of Q's output, by clipping.
        gain: Lipschitz constant of k in the norm in which the error is bounded.
        error: bound of the observer's error over all time, valid in the region.
        admissible: largest |d| for which the region was shown to be invariant under u = k(x) + d.
        region: in words.
    """
    total = youla + gain * error
    needs = (
        f"the error bound {numbers.upper(error)} holds in {region}, Q's output is clipped to {numbers.upper(youla)}, "
        f"and {region} is invariant under the state feedback plus an input of at most {numbers.lower(admissible)}"
    )
    if total <= admissible:
        said = (
            f"every trajectory that starts in {region} stays there, and the observer's error stays within its bound, "
            f"for every Youla parameter: {numbers.upper(youla)} + {numbers.upper(gain)} * {numbers.upper(error)} = "
            f"{numbers.upper(total)} is at most {numbers.lower(admissible)}"
        )
        return Boundedness(True, f"Proven if {needs}: {said}. It bounds no gain: incremental stability is not claimed.")
    return Boundedness(
        False,
        f"Not proven: {numbers.upper(youla)} + {numbers.upper(gain)} * {numbers.upper(error)} = {numbers.upper(total)} "
        f"is above {numbers.lower(admissible)}, up to which {region} is known to be invariant. Clip Q's output "
        "further, or start nearer.",
    )
