"""Short arithmetic expressions over named parameters, and matrices of them, so that physics can be written as data.

An expression is read into a tree of our own and never executed as Python: numbers, names, + - * / **, parentheses and
a few functions of one argument; anything else is refused.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

Tree = float | str | tuple[Any, ...]
"""A number, a name, or an operation's key and its operands."""

_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {"sqrt": torch.sqrt, "sin": torch.sin, "cos": torch.cos}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "negative": operator.neg,
    **_FUNCTIONS,
}
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_LONGEST = 200
_WORDS = "numbers, parentheses, + - * / **, " + ", ".join(f"{name}(...)" for name in _FUNCTIONS)


class Expression:
    """One expression; `names` are the parameters in it, and calling it with their values returns its value."""

    def __init__(self, where: str, text: str, known: Iterable[str]) -> None:
        """Read `text`, which may use the names `known`; `where` names it in errors.

        Raises `InvalidValueError` for what is not allowed or has no finite value, `UnknownNameError` for a name that is
        not known; both say what is.
        """
        self.where, self.text = where, text
        self.known = tuple(sorted(known))
        self.names: set[str] = set()
        if len(text) > _LONGEST:
            raise InvalidValueError(
                f"{where} has {len(text)} characters; expected an expression of at most {_LONGEST}."
            )
        try:
            parsed = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise self._refused("is not an arithmetic expression") from error
        self.tree = self._read(parsed)

    @property
    def number(self) -> float | None:
        """The value, if there is no name in the expression."""
        return self.tree if isinstance(self.tree, float) else None

    def __call__(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the value for parameters given as tensors, broadcast against one another."""
        return torch.as_tensor(_value(self.tree, values))

    def _refused(self, reason: str) -> InvalidValueError:
        names = ", ".join(self.known) or "no names, as physical: is empty"
        return InvalidValueError(f"{self.where} is {self.text!r}, which {reason}; allowed are {_WORDS} and {names}.")

    def _read(self, node: ast.expr) -> Tree:
        """Return the tree of `node`, its constant parts computed."""
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or not isinstance(node.value, int | float):
                raise self._refused(f"holds {node.value!r}")
            return self._finite(float(node.value))
        if isinstance(node, ast.Name):
            if node.id not in self.known:
                raise UnknownNameError(
                    f"{self.where} is {self.text!r}. {UnknownNameError.among('parameter', node.id, self.known)} "
                    f"Allowed are {_WORDS}."
                )
            self.names.add(node.id)
            return node.id
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return self._operation(_BINARY[type(node.op)], node.left, node.right)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            return (
                self._operation("negative", node.operand) if isinstance(node.op, ast.USub) else self._read(node.operand)
            )
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and len(node.args) == 1:
            if node.func.id in _FUNCTIONS:
                return self._operation(node.func.id, node.args[0])
            raise self._refused(f"calls {node.func.id!r}")
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            raise self._refused("uses '^' (a power is written **)")
        raise self._refused(f"uses {type(node).__name__}")

    def _operation(self, key: str, *nodes: ast.expr) -> Tree:
        operands = tuple(self._read(node) for node in nodes)
        if all(isinstance(operand, float) for operand in operands):
            numbers = (torch.tensor(operand, dtype=torch.float64) for operand in operands)
            return self._finite(float(_OPERATIONS[key](*numbers)))
        return (key, *operands)

    def _finite(self, number: float) -> float:
        if not math.isfinite(number):
            raise self._refused("has no finite value")
        return number


def _value(tree: Tree, values: Mapping[str, torch.Tensor]) -> torch.Tensor | float:
    if isinstance(tree, str):
        return values[tree]
    if not isinstance(tree, tuple):
        return tree
    key, *operands = tree
    return _OPERATIONS[key](*(_value(operand, values) for operand in operands))


class ExpressionMatrix:
    """A matrix whose entries are numbers or expressions; `numbers` is the array if there is no name in any of them."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Sequence[float | str]],
        shape: tuple[int | None, int | None] = (None, None),
        known: Iterable[str] = (),
    ) -> None:
        """Read the rows; None in `shape` fits any size. Raises `ShapeError`, and what `Expression` raises."""
        widths = {len(row) for row in rows}
        if len(widths) != 1 or 0 in widths:
            raise ShapeError(f"{name} has rows of {sorted(widths)} numbers; expected a matrix, every row equally long.")
        self.shape = (len(rows), widths.pop())
        if any(wanted is not None and wanted != size for wanted, size in zip(shape, self.shape, strict=True)):
            wanted = " by ".join("any" if size is None else str(size) for size in shape)
            given = f"{self.shape[0]} by {self.shape[1]}"
            raise ShapeError(f"{name} is {given}; expected {wanted} to fit the other matrices.")
        known = tuple(known)
        self.entries: list[float | Expression] = []
        self.names: set[str] = set()
        for i, row in enumerate(rows):
            for j, given in enumerate(row):
                entry = Expression(f"{name}.{i}.{j}", given, known) if isinstance(given, str) else float(given)
                if isinstance(entry, Expression):
                    self.names |= entry.names
                    entry = entry if entry.number is None else entry.number
                self.entries.append(entry)

    @property
    def numbers(self) -> np.ndarray | None:
        """The matrix in float64, if it holds no names."""
        return None if self.names else np.array(self.entries, dtype=np.float64).reshape(self.shape)

    def __call__(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the matrix (..., rows, columns) for parameters (...)."""
        like = next(iter(values.values()))
        given = [
            entry(values)
            if isinstance(entry, Expression)
            else torch.tensor(entry, dtype=like.dtype, device=like.device)
            for entry in self.entries
        ]
        entries = torch.stack(torch.broadcast_tensors(*given), dim=-1)
        return entries.reshape(*entries.shape[:-1], *self.shape)

    def check_finite(self, values: Mapping[str, torch.Tensor]) -> None:
        """Raise `InvalidValueError` for an expression that has no finite value for these parameters, scalars."""
        for entry in self.entries:
            if isinstance(entry, Expression) and not math.isfinite(number := float(entry(values))):
                raise InvalidValueError(
                    f"{entry.where} is {entry.text!r}, which is {number} for the parameters given; "
                    "expected one that is finite."
                )
