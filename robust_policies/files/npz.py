"""Arrays by name in a file that NumPy's `savez` wrote, read without pickle.

`numpy.load` parses a few lines of Python for the type and shape of every array, which takes longer than the array; here
what is written before an array is parsed once for all arrays that begin with the same bytes.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_SUFFIX = ".npy"
_BEGINS = npy.magic(1, 0)
# Numbers that were measured or computed shrink a few times, equal ones a thousand: no array of those is this large.
_MOST_BYTES, _MOST_TIMES = 2**28, 100


class Npz(Mapping[str, NDArray[Any]]):
    """The arrays of a file by name, each read anew, and its checksum looked at, when it is asked for.

    Raises:
        OSError, zipfile.BadZipFile: the file is not there, or is no archive. Of an array: KeyError where there is
        none of the name; zipfile.BadZipFile, ValueError, EOFError where it is damaged, or holds Python's objects.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(Path(path).read_bytes()))
        except NotImplementedError as error:
            raise zipfile.BadZipFile(str(error)) from error
        self._members = {info.filename.removesuffix(_SUFFIX): info for info in self._archive.infolist()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        info = self._members[name]
        if info.file_size > max(_MOST_BYTES, _MOST_TIMES * info.compress_size):
            raise ValueError(f"{name}: {info.compress_size} bytes would expand to {info.file_size}, as no array does")
        try:
            return _array(self._archive.read(info))
        except (ValueError, EOFError, MemoryError, zipfile.BadZipFile):
            raise
        except Exception as error:  # each compression, and Python's parser of what is before an array, has its own
            raise zipfile.BadZipFile(f"{name}: {error}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _array(content: bytes) -> NDArray[Any]:
    begin = len(_BEGINS) + 2 + int.from_bytes(content[len(_BEGINS) : len(_BEGINS) + 2], "little")
    if not content.startswith(_BEGINS):
        return npy.read_array(io.BytesIO(content), allow_pickle=False)
    shape, by_columns, kind = _header(content[len(_BEGINS) : begin])
    if kind.hasobject:
        raise ValueError("it holds Python's objects, which are not read")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    found = np.frombuffer(content, kind, math.prod(shape), begin) if math.prod(shape) else np.empty(shape[::-1], kind).T
    return found.reshape(shape[::-1]).T.copy("A") if by_columns else found.reshape(shape).copy()


@lru_cache(maxsize=1024)
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape of an array, whether it is stored by columns, and its type."""
    return npy.read_array_header_1_0(io.BytesIO(content))
