"""How much of a saturating actuator is left: the budget holds where it is stated, and says where it does not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import design
from robust_policies.control.saturation import saturation_budget
from robust_policies.errors import InvalidValueError, ShapeError


def slow_plant(estimator="current", seed=0):
    """Return a stable plant with two inputs and two outputs, and a gentle design."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(3, 3))
    A *= 0.8 / np.abs(np.linalg.eigvals(A)).max()
    model = LinearModel(A, rng.normal(size=(3, 2)), rng.normal(size=(2, 3)))
    return model, design(model, np.eye(3), 30.0 * np.eye(2), 0.1 * np.eye(3), np.eye(2), estimator)


@pytest.mark.parametrize("estimator", ["current", "predictor"])
@pytest.mark.parametrize("seed", range(3))
def test_no_input_saturates_within_the_budget(seed, estimator):
    model, gains = slow_plant(estimator, seed)
    limit, reserve = np.array([2.0, 1.0]), np.array([0.2, 0.1])
    budget = saturation_budget(model, gains, limit, reserve)
    assert not budget.exhausted and math.isfinite(budget.level)
    budget.check(0.99 * budget.innovation)
    assert "no input saturates while |innovation| <=" in budget.report()
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(5000, 3))
    level = np.einsum("ij,jk,ik->i", start, budget.P, start)
    xh = start * np.sqrt(budget.level / level)[:, None]
    M = gains.M if estimator == "current" else 0 * gains.M
    largest = np.zeros(2)
    for _ in range(80):
        ut = reserve * rng.choice([-1.0, 1.0], size=(5000, 2))
        innovation = rng.normal(size=(5000, 2))
        innovation *= budget.innovation / np.linalg.norm(innovation, axis=1, keepdims=True)
        u = -(xh + innovation @ M.T) @ gains.K.T + ut
        largest = np.maximum(largest, np.abs(u).max(axis=0))
        xh = xh @ model.A.T + u @ model.B.T + innovation @ gains.L.T
        assert (np.einsum("ij,jk,ik->i", xh, budget.P, xh) <= budget.level * (1 + 1e-9)).all()
    assert (largest <= limit * (1 + 1e-9)).all()
    assert (largest > 0.3 * limit).any()


def test_a_larger_reserve_leaves_less_until_the_budget_is_exhausted():
    model, gains = slow_plant()
    left = [saturation_budget(model, gains, np.ones(2), reserve).innovation for reserve in (0.0, 0.1, 0.2, 1.0)]
    assert left == sorted(left, reverse=True)
    exhausted = saturation_budget(model, gains, np.ones(2), 1.0)
    assert exhausted.exhausted and exhausted.innovation < 0
    assert f"{exhausted.innovation:.4g}: exhausted" in exhausted.report()
    with pytest.raises(InvalidValueError, match=r"Innovations up to 0.1 are expected.*exhausted.*reserve less"):
        exhausted.check(0.1)
    with pytest.raises(InvalidValueError, match="Innovations up to 1000"):
        saturation_budget(model, gains, np.ones(2), 0.0).check(1000.0)


def test_a_base_controller_of_zero_needs_nothing():
    model, gains = slow_plant()
    budget = saturation_budget(model, replace(gains, K=0 * gains.K), np.ones(2), 1.0)
    assert math.isinf(budget.innovation)
    assert "K = 0, and the guarantee holds with saturation" in budget.report()


def test_bad_limits_are_refused():
    model, gains = slow_plant()
    with pytest.raises(InvalidValueError, match=r"reserve \[-0.1, -0.1\]; expected 0 <= reserve <= limit"):
        saturation_budget(model, gains, np.ones(2), -0.1)
    with pytest.raises(InvalidValueError, match="expected 0 <= reserve <= limit"):
        saturation_budget(model, gains, np.ones(2), 1.5)
    with pytest.raises(InvalidValueError, match="limit > 0"):
        saturation_budget(model, gains, np.array([1.0, math.nan]), 0.0)
    with pytest.raises(ShapeError, match="limit has shape"):
        saturation_budget(model, gains, np.ones(3), 0.0)
    unstable = LinearModel(2 * np.eye(3), model.B, model.C)
    with pytest.raises(InvalidValueError, match="A - B K has spectral radius"):
        saturation_budget(unstable, gains, np.ones(2), 0.0)
