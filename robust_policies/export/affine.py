"""Ranges of vectors that remember what they have in common: centre + G e + rest, every |e_s| <= 1.

What a program computes of the same observation cancels here as it does in the program, where intervals would add up.
An activation of a slope in [0, 1] over [l, u] lies between lines of the slope r / d of its chord, r = act(u) - act(l),
d = u - l: no further than r (1 - r / d) from it, and to one side alone where it is convex or concave.

Source: T. Gehr et al., "AI2: Safety and robustness certification of neural networks with abstract interpretation",
IEEE Symposium on Security and Privacy, 2018, for zonotopes of a network's values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robust_policies.certificates.lmi import Array

CONVEX = ("relu", "leaky_relu", "elu", "softplus", "max")
# Of what float64 does to these numbers themselves, relative to the sizes that are summed.
_ROOM = 1e-12


@dataclass(frozen=True)
class Affine:
    """A vector (n,): `centre`, `parts` (n, symbols) and `rest` (n,) >= 0, of which nothing more is known.

    Values of one step share their symbols; one with fewer columns has none of the later ones.
    """

    centre: Array
    parts: Array
    rest: Array

    @classmethod
    def box(cls, low: Array, high: Array, symbols: int = 0) -> Affine:
        """Return the range from `low` to `high` (n,), with a symbol for each entry behind `symbols` others."""
        n = len(low)
        parts = np.hstack((np.zeros((n, symbols)), np.diag(0.5 * (high - low))))
        return cls(0.5 * (low + high), parts, _ROOM * (np.abs(low) + np.abs(high)))

    @classmethod
    def exact(cls, value: Array) -> Affine:
        """Return known numbers (n,)."""
        value = np.asarray(value, dtype=np.float64)
        return cls(value, np.zeros((len(value), 0)), np.zeros(len(value)))

    @property
    def symbols(self) -> int:
        """The number of symbols."""
        return self.parts.shape[1]

    @property
    def reach(self) -> Array:
        """How far (n,) from its centre a number may be."""
        return np.abs(self.parts).sum(1) * (1 + _ROOM) + self.rest

    @property
    def low(self) -> Array:
        """No number (n,) is smaller."""
        return self.centre - self.reach - _ROOM * np.abs(self.centre)

    @property
    def high(self) -> Array:
        """No number (n,) is larger."""
        return self.centre + self.reach + _ROOM * np.abs(self.centre)

    @property
    def size(self) -> Array:
        """The largest absolute value (n,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def wide(self, symbols: int) -> Array:
        """Return `parts` with so many columns."""
        return np.hstack((self.parts, np.zeros((len(self.parts), symbols - self.symbols))))

    def __getitem__(self, rows: Array) -> Affine:
        return Affine(self.centre[rows], self.parts[rows], self.rest[rows])

    def mapped(self, W: Array) -> Affine:
        """Return W times this, W (rows, n)."""
        sizes = np.abs(W)
        room = _ROOM * (sizes @ (np.abs(self.centre) + np.abs(self.parts).sum(1)))
        return Affine(W @ self.centre, W @ self.parts, sizes @ self.rest * (1 + _ROOM) + room)

    def plus(self, other: Affine, sign: float = 1.0) -> Affine:
        """Return the sum, or the difference with `sign` -1; one of them may be of width 1."""
        count = max(self.symbols, other.symbols)
        room = _ROOM * (self.size + other.size)
        return Affine(
            self.centre + sign * other.centre,
            self.wide(count) + sign * other.wide(count),
            self.rest + other.rest + room,
        )

    def scaled(self, factor: Array) -> Affine:
        """Return each entry times a number (n,) or (1,)."""
        return Affine(
            self.centre * factor,
            self.parts * np.asarray(factor)[:, None],
            np.abs(factor) * (self.rest + _ROOM * self.size),
        )

    def times(self, other: Affine, symbols: int) -> Affine:
        """Return the products of the entries of two; what is not linear in the symbols gets new ones."""
        own, count = self.reach, max(self.symbols, other.symbols)
        parts = self.centre[:, None] * other.wide(count) + other.centre[:, None] * self.wide(count)
        rest = np.abs(self.centre) * other.rest + np.abs(other.centre) * self.rest + _ROOM * self.size * other.size
        return Affine(self.centre * other.centre, parts, rest).spread(own * other.reach * (1 + _ROOM), symbols)

    def spread(self, more: Array, symbols: int) -> Affine:
        """Return this and anything within `more` (n,) of it, one new symbol for each entry that has any."""
        rows = np.flatnonzero(more > 0)
        new = np.zeros((len(more), len(rows)))
        new[rows, np.arange(len(rows))] = more[rows]
        return Affine(self.centre, np.hstack((self.wide(symbols), new)), self.rest)

    def loosened(self, more: Array) -> Affine:
        """Return this and anything within `more` (n,) of it."""
        return Affine(self.centre, self.parts, self.rest + more)

    def chord(self, low: Array, high: Array, name: str, symbols: int) -> Affine:
        """Return what a function of slopes in [0, 1] gives that is `low` and `high` (n,) at the ends of this range."""
        ends = self.low, self.high
        r, d = high - low, np.maximum(ends[1] - ends[0], 1e-300)
        slope = np.clip(r / d, 0.0, 1.0)
        off = np.maximum(r, 0.0) * (1.0 - slope) * (1 + 1e-9) + _ROOM * (np.abs(low) + np.abs(high) + self.size)
        middle, half = np.zeros_like(off), off
        if name in CONVEX or name == "min":
            half = 0.5 * off
            middle = half if name == "min" else -half
        centre = low + slope * (self.centre - ends[0]) + middle
        return Affine(centre, slope[:, None] * self.parts, slope * self.rest).spread(half, symbols)

    def largest_sum(self, W: Array) -> Array:
        """Return (rows,) the largest sum of |W_ij| |z_j|, W (rows, n)."""
        low, high = self.low, self.high
        width = np.maximum(high - low, 1e-300)
        # |z| lies below its chord.
        slope = (np.abs(high) - np.abs(low)) / width
        offset = np.abs(low) - slope * low
        sizes = np.abs(W)
        line = Affine(slope * self.centre + offset, slope[:, None] * self.parts, np.abs(slope) * self.rest)
        return line.mapped(sizes).high + 1e-9 * (sizes @ self.size)

    def partial_sums(self, W: Array) -> Array:
        """Return (rows,) the sum over k >= 2 of the largest |W_i1 z_1 + .. + W_ik z_k|."""
        total = np.zeros(len(W))
        centre, parts, rest = np.zeros(len(W)), np.zeros((len(W), self.symbols)), np.zeros(len(W))
        for j in range(W.shape[1]):
            centre = centre + W[:, j] * self.centre[j]
            parts = parts + np.outer(W[:, j], self.parts[j])
            rest = rest + np.abs(W[:, j]) * (self.rest[j] + _ROOM * self.size[j])
            if j:
                total = total + np.abs(centre) + np.abs(parts).sum(1) + rest
        return total * (1 + 1e-9)

    def reduced(self, most: int) -> Affine:
        """Return a range around this one with at most `most` + n symbols, `rest` among them."""
        count = np.abs(self.parts).sum(0)
        kept = np.argsort(-count)[:most]
        lost = np.delete(np.abs(self.parts), kept, axis=1).sum(1) * (1 + _ROOM) + self.rest
        zero = np.zeros(len(self.centre))
        return Affine(self.centre, self.parts[:, kept], zero).spread(lost, len(kept))


def stacked(values: list[Affine]) -> Affine:
    """Return vectors one behind the other."""
    count = max(value.symbols for value in values)
    return Affine(
        np.concatenate([value.centre for value in values]),
        np.vstack([value.wide(count) for value in values]),
        np.concatenate([value.rest for value in values]),
    )
