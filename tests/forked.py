"""Processes of their own that begin at once, forked from one that has loaded the libraries.

A new one would import for three seconds of a processor.
"""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from robust_policies.cli.app import main

CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    CONTEXT.set_forkserver_preload(
        [
            "pytest",
            "torch._dynamo",
            "robust_policies.cli.app",
            "robust_policies.evaluation.run",
            "robust_policies.sweep.local",
            "robust_policies.train.ppo.run",
        ]
    )


def begin(function, *arguments):
    """Return the process that calls a function of a module."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def _command(arguments, out, err):
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(COLUMNS="200", NO_COLOR="1")
    main(arguments)


class Command:
    """`robust-policies ARGUMENTS` in a process of its own; with what the tests use of `subprocess.Popen`."""

    def __init__(self, *arguments):
        folder = Path(tempfile.mkdtemp())
        self.streams = folder / "out", folder / "err"
        self.process = begin(_command, [*map(str, arguments)], *self.streams)

    def poll(self):
        return self.process.exitcode

    @property
    def returncode(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def communicate(self, timeout=None):
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"it goes on after {timeout} s"
        return tuple(path.read_text() if path.exists() else "" for path in self.streams)
