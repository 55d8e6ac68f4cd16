"""Requests to stop between two updates, among them Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, Self


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
    """

    def __init__(self) -> None:
        super().__init__()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        sys.stderr.write("\nStopping after this step and saving a checkpoint; once more stops at once.\n")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
