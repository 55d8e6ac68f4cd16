"""What passes between a sweep and the processes that run its trials."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

Status = Literal["done", "failed", "stopped", "pruned"]


@dataclass(frozen=True)
class Job:
    """A trial as another process, perhaps on another machine, needs it.

    Attributes:
        name: of the trial.
        recipe: resolved, as plain data.
        folder: its run folder.
        log: what it prints goes here.
        device: as for `train`.
        evaluate: certify and evaluate it too.
    """

    name: str
    recipe: dict[str, Any]
    folder: Path
    log: Path
    device: str = "cpu"
    evaluate: bool = True

    def to_data(self) -> dict[str, Any]:
        """Return plain data that is JSON."""
        return asdict(self) | {"folder": str(self.folder), "log": str(self.log)}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Return the job that `to_data` wrote."""
        return cls(**{**data, "folder": Path(data["folder"]), "log": Path(data["log"])})


@dataclass(frozen=True)
class Progressed:
    """`steps` of `total` environment steps are done; `reward` is the mean training return of late."""

    name: str
    steps: int
    total: int
    reward: float | None


@dataclass(frozen=True)
class Ended:
    """The trial's process is gone; `reason` is empty where it is done."""

    name: str
    status: Status
    reason: str = ""


Event = Progressed | Ended


class Pool(Protocol):
    """Runs up to `slots` jobs at a time, each in a process of its own."""

    slots: int

    def submit(self, job: Job) -> None:
        """Start a job."""

    def wait(self, timeout: float) -> list[Event]:
        """Return what happened within at most `timeout` seconds; every submitted job ends with one `Ended`."""
        ...

    def stop(self, name: str) -> None:
        """Ask a job to write its checkpoint and end."""

    def close(self) -> None:
        """End all that still runs."""
