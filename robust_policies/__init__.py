"""Recurrent control policies that are stable and robust by construction, trained with Stable-Baselines3."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("robust-policies")
except PackageNotFoundError:
    __version__ = "0.1.0"
