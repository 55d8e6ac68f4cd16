"""Trials on this machine: a process each, a few at a time."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import robust_policies
from robust_policies.sweep.jobs import Ended, Event, Job, Progressed

# The child imports the very package that runs here, however that was found.
_CHILD = (
    "import sys; sys.path.insert(0, sys.argv[1]); import robust_policies; sys.path.pop(0); "
    "from robust_policies.sweep.trial import main; main()"
)
# A process that has closed its output is on its way out; one that is not after this many seconds is killed.
_LAST_SECONDS = 30.0


def cores() -> int:
    """Return the number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Child:
    """One trial's process: its standard input is a lifeline, its standard output a stream of messages."""

    def __init__(self, job: Job) -> None:
        self.job, self.rest, self.asked = job, b"", False
        self.ended: Ended | None = None
        root = str(Path(robust_policies.__file__).resolve().parents[1])
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            # A session of its own, so that Ctrl-C in the terminal reaches the sweep alone, which tells its trials.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **threads},
                start_new_session=True,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        with contextlib.suppress(BrokenPipeError):
            self.stdin.write(json.dumps(job.to_data()).encode() + b"\n")
            self.stdin.flush()

    def stop(self) -> None:
        self.asked = True
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()

    def messages(self, data: bytes) -> list[dict[str, Any]]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]

    def wait(self) -> Ended:
        try:
            code = self.process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        # Asked to stop before it could answer, it is as good as stopped.
        status = "stopped" if self.asked else "failed"
        self.stop()
        self.stdout.close()
        return self.ended or Ended(self.job.name, status, _how_it_died(code, self.job))


def _how_it_died(code: int, job: Job) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        cause = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{cause}; what it printed is in {job.log}"
    return f"its process ended with status {code} before the trial was over; what it printed is in {job.log}"


class LocalPool:
    """Runs up to `slots` trials at a time on this machine."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._children: dict[str, _Child] = {}
        self._selector = selectors.DefaultSelector()

    def submit(self, job: Job) -> None:
        """Start a job."""
        child = _Child(job)
        self._children[job.name] = child
        self._selector.register(child.stdout, selectors.EVENT_READ, child)

    def wait(self, timeout: float) -> list[Event]:
        """Return what happened within at most `timeout` seconds."""
        events: list[Event] = []
        for key, _ in self._selector.select(timeout):
            child: _Child = key.data
            data = child.stdout.read(65536)
            if data is None:
                continue
            for message in child.messages(data):
                if "status" in message:
                    child.ended = Ended(child.job.name, message["status"], message["reason"])
                else:
                    events.append(Progressed(child.job.name, **message))
            if data == b"":
                self._selector.unregister(child.stdout)
                del self._children[child.job.name]
                events.append(child.wait())
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
