"""What an attacker of bounded size can make of the return of a policy that reads its observations with Gaussian noise.

A policy reads o_t + d_t + e_t, e_t normal with standard deviation sigma in every entry, new at every step; the attacker
chooses d_t from all that happened before, the noise of earlier steps included, e_t excluded, with |d|^2 summed over all
steps and entries at most B^2 in every episode. Then for every threshold x

    P(return >= x, attacked)  >=  Phi(Phi^-1(P(return >= x)) - B / sigma),

whatever the environment, the policy and its memory: the Neyman-Pearson lemma for adaptive attackers. The probabilities
without an attack are not known, only episodes are: with confidence c, at once for all of `RANKS` order statistics of n
independent returns, P(return >= x_(k)) is at least 1 - beta, the (1 - (1 - c) / number of ranks) quantile of the
Beta(k, n - k + 1) distribution; this needs no assumption about the returns' distribution, jumps included.

Source: A. Kumar, A. Levine and S. Feizi, "Policy smoothing for provably robust reinforcement learning", ICLR 2022
(arXiv 2106.11420), Theorem 1 and section 5; order statistics: H. A. David and H. N. Nagaraja, Order Statistics, 2.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta

Array = NDArray[np.float64]
# How many order statistics are judged at most.
RANKS = 128


class Band:
    """Lower bounds of P(return >= x) at thresholds x, all of which hold together with a given confidence.

    Args:
        returns: (n,) of independent episodes; -inf counts as below every threshold.
        confidence: in (0, 1).

    Attributes:
        thresholds: rising, finite.
        probabilities: P(return >= threshold) is at least this, falling.
    """

    def __init__(self, returns: Array, confidence: float) -> None:
        ordered, count = np.sort(returns), len(returns)
        # Evenly spaced where the bulk is, and ever closer to the smallest return.
        even = np.linspace(1, count, RANKS // 2)
        early = np.geomspace(1, count, RANKS // 2)
        ranks = np.unique(np.round(np.concatenate((even, early))).astype(int))
        unlikely = beta.ppf(1.0 - (1.0 - confidence) / len(ranks), ranks, count - ranks + 1)
        found = ordered[ranks - 1]
        kept = np.isfinite(found)
        self.thresholds: Array = found[kept]
        self.probabilities: Array = 1.0 - unlikely[kept]

    def attacked(self, ratio: float) -> Array:
        """Return lower bounds of P(return >= threshold) under every attack of size `ratio` * sigma."""
        if ratio == 0.0:
            return self.probabilities
        return ndtr(ndtri(self.probabilities) - ratio)

    def mean(self, ratio: float, floor: float) -> float:
        """Return a lower bound of the mean return; `floor` is below every return that can be."""
        steps = np.diff(np.maximum(self.thresholds, floor), prepend=floor)
        return float(floor + (steps * self.attacked(ratio)).sum())

    def quantile(self, ratio: float, level: float) -> float | None:
        """Return the largest threshold that is reached with probability `level` at least, None if none is known."""
        reached = self.thresholds[self.attacked(ratio) >= level]
        return float(reached.max()) if len(reached) else None
