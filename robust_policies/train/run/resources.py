"""Memory and disk that run out: one line that says what was asked for and what to change."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from robust_policies.errors import DiskError, NotEnoughMemoryError
from robust_policies.train.run.checkpoints import last_checkpoint
from robust_policies.train.run.fitting import said_of_fitting

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# PyTorch on the CPU, PyTorch on CUDA, NumPy.
_SIZES = (
    re.compile(r"you tried to allocate (?P<bytes>\d+) bytes"),
    re.compile(r"Tried to allocate (?P<text>[\d.]+ [KMGTPE]?i?B)"),
    re.compile(r"Unable to allocate (?P<text>[\d.]+ [KMGTPE]?i?B)"),
)


@contextmanager
def memory_of(recipe: Any, *settings: str, device: str = "") -> Iterator[None]:
    """Turn the want of memory in the block into a `NotEnoughMemoryError` that names `settings` of the recipe.

    It says how many environments of recurrent PPO would fit, given the device.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error)
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text):
            raise
        size = _size(text)
        asked = "" if size is None else f": {size} more were asked for"
        fits = said_of_fitting(recipe, device) if device and "task.num_envs" in settings else ""
        raise NotEnoughMemoryError(f"Not enough memory{asked}; lower {_listed(recipe, settings)}.{fits}") from error


def _size(text: str) -> str | None:
    match = next(filter(None, (pattern.search(text) for pattern in _SIZES)), None)
    if match is None:
        return None
    groups = match.groupdict()
    if "text" in groups:
        return groups["text"]
    number, unit = float(groups["bytes"]), 0
    while number >= 1024 and unit < 6:
        number, unit = number / 1024, unit + 1
    return f"{number:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[unit]}"


def _listed(recipe: Any, settings: Sequence[str]) -> str:
    found = []
    for setting in settings:
        section, _, key = setting.partition(".")
        value = getattr(getattr(recipe, section), key, None)
        if value is not None:
            found.append(f"{setting} (now {value})")
    return " or ".join(found)


@contextmanager
def disk_of(folder: Path, kept: Path) -> Iterator[None]:
    """Turn a full disk in the block into a `DiskError` about `folder` that names the last checkpoint in `kept`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskError(
            f"Run folder {str(folder)!r} could not be written ({error.strerror}). {last_checkpoint(kept)} Make room "
            "and run the same command with --resume."
        ) from error
