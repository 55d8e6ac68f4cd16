"""Matrices that know how far rounding may have taken them from what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robust_policies.certificates.lmi import UNIT, Array, growth

# The bounds themselves are computed with rounding, all of it relative.
_UP = 1.0 + 1e-9


@dataclass(frozen=True, eq=False)
class Bounded:
    """`value`, and entry by entry a bound `error` of its distance from the exact matrix.

    A product of inner length k has rounded by at most g_k |a| |b|, g_k = k u / (1 - k u), a sum by u |a + b|
    (N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, 2002, chapter 3).
    """

    value: Array
    error: Array
    # NumPy leaves operations between its arrays and this to this.
    __array_ufunc__ = None

    @classmethod
    def exact(cls, value: Array) -> Bounded:
        """Return a matrix that is what it stands for."""
        value = np.asarray(value, dtype=np.float64)
        return cls(value, np.zeros_like(value))

    def __matmul__(self, other: Bounded | Array) -> Bounded:
        other = bounded(other)
        left, right = np.abs(self.value), np.abs(other.value)
        rounding = growth(self.value.shape[1] + 2) * (left @ right)
        carried = left @ other.error + self.error @ (right + other.error)
        return Bounded(self.value @ other.value, (rounding + carried) * _UP)

    def __rmatmul__(self, other: Array) -> Bounded:
        return bounded(other) @ self

    def __add__(self, other: Bounded | Array) -> Bounded:
        other = bounded(other)
        value = self.value + other.value
        return Bounded(value, (self.error + other.error + 2.0 * UNIT * np.abs(value)) * _UP)

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error)

    def __sub__(self, other: Bounded | Array) -> Bounded:
        return self + (-bounded(other))

    def __rsub__(self, other: Array) -> Bounded:
        return bounded(other) - self


def bounded(matrix: Bounded | Array) -> Bounded:
    """Return the matrix, one without a bound as exact."""
    return matrix if isinstance(matrix, Bounded) else Bounded.exact(matrix)


def block(rows: Sequence[Sequence[Bounded | Array]]) -> Bounded:
    """Return the matrix made of blocks."""
    parts = [[bounded(part) for part in row] for row in rows]
    return Bounded(*(np.block([[getattr(part, name) for part in row] for row in parts]) for name in ("value", "error")))
