"""The operations of a recorded parametrization (`program`) as text for NumPy and LAPACK.

`CALLS[name](given, named, values)` is the expression of an operation, from the texts of its arguments and their values
while it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import scipy

Write = Callable[[Sequence[str], dict[str, str], Sequence[Any]], str]
_PREFIX = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}


@cache
def _lapack(name: str, dtype: np.dtype) -> Callable[..., Any]:
    """Return a routine, with SciPy's linear algebra, which is loaded where something asks for it."""
    return getattr(scipy.linalg.lapack, _PREFIX[dtype] + name)


def _odd(found: np.ndarray) -> int:
    """Return 1 where a result is not finite, which some libraries do not mind: PyTorch says what it says of it."""
    return int(not np.isfinite(found.sum()))


def cholesky(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the lower factor (n, n) and what LAPACK says of it."""
    factor, info = _lapack("potrf", matrix.dtype)(matrix.T, lower=1, clean=1)
    return factor, info or _odd(factor)


def triangular(matrix: np.ndarray, right: np.ndarray, upper: bool, left: bool, unit: bool) -> np.ndarray:
    """Return X (n, m) with matrix X = right, (n, n) and (n, m), or X matrix = right where `left` is False.

    Raises:
        numpy.linalg.LinAlgError: the matrix has a zero on its diagonal.
    """
    if not left:
        return triangular(matrix.T, right.T, not upper, True, unit).T
    # What stands on the other side of the diagonal is not read, so that a transposed view needs no copy.
    found, info = _lapack("trtrs", matrix.dtype)(matrix.T, right, lower=int(upper), trans=1, unitdiag=int(unit))
    check(info)
    return found


def inverse(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the inverse (n, n) and what LAPACK says of it."""
    factor, pivots, info = _lapack("getrf", matrix.dtype)(matrix.T)
    if info:
        return factor, info
    found, info = _lapack("getri", matrix.dtype)(factor, pivots)
    return found.T, info or _odd(found)


def solved(
    matrix: np.ndarray, right: np.ndarray, of_transposed: bool, left: bool = True
) -> tuple[np.ndarray, Any, Any, int]:
    """Return X (n, m) with matrix X = right, (n, n) and (n, m), factors and pivots, and what LAPACK says.

    The factors are those of the matrix, or of its transpose. Unless `left`, X (m, n) with X matrix = right (m, n).
    """
    factor, pivots, info = _lapack("getrf", matrix.dtype)(matrix.T if of_transposed else matrix)
    if info:
        return right, factor, pivots, info
    trans = int(of_transposed == left)
    found, info = _lapack("getrs", matrix.dtype)(factor, pivots, right if left else right.T, trans=trans)
    return found if left else found.T, factor, pivots, info or _odd(found)


def solved_again(factor: Any, pivots: Any, right: np.ndarray, left: bool, adjoint: bool) -> np.ndarray:
    """Return X (n, m) with matrix X = right (n, m), or X matrix = right, of a matrix of which these are the factors.

    If `adjoint` they are those of its transpose.

    Raises:
        numpy.linalg.LinAlgError: LAPACK finds the arguments wrong.
    """
    if not left:
        return solved_again(factor, pivots, right.T, True, not adjoint).T
    found, info = _lapack("getrs", right.dtype)(factor, pivots, right, trans=int(adjoint))
    check(info)
    return found


def check(info: int) -> None:
    """Raise LinAlgError where LAPACK says that a matrix has no factor or no inverse."""
    if info:
        raise np.linalg.LinAlgError(f"LAPACK's info is {info}.")


def placed(part: np.ndarray, shape: Sequence[int], axis: int, start: int, end: int, step: int) -> np.ndarray:
    """Return zeros of a shape with a part where a slice was taken from."""
    whole = np.zeros(shape, part.dtype)
    at = [slice(None)] * len(shape)
    at[axis] = slice(start, end, step)
    whole[tuple(at)] = part
    return whole


def diagonal_placed(part: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the matrix (n, n) of zeros with a diagonal (n,)."""
    whole = np.zeros(shape, part.dtype)
    np.fill_diagonal(whole, part)
    return whole


@cache
def ones(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of ones, the same one at every call."""
    return np.ones(shape, dtype)


@cache
def triangle(shape: tuple[int, int], k: int, upper: bool, dtype: Any) -> np.ndarray:
    """Return ones (m, n) up to the k-th diagonal (from there on if `upper`), the same array at every call."""
    return (np.triu if upper else np.tril)(np.ones(shape, dtype), k)


def _two(values: Sequence[Any]) -> None:
    if values[0].dim() != 2:
        raise NotImplementedError


def _plus(sign: str) -> Write:
    def write(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
        alpha = named.get("alpha", "1")
        return f"{given[0]} {sign} {given[1]}" if alpha == "1" else f"{given[0]} {sign} {alpha} * {given[1]}"

    return write


def _between(sign: str) -> Write:
    return lambda given, named, values: f"{given[0]} {sign} {given[1]}"


def _transpose(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    _two(values)
    return f"{given[0]}.T"


def _power(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    if values[1] == 1:
        return f"{given[0]}"
    return f"{given[0]} * {given[0]}" if values[1] == 2 else f"{given[0]} ** {given[1]}"


def _slice(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    axis, start, end, step = (*values[1:], *(0, None, None, 1)[len(values) - 1 :])
    axis, width = axis % values[0].dim(), values[0].shape[axis]
    start, end = start or 0, width if end is None else min(end, width)
    return f"{given[0]}[{':, ' * axis}{start}:{end}:{step}]"


def _sum(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    axes = "None" if len(values) < 2 else given[1]
    keep = len(values) > 2 and bool(values[2])
    return f"np.asarray(np.add.reduce({given[0]}, axis={axes}, keepdims={keep}))"


def _solve(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    _two(values)
    # PyTorch factors the transpose where it may, and its backward pass reads the factors as such.
    of_transposed = values[0].is_contiguous() and not values[0].requires_grad
    return f"solved({given[0]}, {given[1]}, {of_transposed}, {named.get('left', 'True')})"


def _solve_again(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    _two(values)
    left, adjoint = named.get("left", "True"), named.get("adjoint", "False")
    return f"solved_again({', '.join(given)}, {left}, {adjoint})"


def _triangular(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    _two(values)
    left, unit = named.get("left", "True"), named.get("unitriangular", "False")
    return f"triangular({given[0]}, {given[1]}, {named['upper']}, {left}, {unit})"


def _factor(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    _two(values)
    if named.get("upper", "False") != "False":
        raise NotImplementedError
    return f"cholesky({given[0]})"


def _clamp(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    low, high = (*given[1:], *("None", "None"))[:2]
    bounded = given[0] if low == "None" else f"np.maximum({given[0]}, {low})"
    return bounded if high == "None" else f"np.minimum({bounded}, {high})"


def _triangle(upper: bool) -> Write:
    def write(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
        _two(values)
        at = given[1] if len(given) > 1 else "0"
        return f"{given[0]} * triangle({given[0]}.shape, {at}, {upper}, {given[0]}.dtype)"

    return write


def _split(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    axis = values[2] if len(values) > 2 else 0
    lead, ends = ":, " * (axis % values[0].dim()), list(accumulate(values[1], initial=0))
    return ", ".join(f"{given[0]}[{lead}{start}:{end}]" for start, end in pairwise(ends)) + ","


def _expand(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    if -1 in values[1]:
        raise NotImplementedError
    return f"{given[0]} * ones({given[1]}, {given[0]}.dtype)"


def _diagonal(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    _two(values)
    if len(values) > 1 and values[1]:
        raise NotImplementedError
    return f"{given[0]}.diagonal()"


def _same(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    return given[0]


def _of(function: str, count: int = 1) -> Write:
    return lambda given, named, values: f"{function}({', '.join(given[:count])})"


def _cat(given: Sequence[str], named: dict[str, str], values: Sequence[Any]) -> str:
    return f"np.concatenate({given[0]}, {given[1] if len(given) > 1 else 0})"


# What does not depend on the numbers of its arguments, and is taken as it was.
FIXED = frozenset(
    f"aten.{name}.default"
    for name in ("eye", "zeros", "new_zeros", "new_full", "scalar_tensor", "zeros_like", "ones_like")
)
CALLS: dict[str, Write] = {
    "aten.mm.default": lambda given, named, values: f"{given[0]}.dot({given[1]})",
    "aten.mv.default": lambda given, named, values: f"{given[0]}.dot({given[1]})",
    "aten.reciprocal.default": lambda given, named, values: f"1.0 / {given[0]}",
    "aten.t.default": _transpose,
    "aten.transpose.int": _transpose,
    "aten.add.Tensor": _plus("+"),
    "aten.sub.Tensor": _plus("-"),
    "aten.mul.Tensor": _between("*"),
    "aten.mul.Scalar": _between("*"),
    "aten.div.Tensor": _between("/"),
    "aten.neg.default": lambda given, named, values: f"-{given[0]}",
    "aten.pow.Tensor_Scalar": _power,
    "aten.sqrt.default": _of("np.sqrt"),
    "aten.exp.default": _of("np.exp"),
    "aten.detach.default": _same,
    "aten.slice.Tensor": _slice,
    "aten.slice_backward.default": _of("placed", 6),
    "aten.cat.default": _cat,
    "aten.sum.default": _sum,
    "aten.sum.dim_IntList": _sum,
    "aten.tril.default": _triangle(False),
    "aten.triu.default": _triangle(True),
    "aten.expand.default": _expand,
    "aten.view.default": lambda given, named, values: f"{given[0]}.reshape({given[1]})",
    "aten._unsafe_view.default": lambda given, named, values: f"{given[0]}.reshape({given[1]})",
    "aten.unsqueeze.default": lambda given, named, values: f"np.expand_dims({given[0]}, {given[1]})",
    "aten.squeeze.dim": lambda given, named, values: f"np.squeeze({given[0]}, {given[1]})",
    "aten.clamp.default": _clamp,
    "aten.ge.Scalar": _between(">="),
    "aten.le.Scalar": _between("<="),
    "aten.logical_and_.default": _between("&"),
    "aten.where.self": _of("np.where", 3),
    "aten.diagonal.default": _diagonal,
    "aten.diagonal_backward.default": _of("diagonal_placed", 2),
    "aten.split_with_sizes.default": _split,
    "aten.linalg_cholesky_ex.default": _factor,
    "aten.linalg_inv_ex.default": _of("inverse"),
    "aten._linalg_solve_ex.default": _solve,
    "aten.linalg_lu_solve.default": _solve_again,
    "aten.linalg_solve_triangular.default": _triangular,
    "aten._linalg_check_errors.default": _of("check"),
}
