"""A function of tensors that stay where they are, as one CUDA graph: one launch in place of thousands.

A graph repeats what a device was asked to do while it was recorded, on the same memory. What the function decides on
the host is not decided again, so this module looks at all that it is told of: a function that waits for the device, or
changes a number on the host, is not recorded, and one whose tensors somebody has replaced is recorded anew.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A library loads its kernels in the first call; the second shows whether the function waits for the device.
_CALLS_BEFORE = 2
# Somebody who replaces tensors again and again is better served without.
_MOST_RECORDINGS = 8
_renewed = {"generators": 0}
"""How often a generator of a device was given a new state, of which the graphs recorded before know nothing."""


class Place(NamedTuple):
    """Where a tensor or a number stands: an attribute of an object, or an entry of a dict."""

    owner: Any
    key: str

    def get(self) -> Any:
        """Return what stands there."""
        return self.owner[self.key] if isinstance(self.owner, dict) else getattr(self.owner, self.key)

    def set(self, value: Any) -> None:
        """Put a value there."""
        if isinstance(self.owner, dict):
            self.owner[self.key] = value
        else:
            setattr(self.owner, self.key, value)


class _CannotRecordError(Exception):
    """What the function does on the host would not be done again."""


class Graph:
    """A function without arguments that a CUDA device repeats as one graph, where that is possible.

    The first calls run the function as it is; then it is recorded, and the calls after that replay it. Its results are
    then the same tensors every time, with new numbers. Random numbers of the device's own generator go on as they would
    call by call. Where the function cannot be recorded one warning says why, and every call runs it as it is.

    Args:
        name: what the function is, for the warning: "A rollout".
        function: what is recorded. It may put other tensors into `places`: a replay leaves those numbers in the ones
            that stood there. All else that it changes must be changed in place, on the device.
        places: () -> what the function reads and changes, by name: tensors on the device, numbers on the host.
        settings: () -> what else on the host the function depends on; it is recorded anew where that is not equal.
        device: where.
        why_not: why it is not to be recorded; None: it may be.

    Attributes:
        why_not: why the function runs as it is; None while it may be recorded.
        recording: whether the function is being recorded now.
        replays: how often a graph has been replayed.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], Any],
        places: Callable[[], Mapping[str, Place]],
        settings: Callable[[], Any],
        device: torch.device,
        why_not: str | None = None,
    ) -> None:
        self.name, self.function, self.places, self.settings, self.device = name, function, places, settings, device
        self.why_not = _missing(device) if why_not is None else why_not
        self.recording = False
        self.replays = 0
        self._calls = self._recordings = 0
        self._graph: Any = None
        self._taken: tuple[dict[str, Any], dict[str, int], Any, int] = {}, {}, None, 0
        self._outcome: Any = None
        self._stream: Any = None

    def __call__(self) -> Any:
        """Return what the function returns."""
        if self.why_not is not None:
            return self.function()
        if self._graph is not None and not self._current():
            self._graph = self._outcome = None
            # What is made once is made by a call as it is.
            self._calls = _CALLS_BEFORE - 1
        if self._graph is None and (self._calls < _CALLS_BEFORE or not self._record()):
            self._calls += 1
            return self.function() if self.why_not is not None else self._aside(self._watched)
        replayed: Any = self._graph
        self._aside(replayed.replay)
        self.replays += 1
        return self._outcome

    def _aside(self, call: Callable[[], Any]) -> Any:
        """Return what a call returns on the stream of the recordings, after and before all else on the device.

        Libraries keep memory for each stream, which a graph uses again: it is replayed where it was recorded.
        """
        with torch.cuda.device(self.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self.device)
            around = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(around)
            with torch.cuda.stream(self._stream):
                found = call()
            around.wait_stream(self._stream)
        return found

    def _watched(self) -> Any:
        """Return what the function returns; one that waits for the device is not recorded."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                found = self.function()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [one for one in said if "synchroniz" in str(one.message)]
        for one in said:
            if one not in waits:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        if waits and self._calls == _CALLS_BEFORE:
            self.give_up(f"it waits for the device in {waits[0].filename}, line {waits[0].lineno}")
        return found

    def _current(self) -> bool:
        """Return whether all stands where it stood and is as it was when the graph was recorded."""
        values, addresses, settings, renewed = self._taken
        now = self.places()
        if now.keys() != values.keys() or settings != self.settings() or renewed != _renewed["generators"]:
            return False
        return all(
            _same(place.get(), values[name]) and addresses[name] == _address(values[name])
            for name, place in now.items()
        )  # fmt: skip

    def _record(self) -> bool:
        """Record the function and return True; where that fails all is as before."""
        if self._recordings == _MOST_RECORDINGS:
            self.give_up(f"its tensors or settings were replaced {_MOST_RECORDINGS} times")
            return False
        self._recordings += 1
        places = self.places()
        before = {name: place.get() for name, place in places.items()}
        before = {name: list(value) if isinstance(value, list) else value for name, value in before.items()}
        with torch.cuda.device(self.device):
            index = torch.cuda.current_device()
            generator = torch.cuda.default_generators[index]
            numbers, pool = generator.clone_state(), torch.cuda.graph_pool_handle()
            graph, self.recording, done = torch.cuda.CUDAGraph(), True, False
            try:
                # Another thread may write a file meanwhile.
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    outcome = self.function()
                    _settle(before, self.places())
                done = True
            except Exception as error:  # whatever it is, the function itself runs as before
                self.give_up((str(error) or type(error).__name__).splitlines()[0])
            finally:
                self.recording = False
                if not done:
                    # Generator and memory would take the recording for one that still goes on.
                    generator.graphsafe_set_state(numbers)
                    _renewed["generators"] += 1
                    with contextlib.suppress(Exception):
                        torch._C._cuda_endAllocateToPool(index, pool)  # pyright: ignore[reportAttributeAccessIssue]
                    for name, place in places.items():
                        if not _same(place.get(), before[name]):
                            place.set(before[name])
        if done:
            self._graph, self._outcome = graph, outcome
            addresses = {name: _address(value) for name, value in before.items()}
            self._taken = before, addresses, self.settings(), _renewed["generators"]
        return done

    def give_up(self, reason: str, quiet: bool = False) -> None:
        """Run the function as it is from now on, and say why, unless `quiet`."""
        self.why_not, self._graph, self._outcome = reason, None, None
        if not quiet:
            said = f"{self.name} runs call by call on {self.device}, not as one CUDA graph: {reason}."
            warnings.warn(said, stacklevel=4)


def _missing(device: torch.device) -> str | None:
    """Return why nothing can be recorded on a device, None where something may."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if not hasattr(torch.cuda, "CUDAGraph") or not hasattr(torch.Generator, "graphsafe_set_state"):
        return f"PyTorch {torch.__version__} has no CUDA graphs"
    return None


def _settle(before: Mapping[str, Any], after: Mapping[str, Place]) -> None:
    """Bring what stands in the places back into the tensors that stood there before, on the device."""
    if after.keys() != before.keys():
        name = min(after.keys() ^ before.keys())
        raise _CannotRecordError(f"{name} {'appears' if name in after else 'is gone'} after it")
    moved: dict[str, Tensor] = {}
    stands: dict[int, Tensor] = {}
    for name, place in after.items():
        held, now = before[name], place.get()
        if isinstance(held, Tensor) and isinstance(now, Tensor):
            if (now.shape, now.dtype, now.device) != (held.shape, held.dtype, held.device):
                raise _CannotRecordError(f"{name} is {_said(held)} before it and {_said(now)} after")
            if stands.setdefault(id(held), now) is not now:
                raise _CannotRecordError(f"{name} is no longer one with another tensor after it")
            if now is not held:
                # One may now be where another one was.
                moved[name] = now.clone()
        elif not _same(now, held):
            raise _CannotRecordError(f"{name} is {_said(held)} before it and {_said(now)} after")
    for name, value in moved.items():
        before[name].copy_(value)
        after[name].set(before[name])


def _same(now: Any, then: Any) -> bool:
    if isinstance(now, (bool, int, float, list, type(None))) and not isinstance(then, Tensor):
        return type(now) is type(then) and now == then
    return now is then


def _address(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else 0


def _said(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
