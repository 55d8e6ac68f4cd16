"""The design of a linear model: against its definition, and what Riccati solvers pass over in silence."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from robust_policies.control import lqg
from robust_policies.control.linearize import from_matrices, with_input_delay
from robust_policies.control.riccati import pbh_margin
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError

STEP = 0.01
DOYLE = from_matrices(
    np.eye(2) + STEP * np.array([[1.0, 1.0], [0.0, 1.0]]),
    STEP * np.array([[0.0], [1.0]]),
    np.array([[1.0, 0.0]]),
    Q=1e3 * np.ones((2, 2)),
    R=np.eye(1),
    W=1e3 * STEP**2 * np.ones((2, 2)),
    V=np.eye(1),
)


def random_model(seed, n=4, m=2, p=3):
    rng = np.random.default_rng(seed)
    A, B, C = (rng.normal(size=shape) for shape in ((n, n), (n, m), (p, n)))
    return from_matrices(A, B, C)


@pytest.mark.parametrize(("estimator", "cost"), [("current", 3623), ("predictor", 4140)])
def test_doyles_design_costs_what_is_published(estimator, cost):
    design = lqg.design(DOYLE, estimator=estimator)
    gain = design.M if estimator == "current" else design.L
    weights = design.Q, design.R, design.W, design.V
    found = lqg.stationary_cost(DOYLE.A, DOYLE.B, DOYLE.C, *weights, design.K, gain, estimator)
    assert found == pytest.approx(cost, abs=0.5)


@pytest.mark.parametrize("seed", range(10))
def test_a_design_solves_both_riccati_equations_and_is_stable(seed):
    model = random_model(seed)
    design = lqg.design(model)
    A, B, C = model.A, model.B, model.C
    Q, R, W, V, P, S = design.Q, design.R, design.W, design.V, design.P, design.S
    assert np.abs(A.T @ P @ A - A.T @ P @ B @ design.K + Q - P).max() <= 1e-9 * np.abs(P).max()
    assert np.abs(A @ S @ A.T - design.L @ C @ S @ A.T + W - S).max() <= 1e-9 * np.abs(S).max()
    np.testing.assert_allclose((R + B.T @ P @ B) @ design.K, B.T @ P @ A, rtol=1e-8, atol=1e-8 * np.abs(P).max())
    np.testing.assert_allclose(design.M @ (C @ S @ C.T + V), S @ C.T, rtol=1e-8, atol=1e-8 * np.abs(S).max())
    np.testing.assert_allclose(design.L, A @ design.M, rtol=1e-8, atol=1e-8 * np.abs(design.L).max())
    assert (
        design.rho_control == pytest.approx(np.abs(np.linalg.eigvals(A - B @ design.K)).max())
        and design.rho_control < 1
    )
    assert design.rho_estimator < 1
    np.testing.assert_allclose(lqg.lqr(model), design.K)
    np.testing.assert_allclose(lqg.kalman(model, estimator="predictor"), design.L, rtol=1e-8, atol=1e-9)


def test_both_estimators_are_the_same_observer():
    current, predictor = lqg.design(DOYLE), lqg.design(DOYLE, estimator="predictor")
    np.testing.assert_array_equal(current.L, predictor.L)
    np.testing.assert_allclose(current.L, DOYLE.A @ current.M, rtol=1e-10)


def test_the_text_shows_every_weight_and_where_it_is_from():
    text = str(lqg.design(replace(DOYLE, Q=None, V=None, state_range=np.array([2.0, 0.5])), R=[[2.0]]))
    assert "Q = diag(0.25, 4): 1 / range^2 (Bryson's rule)" in text
    assert "R = diag(2): given" in text
    assert "W = diag(0.1, 0.1) and up to 0.1 beside the diagonal: the task's noise" in text
    assert "V = diag(0.0004): a hundredth of the outputs' range" in text


def test_an_input_that_nothing_bounds_and_one_at_its_bound_have_the_range_one():
    model = replace(random_model(0), action_low=np.array([-4.0, 0.0]), action_high=np.array([np.inf, 1.0]))
    np.testing.assert_allclose(np.diag(lqg.design(model).R), [1 / 16, 1.0])


def test_a_singular_task_cost_of_the_inputs_is_completed():
    design = lqg.design(replace(random_model(1), Q=np.eye(4), R=np.diag([1.0, 0.0])))
    assert np.linalg.eigvalsh(design.R).min() > 0.0 and "plus 0.001 of" in str(design)


def test_an_integrator_that_the_cost_does_not_see_is_no_design_although_the_solver_is_content():
    A, B, Q = np.array([[1.0, 0.1], [0.0, 0.5]]), np.array([[0.0], [1.0]]), np.diag([0.0, 1.0])
    X = solve_discrete_are(A, B, Q, np.eye(1))
    gain = np.linalg.solve(np.eye(1) + B.T @ X @ B, B.T @ X @ A)
    assert np.abs(np.linalg.eigvals(A - B @ gain)).max() > 1.0 - 1e-6
    model = from_matrices(A, B, np.eye(2), state_names=("position", "speed"))
    with pytest.raises(InvalidValueError, match=r"1\.000000, the mode 1 \(mostly position\).*Q puts no weight"):
        lqg.design(model, Q=Q)


def test_an_integrator_that_no_noise_drives_is_no_filter():
    model = from_matrices(np.array([[1.0, 0.0], [0.1, 0.5]]), np.eye(2), [[0.0, 1.0]])
    with pytest.raises(InvalidValueError, match=r"\(mostly x1\).*no noise in W drives"):
        lqg.design(model, W=np.diag([0.0, 1.0]))


def test_an_unreachable_mode_is_named_with_its_direction():
    model = from_matrices(np.diag([1.2, 0.5]), [[0.0], [1.0]], np.eye(2), state_names=("roll", "pitch"))
    with pytest.raises(InvalidValueError, match=r"No input in B reaches the mode 1\.2 of A \(mostly roll\)"):
        lqg.design(model)
    seen = from_matrices(np.diag([1.2, 0.5]), np.eye(2), [[0.0, 1.0]], state_names=("roll", "pitch"))
    with pytest.raises(InvalidValueError, match=r"No output in C shows the mode 1\.2 of A \(mostly roll\)"):
        lqg.design(seen)


def test_a_nearly_unreachable_mode_warns_where_the_solver_is_silent():
    A, B = np.diag([1.2, 0.5]), np.array([[1e-8], [1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve_discrete_are(A, B, np.eye(2), np.eye(1))
    with pytest.warns(UserWarning, match=r"hardly reach the mode 1\.2 of A \(mostly x1\).*e-09\): expect huge gains"):
        design = lqg.design(from_matrices(A, B, np.eye(2)))
    assert np.abs(design.K).max() > 1e6
    with pytest.warns(UserWarning, match=r"hardly show the mode 1\.2"):
        lqg.design(from_matrices(A, np.eye(2), B.T))


@pytest.mark.parametrize("half_turns", [1, 2])
def test_sampling_an_oscillator_at_its_half_period_loses_it(half_turns):
    frequency = 3.0
    oscillator = [[0.0, 1.0], [-(frequency**2), 0.0]]

    def sampled(step):
        return from_matrices(oscillator, [[0.0], [1.0]], [[1.0, 0.0]], continuous=True, time_step=step)

    with pytest.raises(InvalidValueError, match=r"No input in B reaches the mode .*sampling time"):
        lqg.design(sampled(half_turns * np.pi / frequency))
    assert lqg.design(sampled(0.5 * np.pi / frequency)).rho_control < 1.0


def test_the_margin_does_not_depend_on_the_states_units():
    A = np.array([[1.1, 0.3, 0.0], [0.2, 0.9, 0.4], [0.0, 0.1, 0.7]])
    B = np.array([[0.0], [0.0], [1.0]])
    margin = pbh_margin(A, B)[0]
    scale = np.array([1e-6, 1.0, 1e6])
    rescaled = pbh_margin(scale[:, None] * A / scale, scale[:, None] * B)[0]
    assert 0.3 < rescaled / margin < 3.0
    assert pbh_margin(0.5 * A, B)[0] == np.inf


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lqg.design(replace(DOYLE, D=np.ones((1, 1)))), InvalidValueError, r"D has an entry of 1.*input_delay"),
        (lambda: lqg.design(replace(DOYLE, residual=0.1)), InvalidValueError, "moves by 0.1 in one step"),
        (lambda: lqg.design(DOYLE, Q=np.eye(3)), ShapeError, r"Q has shape \(3, 3\); expected \(2, 2\)"),
        (lambda: lqg.design(DOYLE, R=[[np.inf]]), NonFiniteError, "R holds NaN or infinity"),
        (lambda: lqg.design(DOYLE, V=[[-1.0]]), InvalidValueError, "V is not symmetric positive semidefinite"),
        (lambda: lqg.design(DOYLE, estimator="kalman"), InvalidValueError, "estimator is 'kalman'"),  # type: ignore[arg-type]
        (lambda: lqg.lqr(replace(DOYLE, B=0.0 * DOYLE.B)), InvalidValueError, "No input in B reaches the mode 1.01"),
    ],
)
def test_bad_input_is_one_line_with_the_numbers(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_feedthrough_is_designed_for_with_the_delay_the_message_asks_for():
    model = replace(DOYLE, D=np.ones((1, 1)))
    assert lqg.design(with_input_delay(model, 1)).rho_control < 1.0


def test_shapes_come_before_feedthrough_and_feedthrough_before_the_equilibrium():
    wrong = replace(DOYLE, D=np.ones((1, 1)), residual=1.0, B=0.0 * DOYLE.B)
    with pytest.raises(ShapeError):
        lqg.design(wrong, Q=np.eye(3))
    with pytest.raises(InvalidValueError, match="expected D = 0"):
        lqg.design(wrong)
    with pytest.raises(InvalidValueError, match="moves by 1"):
        lqg.design(replace(wrong, D=None))
    with pytest.raises(InvalidValueError, match="No input"):
        lqg.design(replace(wrong, D=None, residual=0.0))
