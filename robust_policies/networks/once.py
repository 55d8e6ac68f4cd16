"""What is made of a cell's parameters, made once while they do not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_MADE: ContextVar[dict[tuple[int, str], tuple[Any, Any]] | None] = ContextVar("made", default=None)


@contextmanager
def unchanging() -> Iterator[None]:
    """Say that no parameter changes inside: what `once` makes of a cell there is made once."""
    token = _MADE.set({})
    try:
        yield
    finally:
        _MADE.reset(token)


def once(cell: Any, name: str) -> Any:
    """Return what a method of a cell that takes no arguments makes of its parameters, without gradient.

    Args:
        cell: whatever has the method.
        name: the method's, "explicit" or "metric". What it raises is raised again each time.
    """
    made = _MADE.get()
    with torch.no_grad():
        if made is None:
            return getattr(cell, name)()
        # The cell is kept too, so that no other has its number.
        if (id(cell), name) not in made:
            made[id(cell), name] = cell, getattr(cell, name)()
        return made[id(cell), name][1]
