"""The program of a policy, recorded from `robust_policies.runtime` as it runs one step.

There is no second description of any policy: what stands in the place of the observation and of the state writes down
what the runtime does with them, and the constants are the arrays that it does it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from robust_policies.errors import InvalidValueError
from robust_policies.export.program import KINDS, OBSERVATION, STATE, Op, Program, needed
from robust_policies.runtime import RuntimePolicy

_UFUNCS = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "maximum": "max",
    "minimum": "min",
}
# What is known comes second where the order does not matter: proofs look for it there.
_EITHER = ("add", "mul", "max", "min")
# Values that are looked at as pixels are no input of a small program.
_IMAGE = np.dtype(np.uint8)
# More operations are no short list: of windows, the rows times the layers.
_MOST = 20_000


def record(policy: RuntimePolicy, dtype: str = "float32") -> Program:
    """Return what a policy does at each step, in one number type: its deterministic action.

    Raises InvalidValueError where it reads images or does something that has no operation.
    """
    for key, part in policy.observation_space.parts.items():
        if part.dtype == _IMAGE and len(part.shape) >= 2:
            what = f"Entry {key!r} of the observation" if key else "The observation"
            raise InvalidValueError(
                f"{what} is an image of shape {part.shape}; expected vectors of numbers: export the part behind the "
                "image's network."
            )
    size = sum(part.size for part in policy.observation_space.parts.values())
    tape = _Tape(np.dtype(KINDS[dtype]), policy._dtype)
    given = Recorded(tape, OBSERVATION, size), Recorded(tape, STATE, policy.state_size)
    action, following = policy.step(*cast(Any, given))
    if not (isinstance(action, Recorded) and isinstance(following, Recorded)):
        raise InvalidValueError("The policy's action does not depend on what it reads; expected one that does.")
    ops = needed(tape.ops, (action.name, following.name))
    used = {name for op in ops for name in op.inputs}
    return Program(
        ops=ops,
        constants={name: array for name, array in tape.constants.items() if name in used},
        observations=size,
        states=policy.state_size,
        action=action.name,
        following=following.name,
        mean=_before_clip(ops, action.name, tape.constants),
        actions=action.width,
        whole=bool(policy.action_space.kind != "Box"),
        dtype=dtype,
    )


class _Tape:
    """What was done so far."""

    def __init__(self, kind: np.dtype, given: np.dtype) -> None:
        self.kind, self.given = kind, given
        self.ops: list[Op] = []
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def constant(self, value: Any) -> str:
        """Return the name of a vector or matrix, the same for the same numbers."""
        array = np.ascontiguousarray(np.asarray(value), dtype=self.kind)
        key = (array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = f"c{len(self.constants)}"
            self.constants[name] = array
        return self._known[key]

    def op(self, kind: str, inputs: Sequence[str], width: int, **more: Any) -> Recorded:
        """Return what a new operation gives."""
        if len(self.ops) >= _MOST:
            raise InvalidValueError(
                f"One step has more than {_MOST} operations; export a shorter window or --format safetensors."
            )
        made = Op(kind, tuple(inputs), f"v{len(self.ops)}", width, **more)
        self.ops.append(made)
        return Recorded(self, made.output, width)


class Recorded:
    """A vector (1, width) in an array's place."""

    ndim = 2

    def __init__(self, tape: _Tape, name: str, width: int) -> None:
        self.tape, self.name, self.width = tape, name, width

    @property
    def dtype(self) -> np.dtype:
        """The number type of the policy, whose casts are not done: the program has one of its own."""
        return self.tape.given

    @property
    def shape(self) -> tuple[int, int]:
        """One row."""
        return 1, self.width

    def __len__(self) -> int:
        return 1

    def astype(self, kind: Any) -> Recorded:
        """Return this vector; see `dtype`."""
        return self

    def activated(self, name: str) -> Recorded:
        """Return the activation of each entry."""
        return self if name == "identity" else self.tape.op("act", [self.name], self.width, name=name)

    def solved(self, rows: Sequence[np.ndarray], name: str) -> Recorded:
        """Return w of w_i = act(v_i + rows_i w_(<i))."""
        D = np.zeros((self.width, self.width))
        for i, row in enumerate(rows):
            D[i, :i] = row
        return self.tape.op("solve", [self.name, self.tape.constant(D)], self.width, name=name)

    def argmax(self, axis: int) -> Recorded:
        """Return the place of the first largest entry."""
        return self.tape.op("argmax", [self.name], 1)

    def reshape(self, *shape: int) -> Any:
        """Return the rows (1, rows, columns) of a window, or this vector where it is one row of any shape."""
        if len(shape) == 3 and shape[0] == 1 and shape[1] * shape[2] == self.width:
            return _Rows(self, shape[2])
        return self

    def __getitem__(self, index: Any) -> Recorded:
        _, columns = index
        places = np.atleast_1d(np.arange(self.width)[columns])
        if len(places) == self.width and (places == np.arange(self.width)).all():
            return self
        return self.tape.op("gather", [self.name], len(places), places=tuple(map(int, places)))

    def __gt__(self, level: float) -> _Flag:
        if level != 0.5 or self.width != 1:
            raise InvalidValueError(f"A step compares {self.width} numbers with {level}, which has no operation.")
        return _Flag(self)

    # NumPy calls __array_ufunc__ for its own arrays; these are for what stands on the left.
    def __add__(self, other: Any) -> Recorded:
        return self._pair("add", self, other)

    def __radd__(self, other: Any) -> Recorded:
        return self._pair("add", other, self)

    def __sub__(self, other: Any) -> Recorded:
        return self._pair("sub", self, other)

    def __rsub__(self, other: Any) -> Recorded:
        return self._pair("sub", other, self)

    def __mul__(self, other: Any) -> Recorded:
        return self._pair("mul", self, other)

    def __rmul__(self, other: Any) -> Recorded:
        return self._pair("mul", other, self)

    def __truediv__(self, other: Any) -> Recorded:
        return self._pair("div", self, other)

    def __matmul__(self, matrix: np.ndarray) -> Recorded:
        W = np.asarray(matrix).T
        return self.tape.op("linear", [self.name, self.tape.constant(W)], len(W))

    def dot(self, matrix: np.ndarray) -> Recorded:
        """Return the product with a matrix (width, n); of NumPy's arrays it takes half of the time of `@`."""
        return self @ matrix

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Recorded:
        if method != "__call__" or options:
            raise _unknown(ufunc.__name__)
        if ufunc is np.tanh:
            return self.activated("tanh")
        if ufunc is np.matmul and inputs[0] is self:
            return self @ inputs[1]
        if ufunc.__name__ in _UFUNCS:
            return self._pair(_UFUNCS[ufunc.__name__], *inputs)
        raise _unknown(ufunc.__name__)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.concatenate or function is np.stack:
            return self._joined(args[0])
        if function is np.where:
            return self._where(*args)
        if function is np.clip:
            return np.minimum(np.maximum(args[0], args[1]), args[2])
        if function is np.round:
            return self.tape.op("round", [self.name], self.width)
        raise _unknown(function.__name__)

    def _pair(self, kind: str, left: Any, right: Any) -> Recorded:
        tape, parts = self.tape, []
        if kind in _EITHER and not isinstance(left, Recorded):
            left, right = right, left
        for side in (left, right):
            if isinstance(side, Recorded):
                parts.append((side.name, side.width))
            else:
                flat = np.atleast_1d(np.asarray(side, dtype=np.float64)).reshape(-1)
                parts.append((tape.constant(flat), len(flat)))
        if kind == "max" and isinstance(left, Recorded) and np.isneginf(np.asarray(right, dtype=np.float64)).all():
            return left
        if kind == "min" and isinstance(left, Recorded) and np.isposinf(np.asarray(right, dtype=np.float64)).all():
            return left
        last = tape.ops[-1] if tape.ops else None
        alone = kind == "add" and isinstance(left, Recorded) and not isinstance(right, Recorded)
        if alone and last and last.kind == "linear" and last.output == left.name and len(last.inputs) == 2:
            bias = np.broadcast_to(np.asarray(right, dtype=np.float64).reshape(-1), (last.width,))
            return tape.op("linear", [*last.inputs, tape.constant(bias)], last.width)
        return tape.op(kind, [name for name, _ in parts], max(width for _, width in parts))

    def _joined(self, parts: Sequence[Any]) -> Recorded:
        names, width = [], 0
        for part in parts:
            size = part.width if isinstance(part, Recorded) else np.asarray(part).size
            if size:
                flat = part if isinstance(part, Recorded) else np.asarray(part).reshape(-1)
                names.append(flat.name if isinstance(flat, Recorded) else self.tape.constant(flat))
                width += size
        alone = [part for part in parts if isinstance(part, Recorded) and part.width == width]
        return alone[0] if len(names) == 1 and alone else self.tape.op("concat", names, width)

    def _where(self, condition: Any, yes: Any, no: Any) -> Recorded:
        sides = [side if isinstance(side, Recorded) else np.asarray(side).reshape(-1) for side in (yes, no)]
        width = max(side.width if isinstance(side, Recorded) else side.size for side in sides)
        names = []
        for side in sides:
            wide = side if isinstance(side, Recorded) else np.broadcast_to(side, (width,))
            names.append(wide.name if isinstance(wide, Recorded) else self.tape.constant(wide))
        if isinstance(condition, _Flag):
            return self.tape.op("select", [condition.of.name, *names], width)
        mask = np.broadcast_to(np.asarray(condition).reshape(-1), (width,))
        both = self.tape.op("concat", names, 2 * width)
        return both[:, np.where(mask, np.arange(width), width + np.arange(width))]


class _Flag:
    """Whether a number is above 0.5."""

    def __init__(self, of: Recorded) -> None:
        self.of = of

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.where:
            return self.of._where(*args)
        raise _unknown(function.__name__)


class _Rows:
    """A vector as rows (1, rows, columns) of a window."""

    def __init__(self, of: Recorded, columns: int) -> None:
        self.of, self.columns = of, columns

    def __getitem__(self, index: Any) -> Recorded:
        _, row, columns = index
        return self.of[:, row * self.columns + np.arange(self.columns)[columns]]


def _before_clip(ops: Sequence[Op], action: str, constants: Any) -> str:
    """Return the name of what is clipped last to give the action."""
    made = {op.output: op for op in ops}
    while action in made and made[action].kind in ("max", "min") and made[action].inputs[1] in constants:
        action = made[action].inputs[0]
    return action


def _unknown(name: str) -> InvalidValueError:
    return InvalidValueError(f"A step of this policy does {name}, which has no operation in an exported program.")
