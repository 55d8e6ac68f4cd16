"""The process of one trial: trains, certifies and evaluates into one run folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from robust_policies import evaluation
from robust_policies import train as training
from robust_policies.errors import RobustPoliciesError
from robust_policies.files.atomic import remove_leftovers
from robust_policies.files.lock import contents, held
from robust_policies.sweep.jobs import Job, Status

# Pruning compares trials at these fractions of their steps; a message is due at each of them.
RUNGS = 10
_SECONDS_BETWEEN_MESSAGES = 1.0
# A trial whose sweep was killed needs a moment to write its checkpoint before the next one may take over.
_PATIENCE = 60.0


class _Messages:
    """A reporter that sends messages of JSON to the sweep."""

    def __init__(self, sweep: Connection) -> None:
        self.sweep, self.total, self.sent, self.rung = sweep, 1, -1.0, -1

    def start(self, total: int, done: int) -> None:
        """Begin at `done` of `total` environment steps."""
        self.total = total

    def note(self, text: str) -> None:
        """Do nothing."""

    def update(self, steps: int, reward: float | None, best: float | None) -> None:
        """Send a message if the last one is old or a fraction that pruning looks at is reached."""
        now, rung = time.monotonic(), RUNGS * steps // self.total
        if rung == self.rung and now - self.sent < _SECONDS_BETWEEN_MESSAGES:
            return
        self.sent, self.rung = now, rung
        self.write({"steps": steps, "total": self.total, "reward": reward})

    def stop(self) -> None:
        """Nothing is open."""

    def write(self, message: dict[str, Any]) -> None:
        """Send one message; without a sweep that reads, do nothing: the end of the connection stops the trial."""
        with contextlib.suppress(OSError):
            self.sweep.send_bytes(json.dumps(message).encode())


def run_trial(data: str, sweep: Connection, log: str) -> None:
    """Run a job in this process, which is made for it; end with a checkpoint when the sweep says so or is no more.

    Args:
        data: of the job, as JSON.
        sweep: takes messages; what comes from it, or its end, ends the trial.
        log: the file to which goes what is printed.
    """
    # A session of its own, so that Ctrl-C in the terminal reaches the sweep alone, which tells its trials.
    os.setsid()
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # A Ray worker blocks SIGINT and a shell's background job ignores it, and this process inherits both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    messages, asked = _Messages(sweep), threading.Event()
    status: Status = "stopped"
    reason = ""
    try:
        threading.Thread(target=_stop_with_the_sweep, args=(sweep, asked), daemon=True).start()
        _run(Job.from_data(json.loads(data)), messages)
        status = "done"
    except BaseException as error:
        known = isinstance(error, RobustPoliciesError)
        reason = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())
        # Whatever an interruption turned into on its way up through a library, it was asked for.
        status = "stopped" if asked.is_set() or isinstance(error, KeyboardInterrupt) else "failed"
        if known or status == "stopped":
            print(reason, file=sys.stderr)
        else:
            traceback.print_exc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    messages.write({"status": status, "reason": reason})
    raise SystemExit(0 if status == "done" else 1)


def _stop_with_the_sweep(sweep: Connection, asked: threading.Event) -> None:
    """Ask this process to stop as Ctrl-C does, once the sweep says so or is no more."""
    with contextlib.suppress(EOFError, OSError):
        sweep.recv_bytes()
    asked.set()
    os.kill(os.getpid(), signal.SIGINT)


def _run(job: Job, messages: _Messages) -> None:
    import torch

    torch.set_num_threads(1)
    recipe = training.parse_recipe(job.recipe, job.name)
    run = training.RunFolder(job.folder)
    with held(job.log, f"Run folder {str(job.folder)!r}", _PATIENCE):
        if not run.recipe.is_file() and job.folder.is_dir():
            _remove_unfinished_start(run)
        if run.trained:
            run.begin(recipe, resume=True)
        else:
            stop = training.StopOnSignal()
            training.train(recipe, job.folder, device=job.device, resume=True, reporter=messages, stop=stop)
        if not job.evaluate:
            return
        if not run.certificate.is_file():
            evaluation.certify_run(job.folder)
        if not run.evaluation.is_file():
            section = recipe.evaluation
            evaluation.evaluate_run(
                job.folder,
                tasks=section.tasks or None,
                suite=section.suite,
                sizes=section.sizes,
                episodes=section.episodes,
                seeds=section.seeds,
            )


def _remove_unfinished_start(run: training.RunFolder) -> None:
    """Delete what a process killed while it wrote the recipe left: a temporary file and nothing else."""
    if all(path.name.startswith(".recipe.yaml.") for path in contents(run.path)):
        remove_leftovers(run.path)
