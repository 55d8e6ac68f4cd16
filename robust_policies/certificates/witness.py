"""The files that hold what a search found: arrays of one name each, without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from robust_policies.errors import CorruptFileError, MissingFileError
from robust_policies.files.npz import Npz

Witness = TypeVar("Witness")


def read_witness(path: str | Path, made_of: Callable[[Mapping[str, Any]], Witness]) -> Witness:
    """Return what `made_of` makes of the arrays in `path`.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: it holds something else.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"{path} does not exist; expected a witness written by `certify`.")
    try:
        return made_of(Npz(path))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} is not a witness ({error}); write it again with `certify`.") from error
