"""From an error to one line on stderr and an exit status: 2 for wrong input, 1 for anything else."""

from __future__ import annotations

import difflib
import errno
import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from robust_policies.errors import LostRankError, NotEnoughMemoryError, RobustPoliciesError

# Characters of a line.
_LONGEST = 600
# Characters of a name that is too long.
_SHOWN = 60
# Typer carries its own copy of click in newer versions; this is the base of every wrong option or argument in both.
_UsageError: Any = typer.BadParameter.__bases__[0]


def exit_status(error: BaseException, given: Sequence[str]) -> int:
    """Return the exit status of an error after printing its line."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, _UsageError):
        # `_UsageError` is found at run time, so its methods are not known before.
        line = " ".join(error.format_message().split()).replace(": Value error, ", ": ")  # pyright: ignore[reportAttributeAccessIssue]
        if not line:
            # The help was shown because no command was given.
            return 2
        context = getattr(error, "ctx", None)
        where = "" if context is None else f" See: {context.command_path} --help"
        value = _value_given(error, given)
        line = line.rstrip(".") if value else line
        return _fail(f"{line}{value}{_option_hint(error)}{where}", 2)
    if isinstance(error, RobustPoliciesError):
        return _fail(str(error), error.exit_status)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _fail("interrupted", 1)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename)
        return _fail(f"{name[:_SHOWN]!r}... has {len(name)} characters, too many for a file; give a shorter name.", 2)
    return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


@contextmanager
def short_warnings(asked: bool) -> Iterator[None]:
    """Print warnings in the block as one line on stderr, if `asked`, in place of Python's two with a path."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        if asked:
            warnings.showwarning = show
        yield


@contextmanager
def one_voice(ranks: Any) -> Iterator[None]:
    """Let rank 0 of a training over several alone say in the block what all of them find.

    Of the others one is heard where another rank was lost, which may be rank 0, and each where memory or something
    unforeseen ended it.
    """
    if ranks.first:
        yield
        return
    warnings.simplefilter("ignore")
    try:
        yield
    except RobustPoliciesError as error:
        heard = isinstance(error, NotEnoughMemoryError) or (isinstance(error, LostRankError) and ranks.rank == 1)
        if ranks.joined and heard:
            raise
        raise typer.Exit(error.exit_status) from error


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        # What was given may be long; what was wrong with it stands before, what is expected behind.
        line = f"{line[: _LONGEST * 2 // 3]} [...] {line[-_LONGEST // 3 :]}"
    print(f"error: {line}", file=sys.stderr)
    return status


def _value_given(error: Any, given: Sequence[str]) -> str:
    """Return what was given to the option a wrong value is about."""
    options = getattr(getattr(error, "param", None), "opts", [])
    for option, value in itertools.pairwise(given):
        if option in options:
            return f"; {option} was given {value!r}."
    return ""


def _option_hint(error: Any) -> str:
    """Return the closest option where an unknown one was given and the message does not name it yet."""
    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if not name or context is None or "ossible" in error.format_message() or "mean" in error.format_message():
        return ""
    known = [option for parameter in context.command.params for option in parameter.opts]
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""
