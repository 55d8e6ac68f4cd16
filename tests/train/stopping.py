"""Stopping a run from inside: what a person does with Ctrl-C, and what a machine does."""

import os
import signal

from robust_policies.train import StopOnSignal
from robust_policies.train.run.progress import Silent


class StopAt(Silent):
    """Presses Ctrl-C, as it were, once `steps` are done; SIGKILL if asked for."""

    def __init__(self, steps, number=signal.SIGINT):
        self.steps, self.number = steps, number

    def update(self, steps, reward, best):
        if steps >= self.steps:
            self.steps = float("inf")
            os.kill(os.getpid(), self.number)


def stop_at(steps, number=signal.SIGINT):
    """Return the arguments of `train` for a run that a signal asks to stop once `steps` are done."""
    return {"reporter": StopAt(steps, number), "stop": StopOnSignal()}
