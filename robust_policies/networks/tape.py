"""A recorded parametrization as a tape: a list of operations on one flat buffer that one compiled loop runs.

`tape_builder` writes it down; `tape_kernels` has the operations, compiled once for a dtype and not for a tape.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_IDLE = 4  # buffers that wait for their next use


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


Ends = list[tuple[int, int, tuple[int, ...]] | None]
"""Where in the buffer results begin and end, and their shapes; None where there is none."""


class Tape:
    """A parametrization and its derivative: tapes for both, and where the numbers come from and go to.

    Args:
        buffer: (numbers,), the constants in place.
        spare: where in it there is room to work.
        tapes: forward and backward, (operations, WIDTH) each.
        sources: a row (0, place, count) of each parameter, and of each gradient of a result.
        ends: of the results, and of the derivatives.
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
        self._idle: list[_Work] = []
        self._run = kernels().run

    def forward(self, parameters: Sequence[Tensor]) -> tuple[list[Any], _Lent]:
        """Return the results, of any shapes, and what backward needs.

        Raises:
            numpy.linalg.LinAlgError: a matrix has no factor or no inverse.
        """
        found, kept = self.lend(parameters)
        # Each has numbers of its own: they may be changed in place.
        return [torch.from_numpy(one.copy()) for one in found], kept

    def lend(self, parameters: Sequence[Tensor]) -> tuple[list[Any], _Lent]:
        """Return the results as arrays that are theirs as long as what backward needs is kept, and that.

        The parameters are of any shapes; raises LinAlgError as `forward`.
        """
        kept = self.lent()
        return self._fill(0, kept, parameters), kept

    def lent(self) -> _Lent:
        """Return a buffer for both ways."""
        try:
            work = self._idle.pop()
        except IndexError:
            work = _Work(self._buffer.copy(), self._ends)
        return _Lent(self._idle, work)

    def backward(self, kept: _Lent, grads: Sequence[Tensor | None]) -> list[Any]:
        """Return the gradients in the parameters' shapes, None where there is none; raises LinAlgError as `forward`."""
        # As in `forward`: gradients are added to in place.
        return [None if one is None else torch.from_numpy(one.copy()) for one in self._fill(1, kept, grads)]

    def sources(self, way: int, addresses: Sequence[int]) -> np.ndarray:
        """Return what `run` reads for what lies at these addresses, in order, 0 for zeros: without gaps in memory.

        Of way 0, forward, the parameters, of way 1, backward, the gradients of the results.
        """
        sources = self._sources[way].copy()
        sources[:, 0] = addresses
        return sources

    def run(self, way: int, kept: _Lent, sources: np.ndarray) -> bool:
        """Fill `kept.work.ends[way]` and return whether every matrix had its factor or its inverse.

        `sources` (count, 3) are those of `sources`.
        """
        return self._run(kept.work.numbers, self._tapes[way], self._spare, sources)

    def _fill(self, way: int, kept: _Lent, given: Sequence[Tensor | None]) -> list[Any]:
        given = [one if one is None or one.is_contiguous() else one.contiguous() for one in given]
        if not self.run(way, kept, self.sources(way, [0 if one is None else one.data_ptr() for one in given])):
            raise np.linalg.LinAlgError("A matrix has no factor or no inverse.")
        return kept.work.ends[way]


class _Work:
    """A buffer with views of the results and of the derivatives in it."""

    def __init__(self, numbers: np.ndarray, ends: tuple[Ends, Ends]) -> None:
        self.numbers = numbers
        self.ends = [[end and numbers[end[0] : end[1]].reshape(end[2]) for end in some] for some in ends]


class _Lent:
    """A buffer that goes back to where it came from when the graph that needs it is gone."""

    __slots__ = ("_idle", "work")

    def __init__(self, idle: list[_Work], work: _Work) -> None:
        self._idle, self.work = idle, work

    def __del__(self) -> None:
        if len(self._idle) < _IDLE:
            self._idle.append(self.work)
