"""What an attack did to the return of the same episodes, and whether that is anything at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robust_policies.evaluation.statistics import mean_interval
from robust_policies.files import numbers

_RESAMPLES = 1000


@dataclass(frozen=True)
class Effect:
    """Mean returns without and with an attack, and the ends of the 95% interval of the mean loss."""

    before: float
    after: float
    low: float
    high: float

    @property
    def nothing(self) -> bool:
        """Whether the loss cannot be told from none, or is not seen in the numbers as they are printed."""
        return not self.low > 0.0 or numbers.shown(self.before) == numbers.shown(self.after)


def effect(unperturbed: NDArray[np.float64], attacked: NDArray[np.float64]) -> Effect:
    """Return what an attack did, from the returns of the same episodes without and with it.

    Args:
        unperturbed: (training seeds, episodes) or (episodes,).
        attacked: the same; of two lengths the shorter counts.
    """
    before, after = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (unperturbed, attacked))
    seeds, episodes = min(len(before), len(after)), min(before.shape[1], after.shape[1])
    before, after = before[:seeds, :episodes], after[:seeds, :episodes]
    loss = before - after
    found = mean_interval(loss, resamples=_RESAMPLES)
    return Effect(float(before.mean()), float(after.mean()), float(found.low), float(found.high))
