"""What a person sees while a sweep runs: a bar for all trials and one for each that runs, or plain lines in a log."""

from __future__ import annotations

import time
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robust_policies.sweep.jobs import Progressed


class SweepDisplay:
    """Bars where the console is a terminal; a line for each trial that ends in any case."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.done, self.failed = console, total, done, 0
        self.begun: dict[str, float] = {}
        self.bars: dict[str, TaskID] = {}
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.all = self.bar.add_task("all trials", total=self.total, completed=self.done, text=self._text())
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def _text(self) -> str:
        return f"{self.done}/{self.total}" + (f", {self.failed} failed" if self.failed else "")

    def started(self, name: str) -> None:
        """Show a trial that begins."""
        self.begun[name] = time.monotonic()
        self.bars[name] = self.bar.add_task(escape(name), total=1, text="starting")

    def progressed(self, event: Progressed) -> None:
        """Move a trial's bar."""
        text = "" if event.reward is None else f"return {event.reward:.1f}"
        self.bar.update(self.bars[event.name], total=event.total, completed=event.steps, text=text)

    def ended(self, row: dict[str, Any]) -> None:
        """Print the line of a trial that ended."""
        name, status = row["name"], row["status"]
        now = time.monotonic()
        seconds = now - self.begun.pop(name, now)
        if name in self.bars:
            self.bar.remove_task(self.bars.pop(name))
        self.done += status != "stopped"
        self.failed += status == "failed"
        self.bar.update(self.all, completed=self.done, text=self._text())
        figure = next((f", {key} {row['metrics'][key]:.1f}" for key in ("return", "best") if key in row["metrics"]), "")
        reason = f": {row['reason']}" if status == "failed" else ""
        self.console.print(
            f"[{self.done}/{self.total}] {status} {name}{reason}{figure} ({seconds:.0f} s)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
