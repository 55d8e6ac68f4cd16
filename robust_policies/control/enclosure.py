"""A plant's own torch code run in interval arithmetic: what its Jacobian can be anywhere in a box, rounding included.

An `Enclosure` stands where the plant expects a tensor and answers its operations with those of `interval.Jet`. Only
operations that are known here are allowed; `UnknownOperationError` names the first other one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from robust_policies.certificates.lmi import Array
from robust_policies.control import interval
from robust_policies.control.interval import Interval, Jet, bounds
from robust_policies.errors import InvalidValueError


class UnknownOperationError(Exception):
    """The plant uses an operation of which no interval form is known here, or leaves its range."""


class Enclosure:
    """Jets in place of a tensor (..., n), or of one (...) where `single`."""

    def __init__(self, jets: Sequence[Jet], single: bool = False) -> None:
        self.jets, self.single = tuple(jets), single
        self.dtype, self.device = torch.float64, torch.device("cpu")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.__name__.strip("_")
        known = _FUNCTIONS.get(name)
        if known is None:
            raise UnknownOperationError(name)
        return known(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        raise UnknownOperationError(name)

    def __gt__(self, other: Any) -> Any:
        raise UnknownOperationError("a comparison")

    __lt__ = __ge__ = __le__ = __gt__

    def to(self, *_: Any) -> Enclosure:
        """Return itself: the arithmetic is float64, rounded outwards."""
        return self

    def unbind(self, dim: int = -1) -> tuple[Enclosure, ...]:
        """Return the columns."""
        return tuple(Enclosure([jet], True) for jet in self.jets)

    def __getitem__(self, key: Any) -> Enclosure:
        where = key[1] if isinstance(key, tuple) and len(key) == 2 and key[0] is Ellipsis else None
        if isinstance(where, int):
            return Enclosure([self.jets[where]], True)
        if isinstance(where, slice):
            return Enclosure(self.jets[where])
        raise UnknownOperationError(f"the index {key!r}")

    def clamp(self, low: Any = None, high: Any = None) -> Enclosure:
        """Return itself, if nothing of it is clipped."""
        for jet in self.jets:
            below = low is not None and float(jet.value.low.min()) < float(low)
            above = high is not None and float(jet.value.high.max()) > float(high)
            if below or above:
                raise UnknownOperationError("clipping within the region")
        return self

    def movedim(self, *_: int) -> Enclosure:
        """Return itself: columns are side by side already (`envs.plant.columns` moves the dimension it stacked)."""
        return self

    def square(self) -> Enclosure:
        """Return the squares."""
        return self._each(interval.square)

    def sin(self) -> Enclosure:
        """Return the sines."""
        return self._each(interval.sin)

    def cos(self) -> Enclosure:
        """Return the cosines."""
        return self._each(interval.cos)

    def _each(self, function: Callable[[Jet], Jet]) -> Enclosure:
        return Enclosure([function(jet) for jet in self.jets], self.single)

    def _with(self, other: Any, function: Callable[[Jet, Any], Jet]) -> Enclosure:
        if not isinstance(other, Enclosure):
            number = _number(other)
            return self._each(lambda jet: function(jet, number))
        size = max(len(self.jets), len(other.jets))
        left, right = (part.jets * (size if part.single else 1) for part in (self, other))
        if len(left) != len(right):
            raise UnknownOperationError(f"{len(left)} and {len(right)} columns")
        return Enclosure([function(a, b) for a, b in zip(left, right, strict=True)], self.single and other.single)

    def __add__(self, other: Any) -> Enclosure:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Enclosure:
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> Enclosure:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Enclosure:
        return self._with(other, lambda a, b: a / b)

    def __rsub__(self, other: Any) -> Enclosure:
        return self._with(other, lambda a, b: b - a)

    def __rtruediv__(self, other: Any) -> Enclosure:
        return self._with(other, lambda a, b: b / a)

    def __neg__(self) -> Enclosure:
        return self * -1.0

    def __pow__(self, power: Any) -> Enclosure:
        if power != 2:
            raise UnknownOperationError(f"the power {power}")
        return self.square()

    __radd__, __rmul__ = __add__, __mul__


def _number(value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise UnknownOperationError(f"a constant of shape {tuple(value.shape)}")
    return float(value)


def _add(left: Any, right: Any, *, alpha: Any = 1) -> Any:
    scaled = right if alpha == 1 else right * alpha
    return left + scaled if isinstance(left, Enclosure) else scaled + left


def _subtract(left: Any, right: Any) -> Any:
    return left - right if isinstance(left, Enclosure) else right.__rsub__(left)


def _divide(left: Any, right: Any) -> Any:
    return left / right if isinstance(left, Enclosure) else right.__rtruediv__(left)


def _joined(parts: Sequence[Any], dim: int = 0) -> Enclosure:
    if not all(isinstance(part, Enclosure) for part in parts):
        raise UnknownOperationError("a constant column")
    return Enclosure([jet for part in parts for jet in part.jets])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _subtract,
    "rsub": lambda a, b: _subtract(b, a),
    "mul": lambda a, b: a * b if isinstance(a, Enclosure) else b * a,
    "rmul": lambda a, b: a * b if isinstance(a, Enclosure) else b * a,
    "div": _divide,
    "true_divide": _divide,
    "truediv": _divide,
    "rdiv": lambda a, b: _divide(b, a),
    "rtruediv": lambda a, b: _divide(b, a),
    "sin": lambda a: a.sin(),
    "cos": lambda a: a.cos(),
    "square": lambda a: a.square(),
    "stack": _joined,
    "cat": _joined,
    "zeros_like": lambda a: a * 0.0,
}


def enclosed(function: Callable[[Any, Any], Any], states: int, low: Array, high: Array) -> tuple[Interval, Interval]:
    """Return the intervals of the values (k, outputs) and the Jacobian (k, outputs, d) of `function` on k boxes.

    Args:
        function: of tensors (..., states) and (..., d - states), the plant's step, say.
        states: how many of the coordinates are the state's.
        low: (k, d) the boxes' lower corners.
        high: (k, d) their upper corners.

    Raises:
        UnknownOperationError, InvalidValueError: nothing is known of it there.
    """

    def outputs(*jets: Jet) -> Sequence[Jet]:
        return function(Enclosure(jets[:states]), Enclosure(jets[states:])).jets

    with np.errstate(over="ignore", invalid="ignore"):
        return bounds(outputs, low, high)


def enclosed_jacobian(
    function: Callable[[Any, Any], Any], states: int, low: Array, high: Array, cells: Sequence[int]
) -> tuple[Array, Array] | None:
    """Return bounds (k, d) of the Jacobian of `function`(state, action) on the box, None where one is not known.

    Args:
        function: the plant's step or observation, of tensors (..., states) and (..., d - states).
        states: how many of the coordinates are the state's.
        low: (d,) the box's lower corner.
        high: (d,) its upper corner.
        cells: (d,) into how many parts each side is cut.
    """
    axes = [np.linspace(a, b, count + 1) for a, b, count in zip(low, high, cells, strict=True)]
    lower = np.stack([grid.ravel() for grid in np.meshgrid(*(axis[:-1] for axis in axes), indexing="ij")], -1)
    upper = np.stack([grid.ravel() for grid in np.meshgrid(*(axis[1:] for axis in axes), indexing="ij")], -1)

    try:
        slopes = enclosed(function, states, lower, upper)[1]
    except (UnknownOperationError, InvalidValueError):
        return None
    least, most = slopes.low.min(0), slopes.high.max(0)
    return (least, most) if np.isfinite((least, most)).all() else None
