"""A program as one ONNX graph: one step, rows of a batch of any size, its arrays as constants.

tanh and what is made of exp are written with Exp, so that no value leaves its range: with e = exp(-2 |x|),
tanh x = sign(x) (1 - e) / (1 + e), which is never above 1 (onnxruntime's own Tanh of float32 is, and is not monotone)
and off by at most `TANH_ERROR` in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.export.program import OBSERVATION, STATE, Op, Program

OPSET, IR_VERSION = 17, 8
TANH_ERROR = 2.4e-7
# Of onnx.TensorProto.
_INT64, _FLOATS = 7, {4: 1, 8: 11}
_PAIRS = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}


def check_onnx() -> None:
    """Raise InvalidValueError where the package onnx is not installed."""
    if importlib.util.find_spec("onnx") is None:
        raise InvalidValueError("--format onnx needs the package onnx: pip install 'robust-policies[onnx]'.")


def onnx_bytes(program: Program, about: str) -> bytes:
    """Return the checked model as a file's bytes: inputs observation and state, outputs action and next_state.

    Raises InvalidValueError where onnx is not installed, UnknownNameError for an activation without a form.
    """
    check_onnx()
    import onnx
    from onnx import helper, numpy_helper

    graph = _Graph(program)
    for op in program.ops:
        graph.add(op)
    if program.whole:
        graph.node("Cast", [program.action], "action", to=_INT64)
    else:
        graph.node("Identity", [program.action], "action")
    graph.node("Identity", [program.following], "next_state")
    kind = helper.np_dtype_to_tensor_dtype(program.kind)

    def tensor(name: str, width: int, of: int = kind) -> Any:
        return helper.make_tensor_value_info(name, of, ["batch", width])

    made = helper.make_graph(
        graph.nodes,
        "policy",
        [tensor(OBSERVATION, program.observations), tensor(STATE, program.states)],
        [tensor("action", program.actions, _INT64 if program.whole else kind), tensor("next_state", program.states)],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        doc_string=about,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="robust-policies"
    )
    helper.set_model_props(model, {"arrays_sha256": program.sha256})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """Nodes and constants so far."""

    def __init__(self, program: Program) -> None:
        from onnx import helper

        self.make, self.program, self.kind = helper.make_node, program, program.kind
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.widths = program.widths()

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Return the name of what a new node gives."""
        output = output or f"n{len(self.nodes)}"
        self.nodes.append(self.make(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, name: str = "") -> str:
        """Return the name of a constant; numbers are of the program's type, places int64."""
        array = np.asarray(value)
        array = array if array.dtype == np.int64 else array.astype(self.kind)
        name = name or f"k{array.dtype.str[1:]}_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def number(self, value: float) -> str:
        """Return the name of one number."""
        name = f"number_{value:g}"
        return name if name in self.constants else self.constant([value], name)

    def add(self, op: Op) -> None:
        """Add one operation."""
        constants = self.program.constants
        if op.kind == "solve":
            self._solve(op, op.inputs[0], op.output)
            return
        given = [
            self.constant(constants[name], name) if name in constants and name not in self.constants else name
            for name in op.inputs
        ]
        y = op.output
        if op.kind == "linear":
            self.node("Gemm", given, y, transB=1)
        elif op.kind == "act":
            self.activated(op.name, given[0], op.width, y)
        elif op.kind == "concat":
            # A constant has one row; adding it to zeros of the batch gives as many as there are.
            rows = next(name for name in op.inputs if name not in constants)
            parts = [self._rows(name, rows) if name in constants else name for name in op.inputs]
            self.node("Concat", parts, y, axis=1)
        elif op.kind == "gather":
            self._gather(given[0], op.places, y)
        elif op.kind == "select":
            self.node("Where", [self.node("Greater", [given[0], self.number(0.5)]), *given[1:]], y)
        elif op.kind == "round":
            self.node("Round", given, y)
        elif op.kind == "argmax":
            whole = self.node("ArgMax", given, axis=1, keepdims=1)
            self.node("Cast", [whole], y, to=_FLOATS[self.kind.itemsize])
        else:
            self.node(_PAIRS[op.kind], given, y)

    def activated(self, name: str, x: str, width: int, y: str) -> None:
        """Add an activation of a value of some width."""
        if name == "maxmin":
            ends = [self._gather(x, tuple(range(k, width, 2))) for k in (0, 1)]
            both = self.node("Concat", [self.node("Max", ends), self.node("Min", ends)], axis=1)
            order = tuple(k // 2 + (k % 2) * (width // 2) for k in range(width))
            self._gather(both, order, y)
            return
        if name not in _FORMS:
            raise UnknownNameError.among("activation with a form in ONNX", name, [*_FORMS, "maxmin"])
        _FORMS[name](self, x, y)

    def _solve(self, op: Op, v: str, y: str) -> None:
        D, parts = self.program.constants[op.inputs[1]], []
        for i in range(op.width):
            entry = self._gather(v, (i,))
            if i:
                before = parts[0] if i == 1 else self.node("Concat", parts, axis=1)
                entry = self.node("Add", [entry, self.node("MatMul", [before, self.constant(D[i, :i, None])])])
            solved = f"{y}_{i}"
            self.activated(op.name, entry, 1, solved)
            parts.append(solved)
        self.node("Concat", parts, y, axis=1)

    def _gather(self, x: str, places: tuple[int, ...], y: str = "") -> str:
        return self.node("Gather", [x, self.constant(np.array(places, dtype=np.int64))], y, axis=1)

    def _rows(self, name: str, like: str) -> str:
        zero = self.node("Mul", [self._gather(like, (0,)), self.number(0.0)])
        return self.node("Add", [zero, name])


def _tanh(g: _Graph, x: str, y: str) -> None:
    e = g.node("Exp", [g.node("Mul", [g.node("Abs", [x]), g.number(-2.0)])])
    size = g.node("Div", [g.node("Sub", [g.number(1.0), e]), g.node("Add", [g.number(1.0), e])])
    g.node("Where", [_positive(g, x), size, g.node("Neg", [size])], y)


def _sigmoid(g: _Graph, x: str, y: str) -> None:
    e = g.node("Exp", [g.node("Neg", [g.node("Abs", [x])])])
    g.node("Div", [g.node("Where", [_positive(g, x), g.number(1.0), e]), g.node("Add", [g.number(1.0), e])], y)


def _softplus(g: _Graph, x: str, y: str) -> None:
    e = g.node("Exp", [g.node("Neg", [g.node("Abs", [x])])])
    rest = g.node("Log", [g.node("Add", [g.number(1.0), e])])
    near = g.node("Add", [g.node("Max", [x, g.number(0.0)]), rest])
    g.node("Where", [g.node("Greater", [x, g.number(20.0)]), x, near], y)


def _elu(g: _Graph, x: str, y: str) -> None:
    e = g.node("Exp", [g.node("Min", [x, g.number(0.0)])])
    g.node("Where", [g.node("Greater", [x, g.number(0.0)]), x, g.node("Sub", [e, g.number(1.0)])], y)


def _leaky(g: _Graph, x: str, y: str) -> None:
    g.node("Where", [_positive(g, x), x, g.node("Mul", [x, g.number(0.01)])], y)


def _hardtanh(g: _Graph, x: str, y: str) -> None:
    g.node("Min", [g.node("Max", [x, g.number(-1.0)]), g.number(1.0)], y)


def _softsign(g: _Graph, x: str, y: str) -> None:
    g.node("Div", [x, g.node("Add", [g.number(1.0), g.node("Abs", [x])])], y)


def _positive(g: _Graph, x: str) -> str:
    return g.node("GreaterOrEqual", [x, g.number(0.0)])


_FORMS: dict[str, Callable[[_Graph, str, str], Any]] = {
    "relu": lambda g, x, y: g.node("Max", [x, g.number(0.0)], y),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "leaky_relu": _leaky,
    "elu": _elu,
    "softplus": _softplus,
    "hardtanh": _hardtanh,
    "softsign": _softsign,
}
