"""The operations of a recorded parametrization (`program`) as those of a tape.

`CALLS[name](to, given, named, found)` has a `tape_builder.Builder` emit an operation, from its arguments and its
results while it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from robust_policies.networks.tape import kernels

Write = Callable[[Any, Sequence[Any], dict[str, Any], Sequence[Any]], None]


def _entries(kind: str) -> Write:
    def write(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
        if named.get("alpha", 1) != 1:
            raise NotImplementedError
        to.elementwise(getattr(kernels(), kind), found[0], *given)

    return write


def _power(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    k, (x, exponent) = kernels(), given
    if exponent == 1:
        to.elementwise(k.COPY, found[0], x)
    elif exponent == 2:
        to.elementwise(k.MULTIPLY, found[0], x, x)
    else:
        to.elementwise(k.POWER, found[0], x, exponent)


def _reciprocal(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    to.elementwise(kernels().DIVIDE, found[0], 1.0, given[0])


def _clamp(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    x, low, high = (*given, None, None)[:3]
    if low is None and high is None:
        raise NotImplementedError
    if low is not None:
        to.elementwise(kernels().ATLEAST, found[0], x, low)
    if high is not None:
        to.elementwise(kernels().ATMOST, found[0], x if low is None else found[0], high)


def _where(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    condition, x, y = given
    to.elementwise(kernels().CHOOSE, found[0], x, y, condition)


def _cat(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    pieces, axis, at = given[0], given[1] if len(given) > 1 else 0, 0
    for piece in pieces:
        width = piece.shape[axis]
        to.copied(found[0].narrow(axis, at, width), piece)
        at += width


def _slice_backward(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    part, _, axis, start, end, step = given
    at = [slice(None)] * found[0].dim()
    at[axis] = slice(start, end, step)
    to.placed(found[0], part, found[0][tuple(at)])


def _diagonal_backward(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    part, _, *where = given
    to.placed(found[0], part, found[0].diagonal(*where))


def _sum(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    to.summed(found[0], given[0], given[1] if len(given) > 1 else None)


def _triangle(upper: bool) -> Write:
    def write(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
        to.triangle(found[0], given[0], given[1] if len(given) > 1 else 0, upper)

    return write


def _cholesky(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    if named.get("upper", False) or given[0].dim() != 2:
        raise NotImplementedError
    to.cholesky(found[0], given[0])


def _triangular(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    to.triangular(found[0], *given, **named)


def _inverse(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    matrix = given[0]
    factors, pivots = torch.empty_like(matrix), torch.empty_like(matrix[0])
    to.factored(to.new(factors), to.new(pivots), matrix)
    to.solved(found[0], factors, pivots, torch.eye(len(matrix), dtype=matrix.dtype), False)


def _solve(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    matrix, right = given
    # PyTorch factors the transpose where it may, and its backward pass reads the factors as such.
    turned = matrix.is_contiguous() and not matrix.requires_grad
    to.factored(found[1], found[2], matrix.mT if turned else matrix)
    if named.get("left", True):
        to.solved(found[0], found[1], found[2], right, turned)
    else:
        to.solved(found[0].mT, found[1], found[2], right.mT, not turned)


def _solve_again(to: Any, given: Sequence[Any], named: dict[str, Any], found: Sequence[Any]) -> None:
    factors, pivots, right = given
    left, adjoint, out = named.get("left", True), named.get("adjoint", False), found[0]
    if left:
        to.solved(out, factors, pivots, right, adjoint)
    else:
        to.solved(out.mT, factors, pivots, right.mT, not adjoint)


CALLS: dict[str, Write] = {
    "aten.mm.default": lambda to, given, named, found: to.product(found[0], *given),
    "aten.mv.default": lambda to, given, named, found: to.product(found[0], *given),
    "aten.reciprocal.default": _reciprocal,
    "aten.add.Tensor": _entries("ADD"),
    "aten.sub.Tensor": _entries("SUBTRACT"),
    "aten.mul.Tensor": _entries("MULTIPLY"),
    "aten.mul.Scalar": _entries("MULTIPLY"),
    "aten.div.Tensor": _entries("DIVIDE"),
    "aten.neg.default": _entries("NEGATE"),
    "aten.pow.Tensor_Scalar": _power,
    "aten.sqrt.default": _entries("ROOT"),
    "aten.exp.default": _entries("EXP"),
    "aten.clone.default": lambda to, given, named, found: to.copied(found[0], given[0]),
    "aten.slice_backward.default": _slice_backward,
    "aten.cat.default": _cat,
    "aten.sum.default": _sum,
    "aten.sum.dim_IntList": _sum,
    "aten.tril.default": _triangle(False),
    "aten.triu.default": _triangle(True),
    "aten.clamp.default": _clamp,
    "aten.ge.Scalar": _entries("GREATER"),
    "aten.le.Scalar": _entries("LESS"),
    "aten.logical_and_.default": _entries("MULTIPLY"),
    "aten.where.self": _where,
    "aten.diagonal_backward.default": _diagonal_backward,
    "aten.linalg_cholesky_ex.default": _cholesky,
    "aten.linalg_inv_ex.default": _inverse,
    "aten._linalg_solve_ex.default": _solve,
    "aten.linalg_lu_solve.default": _solve_again,
    "aten.linalg_solve_triangular.default": _triangular,
}
