"""What an attacker of bounded size can make of the return of a policy that reads its observations with Gaussian noise.

A policy reads o_t + d_t + e_t, e_t normal with standard deviation sigma in every entry, new at every step; the attacker
chooses d_t from all that happened before, the noise of earlier steps included, e_t excluded, with |d|^2 summed over all
steps and entries at most B^2 in every episode. Then for every threshold x

    P(return >= x, attacked)  >=  Phi(Phi^-1(P(return >= x)) - B / sigma),

whatever the environment, the policy and its memory: the Neyman-Pearson lemma for adaptive attackers. It holds for each
start and noise of the environment by itself, and p -> Phi(Phi^-1(p) - r) is convex, so it also holds of attackers that
know these beforehand. Where the return is monotone in a sum of what is read, a constant attack attains it.

The probabilities without an attack are not known, only episodes are. Of n independent returns the k-th smallest x_(k)
has P(return < x_(k)) below the 1 - a quantile of the Beta(k, n - k + 1) distribution with probability 1 - a, whatever
the returns' distribution, jumps included (Clopper and Pearson's bound at an order statistic). The a of all ranks that
are judged add up to 1 - confidence: half of it is shared evenly by ranks in equal steps, half goes to small ranks, the
smaller the more, as the bad returns are what an attack makes likelier.

Source: A. Kumar, A. Levine and S. Feizi, "Policy smoothing for provably robust reinforcement learning", ICLR 2022
(arXiv 2106.11420); order statistics: H. A. David and H. N. Nagaraja, Order Statistics (2003), 2.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta

Array = NDArray[np.float64]
# How many ranks are judged at most: in equal steps, and in equal ratios from the smallest.
EVEN, EARLY = 256, 32


class Band:
    """Lower bounds of P(return >= x) at thresholds x, all of which hold together with a given confidence.

    Args:
        returns: (n,) of independent episodes; -inf counts as below every threshold.
        confidence: in (0, 1).

    Attributes:
        thresholds: (m,) rising, finite.
        probabilities: (m,) P(return >= threshold) is at least this, falling.
    """

    def __init__(self, returns: Array, confidence: float) -> None:
        ordered, count = np.sort(returns), len(returns)
        ranks, shares = _shared(count)
        unlikely = beta.isf((1.0 - confidence) * shares, ranks, count - ranks + 1)
        found = ordered[ranks - 1]
        kept = np.isfinite(found)
        self.thresholds: Array = found[kept]
        # What is reached at a larger threshold is reached at this one.
        self.probabilities: Array = np.maximum.accumulate(1.0 - unlikely[kept][::-1])[::-1]

    def attacked(self, ratio: float) -> Array:
        """Return lower bounds (m,) of P(return >= threshold) under every attack of size `ratio` * sigma."""
        return self.probabilities if ratio == 0.0 else ndtr(ndtri(self.probabilities) - ratio)

    def mean(self, ratio: float, floor: float) -> float:
        """Return a lower bound of the mean return; `floor` is below every return that can be."""
        steps = np.diff(np.maximum(self.thresholds, floor), prepend=floor)
        return float(floor + (steps * self.attacked(ratio)).sum())

    def quantile(self, ratio: float, level: float) -> float | None:
        """Return the largest threshold that is reached with probability `level` at least, None if none is known."""
        reached = self.thresholds[self.attacked(ratio) >= level]
        return float(reached.max()) if len(reached) else None


def _shared(count: int) -> tuple[NDArray[np.int64], Array]:
    """Return the ranks (m,) that are judged and the share (m,) of the risk that each takes; the shares add up to 1."""
    even, early = (
        np.unique(np.round(ranks).astype(np.int64))
        for ranks in (np.linspace(1, count, EVEN), np.geomspace(1, count, EARLY))
    )
    shares = np.zeros(count + 1)
    shares[even] += 0.5 / len(even)
    falling = 1.0 / np.arange(1, len(early) + 1)
    shares[early] += 0.5 * falling / falling.sum()
    ranks = np.flatnonzero(shares)
    return ranks, shares[ranks]
