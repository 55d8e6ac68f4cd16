"""What goes wrong in a simulation while it runs on, so that the run it belongs to can be marked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_collecting: list[list[str]] = []


def report(what: str) -> None:
    """Warn of `what` went wrong, and add it, once, to each collection that is under way."""
    for found in _collecting:
        if what not in found:
            found.append(what)
    warnings.warn(what, UserWarning, stacklevel=2)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Yield the list that holds what has been reported since the block began."""
    found: list[str] = []
    _collecting.append(found)
    try:
        yield found
    finally:
        _collecting[:] = [other for other in _collecting if other is not found]
