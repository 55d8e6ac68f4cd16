"""Optimal gains and stationary costs: against definitions, published figures and controllers near the optimum."""

import numpy as np
import pytest

from robust_policies.control import lqg
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError

STEP = 0.01
A = np.eye(2) + STEP * np.array([[1.0, 1.0], [0.0, 1.0]])
B = STEP * np.array([[0.0], [1.0]])
C = np.array([[1.0, 0.0]])
BW = STEP * np.ones((2, 1))
Q, R = 1e3 * np.ones((2, 2)), np.eye(1)
W, V = 1e3 * BW @ BW.T, np.eye(1)


def random_plant(seed, n=4, nu=2, ny=3):
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(size=shape) for shape in ((n, n), (n, nu), (ny, n), (n, n), (nu, nu), (n, n), (ny, ny))]
    A, B, C, *roots = matrices
    return A / 2, B, C, *(root @ root.T + 0.1 * np.eye(len(root)) for root in roots)


def test_doyles_counter_example_costs_what_is_published():
    assert lqg.stationary_cost_lqr(A, B, Q, R, W) == pytest.approx(1921.2228366, rel=1e-8)
    assert lqg.stationary_cost_lqg(A, B, C, Q, R, W, V) == pytest.approx(3623, abs=0.5)
    assert lqg.stationary_cost_lqg(A, B, C, Q, R, W, V, "predictor") == pytest.approx(4140, abs=0.5)
    base = lqg.lqr_gain(A, B, 1e3 * np.eye(2), R), lqg.kalman_gain(A, C, 10.0 * BW @ BW.T, V, "predictor")
    assert lqg.stationary_cost(A, B, C, Q, R, W, V, *base, "predictor") == pytest.approx(16890, abs=0.5)


@pytest.mark.parametrize("seed", range(5))
def test_gains_satisfy_their_definitions(seed):
    A, B, C, Q, R, W, V = random_plant(seed)
    K, M, L = lqg.lqr_gain(A, B, Q, R), lqg.kalman_gain(A, C, W, V), lqg.kalman_gain(A, C, W, V, "predictor")
    np.testing.assert_allclose(L, A @ M, rtol=1e-12, atol=1e-12)
    X = P = np.zeros_like(A)
    for _ in range(2000):
        X = A.T @ X @ A - A.T @ X @ B @ np.linalg.solve(R + B.T @ X @ B, B.T @ X @ A) + Q
        P = A @ P @ A.T - A @ P @ C.T @ np.linalg.solve(C @ P @ C.T + V, C @ P @ A.T) + W
    np.testing.assert_allclose(K, np.linalg.solve(R + B.T @ X @ B, B.T @ X @ A), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(M, P @ C.T @ np.linalg.inv(C @ P @ C.T + V), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("estimator", ["current", "predictor"])
@pytest.mark.parametrize("seed", range(5))
def test_the_optimal_controller_costs_the_optimum_and_no_other_gain_less(seed, estimator):
    A, B, C, Q, R, W, V = plant = random_plant(seed)
    best = lqg.stationary_cost_lqg(*plant, estimator)
    K, gain = lqg.lqr_gain(A, B, Q, R), lqg.kalman_gain(A, C, W, V, estimator)
    assert lqg.stationary_cost(*plant, K, gain, estimator) == pytest.approx(best, rel=1e-9)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        other = K + 0.02 * rng.normal(size=K.shape), gain + 0.02 * rng.normal(size=gain.shape)
        assert lqg.stationary_cost(*plant, *other, estimator) >= best * (1.0 - 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_less_information_costs_more(seed):
    A, B, C, Q, R, W, V = random_plant(seed)
    known = lqg.stationary_cost_lqr(A, B, Q, R, W)
    current = lqg.stationary_cost_lqg(A, B, C, Q, R, W, V)
    predictor = lqg.stationary_cost_lqg(A, B, C, Q, R, W, V, "predictor")
    assert known < current < predictor
    almost_exact = lqg.stationary_cost_lqg(A, B, np.eye(len(A)), Q, R, W, 1e-9 * np.eye(len(A)))
    assert almost_exact == pytest.approx(known, rel=1e-6)


@pytest.mark.parametrize("estimator", ["current", "predictor"])
def test_the_cost_with_a_wrong_model_is_that_of_the_recursion_of_covariances(estimator):
    A, B, C, Q, R, W, V = plant = random_plant(7)
    model = 0.9 * A, 1.1 * B, 1.05 * C
    K, gain = lqg.lqr_gain(*model[:2], Q, R), lqg.kalman_gain(model[0], model[2], W, V, estimator)
    n, ny = len(A), len(C)
    noise = np.block([[W, np.zeros((n, ny))], [np.zeros((ny, n)), V]])

    def advance(x, xp, w, v):
        """Return the next (x, xp) and u: one step of the loop written out, to be applied to unit vectors."""
        y = C @ x + v
        if estimator == "current":
            xc = xp + gain @ (y - model[2] @ xp)
            u = -K @ xc
            return np.concatenate((A @ x + B @ u + w, model[0] @ xc + model[1] @ u)), u
        u = -K @ xp
        return np.concatenate((A @ x + B @ u + w, model[0] @ xp + model[1] @ u + gain @ (y - model[2] @ xp))), u

    columns = [advance(*np.split(unit, [n, 2 * n, 3 * n])) for unit in np.eye(3 * n + ny)]
    following, action = (np.stack(parts, axis=1) for parts in zip(*columns, strict=True))
    S = np.zeros((2 * n, 2 * n))
    for _ in range(3000):
        joint = np.block([[S, np.zeros((2 * n, n + ny))], [np.zeros((n + ny, 2 * n)), noise]])
        S = following @ joint @ following.T
    expected = np.trace(Q @ S[:n, :n]) + np.trace(R @ action @ joint @ action.T)
    assert lqg.stationary_cost(*plant, K, gain, estimator, model) == pytest.approx(expected, rel=1e-9)


def test_doyles_optimal_controller_is_unstable_for_slightly_other_plants():
    K, M = lqg.lqr_gain(A, B, Q, R), lqg.kalman_gain(A, C, W, V)
    for factor in (0.95, 1.02):
        with pytest.raises(InvalidValueError, match=r"spectral radius 1\.0"):
            lqg.stationary_cost(A, factor * B, C, Q, R, W, V, K, M, model=(A, B, C))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lqg.lqr_gain(A, 0 * B, Q, R), InvalidValueError, "No input in B reaches the mode 1.01 of A"),
        (lambda: lqg.kalman_gain(A, 0 * C, W, V), InvalidValueError, "No output in C shows the mode 1.01"),
        (lambda: lqg.lqr_gain(np.eye(2), np.eye(2), np.diag([0, 1]), np.eye(2)), InvalidValueError, "unit circle"),
        (lambda: lqg.lqr_gain(A, B, -Q, R), InvalidValueError, "Q is not symmetric positive semidefinite"),
        (lambda: lqg.lqr_gain(A, B, Q, [[1.0, 2.0]]), ShapeError, r"R has shape \(1, 2\); expected \(1, 1\)"),
        (lambda: lqg.lqr_gain(A, B.T, Q, R), ShapeError, r"B has shape \(1, 2\); expected \(2, any\)"),
        (lambda: lqg.lqr_gain(1.0, B, Q, R), ShapeError, "A has shape"),
        (lambda: lqg.lqr_gain(A * np.nan, B, Q, R), NonFiniteError, "A holds NaN"),
        (lambda: lqg.kalman_gain(A, C, W, V, "filter"), InvalidValueError, "estimator is 'filter'"),
        (lambda: lqg.stationary_cost_lqr(A, B, Q, R, [[1.0]]), ShapeError, "W has shape"),
        (lambda: lqg.stationary_cost(A, B, C, Q, R, W, V, [[1.0]], [[1.0]]), ShapeError, "K has shape"),
        (lambda: lqg.stationary_cost(A, B, C, Q, R, W, V, [[0, 0]], [[0], [0]]), InvalidValueError, "radius 1.01"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
