"""Minibatches of sb3-contrib's rollout buffers, none of them of one sample: its advantage has no deviation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer


class _Merging:
    """Adds a remainder of one sample to the minibatch before it; all others are those of the buffer."""

    # Without a layout of its own, so that a buffer that is there can become one of these.
    __slots__ = ()
    _choosing = False

    def get(self, batch_size: int | None = None) -> Iterator[Any]:
        """Yield minibatches of `batch_size` samples, None: one of all."""
        buffer: Any = super()
        samples = self.buffer_size * self.n_envs  # pyright: ignore[reportAttributeAccessIssue]
        if batch_size is None or batch_size < 2 or samples <= batch_size or samples % batch_size != 1:
            yield from buffer.get(batch_size)
            return
        self._choosing = True
        try:
            chosen = list(buffer.get(batch_size))
        finally:
            self._choosing = False
        (before, changes), (last, _) = chosen[-2:]
        for rows in (*(rows for rows, _ in chosen[:-2]), np.concatenate((before, last))):
            yield buffer._get_samples(rows, changes)

    def _get_samples(self, batch_inds: np.ndarray, env_change: np.ndarray, env: Any = None) -> Any:
        if self._choosing:
            return batch_inds, env_change
        return super()._get_samples(batch_inds, env_change, env)  # pyright: ignore[reportAttributeAccessIssue]


class MergingBuffer(_Merging, RecurrentRolloutBuffer):
    """sb3-contrib's buffer, whose minibatches all have a deviation."""


class MergingDictBuffer(_Merging, RecurrentDictRolloutBuffer):
    """sb3-contrib's buffer of dictionaries, whose minibatches all have a deviation."""


def merge_remainders(model: RecurrentPPO) -> None:
    """Let a model's rollout buffer, which sb3-contrib's class makes itself, merge a remainder of one sample."""
    buffer: Any = model.rollout_buffer
    for plain, merging in ((RecurrentDictRolloutBuffer, MergingDictBuffer), (RecurrentRolloutBuffer, MergingBuffer)):
        if type(buffer) is plain:
            buffer.__class__ = merging
