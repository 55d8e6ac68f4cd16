"""What a person sees while training: a bar with the reward and the time left, or plain lines in a log."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Shows how far a run is."""

    def start(self, total: int, done: int) -> None:
        """Begin at `done` of `total` environment steps."""

    def note(self, text: str) -> None:
        """Say something once, before the beginning."""

    def update(self, steps: int, reward: float | None, best: float | None) -> None:
        """Show that `steps` are done, with the mean training return of late and the best evaluation."""

    def stop(self) -> None:
        """Finish the display."""


class Silent:
    """Shows nothing."""

    def start(self, total: int, done: int) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def update(self, steps: int, reward: float | None, best: float | None) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class _Speed:
    """Steps per second since the start."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.first, self.since = total, done, time.monotonic()

    def at(self, steps: int) -> float:
        return (steps - self.first) / max(time.monotonic() - self.since, 1e-9)


def _text(reward: float | None) -> str:
    return "  --  " if reward is None else f"{reward:.1f}"


class Lines:
    """A line every few seconds, for logs."""

    def __init__(self, console: Console, every: float = 10.0, score: str = "mean return") -> None:
        self.console, self.every, self.last, self.score = console, every, 0.0, score

    def start(self, total: int, done: int) -> None:
        """Begin at `done` of `total` environment steps."""
        self.speed, self.last = _Speed(total, done), time.monotonic()

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def update(self, steps: int, reward: float | None, best: float | None) -> None:
        """Print a line if the last one is old enough, or training is complete."""
        now = time.monotonic()
        if now - self.last < self.every and steps < self.speed.total:
            return
        self.last = now
        speed = self.speed.at(steps)
        left = max(self.speed.total - steps, 0) / max(speed, 1e-9)
        self.console.print(
            f"{steps}/{self.speed.total} steps  {self.score} {_text(reward)}  best evaluation {_text(best)}  "
            f"{speed:.0f} steps/s  {left:.0f} s left",
            highlight=False,
            soft_wrap=True,
        )

    def stop(self) -> None:
        """Nothing is open."""


class Bar:
    """A progress bar for terminals."""

    def __init__(self, console: Console, score: str = "return") -> None:
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  " + score + " {task.fields[reward]}  best {task.fields[best]}"),
            TextColumn("{task.fields[speed]} steps/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    def start(self, total: int, done: int) -> None:
        """Begin at `done` of `total` environment steps."""
        self.speed = _Speed(total, done)
        fields: dict[str, Any] = {"reward": _text(None), "best": _text(None), "speed": "--"}
        self.task = self.bar.add_task("training", total=total, completed=done, **fields)
        self.bar.start()

    def note(self, text: str) -> None:
        """Print a line."""
        self.bar.console.print(text, highlight=False, soft_wrap=True)

    def update(self, steps: int, reward: float | None, best: float | None) -> None:
        """Move the bar."""
        self.bar.update(
            self.task,
            completed=min(steps, self.speed.total),
            reward=_text(reward),
            best=_text(best),
            speed=f"{self.speed.at(steps):.0f}",
        )

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()


def reporter_for(console: Console, score: str | None = None) -> Reporter:
    """Return a bar where the console is a terminal, lines where it is not; `score` names what is not a return."""
    if console.is_terminal:
        return Bar(console, score or "return")
    return Lines(console, score=score or "mean return")
