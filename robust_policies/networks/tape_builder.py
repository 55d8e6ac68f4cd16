"""Writes recorded operations of PyTorch as a tape (`tape`).

Every storage of PyTorch that was seen while recording gets a place in the buffer, its numbers in the same order. So a
view, whatever it is (slice, transpose, diagonal, expansion), is an offset and two distances, known once and for all,
and costs nothing when the tape runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robust_policies.networks.numpy_calls import FIXED
from robust_policies.networks.tape import Tape, kernels
from robust_policies.networks.tape_calls import CALLS
from robust_policies.networks.tape_layout import Operation, Part, Storage, laid_out


class Builder:
    """Makes a tape of recorded operations; NotImplementedError and KeyError say that it cannot."""

    def __init__(self, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        self._storages: dict[int, Storage] = {}
        self._operations: list[Operation] = []
        self._scalars: dict[float, int] = {}
        self._k = kernels()
        self._zeros = Storage(self._k.MOST, "constant", torch.zeros(self._k.MOST, dtype=parameters[0].dtype))
        self._pool = Storage(0, "constant")
        self._kept: list[Tensor] = []
        self._rowwise_known: dict[tuple[Any, ...], Part] = {}
        self._parameters = [self._new(one, "parameter") for one in parameters]
        self._grads = [self._new(one, "grad") for one in grads]
        self._recorded = 0
        self.dtype = parameters[0].dtype
        self.widest = 0

    # Tensors as parts of storages.

    def _new(self, tensor: Tensor, kind: str) -> Storage:
        if kind in ("parameter", "grad") and not tensor.is_contiguous():
            raise NotImplementedError
        count = tensor.numel() if kind in ("parameter", "grad") else _length(tensor)
        storage = Storage(count, kind, tensor)
        if tensor.numel():
            if _key(tensor) in self._storages or (kind in ("parameter", "grad") and int(tensor.storage_offset())):
                raise NotImplementedError
            self._storages[_key(tensor)] = storage
        return storage

    def new(self, tensor: Tensor) -> Tensor:
        """Take a tensor of any shape as one more that operations make."""
        self._new(tensor, "made")
        self._kept.append(tensor)
        return tensor

    def _known(self, tensor: Tensor) -> Storage:
        if not tensor.numel():
            return self._zeros
        found = self._storages.get(_key(tensor))
        return self._new(tensor, "constant") if found is None else found

    def _part(self, tensor: Tensor, shape: tuple[int, int] | None = None) -> Part:
        """Return a tensor as a matrix, a vector as a row; what has one row or column is repeated to fit a shape."""
        if tensor.dim() > 2:
            raise NotImplementedError
        m, n = shape_of(tensor)
        row, column = (0, 0, *tensor.stride())[-2:]
        if shape is not None:
            if m not in (1, shape[0]) or n not in (1, shape[1]):
                raise NotImplementedError
            row, column = (0 if m == 1 else row), (0 if n == 1 else column)
        return Part(self._known(tensor), int(tensor.storage_offset()), row, column)

    def _value(self, value: Any, shape: tuple[int, int]) -> Part:
        if isinstance(value, Tensor):
            return self._part(value, shape)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise NotImplementedError
        return Part(self._pool, self._scalars.setdefault(float(value), len(self._scalars)), 0, 0)

    def _temporary(self, m: int, n: int) -> Part:
        return Part(Storage(m * n, "made"), 0, n, 1)

    def _rowwise(self, tensor: Tensor) -> Part:
        """Return a matrix whose columns are neighbours: of what has others a copy, made once."""
        part, (m, n) = self._part(tensor), shape_of(tensor)
        if part.column == 1 or n == 1:
            return part
        key = (_key(tensor), *part[1:], m, n)
        if key not in self._rowwise_known:
            copy = self._temporary(m, n)
            self._operations.append(Operation(self._k.PLACE, m, n, 0, 0, copy, part))
            self._rowwise_known[key] = copy
        return self._rowwise_known[key]

    # Operations.

    def add(self, func: Any, args: Any, kwargs: dict[str, Any], found: Any) -> None:
        """Take one operation; raises KeyError where it is not known."""
        name, changes = str(func), func._schema.is_mutable
        given = [one for one in _flat((*args, *kwargs.values())) if isinstance(one, Tensor)]
        outputs = [one for one in _flat((found,)) if isinstance(one, Tensor) and one.numel()]
        if name == "aten._linalg_check_errors.default":
            return  # the operations say so themselves
        if not changes and all(_key(one) in self._storages for one in outputs) and given:
            return  # a view, or nothing
        if name in FIXED or (given and all(self._known(one).kind == "constant" for one in given)):
            if changes:
                raise NotImplementedError
            for one in outputs:
                self._known(one)
            return
        write = CALLS[name]
        if changes:
            self._rowwise_known.clear()
        else:
            for one in outputs:
                self._new(one, "made")
        results = found if isinstance(found, (tuple, list)) else (found,)
        self.widest = max([self.widest, *(max(shape_of(one)) for one in given if one.dim() == 2)])
        write(self, args, kwargs, results)

    def _put(self, code: int, m: int, n: int, k: int, kind: int, o: Part, *parts: Part) -> None:
        self._operations.append(Operation(code, m, n, k, kind, o, *parts))

    def elementwise(self, kind: int, out: Tensor, *values: Any) -> None:
        """Emit an operation entry by entry on tensors or numbers that are repeated to fit the result."""
        m, n = shape = shape_of(out)
        parts = [self._part(out), *(self._value(one, shape) for one in values)]
        if n > 1 and parts[0].column != 1:
            parts, m, n = [Part(one.storage, one.at, one.column, one.row) for one in parts], n, m
            if parts[0].column != 1:
                raise NotImplementedError
        if n == 1:
            parts, m, n = [Part(one.storage, one.at, one.column, one.row) for one in parts], n, m
        if m > 1 and all(one.row == n * one.column for one in parts):
            m, n = 1, m * n
        if n > 1 and parts[0].column != 1:
            raise NotImplementedError
        self._put(self._k.ELEMENTWISE, m, n, 0, kind, *parts)

    def product(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """Emit a product of (m, k) and (k, n), or of (m, k) and (k,)."""
        zeros = Part(self._zeros, 0, 0, 0)
        if right.dim() == 1:
            a, x, o = self._part(left), self._part(right), self._part(out)
            m, k = left.shape
            if a.row == 1 and o.column == 1:  # as x'A' with the columns of A' neighbours
                self._put(self._k.PRODUCT, 1, m, k, 0, o, Part(*x[:2], 0, x.column), Part(*a[:2], a.column, 1), zeros)
            else:
                o, x = Part(*o[:2], o.column, 0), Part(*x[:2], x.column, 0)
                self._put(self._k.DOTS, m, 1, k, 0, o, a, x)
            return
        o = self._part(out)
        if o.column != 1 and out.shape[1] > 1:
            raise NotImplementedError
        (m, k), n = left.shape, right.shape[1]
        self._put(self._k.PRODUCT, m, n, k, 0, o, self._part(left), self._rowwise(right), zeros)

    def placed(self, out: Tensor, part: Tensor, at: Tensor) -> None:
        """Emit zeros (m, n) with `part` at `at`, a view of them of its shape."""
        self.filled(out)
        self.copied(at, part)

    def filled(self, out: Tensor) -> None:
        """Emit zeros (m, n)."""
        if out.numel():
            m, n = shape_of(out)
            self._put(self._k.PLACE, m, n, 0, 0, self._part(out), Part(self._zeros, 0, 0, 0))

    def copied(self, out: Tensor, given: Tensor) -> None:
        """Emit a copy (m, n)."""
        if out.numel():
            (m, n), shape = shape_of(out), shape_of(out)
            self._put(self._k.PLACE, m, n, 0, 0, self._part(out), self._part(given, shape))

    def summed(self, out: Tensor, given: Tensor, axes: Sequence[int] | None) -> None:
        """Emit sums of (m, n) over axes, or over all of them where there is none."""
        if not given.numel():
            self.filled(out)
            return
        every = not axes or len({axis % given.dim() for axis in axes}) == given.dim()
        part, (m, n) = self._part(given), shape_of(given)
        storage, at = self._known(out), int(out.storage_offset())
        if every:
            o = Part(storage, at, 0, 0)
            if part.row == n * part.column:
                m, n = 1, m * n
        elif axes is not None and axes[0] % given.dim() == 0:
            o = Part(storage, at, 0, 1)
        else:
            o = Part(storage, at, 1, 0)
        self._put(self._k.SUM, m, n, 0, 0, o, part)

    def triangle(self, out: Tensor, given: Tensor, k: int, upper: bool) -> None:
        """Emit what (m, n) has up to its k-th diagonal, or from there on."""
        m, n = given.shape
        self._put(self._k.TRIANGLE, m, n, k, int(upper), self._part(out), self._part(given))

    def cholesky(self, out: Tensor, matrix: Tensor) -> None:
        """Emit the lower factor (n, n)."""
        n = len(matrix)
        self._put(self._k.CHOLESKY, n, n, 0, 0, self._part(out), self._part(matrix))

    def triangular(
        self, out: Tensor, matrix: Tensor, right: Tensor, upper: bool, left: bool = True, unitriangular: bool = False
    ) -> None:
        """Emit X (n, m) with matrix X = right, or X matrix = right."""
        kind = (0 if upper == (not left) else self._k.UPPER) + (self._k.UNIT if unitriangular else 0)
        o, a, b = (self._part(one if left else one.mT) for one in (out, matrix, right))
        m, n = (right if left else right.mT).shape
        self._put(self._k.TRIANGULAR, m, n, 0, kind, o, a, b)

    def factored(self, out: Tensor, pivots: Tensor, matrix: Tensor) -> None:
        """Emit the LU factors (n, n) with the exchanges of rows (n,)."""
        n = len(matrix)
        none = self._part(matrix)
        self._put(self._k.FACTOR, n, n, 0, 0, self._part(out), self._part(matrix), none, self._part(pivots))

    def solved(self, out: Tensor, factors: Tensor, pivots: Tensor, right: Tensor, transposed: bool) -> None:
        """Emit X (n, m) with matrix X = right, of the matrix's factors or those of its transpose."""
        m, n = right.shape
        parts = (self._part(one) for one in (out, factors, right, pivots))
        self._put(self._k.SOLVE, m, n, 0, int(transposed), *parts)

    # The tape.

    def parametrized(self) -> None:
        """Say that what was taken is the parametrization, and what follows its derivative."""
        self._recorded = len(self._operations)

    def program(self, results: Sequence[Tensor], derivatives: Sequence[Tensor | None]) -> Tape:
        """Return the tape with these ends, of any shapes."""
        ends = self._ends(results)
        first = self._needed(ends)
        slopes = self._ends(derivatives)
        second = self._needed(slopes, first)
        ways = [self._operations[k] for k in first], [self._operations[k] for k in second]
        written = {id(one.o.storage) for one in ways[0]}
        if any(id(one.o.storage) in written for one in ways[1]):
            raise NotImplementedError
        self._pool.tensor = torch.tensor([*self._scalars, 0.0], dtype=self.dtype)
        self._pool.count = len(self._pool.tensor)
        inputs = self._parameters, self._grads
        return laid_out(ways, inputs, ((ends, results), (slopes, derivatives)), self._k.WIDTH)

    def _ends(self, wanted: Sequence[Tensor | None]) -> list[Storage | None]:
        """Return storages that hold the numbers of tensors alone and in order."""
        found: list[Storage | None] = []
        for one in wanted:
            if one is None:
                found.append(None)
                continue
            storage = self._known(one)
            if not one.is_contiguous() or one.numel() != storage.count:
                copy = self._temporary(*shape_of(one))
                self._put(self._k.PLACE, *shape_of(one), 0, 0, copy, self._part(one))
                storage = copy.storage
            found.append(storage)
        return found

    def _needed(self, wanted: Sequence[Storage | None], known: Sequence[int] | None = None) -> list[int]:
        """Return which operations lead to what is wanted, or to an error if none is known, in order."""
        k, chosen, names, without = self._k, [], {id(one) for one in wanted}, set(known or ())
        for index in reversed(range(len(self._operations))):
            one = self._operations[index]
            checks = known is None and index < self._recorded and one.code in (k.CHOLESKY, k.FACTOR, k.SOLVE)
            if index not in without and (checks or id(one.o.storage) in names):
                chosen.append(index)
                names |= set(map(id, one.reads()))
        return chosen[::-1]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _length(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def shape_of(tensor: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a tensor of at most two dimensions, a vector (n,) as a row (1, n)."""
    m, n = (1, 1, *tensor.shape)[-2:]
    return m, n


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (tuple, list)):
        return [one for value in values for one in _flat(value)]
    return [values]
