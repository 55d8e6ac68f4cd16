"""One process at a time in a folder; the lock goes with the process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from robust_policies.errors import InvalidValueError

_LOCK = ".lock"


@contextmanager
def held(path: str | Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file or folder that exists; raise `InvalidValueError` if another process keeps it.

    Args:
        path: what is locked: a file in the folder, or beside the file, says so.
        what: its name in the message.
        patience: seconds to wait for the other process.
    """
    path = Path(path)
    lock = FileLock(path / _LOCK if path.is_dir() else path.with_name(f".{path.name}{_LOCK}"))
    try:
        lock.acquire(timeout=patience, poll_interval=0.1)
    except Timeout as error:
        raise InvalidValueError(
            f"{what} is in use by another process; wait for it to end, or choose another folder."
        ) from error
    try:
        yield
    finally:
        # Deleted before it is let go: who waits for it sees that it is gone and makes a new one.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def contents(folder: Path) -> list[Path]:
    """Return what lies in a folder beside its lock, nothing where there is no folder."""
    return [path for path in folder.iterdir() if path.name != _LOCK] if folder.is_dir() else []
