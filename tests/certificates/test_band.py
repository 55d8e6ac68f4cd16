"""The band of probabilities holds as often as it says, and no attacker who may not see the noise gets below it."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from robust_policies.certificates import smoothing
from robust_policies.certificates.smoothing import Band

# Whole numbers: many returns are equal.
LOCATION, SCALE = 20.0, 4.0


def rounded(count, seed):
    return np.round(np.random.default_rng(seed).normal(LOCATION, SCALE, count))


def reached(thresholds):
    """Return the exact P(return >= threshold)."""
    return ndtr((LOCATION - (thresholds - 0.5)) / SCALE)


def broken(count, confidence, seeds):
    """Return in what share of the bands some bound is above the truth."""
    bands = [Band(rounded(count, seed), confidence) for seed in range(seeds)]
    return np.mean([(band.probabilities > reached(band.thresholds)).any() for band in bands])


@pytest.mark.parametrize(("count", "confidence"), [(100, 0.8), (1000, 0.9)])
def test_all_bounds_hold_together_as_often_as_the_confidence_says(count, confidence):
    seeds, risk = 200, 1.0 - confidence
    assert broken(count, confidence, seeds) <= risk + 3 * np.sqrt(risk * confidence / seeds)


def test_bounds_that_hold_one_by_one_alone_would_be_found_out(monkeypatch):
    # Each takes the whole risk, as if it were the only one.
    shared = smoothing._shared
    monkeypatch.setattr(smoothing, "_shared", lambda count: (ranks := shared(count)[0], np.ones(len(ranks))))
    assert broken(100, 0.8, 200) > 0.4


@pytest.mark.parametrize("count", [100, 257, 10_000])
def test_the_risk_is_shared_and_nothing_more(count):
    ranks, shares = smoothing._shared(count)
    assert np.isclose(shares.sum(), 1.0)
    assert (shares > 0).all()
    assert (ranks[0], ranks[-1]) == (1, count)


def test_the_mean_is_below_the_truth_and_near_it_from_many_episodes():
    for ratio in (0.0, 0.5, 1.0):
        # In a normal distribution the attack shifts all by ratio * SCALE, up to the rounding of returns.
        truth = LOCATION - ratio * SCALE
        found = Band(np.random.default_rng(0).normal(LOCATION, SCALE, 10_000), 0.99).mean(ratio, 0.0)
        assert 0.95 * truth < found < truth


def test_thresholds_below_the_floor_and_failed_episodes_count_as_the_floor():
    returns = np.concatenate((np.full(50, -np.inf), np.full(50, 10.0)))
    band = Band(returns, 0.9)
    assert np.isfinite(band.thresholds).all()
    assert 2.0 < band.mean(0.0, 0.0) < 5.0
    assert Band(np.full(100, -5.0), 0.9).mean(0.0, 0.0) == 0.0
    assert Band(returns, 0.9).quantile(0.0, 0.9) is None
    assert Band(np.full(100, 10.0), 0.9).quantile(0.0, 0.9) == 10.0


def shared_out(rng, spend, steps, count):
    """Return the sums of what is read, noise and attack, in `count` episodes: spend(t, left, sum) -> d."""
    total, left = np.zeros(count), np.ones(count)
    for t in range(steps):
        added = spend(t, np.sqrt(np.maximum(left, 0.0)), total)
        left = left - added**2
        assert (left > -1e-12).all()
        total += added + rng.normal(size=count)
    return total


ATTACKERS = {
    "evenly": lambda t, left, total: np.full(len(total), np.sqrt(1 / 4)),
    "at the end": lambda t, left, total: left * (t == 3),
    "once it may matter": lambda t, left, total: left * ((total > 0.5) | (t == 3)),
    "half of what is left": lambda t, left, total: left * np.where(total > 0, 0.7, 0.2 + 0.8 * (t == 3)),
}


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_no_attacker_makes_a_sum_pass_a_threshold_more_often(attacker):
    count = 100_000
    found = shared_out(np.random.default_rng(0), ATTACKERS[attacker], 4, count)
    # Without an attack the sum is normal with deviation 2.
    for threshold in (0.0, 1.0, 3.0):
        bound = ndtr(ndtri(ndtr(threshold / 2.0)) - 1.0)
        share = np.mean(found <= threshold)
        assert share >= bound - 4 * np.sqrt(bound / count)
        if attacker == "evenly":
            assert abs(share - bound) < 5 * np.sqrt(bound / count)


def test_an_attacker_who_sees_the_noise_of_this_step_is_not_covered():
    noise = np.random.default_rng(0).normal(size=100_000)
    bound = ndtr(ndtri(ndtr(2.0) - ndtr(-2.0)) - 1.0)
    assert np.mean(np.abs(noise + 1.0) <= 2.0) > bound
    assert np.mean(np.abs(noise + np.sign(noise)) <= 2.0) < bound - 0.05
