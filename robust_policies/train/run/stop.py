"""Requests to stop between two updates, among them Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Self

# Seconds.
_SAME_REQUEST = 2.0


class StopRequest:
    """What may ask a training to stop: it does, with a checkpoint, once `requested` is True.

    It is entered while the training's loop runs.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return


class StopOnSignal(StopRequest):
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop at the next step; a second one acts at once.

    For a command, which has the process to itself: it replaces the process's signal handlers while it is entered.

    Args:
        together: torchrun started several ranks: it hands on a signal that they may have had from the terminal too, so
            one that follows within two seconds is the same request; and they stop after the update under way.
    """

    def __init__(self, together: bool = False) -> None:
        super().__init__()
        self._together, self._asked = together, 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested and now - self._asked > _SAME_REQUEST:
            self._restore()
            signal.raise_signal(number)
        if self.requested:
            return
        self.requested, self._asked = True, now
        if not self._together:
            self._restore()
            sys.stderr.write("\nStopping after this step and saving a checkpoint; once more stops at once.\n")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
