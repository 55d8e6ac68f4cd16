"""Where the numbers of a tape (`tape`) lie in its buffer, and which operations each way has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from robust_policies.networks.tape import Ends, Tape

LINE = 16  # numbers between whose multiples a storage begins


class Storage:
    """Numbers in the buffer: how many, where from, and where they are once that is known."""

    def __init__(self, count: int, kind: str, tensor: Tensor | None = None) -> None:
        self.count, self.kind, self.tensor = count, kind, tensor
        self.at = -1


class Part(NamedTuple):
    """A matrix: its storage, its first number there, the distances to the next row and to the next column."""

    storage: Storage
    at: int
    row: int
    column: int


class Operation(NamedTuple):
    """A row of the tape (`tape_kernels`) before its storages have places."""

    code: int
    m: int
    n: int
    k: int
    kind: int
    o: Part
    a: Part
    b: Part | None = None
    c: Part | None = None

    def reads(self) -> list[Storage]:
        """Return where the numbers it needs are."""
        return [part.storage for part in (self.a, self.b, self.c) if part is not None]


Pair = tuple[list[Operation], list[Operation]]
Wanted = tuple[Sequence[Storage | None], Sequence[Tensor | None]]


def laid_out(ways: Pair, inputs: tuple[list[Storage], list[Storage]], ends: tuple[Wanted, Wanted], width: int) -> Tape:
    """Return the tape of operations forward and backward, whose rows have some width.

    What is used both ways has a place of its own, everything else that of what is no longer needed.

    Args:
        ways: the operations.
        inputs: the parameters, and the gradients of the results.
        ends: the results and the derivatives with tensors of their shapes.
        width: entries of a row.
    """
    forth, back = ({id(s): s for one in way for s in (one.o.storage, *one.reads())} for way in ways)
    constants, size, places = [s for s in (forth | back).values() if s.kind == "constant"], 0, []
    for storage in (*constants, *inputs[0], *inputs[1]):
        size = _placed(storage, size)
    for some, like in ends:
        spots: Ends = []
        for storage, one in zip(some, like, strict=True):
            if storage is None or one is None:
                spots.append(None)
                continue
            size = _placed(storage, size) if storage.at < 0 else size
            spots.append((storage.at, storage.at + storage.count, tuple(one.shape)))
        places.append(spots)
    for key in forth.keys() & back.keys():
        size = size if forth[key].at >= 0 else _placed(forth[key], size)
    spare = max(_temporaries(way, size) for way in ways)
    room = max((max(2 * one.k, 3 * one.m * one.n) for way in ways for one in way), default=0)
    numbers = _all(constants[0])
    buffer = np.zeros(spare + room + LINE, numbers.dtype)
    for storage in constants:
        buffer[storage.at : storage.at + storage.count] = _all(storage)
    tapes = _rows(ways[0], width), _rows(ways[1], width)
    sources = [np.array([(0, one.at, one.count) for one in some], np.int64).reshape(-1, 3) for some in inputs]
    return Tape(buffer, spare, tapes, (sources[0], sources[1]), (places[0], places[1]))


def _all(storage: Storage) -> np.ndarray:
    """Return the numbers of a constant, as they lie in PyTorch's storage."""
    assert storage.tensor is not None
    return storage.tensor.detach().as_strided((storage.count,), (1,), 0).numpy()


def _room(storage: Storage) -> int:
    return -(-storage.count // LINE) * LINE


def _placed(storage: Storage, at: int) -> int:
    """Put a storage somewhere and return where the next one begins."""
    storage.at = at
    return at + _room(storage)


def _temporaries(way: Sequence[Operation], begin: int) -> int:
    """Place the storages of one way that have no place yet, over those that are no longer used; return the end."""
    last: dict[int, int] = {}
    for t, one in enumerate(way):
        last |= {id(storage): t for storage in (one.o.storage, *one.reads())}
    idle: dict[int, list[int]] = {}
    ends: dict[int, list[Storage]] = {}
    for t, one in enumerate(way):
        for storage in (one.o.storage, *one.reads()):
            if storage.at < 0:
                room = _room(storage)
                if idle.get(room):
                    storage.at = idle[room].pop()
                else:
                    storage.at, begin = begin, begin + room
                ends.setdefault(last[id(storage)], []).append(storage)
        for storage in ends.get(t, ()):
            idle.setdefault(_room(storage), []).append(storage.at)
    return begin


def _rows(way: Sequence[Operation], width: int) -> np.ndarray:
    """Return operations as the rows of a tape (operations, width)."""
    rows = np.zeros((len(way), width), np.int64)
    for row, one in zip(rows, way, strict=True):
        row[:5] = one[:5]
        for k, part in enumerate(one[5:]):
            if part is not None:
                row[5 + 3 * k : 8 + 3 * k] = part.storage.at + part.at, part.row, part.column
    return rows
