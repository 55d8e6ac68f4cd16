"""Minibatches of sb3-contrib's rollout buffers, none of them of one sample: its advantage has no deviation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer


def _merging(plain: Any) -> Any:
    """Return a class of buffers like `plain` that adds a remainder of one sample to the minibatch before it.

    It has one base alone, so that a buffer that is there can become one of these.
    """

    class Merging(plain):
        _choosing = False

        def get(self, batch_size: int | None = None) -> Iterator[Any]:
            samples, inherited = self.buffer_size * self.n_envs, super()
            if batch_size is None or batch_size < 2 or samples <= batch_size or samples % batch_size != 1:
                yield from inherited.get(batch_size)
                return
            self._choosing = True
            try:
                chosen = list(inherited.get(batch_size))
            finally:
                self._choosing = False
            (before, changes), (last, _) = chosen[-2:]
            for rows in (*(rows for rows, _ in chosen[:-2]), np.concatenate((before, last))):
                yield inherited._get_samples(rows, changes)

        def _get_samples(self, batch_inds: np.ndarray, env_change: np.ndarray, env: Any = None) -> Any:
            return (batch_inds, env_change) if self._choosing else super()._get_samples(batch_inds, env_change, env)

    return Merging


_MERGING = {plain: _merging(plain) for plain in (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer)}


def merge_remainders(model: RecurrentPPO) -> None:
    """Let a model's rollout buffer, which sb3-contrib's class makes itself, merge a remainder of one sample."""
    buffer: Any = model.rollout_buffer
    buffer.__class__ = _MERGING.get(type(buffer), type(buffer))
