"""Matrices that know how far rounding may have taken them from what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from robust_policies.certificates.lmi import UNIT, UP, Array, Matrices, product, zeros


@dataclass(frozen=True, eq=False)
class Bounded:
    """`value`, and entry by entry a bound `error` of its distance from the exact matrix.

    Both arrays have one shape. A product has rounded as `certificates.lmi.product` says; a sum by at most u |a + b|
    (N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, 2002, chapter 2), and a second u
    stands for a + b being known as rounded only.
    """

    value: Array
    error: Array
    # NumPy leaves operations between its arrays and this to this.
    __array_ufunc__ = None

    @classmethod
    def exact(cls, value: Array) -> Bounded:
        """Return a matrix (rows, columns) that is what it stands for."""
        value = np.asarray(value, dtype=np.float64)
        return cls(value, np.zeros_like(value))

    @classmethod
    def inverse(cls, value: Array) -> Bounded:
        """Return 1 / value, entry by entry, of exact numbers (size,) or (rows, columns), none of them zero.

        A quotient has rounded by at most u |1 / value|, and 2 u of the rounded one is more than that.
        """
        found = 1.0 / np.asarray(value, dtype=np.float64)
        return cls(found, 2.0 * UNIT * np.abs(found))

    def diagonal(self) -> Bounded:
        """Return the matrix (size, size) with this vector (size,) as its diagonal."""
        return Bounded(np.diag(self.value), np.diag(self.error))

    def columns(self, count: int) -> Bounded:
        """Return the first `count` columns."""
        return Bounded(self.value[:, :count], self.error[:, :count])

    def __matmul__(self, other: Bounded | Array) -> Bounded:
        other = bounded(other)
        return Bounded(*product(self.value, other.value, left_error=self.error, right_error=other.error))

    def __rmatmul__(self, other: Array) -> Bounded:
        return bounded(other) @ self

    def __add__(self, other: Bounded | Array) -> Bounded:
        other = bounded(other)
        value = self.value + other.value
        return Bounded(value, (self.error + other.error + 2.0 * UNIT * np.abs(value)) * UP)

    def __neg__(self) -> Bounded:
        return Bounded(-self.value, self.error)

    def __sub__(self, other: Bounded | Array) -> Bounded:
        return self + (-bounded(other))

    def __rsub__(self, other: Array) -> Bounded:
        return bounded(other) - self


def bounded(matrix: Bounded | Array) -> Bounded:
    """Return the matrix (rows, columns), one without a bound as exact."""
    return matrix if isinstance(matrix, Bounded) else Bounded.exact(matrix)


def block(rows: Sequence[Sequence[Bounded | Array]]) -> Bounded:
    """Return the matrix made of blocks (rows, columns), of one height in a row, and of one width in a column."""
    parts = [[bounded(part) for part in row] for row in rows]
    return Bounded(*(np.block([[getattr(part, name) for part in row] for row in parts]) for name in ("value", "error")))


def parts(model: Matrices) -> dict[str, Bounded]:
    """Return the matrices of a system by name, each with what `model.error` says of it."""
    error = zeros(model.sizes) if model.error is None else model.error
    names = [item.name for item in fields(model) if item.name != "error"]
    return {name: Bounded(getattr(model, name), getattr(error, name)) for name in names}


def assembled(parts: Mapping[str, Bounded]) -> Matrices:
    """Return the system of matrices by name, their bounds as its `error`; the inverse of `parts`."""
    arrays: dict[str, Any] = {name: part.value for name, part in parts.items()}
    errors: dict[str, Any] = {name: part.error for name, part in parts.items()}
    return Matrices(**arrays, error=Matrices(**errors))


def between(model: Matrices, inward: Bounded | Array, outward: Bounded | Array) -> Matrices:
    """Return the system y = outward model(inward u): linear maps before and after folded in.

    Args:
        model: a system (nu -> ny).
        inward: (nu, inputs).
        outward: (outputs, ny).

    What rounding may have done to the products is in `error`.
    """
    inward, outward = bounded(inward), bounded(outward)
    folded = parts(model)
    for name in ("B2", "D12", "D22"):
        folded[name] = folded[name] @ inward
    for name in ("C2", "D21", "D22"):
        folded[name] = outward @ folded[name]
    return assembled(folded)
