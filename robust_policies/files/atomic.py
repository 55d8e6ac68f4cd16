"""Files that are either whole or not there: JSON and arrays written to a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    RobustPoliciesError,
    SchemaError,
)


def write_atomic(path: str | Path, write: Callable[[BinaryIO], object]) -> Path:
    """Return `path` after `write(file)` filled a temporary file beside it that then took its name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def write_json(path: str | Path, content: Any) -> Path:
    """Return `path` after writing `content` there as JSON without NaN or infinity (neither is JSON)."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    return write_atomic(path, lambda file: file.write(text.encode()))


def read_json(
    path: str | Path, kind: str, newest_schema: int, parsed: Callable[[bytes], Any] = json.loads
) -> dict[str, Any]:
    """Return the JSON object in `path`, a `kind` of at most `newest_schema`, as `parsed` makes it of the file's bytes.

    Raises:
        MissingFileError: There is no such file.
        CorruptFileError: It is not a JSON object with a whole-number "schema".
        SchemaError: A newer version of this package wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected {_a(kind)} file.")
    try:
        content = parsed(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON ({error}); expected {_a(kind)} file. Write it again.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise CorruptFileError(
            f"{path} has no whole-number 'schema' of at least 1; expected {_a(kind)} file. Write it again."
        )
    if schema > newest_schema:
        raise SchemaError(
            f"{path} has schema {schema}; this version reads {kind} files up to schema {newest_schema}. "
            "Upgrade robust-policies."
        )
    return content


@contextmanager
def output_folder(path: Path, option: str = "-o") -> Iterator[None]:
    """Raise `InvalidValueError` where the block cannot write into a folder; `option` chooses another."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RobustPoliciesError):
            raise
        raise InvalidValueError(
            f"Output folder {str(path)!r} cannot be written ({error.strerror}); choose another with {option}."
        ) from error


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder that takes the name `target` when the block succeeds, and vanishes when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written: names that begin with a dot."""
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
