"""Trials on this machine: a process each, a few at a time.

Where the system can fork, one process loads the libraries once and the trials are forked from it: each begins at once,
and shares the libraries' memory with the others, where it would import for seconds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import selectors
import signal
import sys
import types
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from robust_policies.sweep.jobs import Ended, Event, Job, Progressed
from robust_policies.sweep.trial import run_trial

# A process that has closed its output is on its way out; one that is not after this many seconds is killed.
_LAST_SECONDS = 30.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What the trials need, loaded before the first is forked.
_PRELOADED = [
    __name__,
    "robust_policies.train.runner",
    "robust_policies.train.ppo.run",
    "robust_policies.evaluation.run",
]


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _beginning() -> Iterator[None]:
    """Within this context processes begin with a thread each, and without the program that began this one.

    A program that is a script would be run again in each of them; a trial is told all it needs.
    """
    before, program = {name: os.environ.get(name) for name in _THREADS}, sys.modules["__main__"]
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Child:
    """One trial's process: a connection to it is its lifeline, and brings its messages."""

    def __init__(self, job: Job, context: Any) -> None:
        self.job, self.asked = job, False
        self.ended: Ended | None = None
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=run_trial, args=(json.dumps(job.to_data()), theirs, str(job.log)))
        with theirs, _beginning():
            self.process.start()

    def stop(self) -> None:
        self.asked = True
        with contextlib.suppress(OSError):
            self.connection.send_bytes(b"stop")

    def message(self) -> dict[str, Any] | None:
        """Return the next message, None at the end."""
        try:
            return json.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionError):
            return None

    def wait(self) -> Ended:
        self.process.join(_LAST_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        # Asked to stop before it could answer, it is as good as stopped.
        status = "stopped" if self.asked else "failed"
        self.connection.close()
        return self.ended or Ended(self.job.name, status, _how_it_died(self.process.exitcode or 0, self.job))


class LocalPool:
    """Runs up to `slots` trials at a time on this machine.

    Args:
        slots: their number.
        fork: whether trials are forked where the system can; else each is a child of this process.
    """

    def __init__(self, slots: int, *, fork: bool = True) -> None:
        self.slots = slots
        fork = fork and sys.platform == "linux"
        self._context = multiprocessing.get_context("forkserver" if fork else "spawn")
        if fork:
            self._context.set_forkserver_preload(_PRELOADED)
        self._children: dict[str, _Child] = {}
        self._selector = selectors.DefaultSelector()

    def submit(self, job: Job) -> None:
        """Start a job."""
        child = _Child(job, self._context)
        self._children[job.name] = child
        self._selector.register(child.connection, selectors.EVENT_READ, child)

    def wait(self, timeout: float) -> list[Event]:
        """Return what happened within at most `timeout` seconds."""
        events: list[Event] = []
        for key, _ in self._selector.select(timeout):
            child: _Child = key.data
            message = child.message()
            if message is None:
                self._selector.unregister(child.connection)
                del self._children[child.job.name]
                events.append(child.wait())
            elif "status" in message:
                child.ended = Ended(child.job.name, message["status"], message["reason"])
            else:
                events.append(Progressed(child.job.name, **message))
        return events

    def stop(self, name: str) -> None:
        """Ask a job to write its checkpoint and end."""
        if name in self._children:
            self._children[name].stop()

    def close(self) -> None:
        """End all that still runs: with a checkpoint, or at once where that was asked for before."""
        for child in self._children.values():
            if child.asked:
                child.process.kill()
            child.stop()
        for child in self._children.values():
            child.wait()
        self._children = {}
        self._selector.close()


def _how_it_died(code: int, job: Job) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        cause = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{cause}; what it printed is in {job.log}"
    return f"its process ended with status {code} before the trial was over; what it printed is in {job.log}"
