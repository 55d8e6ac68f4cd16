"""What can go wrong, one exception per cause.

Every message says what was given, what was expected and what to do. A `UserError` is a wrong input: the command line
prints it as one line and exits with status 2. It is a `ValueError` too, as callers of a Python library expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustPoliciesError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_status = 1


class UserError(RobustPoliciesError, ValueError):
    """The caller's input is wrong."""

    exit_status = 2


class InvalidValueError(UserError):
    """A number, string or option outside its range."""


class ShapeError(UserError):
    """An array whose shape, dtype or device does not fit."""


class NonFiniteError(UserError):
    """An array that holds NaN or infinity."""


_LISTED = 24


class UnknownNameError(UserError, KeyError):
    """A name that is not in a registry; the message lists what is, and the closest one."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @classmethod
    def among(cls, kind: str, given: str, known: Iterable[str]) -> UnknownNameError:
        """Return the error for `given`, which is none of `known`: these, or the closest three where they are many."""
        names = sorted(known)
        close = difflib.get_close_matches(str(given), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if len(names) > _LISTED:
            nearest = difflib.get_close_matches(str(given), names, n=3, cutoff=0.0)
            return cls(f"Unknown {kind} {given!r}.{hint} The closest of {len(names)}: {', '.join(nearest)}.")
        return cls(f"Unknown {kind} {given!r}.{hint} Known: {', '.join(names) or 'none'}.")


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class CorruptFileError(UserError):
    """A file that exists and cannot be read as what it should be."""


class SchemaError(UserError):
    """A file written by a newer version of this package."""


class DeviceError(UserError):
    """A device this machine or this PyTorch build does not have."""


class NotCertifiableError(UserError):
    """A policy for which no gain can be stated; the message names the reason."""


class DivergedError(RobustPoliciesError):
    """Training or evaluation produced NaN or infinity."""


class LostRankError(RobustPoliciesError):
    """One of the processes that train together ended before the others."""


class FmuError(RobustPoliciesError):
    """A functional mock-up unit refused what it was asked for."""


class NotEnoughMemoryError(RobustPoliciesError):
    """The machine or the device has not the memory that was asked for."""


class DiskError(RobustPoliciesError):
    """A file could not be written: the disk is full, a quota or a limit is reached."""
