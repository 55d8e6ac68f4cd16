"""One process at a time in a folder; the lock goes with the process, however that ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robust_policies.errors import InvalidValueError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there nothing keeps two processes apart.
    fcntl = None


@contextmanager
def held(path: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file or folder that exists; raise `InvalidValueError` if another process keeps it.

    Args:
        path: what is locked.
        what: its name in the message.
        patience: seconds to wait for the other process.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    until = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise InvalidValueError(
                        f"{what} is in use by another process; wait for it to end, or choose another folder."
                    ) from error
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)
