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


@dataclass(frozen=True)
class SortMultiplier:
    """Pairs of neurons that are sorted (MaxMin, GroupSort2): |w_g|^2 <= |v_g|^2, and the sum of a pair is kept.

    theta holds, for every pair, its lambda >= 0 and a free mu: lambda (|v_g|^2 - |w_g|^2) + mu ((1'v_g)^2 -
    (1'w_g)^2), the forms of Pauli et al., "Novel quadratic constraints for extending LipSDP beyond slope-restricted
    activations" (ICLR 2024), without their two that matter only between layers.
    """

    nv: int

    @property
    def size(self) -> int:
        """Return the number of free numbers."""
        return self.nv

    def start(self) -> Array:
        """Return a member to start from."""
        return np.concatenate([np.ones(self.nv // 2), np.zeros(self.nv // 2)])

    def matrix(self, theta: Array) -> Array:
        """Return the form of (v, w), (2 nv, 2 nv)."""
        lam, mu = np.split(np.asarray(theta, dtype=np.float64), 2)
        block = np.diag(np.repeat(lam + mu, 2))
        first = np.arange(0, self.nv, 2)
        block[first, first + 1] = block[first + 1, first] = mu
        zero = np.zeros_like(block)
        return np.block([[block, zero], [zero, -block]])

    def pairs(self, v: Array, w: Array) -> Pairs:
        """Return the basis forms for v, w (nv, n) as rows."""
        half = self.nv // 2
        sums = v[0::2] + v[1::2], w[0::2] + w[1::2]
        rows = np.vstack([v, w, *sums])
        c = np.concatenate([np.full(self.nv, 0.5), np.full(self.nv, -0.5), np.full(half, 0.5), np.full(half, -0.5)])
        group = np.repeat(np.arange(half), 2)
        free = half + np.arange(half)
        return Pairs(rows, rows, c, np.concatenate([group, group, free, free]))


Multiplier = LipschitzMultiplier | SlopeMultiplier | SortMultiplier


def admissible(family: Multiplier, theta: Array) -> bool:
    """Return whether `theta` (size,) gives a form that is nonnegative for every phi of the family."""
    theta = np.asarray(theta, dtype=np.float64)
    if theta.shape != (family.size,) or not np.isfinite(theta).all():
        return False
    if isinstance(family, SortMultiplier):
        lam, mu = np.split(theta, 2)
        # What the matrix holds is fl(lam + mu); its lambda is that minus mu.
        return bool((lam + mu >= mu).all())
    return bool((theta >= 0).all())
