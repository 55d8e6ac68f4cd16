"""Means of returns and how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from robust_policies.errors import InvalidValueError

RESAMPLES = 2000


def summary(values: Any, seed: int = 0) -> dict[str, float]:
    """Return {"mean", "low", "high"}: the mean and its 95% bootstrap interval (percentile, 2000 resamples)."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size == 0 or not np.isfinite(array).all():
        raise InvalidValueError(f"The values to summarise are {array.size} numbers, not all finite; expected some.")
    mean = float(array.mean())
    if array.size == 1 or np.ptp(array) == 0:
        return {"mean": mean, "low": mean, "high": mean}
    result = stats.bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    )
    return {"mean": mean, "low": float(result.confidence_interval.low), "high": float(result.confidence_interval.high)}
