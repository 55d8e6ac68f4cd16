"""Intervals of every number of a program, and bounds of what each of its operations rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robust_policies.certificates.lmi import Array
from robust_policies.errors import NotCertifiableError
from robust_policies.export.neurons import entrywise, single
from robust_policies.export.program import OBSERVATION, STATE, Op, Program, calculated
from robust_policies.runtime.activations import ACTIVATIONS

UNITS = 4
"""In the last place, by which an activation may be off: of libm's and NumPy's by at most 3 where measured."""
_UP = 1 + 1e-9


@dataclass(frozen=True)
class Seen:
    """Bounds of roundings: d of the neurons (nv,), of the next state (nx,) and the mean action (na,).

    `following_total` is that of the next state with the neurons' roundings inside, by intervals.
    """

    neurons: Array
    following: Array
    action: Array
    following_total: Array


class Walk:
    """Intervals of every number of a program, and bounds of what each operation rounds."""

    def __init__(self, program: Program, absolute: bool, unit: float | None = None) -> None:
        self.program, self.absolute = program, absolute
        self.unit = float(np.finfo(program.kind).eps) / 2 if unit is None else unit
        self.tiny = float(np.finfo(program.kind).tiny) * 2 * self.unit
        self.last = entrywise(program)
        # What is passed over before the neurons counts as a neuron here no more than there.
        self.recurrent = bool(program.states)

    def through(self, observations: tuple[Array, Array], states: tuple[Array, Array]) -> Seen:
        """Return what roundings can be for observations (nu,) and states (nx,) within limits, lows and highs.

        Raises NotCertifiableError where an operation has no bound.
        """
        program = self.program
        interval: dict[str, tuple[Array, Array]] = {STATE: states, OBSERVATION: observations}
        error = {STATE: np.zeros(program.states), OBSERVATION: np.zeros(program.observations)}
        for name, array in program.constants.items():
            if array.ndim == 1:
                wide = array.astype(np.float64)
                interval[name], error[name] = (wide, wide), np.zeros(len(array))
        neurons: list[Array] = []
        total = dict(error)
        passed = self._passed()
        for op in program.unclipped:
            exact = self._interval(op, interval)
            own = self._own(op, interval, np.maximum(np.abs(exact[0]), np.abs(exact[1])))
            interval[op.output] = exact[0] - own, exact[1] + own
            total[op.output] = self._carried(op, total, interval) + own
            before = self._carried(op, error, interval)
            if self.recurrent and op.output not in passed and self._neuron(op):
                neurons.append(before + own)
                error[op.output] = np.zeros(op.width)
            else:
                error[op.output] = before + own
        whole = error if self.recurrent else total
        return Seen(
            np.concatenate(neurons) if neurons else np.zeros(0),
            error[program.following],
            whole[program.mean],
            total[program.following],
        )

    def _passed(self) -> set[str]:
        return set(self.last) | single(self.program)

    def _neuron(self, op: Op) -> bool:
        if op.kind == "act" and op.name == "maxmin":
            raise NotCertifiableError("The rounding of sorted pairs in a policy with a state has no bound here.")
        return op.kind in ("act", "solve", "max", "min")

    def _interval(self, op: Op, known: dict[str, tuple[Array, Array]]) -> tuple[Array, Array]:
        given = [known[name] for name in op.inputs if name in known]
        if op.kind == "linear":
            W = self.program.constants[op.inputs[1]].astype(np.float64)
            middle, half = 0.5 * (given[0][0] + given[0][1]), 0.5 * (given[0][1] - given[0][0])
            centre, reach = W @ middle, np.abs(W) @ half
            centre = centre + (given[1][0] if len(given) > 1 else 0.0)
            return self._wide(centre - reach, centre + reach)
        if op.kind == "solve":
            return self._solved(op, given[0])
        if op.kind in ("concat", "gather"):
            ends = [calculated(op, [side[k][None] for side in given])[0] for k in (0, 1)]
            return ends[0], ends[1]
        if op.kind == "act":
            return self._wide(*(ACTIVATIONS[op.name](end[None])[0] for end in given[0]))
        if op.kind in ("max", "min"):
            function = np.maximum if op.kind == "max" else np.minimum
            return function(given[0][0], given[1][0]), function(given[0][1], given[1][1])
        if op.kind in ("add", "sub"):
            a, b = given
            b = b if op.kind == "add" else (-b[1], -b[0])
            return self._wide(a[0] + b[0], a[1] + b[1])
        if op.kind in ("mul", "div") and op.inputs[1] in self.program.constants:
            ends = [given[0][k] * given[1][0] if op.kind == "mul" else given[0][k] / given[1][0] for k in (0, 1)]
            return self._wide(np.minimum(*ends), np.maximum(*ends))
        raise NotCertifiableError(f"The rounding of {op.kind} has no bound here.")

    def _wide(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Return an interval with room for the rounding of its ends, which are computed in float64."""
        room = 1e-11 * np.maximum(np.abs(low), np.abs(high)) + 1e-300
        return low - room, high + room

    def _solved(self, op: Op, v: tuple[Array, Array]) -> tuple[Array, Array]:
        D = self.program.constants[op.inputs[1]].astype(np.float64)
        low, high = np.zeros(op.width), np.zeros(op.width)
        for i in range(op.width):
            centre, half = 0.5 * (low[:i] + high[:i]), 0.5 * (high[:i] - low[:i])
            middle, reach = D[i, :i] @ centre, np.abs(D[i, :i]) @ half
            ends = self._wide(v[0][i : i + 1] + middle - reach, v[1][i : i + 1] + middle + reach)
            found = np.array([ACTIVATIONS[op.name](end[None])[0, 0] for end in ends])
            # What runs is what the neurons behind it read.
            room = self._of_activation(op.name, np.abs(found).max(keepdims=True))
            rounded = (
                self.unit
                * (i + 3)
                * (np.abs(D[i, :i]) @ np.maximum(np.abs(low[:i]), np.abs(high[:i])) + np.abs(v).max())
            )
            low[i], high[i] = found[0] - room[0] - 2 * rounded, found[1] + room[0] + 2 * rounded
        return self._wide(low, high)

    def _carried(self, op: Op, error: dict[str, Array], interval: dict[str, tuple[Array, Array]]) -> Array:
        """Return what errors of its inputs do to what an operation gives; no activation lets them grow."""
        given = [error[name] for name in op.inputs if name in error]
        if op.kind == "linear":
            return np.abs(self.program.constants[op.inputs[1]].astype(np.float64)) @ given[0] * _UP
        if op.kind in ("concat", "gather"):
            return calculated(op, [one[None] for one in given])[0]
        if op.kind == "act" and op.name == "maxmin":
            return np.repeat(np.maximum(given[0][0::2], given[0][1::2]), 2)
        if op.kind in ("add", "sub"):
            return (given[0] + given[1]) * _UP + np.zeros(op.width)
        if op.kind in ("mul", "div"):
            factor = np.abs(interval[op.inputs[1]][0])
            return (given[0] * factor if op.kind == "mul" else given[0] / factor) * _UP + np.zeros(op.width)
        if op.kind == "solve" and not self.recurrent:
            D, found = np.abs(self.program.constants[op.inputs[1]].astype(np.float64)), given[0].copy()
            for i in range(op.width):
                found[i] += D[i, :i] @ found[:i]
            return found * _UP
        return given[0]

    def _own(self, op: Op, interval: dict[str, tuple[Array, Array]], found: Array) -> Array:
        """Return what an operation itself may round, (width,), whose result is at most `found` (width,) in size."""
        sizes = {name: np.maximum(*map(np.abs, interval[name])) for name in op.inputs if name in interval}
        given = sizes[op.inputs[0]]
        if op.kind in ("linear", "solve"):
            W = np.abs(self.program.constants[op.inputs[1]].astype(np.float64))
            terms = W.shape[1] + 2
            bias = sizes[op.inputs[2]] if len(op.inputs) > 2 else (given if op.kind == "solve" else 0.0)
            inner = found if op.kind == "solve" else given
            added = terms * self.unit / (1 - terms * self.unit) * (W @ inner + bias) + terms * self.tiny
            return (added + (self._of_activation(op.name, found) if op.kind == "solve" else 0.0)) * _UP
        if op.kind == "act":
            return self._of_activation(op.name, found)
        if op.kind in ("add", "sub", "mul", "div"):
            return (self.unit * found + self.tiny) * _UP
        return np.zeros(op.width)

    def _of_activation(self, name: str, found: Array) -> Array:
        if name in ("relu", "hardtanh", "identity", "maxmin"):
            return np.zeros(len(found))
        size = np.maximum(found, 1.0) if self.absolute else found
        return (2 * UNITS * self.unit * size + self.tiny) * _UP
