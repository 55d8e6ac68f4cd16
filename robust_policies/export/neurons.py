"""A program as a linear system around single neurons, with the constants that are exported.

Every value is followed as a linear map of (x, w, u): the state, what the neurons give, and the observation; constants
change no difference. A clip or an activation of single observations, and one of single numbers of the action, changes
no entry by more than what it is given: there it is passed over.
"""

from __future__ import annotations

import numpy as np

from robust_policies.certificates.lmi import Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.verify import SLOPE_RESTRICTED, SORTING
from robust_policies.control.bounded import Bounded, assembled
from robust_policies.errors import NotCertifiableError
from robust_policies.export.program import OBSERVATION, STATE, Op, Program

_SCALED = ("add", "sub", "mul", "div")


def neurons_of(program: Program, *, clips: bool = True, turns: bool = False, flags: bool = False) -> Neurons:
    """Return the system from the observation to the mean action, which is not clipped yet, and multipliers of 1.

    With `clips` False nothing is clipped or rounded to whole numbers inside either, as if no limit were ever reached
    and inputs took any value; with `turns` what is rounded counts whole turns of angles, of which there are none. With
    `flags` a choice passes on what is chosen where its flag is set, for differences that are zero where it is not
    (`export.window`). What rounding did to products is in the model's `error`. Raises NotCertifiableError where a
    program multiplies signals, or holds something whose slope is not known.
    """
    return _Followed(program, clips, turns, flags).neurons()


def entrywise(program: Program) -> set[str]:
    """Return the names of what is done to single numbers of the mean action last, and to nothing else."""
    made, uses = {op.output: op for op in program.unclipped}, _uses(program)
    name, found = program.mean, set[str]()
    while name in made and name != program.following and uses[name] == 1:
        op = made[name]
        known = op.inputs[-1] in program.constants
        if op.kind != "act" and not (known and op.kind in (*_SCALED, "max", "min")):
            break
        if op.kind == "act" and op.name not in SLOPE_RESTRICTED:
            break
        found.add(name)
        name = op.inputs[0]
    return found


def single(program: Program) -> set[str]:
    """Return the names of values each entry of which is made of one observation alone, and of another one each."""
    found = {OBSERVATION}
    for op in program.ops:
        first = op.inputs[0] in found and all(name in program.constants for name in op.inputs[1:])
        if not first or op.kind not in (*_SCALED, "max", "min", "act", "gather"):
            continue
        if (op.kind == "act" and op.name not in SLOPE_RESTRICTED) or len(set(op.places)) != len(op.places):
            continue
        found.add(op.output)
    return found


def _uses(program: Program) -> dict[str, int]:
    counts: dict[str, int] = {program.mean: 1, program.following: 1}
    for op in program.unclipped:
        for name in op.inputs:
            counts[name] = counts.get(name, 0) + 1
    return counts


class _Followed:
    def __init__(self, program: Program, clips: bool, turns: bool, flags: bool) -> None:
        self.program, self.clips, self.turns, self.flags = program, clips, turns, flags
        self.single, self.last = single(program), entrywise(program)
        self.nx, self.nu = program.states, program.observations
        self.nv = sum(self._count(op) for op in program.unclipped)
        self.columns = self.nx + self.nv + self.nu
        self.read: list[Bounded] = []
        eye = np.eye(self.columns)
        self.known: dict[str, Bounded] = {
            STATE: Bounded.exact(eye[: self.nx]),
            OBSERVATION: Bounded.exact(eye[self.nx + self.nv :]),
        }
        for name, array in program.constants.items():
            if array.ndim == 1:
                self.known[name] = Bounded.exact(np.zeros((len(array), self.columns)))

    def neurons(self) -> Neurons:
        for op in self.program.unclipped:
            self.known[op.output] = self._value(op)
        blank = Bounded.exact(np.zeros((0, self.columns)))
        v = _stacked(self.read) if self.read else blank
        x, y = self.known[self.program.following], self.known[self.program.mean]
        ends = np.cumsum([self.nx, self.nv, self.nu])
        parts: dict[str, Bounded] = {}
        for names, rows in ((("A", "B1", "B2"), x), (("C1", "D11", "D12"), v), (("C2", "D21", "D22"), y)):
            for name, stop, size in zip(names, ends, (self.nx, self.nv, self.nu), strict=True):
                cut = slice(stop - size, stop)
                parts[name] = Bounded(rows.value[:, cut], rows.error[:, cut])
        model: Matrices = assembled(parts)
        return Neurons(model, np.ones(self.nv))

    def _count(self, op: Op) -> int:
        """Return how many neurons an operation has."""
        if op.kind == "solve":
            return op.width
        if self._passed(op):
            return 0
        if op.kind == "act":
            return op.width // 2 if op.name == SORTING else op.width
        return op.width if op.kind in ("max", "min") else 0

    def _passed(self, op: Op) -> bool:
        known = op.output in self.last or op.output in self.single
        return known or (not self.clips and op.kind in ("max", "min"))

    def _neuron(self, v: Bounded) -> Bounded:
        """Return what new neurons give that read v (n, columns)."""
        before = sum(len(one.value) for one in self.read)
        self.read.append(v)
        start = self.nx + before
        return Bounded.exact(np.eye(self.columns)[start : start + len(v.value)])

    def _value(self, op: Op) -> Bounded:
        given = [self.known[name] for name in op.inputs if name in self.known]
        passed = self._passed(op)
        if op.kind == "linear":
            return Bounded.exact(self.program.constants[op.inputs[1]]) @ given[0]
        if op.kind == "concat":
            return _stacked(given)
        if op.kind == "gather":
            places = list(op.places)
            return Bounded(given[0].value[places], given[0].error[places])
        if op.kind in ("add", "sub"):
            return given[0] + given[1] if op.kind == "add" else given[0] - given[1]
        if op.kind in ("mul", "div") and op.inputs[1] in self.program.constants:
            sizes = self.program.constants[op.inputs[1]].astype(np.float64)
            factor = Bounded.exact(sizes) if op.kind == "mul" else Bounded.inverse(sizes)
            return (
                Bounded(
                    np.broadcast_to(factor.value, (op.width,)).copy(), np.broadcast_to(factor.error, (op.width,)).copy()
                ).diagonal()
                @ given[0]
            )
        if op.kind in ("max", "min") and op.inputs[1] in self.program.constants:
            return given[0] if passed else self._neuron(given[0])
        if op.kind == "act" and op.name in SLOPE_RESTRICTED:
            return given[0] if passed else self._neuron(given[0])
        if op.kind == "round" and not self.clips:
            return Bounded.exact(np.zeros((op.width, self.columns))) if self.turns else given[0]
        if op.kind == "act" and op.name == SORTING:
            return self._sorted(given[0])
        if op.kind == "select" and self.flags:
            return given[1]
        if op.kind == "solve" and op.name in SLOPE_RESTRICTED:
            return self._solved(op, given[0])
        what = "products of two signals" if op.kind in ("mul", "div") else f"{op.name or op.kind}"
        raise NotCertifiableError(
            f"The exported program has {what}, of which no slope is known; nothing follows from its constants."
        )

    def _sorted(self, pairs: Bounded) -> Bounded:
        """Return the larger and the smaller of each pair: q + w and p - w with w = relu(p - q)."""
        p, q = (Bounded(pairs.value[k::2], pairs.error[k::2]) for k in (0, 1))
        w = self._neuron(p - q)
        ends, value, error = (q + w, p - w), np.empty_like(pairs.value), np.empty_like(pairs.error)
        for k, end in enumerate(ends):
            value[k::2], error[k::2] = end.value, end.error
        return Bounded(value, error)

    def _solved(self, op: Op, v: Bounded) -> Bounded:
        D = Bounded.exact(self.program.constants[op.inputs[1]])
        before = sum(len(one.value) for one in self.read)
        w = Bounded.exact(np.eye(self.columns)[self.nx + before : self.nx + before + op.width])
        self.read.append(v + D @ w)
        return w


def _stacked(parts: list[Bounded]) -> Bounded:
    return Bounded(np.vstack([part.value for part in parts]), np.vstack([part.error for part in parts]))
