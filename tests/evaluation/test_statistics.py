"""Statistics against values computed by hand, and the bootstrap's coverage on synthetic data."""

import numpy as np
import pytest
import scipy.stats

from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.evaluation import statistics as st


def test_the_interquartile_mean_leaves_out_a_quarter_on_each_side():
    scores = [[-1000.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 9000.0]]
    found = st.iqm(scores)
    assert found.value == (2 + 3 + 4 + 5) / 4 and found.over == "training seeds, least to largest"
    # Rows whole: the only values a resample can have are those of row 1 twice, of row 2 twice, and of both.
    ones, twos = st.iqm(scores[:1]).value, st.iqm(scores[1:]).value
    assert (ones, twos) == (1.5, 5.5) and (found.low, found.high) == (1.5, 5.5)


def test_with_one_training_seed_the_episodes_are_resampled_and_it_is_said():
    found = st.iqm(np.arange(40.0))
    assert found.over == "episodes" and found.value == 19.5 and found.low < 19.5 < found.high
    single = st.mean_interval([[3.0]])
    assert (single.value, single.low, single.high) == (3.0, 3.0, 3.0)


def test_of_few_training_seeds_the_least_and_the_largest_are_given():
    scores = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [2.0, 2.0, 2.0, 2.0]])
    found = st.mean_interval(scores)
    assert (found.value, found.low, found.high) == (44.0 / 12.0, 2.0, 6.5)
    assert found.over == st.RANGE
    # From five on it is an interval of the mean, which is narrower than the range.
    five = st.mean_interval(np.arange(5.0)[:, None].repeat(4, axis=1))
    assert five.over == st.SEEDS and 0.0 < five.low < 2.0 < five.high < 4.0
    shares = st.performance_profile(scores, [2.5])
    assert (shares.low[0], shares.high[0]) == (0.0, 1.0) and shares.over == st.RANGE


def test_strata_are_resampled_on_their_own():
    # Each stratum is constant over its rows, so that nothing varies although the strata differ.
    strata = [np.zeros((5, 4)), np.ones((1, 4)), np.full((7, 4), 9.0)]
    found = st.mean_interval(strata)
    assert found.value == found.low == found.high == (0 * 20 + 4 + 9 * 28) / 52
    together = st.mean_interval(np.concatenate(strata))
    assert together.high - together.low > 1.0


@pytest.mark.parametrize("draw", ["normal", "lognormal"])
def test_the_bootstrap_covers_the_truth(draw):
    # 20 training seeds whose means differ, 10 episodes each; the truth from a large sample.
    rng = np.random.default_rng(0)

    def sample(seeds):
        values = rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=(seeds, 10))
        return values if draw == "normal" else np.exp(0.5 * values)

    large = sample(200_000)
    truth = {st.mean_interval: large.mean(), st.iqm: np.sort(large, axis=None)[500_000:1_500_000].mean()}
    for statistic, true in truth.items():
        found = [statistic(sample(20), resamples=400) for _ in range(150)]
        covered = np.mean([interval.low <= true <= interval.high for interval in found])
        # The percentile interval of 20 units falls a little short of 95%; 3 standard errors of 150 trials are 5%.
        assert 0.86 <= covered <= 0.99
        # Resampling episodes as if they were independent would give an interval less than half as wide.
        assert np.mean([i.high - i.low for i in found]) > 0.5 * 3.92 / np.sqrt(20)


def test_probability_of_improvement_counts_pairs_and_ties():
    a, b = [[1.0, 3.0], [4.0, 4.0], [0.0, 0.0]], [[2.0, 2.0], [-1.0, -1.0]]
    # Means of a: 2, 4, 0; of b: 2, -1. Wins: (2 > -1), (4 > 2), (4 > -1), (0 > -1); one tie.
    found = st.probability_of_improvement(a, b)
    assert found.value == 4.5 / 6 and 0 <= found.low < found.value < found.high == 1.0
    assert st.probability_of_improvement(b, a).value == 1 - 4.5 / 6
    single = st.probability_of_improvement([[1.0, 2.0, 3.0]], [[0.0, 1.5]])
    assert single.value == 5 / 6 and single.over == "episodes"
    certain = st.probability_of_improvement([[5.0]] * 4, [[1.0]] * 3)
    assert (certain.value, certain.low, certain.high) == (1.0, 1.0, 1.0)


def test_performance_profile_is_the_share_above_each_threshold():
    found = st.performance_profile([[0.0, 1.0], [2.0, 3.0]], [-1.0, 0.0, 1.5, 3.0])
    assert found.value.tolist() == [1.0, 0.75, 0.5, 0.0]
    assert found.low.tolist() == [1.0, 0.5, 0.0, 0.0] and found.high.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert st.performance_profile([1.0, 2.0], [1.5]).over == "episodes"


def test_cvar_is_the_mean_of_the_worst_with_the_edge_weighed():
    assert st.cvar(np.arange(100.0)) == np.arange(10).mean()
    assert st.cvar([5.0, 1.0, 3.0]) == 1.0
    # A quarter of ten values: 1, 2 whole and half of 3.
    assert st.cvar(np.arange(1.0, 11.0), 0.25) == pytest.approx((1 + 2 + 1.5) / 2.5)
    assert st.cvar([[1.0, 2.0], [3.0, 6.0]], 1.0) == 3.0


def test_area_is_the_mean_over_the_sizes_in_any_order():
    assert st.area_under_curve([0.0, 2.0, 1.0], [0.0, -4.0, -2.0]) == -2.0
    assert st.area_under_curve([0.0, 0.1, 0.4], [1.0, 1.0, 5.0]) == pytest.approx((0.1 + 0.9) / 0.4)
    assert st.area_under_curve([0.0, 1.0], [[1.0, 2.0], [3.0, 2.0]]).tolist() == [2.0, 2.0]


def test_gap_and_tightness():
    assert st.optimality_gap([[1.0, 3.0], [5.0, 9.0]], 4.0).value == (3 + 1) / 4
    assert st.tightness_ratio(3.0, 4.0) == 0.75
    with pytest.raises(InvalidValueError):
        st.tightness_ratio(1.0, 0.0)


def test_the_same_seed_gives_the_same_interval():
    scores = np.random.default_rng(1).normal(size=(6, 9))
    assert st.iqm(scores) == st.iqm(scores) != st.iqm(scores, seed=1)


def test_summary_contains_the_mean():
    found = st.summary(np.arange(20.0))
    assert found["low"] < found["mean"] == 9.5 < found["high"]
    assert st.summary([3.0]) == {"mean": 3.0, "low": 3.0, "high": 3.0}


def test_wrong_scores_are_named():
    with pytest.raises(InvalidValueError, match="1 of 2"):
        st.iqm([1.0, float("nan")])
    for wrong in ([], np.zeros((2, 2, 2)), ["a"], [[1.0], [1.0, 2.0]]):
        with pytest.raises(ShapeError):
            st.iqm(wrong)
    for sizes, values in (([0.0], [1.0]), ([0.0, 1.0], [1.0])):
        with pytest.raises(ShapeError):
            st.area_under_curve(sizes, values)
    with pytest.raises(InvalidValueError, match="twice"):
        st.area_under_curve([0.0, 0.0], [1.0, 2.0])
    with pytest.raises(InvalidValueError, match="fraction"):
        st.cvar([1.0], 0.0)


@pytest.mark.parametrize(
    "shapes", [[(7, 9)], [(30, 8)], [(1, 30)], [(6, 4), (1, 11), (9, 3)], [(1, 5), (1, 7)]], ids=str
)
@pytest.mark.parametrize("ties", [False, True])
def test_counting_how_often_each_unit_was_drawn_gives_the_trimmed_mean_of_what_was_drawn(shapes, ties):
    generator = np.random.default_rng(3)
    units = [generator.normal(-700.0, 90.0, size=shape) for shape in shapes]
    units = [unit.round(-2) for unit in units] if ties else units
    counted = st._trimmed(units)
    # Where the quarters of the first batches end is where those of later ones are looked for: the last batch's do not.
    for reach in (0.2, 1.0, 1.0, 0.1):
        drawn = [generator.integers(0, max(1, round(reach * len(unit))), (20, len(unit))) for unit in units]
        pooled = np.concatenate([unit[rows].reshape(20, -1) for unit, rows in zip(units, drawn, strict=True)], axis=1)
        found = counted([st._counts(rows) for rows in drawn])
        np.testing.assert_allclose(found, scipy.stats.trim_mean(pooled, 0.25, axis=1), rtol=1e-12)
