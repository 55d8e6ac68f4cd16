"""The moment of a training over several ranks as one of all environments: put together, and taken apart again.

So a checkpoint does not depend on how many ranks wrote it, and any number of them goes on from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.envs.snapshot import Snapshot, capture, place_now
from robust_policies.errors import InvalidValueError
from robust_policies.files.tensors import packed, unpacked
from robust_policies.train.ppo.continuation import Moment
from robust_policies.train.run.ranks import Ranks

# Of environments made only to see which of their numbers there are one for each.
_FEW, _MORE = 2, 3


class Shares:
    """Knows which numbers of a moment there are one for each environment.

    Args:
        make: returns that many environments, made as those that are trained in.
        ranks: who trains together.
    """

    def __init__(self, make: Callable[[int], VecEnv], ranks: Ranks) -> None:
        self.ranks = ranks
        few, more = _stepped(make, _FEW), _stepped(make, _MORE)
        self._axes = {
            path: _axis(value.shape, more.tensors[path].shape)
            for path, value in few.tensors.items()
            if path in more.tensors
        }
        self._counts = {p for p, v in few.values.items() if type(v) is int and (v, more.values.get(p)) == (_FEW, _MORE)}
        self._lists = {p for p, v in few.values.items() if _long(v, _FEW) and _long(more.values.get(p), _MORE)}
        self._known: tuple[Moment, Moment] | None = None

    def whole(self, moment: Moment) -> Moment:
        """Return on rank 0 the moment of all ranks' environments, given each rank's; elsewhere what was given.

        Raises:
            InvalidValueError: the ranks' environments hold different kinds of numbers.
        """
        if self._known is not None and self._known[0] is moment:
            return self._known[1]
        every = self.ranks.gathered(packed(moment.tensors))
        values = self.ranks.gathered(json.dumps(moment.facts["values"]).encode())
        found = self._joined(moment, [unpacked(one) for one in every], [json.loads(one) for one in values])
        self._known = moment, found
        return found

    def _joined(self, own: Moment, every: list[dict[str, Tensor]], values: list[dict[str, Any]]) -> Moment:
        if not every:
            return own
        if any(one.keys() != every[0].keys() for one in every) or any(one.keys() != values[0].keys() for one in values):
            raise InvalidValueError("The environments of different ranks hold different kinds of numbers; train alone.")
        tensors: dict[str, Tensor] = {}
        for path, first in every[0].items():
            axis = self._axis_of(path, first)
            tensors[path] = first if axis is None else torch.cat([one[path] for one in every], axis)
        merged = dict(values[0])
        for path, value in merged.items():
            if path in self._counts:
                merged[path] = value * self.ranks.size
            elif path in self._lists and isinstance(value, list):
                merged[path] = [item for one in values for item in one[path]]
            elif type(value) is int:
                # Steps for which surely no episode ends.
                merged[path] = min(one[path] for one in values)
        return Moment(tensors, {**own.facts, "values": merged})

    def mine(self, moment: Moment) -> Moment:
        """Return this rank's part of the moment of all environments, which an earlier version may have written."""
        tensors: dict[str, Tensor] = {}
        for path, value in moment.tensors.items():
            axis = self._axis_of(path, value)
            tensors[path] = value if axis is None else self.ranks.mine(value, axis).clone()
        values = {place_now(path, self._axes): value for path, value in moment.facts["values"].items()}
        for path, value in values.items():
            if path in self._counts:
                values[path] = value // self.ranks.size
            elif path in self._lists and isinstance(value, list):
                each = len(value) // self.ranks.size
                values[path] = value[self.ranks.rank * each : (self.ranks.rank + 1) * each]
        return Moment(tensors, {**moment.facts, "values": values})

    def _axis_of(self, path: str, value: Tensor) -> int | None:
        """Return along which axis there is one entry for each environment, None for what all share."""
        if path in self._axes:
            return self._axes[path]
        root, _, name = path.partition("/")
        shared = root.endswith("_scale") and name != "returns"
        return None if shared or not value.ndim else 0


def _stepped(make: Callable[[int], VecEnv], count: int) -> Snapshot:
    """Return the numbers of environments that have taken a step; none where they cannot be read."""
    env = make(count)
    try:
        if not isinstance(env, SB3VecEnv):
            return Snapshot({}, {}, {})
        env.reset()
        env.step(_actions(env))
        return capture(bridge=env)
    finally:
        env.close()


def _actions(env: SB3VecEnv) -> Any:
    return np.stack([env.action_space.sample() for _ in range(env.num_envs)])


def _axis(few: torch.Size, more: torch.Size) -> int | None:
    return next((axis for axis, (a, b) in enumerate(zip(few, more, strict=False)) if a != b), None)


def _long(value: Any, size: int) -> bool:
    return isinstance(value, list) and len(value) == size
