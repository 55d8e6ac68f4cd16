"""CUDA graphs on the card that `cuda_without_one` makes: what it was asked for is noted, and done again on a replay.

A replay does the noted operations on the tensors that were there, and writes into the tensors that came of them: as on
a card, a number of the host is the one of the recording, and a tensor that took another's place afterwards is not seen.
A recording itself changes nothing, and one that waits for the device fails.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from cuda_without_one import WAITS, Card, cuda_without_one
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Tape(TorchDispatchMode):
    """Notes operations, with what stood in the memory that they wrote to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(args[place] if place < len(args) else kwargs.get(argument.name))
        # Lists are their owner's, who may change them.
        noted = tree_map(lambda one: one, (args, kwargs))
        found = func(*args, **kwargs)
        self.calls.append((func, *noted, found))
        return found

    def _keep(self, written: Any) -> None:
        for one in tree_leaves(written):
            if isinstance(one, torch.Tensor):
                storage = getattr(one, "held", one).untyped_storage()
                if storage.data_ptr() not in self.before:
                    self.before[storage.data_ptr()] = storage, storage.clone()

    def undo(self) -> None:
        for storage, held in self.before.values():
            storage.copy_(held)
        self.before.clear()

    def play(self) -> None:
        # Where devices are mixed was looked at when it was noted.
        with torch.no_grad(), patch("cuda_without_one._mixed", lambda *_: None):
            for func, args, kwargs, found in self.calls:
                again = func(*args, **kwargs)
                returned = func._schema.returns
                pairs = [(found, again)] if len(returned) == 1 else list(zip(found or (), again or (), strict=True))
                for (old, new), kind in zip(pairs, returned, strict=True):
                    if kind.alias_info is None:
                        for one, other in zip(tree_leaves(old), tree_leaves(new), strict=True):
                            if isinstance(one, torch.Tensor):
                                getattr(one, "held", one).copy_(getattr(other, "held", other))


class Noted:
    """In the place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.tape = Tape()

    def replay(self) -> None:
        self.tape.play()


class Generator:
    """In the place of the device's own, whose numbers the CPU's stand for."""

    def clone_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def graphsafe_set_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


class Stream:
    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


class State:
    """What is done now: `debug` mode, and whether operations are `noted`; `refusing` is what a recording fails with."""

    def __init__(self) -> None:
        self.debug: Any = 0
        self.noted = False
        self.refusing: str | None = None
        self.recordings = 0


@contextmanager
def graphs_without_one() -> Iterator[tuple[Any, State]]:
    """Let PyTorch say that there is one CUDA device that records; yields what waited for it, and the state."""
    state, note = State(), WAITS.note

    def waited(what: str) -> None:
        if state.noted:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")
        if state.debug == "warn":
            frame = sys._getframe(1)
            while "robust_policies" not in frame.f_code.co_filename and frame.f_back is not None:
                frame = frame.f_back
            warnings.warn_explicit(
                "called a synchronizing CUDA operation", UserWarning, frame.f_code.co_filename, frame.f_lineno
            )
        note(what)

    @contextmanager
    def recorded(graph: Noted, pool: Any, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        assert isinstance(stream, Stream) and pool is not None and capture_error_mode == "thread_local"
        if state.refusing is not None:
            raise RuntimeError(state.refusing)
        numbers, state.noted = torch.get_rng_state(), True
        state.recordings += 1
        try:
            with graph.tape:
                yield
        finally:
            state.noted = False
            graph.tape.undo()
            torch.set_rng_state(numbers)

    with ExitStack() as stack:
        waits = stack.enter_context(cuda_without_one())
        for name, value in {
            "torch.cuda.CUDAGraph": Noted,
            "torch.cuda.graph": recorded,
            "torch.cuda.Stream": Stream,
            "torch.cuda.stream": lambda stream: nullcontext(),
            "torch.cuda.current_stream": lambda device=None: Stream(),
            "torch.cuda.device": lambda device: nullcontext(),
            "torch.cuda.default_generators": (Generator(),),
            "torch.cuda.graph_pool_handle": lambda: (0, 1),
            "torch.cuda.get_sync_debug_mode": lambda: state.debug,
            "torch.cuda.set_sync_debug_mode": lambda mode: setattr(state, "debug", mode),
        }.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.object(WAITS, "note", waited))
        yield waits, state


def held(value: Any) -> Any:
    """Return tensors on the card as copies of their numbers, in any structure."""
    return tree_map(lambda one: one.detach().held.clone() if isinstance(one, Card) else one, value)
