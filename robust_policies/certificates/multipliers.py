"""What is known of a nonlinearity w = phi(v): quadratic forms of its increments that are never negative.

A family is a cone of such forms, [v; w]' N(theta) [v; w] >= 0. The interior-point search needs each basis form as
sums of c (a b' + b a') with rows a, b; the proof needs N(theta) as a matrix whose floats are an exact member.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Pairs(NamedTuple):
    """Symmetric matrices sum_r c_r (a_r b_r' + b_r a_r'), one for each `variable`; a, b (R, n), c and variable (R,)."""

    a: Array
    b: Array
    c: Array
    variable: Array


@dataclass(frozen=True)
class LipschitzMultiplier:
    """theta (ell^2 |v|^2 - |w|^2), theta >= 0: phi has the Lipschitz bound `ell`."""

    nv: int
    ell: float = 1.0

    @property
    def size(self) -> int:
        """Return the number of free numbers."""
        return 1

    def start(self) -> Array:
        """Return a member to start from."""
        return np.ones(1)

    def matrix(self, theta: Array) -> Array:
        """Return the form of (v, w), (2 nv, 2 nv)."""
        tau = float(theta[0])
        return np.diag(np.concatenate([np.full(self.nv, tau * self.ell * self.ell), np.full(self.nv, -tau)]))

    def pairs(self, v: Array, w: Array) -> Pairs:
        """Return the basis forms for v, w (nv, n) as rows."""
        c = np.concatenate([np.full(self.nv, 0.5 * self.ell**2), np.full(self.nv, -0.5)])
        rows = np.vstack([v, w])
        return Pairs(rows, rows, c, np.zeros(2 * self.nv, dtype=int))


@dataclass(frozen=True)
class SlopeMultiplier:
    """2 sum_i theta_i w_i (v_i - w_i), theta >= 0: every neuron has a slope in [0, 1]."""

    nv: int

    @property
    def size(self) -> int:
        """Return the number of free numbers."""
        return self.nv

    def start(self) -> Array:
        """Return a member to start from."""
        return np.ones(self.nv)

    def matrix(self, theta: Array) -> Array:
        """Return the form of (v, w), (2 nv, 2 nv)."""
        diagonal = np.diag(theta)
        return np.block([[np.zeros_like(diagonal), diagonal], [diagonal, -2 * diagonal]])

    def pairs(self, v: Array, w: Array) -> Pairs:
        """Return the basis forms for v, w (nv, n) as rows."""
        return Pairs(w, v - w, np.ones(self.nv), np.arange(self.nv))


Multiplier = LipschitzMultiplier | SlopeMultiplier


def admissible(family: Multiplier, theta: Array) -> bool:
    """Return whether `theta` (size,) gives a form that is nonnegative for every phi of the family."""
    theta = np.asarray(theta, dtype=np.float64)
    if theta.shape != (family.size,) or not np.isfinite(theta).all():
        return False
    return bool((theta >= 0).all())
