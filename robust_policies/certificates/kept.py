"""What searches found, kept so that a proof can be checked again without its search.

Inside `keeping(book)` a search looks into the book first, and writes into it what it found. Nothing that is read is
believed: whatever comes from a book goes through the same proof as what a search finds, and where that fails, or the
book has nothing for exactly these matrices, the search runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.files.atomic import write_atomic
from robust_policies.files.npz import Npz

_NAMES = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22", "D11")


@dataclass
class Book:
    """Arrays by what was asked, then by name.

    Attributes:
        given: what earlier searches found.
        used: what was proven again or found anew.
    """

    given: dict[str, dict[str, Array]] = field(default_factory=dict)
    used: dict[str, dict[str, Array]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write what was used to `path` as npz, whole or not at all; remove the file where there is nothing."""
        if not self.used:
            path.unlink(missing_ok=True)
            return
        named: dict[str, Any] = {f"{key}.{name}": one for key, part in self.used.items() for name, one in part.items()}
        write_atomic(path, lambda file: np.savez(file, **named))

    @classmethod
    def load(cls, path: Path) -> Book:
        """Return what is kept in `path`; an empty book where there is no such file or it cannot be read."""
        given: dict[str, dict[str, Array]] = {}
        try:
            for name, array in Npz(path).items():
                key, _, part = name.partition(".")
                given.setdefault(key, {})[part] = np.asarray(array, np.float64)
        # Of whatever kind the damage is: the searches then run.
        except Exception:
            return cls()
        return cls(given)


_BOOK: ContextVar[Book | None] = ContextVar("book", default=None)


@contextmanager
def keeping(book: Book) -> Iterator[Book]:
    """Let searches use a book."""
    token = _BOOK.set(book)
    try:
        yield book
    finally:
        _BOOK.reset(token)


def asked(what: str, model: Matrices, *others: Array) -> str:
    """Return by what a search is known: its name, the matrices with their errors, and other arrays of any shapes."""
    if _BOOK.get() is None:
        return ""
    found = hashlib.sha256(what.encode())
    parts = [getattr(model, name) for name in _NAMES]
    parts += [] if model.error is None else [getattr(model.error, name) for name in _NAMES]
    for one in (*parts, *others):
        found.update(str(one.shape).encode() + np.ascontiguousarray(one, np.float64).tobytes())
    return found.hexdigest()


def known(key: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array] | None:
    """Return the arrays kept under a key, None where they are not all there, of these shapes and finite."""
    book = _BOOK.get()
    part = None if book is None else book.given.get(key)
    if part is None or any(name not in part or part[name].shape != shape for name, shape in shapes.items()):
        return None
    return part if all(np.isfinite(one).all() for one in part.values()) else None


def keep(key: str, arrays: Mapping[str, Any]) -> None:
    """Keep arrays of any shapes under a key."""
    book = _BOOK.get()
    if book is not None:
        book.used[key] = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
