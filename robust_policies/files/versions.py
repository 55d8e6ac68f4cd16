"""Versions of what decides the numbers in a file."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    "robust-policies",
    "torch",
    "numpy",
    "scipy",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what is computed."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
