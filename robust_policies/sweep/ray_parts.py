"""Parts of an evaluation or of certificates on the machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from robust_policies.errors import RobustPoliciesError
from robust_policies.sweep.ray_pool import connected

# A machine that leaves the cluster takes its parts with it: Ray begins them again elsewhere, so many times.
_RETRIES = 2


def _guarded(function: Callable[[Mapping[str, Any]], Any], data: Mapping[str, Any]) -> tuple[bool, Any]:
    """Return whether a function came to its end with data, and what it returned, or why not."""
    import torch

    # The processes of a machine would take the cores from one another.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    try:
        return True, function(data)
    except RobustPoliciesError as error:
        return False, str(error)


class RayParts:
    """Calls functions on a Ray cluster, one CPU each.

    Args:
        address, slots: as of `RayPool`, which says what is raised.
    """

    def __init__(self, address: str, slots: int | None = None) -> None:
        self.ray, cores = connected(address)
        self.slots = slots or max(cores, 1)
        self._call = self.ray.remote(num_cpus=1, max_retries=_RETRIES)(_guarded)
        self._running: dict[Any, int] = {}

    def __call__(
        self, function: Callable[[Mapping[str, Any]], Any], items: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[int, Any]]:
        """Yield the place of each item and what `function`, of a module, returned for it, as they end.

        One for which it raised a `RobustPoliciesError`, or whose workers died, is left out.
        """
        waiting = iter(enumerate(items))
        while True:
            while len(self._running) < self.slots and (following := next(waiting, None)) is not None:
                place, data = following
                self._running[self._call.remote(function, data)] = place
            if not self._running:
                return
            finished, _ = self.ray.wait(list(self._running), num_returns=1)
            for reference in finished:
                place = self._running.pop(reference)
                with contextlib.suppress(self.ray.exceptions.RayError):
                    ended, found = self.ray.get(reference)
                    if ended:
                        yield place, found

    def close(self) -> None:
        """End what still runs, and the connection."""
        for reference in self._running:
            with contextlib.suppress(Exception):
                self.ray.cancel(reference, force=True)
        self.ray.shutdown()
