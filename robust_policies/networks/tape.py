"""A recorded parametrization as a tape: a list of operations on one flat buffer that one compiled loop runs.

`tape_builder` writes it down; `tape_kernels` has the operations, compiled once for a dtype and not for a tape.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


@cache
def kernels() -> Any:
    """Return the module of the operations, which loads numba; raises ImportError where that is not there."""
    return importlib.import_module("robust_policies.networks.tape_kernels")


@cache
def works(dtype: str) -> bool:
    """Return whether numba is there and the loop runs, which compiles it where that was not done before."""
    try:
        operations = kernels()
        numbers, source = np.zeros(8, dtype), np.ones(2, dtype)
        row = np.zeros((1, operations.WIDTH), np.int64)
        row[0, :8] = operations.ELEMENTWISE, 1, 2, 0, operations.ADD, 0, 2, 1
        row[0, 8:14] = 2, 2, 1, 2, 2, 1
        operations.run(numbers, row, 4, np.array([[source.ctypes.data, 2, 2]]))
        return bool(numbers[0] == 2.0 and numbers[1] == 2.0)
    except Exception:  # whatever ails the compiler: NumPy needs none
        return False


class Ends(NamedTuple):
    """Where results lie in the buffer, one after the other, and of each its shape and place there."""

    begin: int
    end: int
    places: tuple[tuple[tuple[int, ...] | None, int], ...]


class Tape:
    """A parametrization and its derivative: tapes for both, and where the numbers come from and go to.

    Args:
        dtype: of all numbers.
        buffer: with the constants in place.
        spare: where in it there is room to work.
        tapes: forward and backward, (operations, WIDTH) each.
        sources: (place, count) of the parameters, and of the gradients of the results.
        ends: shapes of results and of derivatives with their places, None where there is none.
    """

    def __init__(
        self,
        buffer: np.ndarray,
        spare: int,
        tapes: tuple[np.ndarray, np.ndarray],
        sources: tuple[np.ndarray, np.ndarray],
        ends: tuple[Ends, Ends],
    ) -> None:
        self._buffer, self._spare, self._tapes, self._sources, self._ends = buffer, spare, tapes, sources, ends
        self._idle: list[np.ndarray] = []
        self._run = kernels().run

    def forward(self, parameters: Sequence[Tensor]) -> tuple[list[Any], _Lent]:
        """Return the results and what backward needs.

        Raises:
            numpy.linalg.LinAlgError: a matrix has no factor or no inverse.
        """
        lent = _Lent(self._idle, self._buffer)
        return self._numbers(0, lent.numbers, parameters), lent

    def backward(self, kept: _Lent, grads: Sequence[Tensor | None]) -> list[Any]:
        """Return the gradients of the parameters, None where there is none; raises LinAlgError as `forward` does."""
        return self._numbers(1, kept.numbers, grads)

    def _numbers(self, way: int, numbers: np.ndarray, given: Sequence[Tensor | None]) -> list[Any]:
        sources = self._sources[way].copy()
        given = [one if one is None or one.is_contiguous() else one.contiguous() for one in given]
        sources[:, 0] = [0 if one is None else one.data_ptr() for one in given]
        if not self._run(numbers, self._tapes[way], self._spare, sources):
            raise np.linalg.LinAlgError("A matrix has no factor or no inverse.")
        begin, end, places = self._ends[way]
        # Gradients are added to in place: each has numbers of its own, in one new array for all.
        found, dtype, size = numbers[begin:end].copy(), numbers.dtype, numbers.itemsize
        return [
            None if shape is None else torch.from_numpy(np.ndarray(shape, dtype, found, at * size))
            for shape, at in places
        ]


class _Lent:
    """A buffer that goes back to where it came from when the graph that needs it is gone."""

    __slots__ = ("_idle", "numbers")

    def __init__(self, idle: list[np.ndarray], buffer: np.ndarray) -> None:
        self._idle = idle
        try:
            self.numbers = idle.pop()
        except IndexError:
            self.numbers = buffer.copy()

    def __del__(self) -> None:
        if len(self._idle) < 4:
            self._idle.append(self.numbers)
