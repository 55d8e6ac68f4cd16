"""Ranges of every number of a program, and bounds of what each of its operations rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robust_policies.certificates.lmi import Array
from robust_policies.certificates.verify import SLOPE_RESTRICTED, SORTING
from robust_policies.errors import NotCertifiableError
from robust_policies.export.affine import Affine, stacked
from robust_policies.export.neurons import entrywise, single
from robust_policies.export.program import OBSERVATION, STATE, Op, Program, calculated
from robust_policies.runtime.activations import ACTIVATIONS

UNITS = 4
"""In the last place, by which an activation may be off: of libm's and NumPy's by at most 3 where measured."""
_UP = 1 + 1e-9
# Numbers that the partial sums of one product may take; beyond it they are bounded in any order.
_MOST_SUMS = 4_000_000


@dataclass(frozen=True)
class Seen:
    """Bounds of roundings: d of the neurons (nv,), of the next state (nx,) and the mean action (na,).

    `following_total` is that of the next state with the neurons' roundings and `errors` inside, entry by entry;
    `next` is the range of the next state, of the program that runs and of the exact one.
    """

    neurons: Array
    following: Array
    action: Array
    following_total: Array
    next: Affine


class Walk:
    """Ranges of every number of a program, and bounds of what each operation rounds.

    Args:
        program: what runs.
        absolute: activations are off by units in the last place of 1, not of what they give.
        unit: half a unit in the last place of 1; None: the program's.
        ordered: sums are taken from their first term to their last, a bias last; else in any order.
        static: roundings are followed through all operations, as of a program without a state.
    """

    def __init__(
        self,
        program: Program,
        absolute: bool,
        unit: float | None = None,
        ordered: bool = False,
        static: bool = False,
    ) -> None:
        self.program, self.absolute, self.ordered = program, absolute, ordered
        self.unit = float(np.finfo(program.kind).eps) / 2 if unit is None else unit
        self.tiny = float(np.finfo(program.kind).tiny) * 2 * self.unit
        # What is passed over before the neurons counts as a neuron here no more than there.
        self.passed = set(entrywise(program)) | single(program)
        self.recurrent = bool(program.states) and not static

    def through(self, observations: tuple[Array, Array], state: Affine, errors: Array | None = None) -> Seen:
        """Return what roundings can be for observations (nu,) from low to high and a range of states (nx,).

        Args:
            observations: low and high.
            state: of the program that runs and of the exact one.
            errors: (nx,) how far the two may be apart; None: they are one.

        Raises NotCertifiableError where an operation has no bound.
        """
        program = self.program
        ranges = {STATE: state, OBSERVATION: Affine.box(*observations, state.symbols)}
        error = {STATE: np.zeros(program.states), OBSERVATION: np.zeros(program.observations)}
        for name, array in program.constants.items():
            if array.ndim == 1:
                ranges[name], error[name] = Affine.exact(array), np.zeros(len(array))
        total, neurons = dict(error), list[Array]()
        if errors is not None:
            total[STATE] = errors
        count = ranges[OBSERVATION].symbols
        for op in program.unclipped:
            given = [ranges[name] for name in op.inputs if name in ranges]
            found, own = self._value(op, given, count)
            count = max(count, found.symbols)
            ranges[op.output] = found
            total[op.output] = self._carried(op, total, ranges) + own
            if self.recurrent and op.output not in self.passed and self._neuron(op):
                neurons.append(self._carried(op, error, ranges) + own)
                error[op.output] = np.zeros(op.width)
            elif self.recurrent:
                error[op.output] = self._carried(op, error, ranges) + own
        last = error if self.recurrent else total
        return Seen(
            np.concatenate(neurons) if neurons else np.zeros(0),
            error.get(program.following, np.zeros(program.states)),
            last[program.mean],
            total[program.following],
            ranges[program.following],
        )

    def _neuron(self, op: Op) -> bool:
        return op.kind in ("act", "solve", "max", "min")

    def _value(self, op: Op, given: list[Affine], count: int) -> tuple[Affine, Array]:
        """Return the range of what an operation gives, its own rounding inside, and a bound of that (width,)."""
        none = np.zeros(op.width)
        if op.kind == "linear":
            W = self._matrix(op)
            exact = given[0].mapped(W)
            summed = exact if len(given) < 2 else exact.plus(given[1])
            own = self._of_sums(W, given[0], exact, summed, len(given) > 1)
            return summed.loosened(own), own
        if op.kind == "solve":
            return self._solved(op, given[0], count)
        if op.kind == "concat":
            return stacked(given), none
        if op.kind == "gather":
            return given[0][np.array(op.places)], none
        if op.kind == "select":
            return self._selected(given, op.width, count), none
        if op.kind == "act" and op.name == SORTING:
            if self.recurrent:
                raise NotCertifiableError("The rounding of sorted pairs in a policy with a state has no bound here.")
            return self._sorted(given[0], count), none
        if op.kind in ("max", "min") and op.inputs[1] in self.program.constants:
            function = np.maximum if op.kind == "max" else np.minimum
            level = given[1].centre
            return self._bent(given[0], lambda x: function(x, level), op.kind, count), none
        if op.kind == "act" and op.name in SLOPE_RESTRICTED:
            found = self._bent(given[0], ACTIVATIONS[op.name], op.name, count)
            own = self._of_activation(op.name, found.size)
            return found.loosened(own), own
        if op.kind in ("add", "sub", "mul", "div"):
            found = self._arithmetic(op, given, count)
            own = (self.unit * found.size + self.tiny) * _UP
            return found.loosened(own), own
        raise NotCertifiableError(f"The rounding of {op.name or op.kind} has no bound here.")

    def _matrix(self, op: Op) -> Array:
        return self.program.constants[op.inputs[1]].astype(np.float64)

    def _arithmetic(self, op: Op, given: list[Affine], count: int) -> Affine:
        (a, b), constant = given, op.inputs[1] in self.program.constants
        if op.kind in ("add", "sub"):
            return a.plus(b, 1.0 if op.kind == "add" else -1.0)
        if constant:
            return a.scaled(b.centre if op.kind == "mul" else 1.0 / b.centre)
        if op.kind == "mul":
            return a.times(b, count)
        raise NotCertifiableError("The rounding of a quotient of two signals has no bound here.")

    def _bent(self, v: Affine, function: Callable[[Array], Array], name: str, count: int) -> Affine:
        low, high = (np.asarray(function(end[None])[0], dtype=np.float64) for end in (v.low, v.high))
        return v.chord(low, high, name, count)

    def _sorted(self, pairs: Affine, count: int) -> Affine:
        """Return the larger and the smaller of each pair: q + w and p - w with w = relu(p - q)."""
        p, q = (pairs[np.arange(k, len(pairs.centre), 2)] for k in (0, 1))
        w = self._bent(p.plus(q, -1.0), ACTIVATIONS["relu"], "relu", count)
        both = stacked([q.plus(w), p.plus(w, -1.0)])
        return both[np.arange(len(pairs.centre)).reshape(2, -1).T.reshape(-1)]

    def _selected(self, given: list[Affine], width: int, count: int) -> Affine:
        flag, yes, no = given
        if flag.low[0] > 0.5:
            return yes
        if flag.high[0] <= 0.5:
            return no
        return Affine.box(np.minimum(yes.low, no.low), np.maximum(yes.high, no.high), count)

    def _solved(self, op: Op, v: Affine, count: int) -> tuple[Affine, Array]:
        D, act = self._matrix(op), ACTIVATIONS[op.name]
        w, roundings = Affine.exact(np.zeros(0)), []
        for i in range(op.width):
            row, start = D[i : i + 1, :i], v[np.array([i])]
            exact = w.mapped(row) if i else Affine.exact(np.zeros(1))
            summed = start.plus(exact)
            own = self._of_sums(row, w, exact, summed, True) if i else np.zeros(1)
            found = self._bent(summed.loosened(own), act, op.name, count)
            rounded = self._of_activation(op.name, found.size)
            found = found.loosened(rounded)
            count = max(count, found.symbols)
            w = stacked([w, found]) if i else found
            roundings.append(own + rounded)
        return w, np.concatenate(roundings) if roundings else np.zeros(0)

    def _of_sums(self, W: Array, z: Affine, exact: Affine, summed: Affine, bias: bool) -> Array:
        """Return what the products W z (rows,) may round, with a bias behind them."""
        n, added = W.shape[1], summed.plus(exact, -1.0).size if bias else np.zeros(len(W))
        largest = z.largest_sum(W)
        terms = n + int(bias)
        any_order = terms * self.unit / (1 - terms * self.unit) * (largest + added)
        if self.ordered and len(W) * z.symbols * n <= _MOST_SUMS:
            each = largest + z.partial_sums(W) + (summed.size if bias else 0.0)
            in_order = self.unit * (1 + 2 * terms * self.unit) * (each + terms * terms * self.unit * (largest + added))
            any_order = np.minimum(any_order, in_order)
        return (any_order + (terms + 1) * self.tiny) * _UP

    def _carried(self, op: Op, error: dict[str, Array], ranges: dict[str, Affine]) -> Array:
        """Return what errors of its inputs do to what an operation gives; no activation lets them grow."""
        given = [error[name] for name in op.inputs if name in error]
        if op.kind == "linear":
            return np.abs(self._matrix(op)) @ given[0] * _UP
        if op.kind in ("concat", "gather"):
            return calculated(op, [one[None] for one in given])[0]
        if op.kind == "act" and op.name == SORTING:
            return np.repeat(np.maximum(given[0][0::2], given[0][1::2]), 2)
        if op.kind == "select":
            return np.maximum(given[1], given[2]) + np.zeros(op.width)
        if op.kind in ("add", "sub"):
            return (given[0] + given[1]) * _UP + np.zeros(op.width)
        if op.kind == "mul":
            a, b = (ranges[name].size for name in op.inputs)
            return (given[0] * b + a * given[1] + given[0] * given[1]) * _UP
        if op.kind == "div":
            return given[0] / np.abs(ranges[op.inputs[1]].centre) * _UP + np.zeros(op.width)
        if op.kind == "solve" and not self.recurrent:
            D, found = np.abs(self._matrix(op)), given[0].copy()
            for i in range(op.width):
                found[i] += D[i, :i] @ found[:i]
            return found * _UP
        return given[0]

    def _of_activation(self, name: str, found: Array) -> Array:
        if name in ("relu", "hardtanh", "identity", SORTING):
            return np.zeros(len(found))
        size = np.maximum(found, 1.0) if self.absolute else found
        return (2 * UNITS * self.unit * size + self.tiny) * _UP
