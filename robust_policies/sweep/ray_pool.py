"""Trials on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from robust_policies.errors import InvalidValueError
from robust_policies.sweep.jobs import Ended, Event, Job, Progressed
from robust_policies.sweep.local import LocalPool

_POLL_SECONDS = 0.5


def import_ray() -> Any:
    """Return the module ray; raise `InvalidValueError` that says how to get it."""
    try:
        import ray
    except ImportError as error:
        raise InvalidValueError(
            "--address needs Ray, which is not installed: pip install 'robust-policies[sweep]'; leave --address out "
            "to use this machine alone."
        ) from error
    return ray


class _Board:
    """An actor between the sweep and its trials: how far each is, and which should stop."""

    def __init__(self) -> None:
        self.news: dict[str, tuple[int, int, float | None]] = {}
        self.stopping: set[str] = set()

    def report(self, name: str, news: tuple[int, int, float | None] | None) -> bool:
        if news is not None:
            self.news[name] = news
        return name in self.stopping

    def stop(self, name: str) -> None:
        self.stopping.add(name)

    def take(self) -> dict[str, tuple[int, int, float | None]]:
        news, self.news = self.news, {}
        return news


def _run(data: dict[str, Any], board: Any) -> tuple[str, str]:
    """Return status and reason of a trial, run in a process of its own on the machine of this Ray worker.

    Should the worker die, the trial's process notices and ends with a checkpoint.
    """
    import ray
    from ray.exceptions import RayError

    job = Job.from_data(data)
    # A child of the worker: what is forked from another process would outlive the worker's death unseen.
    pool = LocalPool(1, fork=False)
    pool.submit(job)
    try:
        while True:
            news = None
            for event in pool.wait(_POLL_SECONDS):
                if isinstance(event, Ended):
                    return event.status, event.reason
                news = (event.steps, event.total, event.reward)
            try:
                stop = ray.get(board.report.remote(job.name, news))
            except RayError:
                # The sweep is gone, and the board with it.
                stop = True
            if stop:
                pool.stop(job.name)
    finally:
        pool.close()


class RayPool:
    """Runs trials on a Ray cluster, one CPU each, and one GPU where the device is CUDA."""

    def __init__(self, address: str, slots: int | None, device: str) -> None:
        """Connect.

        Args:
            address: `auto` (the cluster this machine belongs to), HOST:PORT, `ray://HOST:PORT`, or `local` (a new one
                on this machine that ends with the sweep).
            slots: at most so many trials at a time; None: as many as the cluster has CPUs (GPUs).
            device: as for `train`.

        Raises:
            InvalidValueError: Ray is not installed or no cluster answers.
        """
        resource = "GPU" if device.startswith("cuda") else "CPU"
        self.ray, available = connected(address, resource)
        if available < 1:
            self.ray.shutdown()
            raise InvalidValueError(
                f"The Ray cluster at --address {address} has no {resource} for --device {device}; add one, or change "
                "--device."
            )
        self.slots = available if slots is None else slots
        self._board = self.ray.remote(num_cpus=0)(_Board).remote()
        # A trial that failed with its worker is reported, and --resume tries it again from its checkpoint.
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": 0, "num_gpus": 1 if resource == "GPU" else 0}
        self._task = self.ray.remote(**options)(_run)
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Start a job."""
        self._running[self._task.remote(job.to_data(), self._board)] = job

    def wait(self, timeout: float) -> list[Event]:
        """Return what happened within at most `timeout` seconds."""
        finished, _ = self.ray.wait(list(self._running), num_returns=1, timeout=timeout)
        news = self.ray.get(self._board.take.remote())
        events: list[Event] = [Progressed(name, *found) for name, found in news.items() if self._knows(name)]
        for reference in finished:
            job = self._running.pop(reference)
            try:
                status, reason = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                status, reason = "failed", _worker_died(error, job)
            events.append(Ended(job.name, status, reason))
        return events

    def _knows(self, name: str) -> bool:
        return any(job.name == name for job in self._running.values())

    def stop(self, name: str) -> None:
        """Ask a job to write its checkpoint and end."""
        self.ray.get(self._board.stop.remote(name))

    def close(self) -> None:
        """End all that still runs and leave the cluster."""
        for reference in self._running:
            with contextlib.suppress(Exception):
                self.ray.cancel(reference, force=True)
        self.ray.shutdown()


def connected(address: str, resource: str = "CPU") -> tuple[Any, int]:
    """Return Ray, connected to a cluster, and how many of a resource it has; address and errors as of `RayPool`."""
    ray = import_ray()
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,
            logging_level="error",
        )
    # Ray raises a bare one where its own processes are not there within half a minute.
    except Exception as error:
        raise _no_cluster(address, error) from error
    return ray, int(ray.cluster_resources().get(resource, 0))


def _reach(address: str) -> None:
    """Raise unless something listens at HOST:PORT; Ray itself tries for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> InvalidValueError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if address == "local":
        return InvalidValueError(
            f"Ray did not begin on this machine ({reason}); try again with less beside it, or leave --address out."
        )
    return InvalidValueError(
        f"No Ray cluster answers at --address {address} ({reason}); start one with `ray start --head`, or leave "
        "--address out to use this machine alone."
    )


def _worker_died(error: Exception, job: Job) -> str:
    first = " ".join(str(error).split())[:200]
    return f"its Ray worker died ({type(error).__name__}: {first}); what it printed is in {job.log}"
