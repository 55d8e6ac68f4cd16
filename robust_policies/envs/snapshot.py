"""Where environments stand in the middle of their episodes: taken as plain tensors and numbers, and set again."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.envs.clock import Clock
from robust_policies.envs.parameters import PhysicalParameters
from robust_policies.envs.perturb.core import Perturbation
from robust_policies.envs.perturb.physics import Ledger
from robust_policies.envs.perturb.randomness import Randomness
from robust_policies.envs.perturb.vector_wrapper import Wrapper
from robust_policies.envs.streams import Streams
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.envs.wrappers import Changing, RunningMoments, TensorWrapper
from robust_policies.errors import InvalidValueError
from robust_policies.graphs import Place

_HOLDERS = (
    SB3VecEnv,
    TorchVectorEnv,
    TensorWrapper,
    Changing,
    Wrapper,
    Perturbation,
    Randomness,
    Streams,
    Clock,
    PhysicalParameters,
    Ledger,
    RunningMoments,
)
"""What is looked into for numbers that change; plants, spaces and specifications are constants."""
_NUMBERS = (bool, int, float, type(None))
_MOVED = {
    "_elapsed": "clock/elapsed",
    "_steps_surely_running": "clock/_surely_running",
    "_limits_after": "clock/_limits_after",
    "_seeds": "_streams/seeds",
}
"""What a `TorchVectorEnv` itself held once, and where that is now."""


class Snapshot(NamedTuple):
    """All numbers that objects hold, by the path of attribute names that leads to each."""

    tensors: dict[str, Tensor]
    """Copies on the device where they are."""
    values: dict[str, Any]
    """Numbers, None and lists of them: JSON data."""
    same: dict[str, str]
    """Paths at which the very tensor of another path stands."""


def capture(**roots: Any) -> Snapshot:
    """Return a copy of all numbers in `roots`, objects by name: an `SB3VecEnv`, a `TorchVectorEnv`, wrappers of one.

    Tensors stay on their device and nothing waits for it. Objects inside that are no environment's (plants, spaces) are
    left out, so a snapshot is for environments made in the same way.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    same: dict[str, str] = {}
    seen: dict[int, str] = {}
    for path, place in numeric_places(roots):
        value = place.get()
        if isinstance(value, Tensor | np.ndarray):
            if id(value) in seen:
                same[path] = seen[id(value)]
                continue
            seen[id(value)] = path
            tensors[path] = value.detach().clone() if isinstance(value, Tensor) else torch.from_numpy(value.copy())
        else:
            values[path] = list(value) if isinstance(value, list) else value
    return Snapshot(tensors, values, same)


def restore(snapshot: Snapshot, **roots: Any) -> None:
    """Put the numbers of a snapshot into `roots`, objects made as those that it was taken of.

    Raises:
        InvalidValueError: it was taken of other objects, or of another number of environments.
    """
    places = dict(numeric_places(roots))
    parts: Any = ({place_now(path, places): value for path, value in part.items()} for part in snapshot)
    snapshot = Snapshot(*parts)
    _check(snapshot, places)
    count: dict[int, int] = {}
    for place in places.values():
        count[id(place.get())] = count.get(id(place.get()), 0) + 1
    for path, value in snapshot.values.items():
        _place(path, roots, places).set(list(value) if isinstance(value, list) else value)
    for path, value in snapshot.tensors.items():
        place = _place(path, roots, places)
        now = place.get() if path in places else None
        if isinstance(now, np.ndarray):
            place.set(value.cpu().numpy().astype(now.dtype))
        elif isinstance(now, Tensor) and count[id(now)] == 1 and _holds(now, value) and path not in snapshot.same:
            with torch.no_grad():
                now.copy_(value)
        else:
            place.set(value.to(_device(roots)))
    for path, other in snapshot.same.items():
        _place(path, roots, places).set(_place(other, roots, places).get())
    for holder in _holders(roots):
        if isinstance(holder, Streams | PhysicalParameters):
            holder.forget()


def numeric_places(roots: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
    """Yield the path and the place of everything numeric in `roots`, objects by name; each object's once."""
    seen: set[int] = set()

    def walk(prefix: str, owner: Any, entries: Mapping[str, Any]) -> Iterator[tuple[str, Place]]:
        for name, value in list(entries.items()):
            path = f"{prefix}/{name}"
            if isinstance(value, (Tensor, np.ndarray, *_NUMBERS)) or (
                isinstance(value, list) and all(isinstance(item, _NUMBERS) for item in value)
            ):
                yield path, Place(owner, name)
            elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
                yield from walk(path, value, value)
            elif isinstance(value, _HOLDERS) and id(value) not in seen:
                seen.add(id(value))
                yield from walk(path, value, vars(value))

    for name, root in roots.items():
        seen.add(id(root))
        yield from walk(name, root, root if isinstance(root, dict) else vars(root))


def place_now(path: str, places: Container[str]) -> str:
    """Return where that stands now which an earlier version kept at a path, of those where something stands."""
    parent, _, name = path.rpartition("/")
    return f"{parent}/{_MOVED[name]}" if name in _MOVED and f"{parent}/clock/elapsed" in places else path


def _holders(roots: Mapping[str, Any]) -> list[Any]:
    found = {id(root): root for root in roots.values()}
    found |= {id(place.owner): place.owner for _, place in numeric_places(roots)}
    return list(found.values())


def _place(path: str, roots: Mapping[str, Any], places: Mapping[str, Place]) -> Place:
    """Return the place of a path, making the attributes and mappings that are not there yet."""
    if path in places:
        return places[path]
    root, *names = path.split("/")
    owner = roots[root]
    for name in names[:-1]:
        inner = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
        if inner is None:
            inner = {}
            Place(owner, name).set(inner)
        owner = inner
    return Place(owner, names[-1])


def _check(snapshot: Snapshot, places: Mapping[str, Place]) -> None:
    """Raise unless the numbers of environments, and what there is to step, are those of the snapshot."""
    taken = {path: value for path, value in snapshot.values.items() if path.endswith("/num_envs")}
    now = {path: place.get() for path, place in places.items() if path.endswith("/num_envs")}
    if taken != now:
        raise InvalidValueError(
            f"The snapshot is of {_described(taken)}; expected one of {_described(now)}, which it is to be put into."
        )
    for path, value in snapshot.tensors.items():
        if path.endswith("/_state") and path in places and places[path].get().shape != value.shape:
            raise InvalidValueError(
                f"The snapshot's states have shape {tuple(value.shape)}; expected {tuple(places[path].get().shape)}."
            )


def _described(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.rpartition('/')[0]} with {count} environments" for path, count in counts.items()) or "none"


def _holds(now: Tensor, value: Tensor) -> bool:
    """Return whether `now` can be overwritten by `value`: the same kind, and no number of it stands for several."""
    expanded = any(stride == 0 and size > 1 for stride, size in zip(now.stride(), now.shape, strict=True))
    return now.shape == value.shape and now.dtype == value.dtype and not expanded


def _device(roots: Mapping[str, Any]) -> torch.device:
    for holder in _holders(roots):
        device = getattr(holder, "device", None)
        if isinstance(device, torch.device):
            return device
    return torch.device("cpu")
