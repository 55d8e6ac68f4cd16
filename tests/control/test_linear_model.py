"""Linear models from matrices and python-control systems, with delays and integrators: against scipy and simulation."""

import lazy_loader
import numpy as np
import pytest
from scipy.signal import cont2discrete

from robust_policies.control import lqg
from robust_policies.control.linearize import (
    LinearModel,
    from_control,
    from_matrices,
    skip_frames,
    with_input_delay,
    with_integral_action,
)
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UserError

# Imported when a test uses it: a second and a half, of every process that collects the tests.
control = lazy_loader.load("control")
A, B, C = np.array([[1.1, 0.2], [0.0, 0.9]]), np.array([[0.0], [1.0]]), np.array([[1.0, 0.0]])


def random_matrices(seed, n=4, m=2, p=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in ((n, n), (n, m), (p, n), (p, m))]


def outputs(model, inputs):
    """Return the outputs of a model, one a row, from rest."""
    x, found = np.zeros(model.n), []
    for u in inputs:
        found.append(model.C @ x + model.D @ u)
        x = model.A @ x + model.B @ u
    return np.array(found)


@pytest.mark.parametrize("seed", range(10))
def test_zero_order_hold_is_scipys(seed):
    a, b, c, d = random_matrices(seed)
    step = 10.0 ** np.random.default_rng(seed).uniform(-3, 0)
    expected = cont2discrete((a, b, c, d), step, "zoh")
    model = from_matrices(a, b, c, d, time_step=step, continuous=True, Bw=b[:, :1])
    for found, wanted in zip((model.A, model.B, model.C, model.D), expected, strict=False):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
    np.testing.assert_allclose(model.Bw, model.B[:, :1], rtol=1e-12)


@pytest.mark.parametrize("step", [0.01, 0.5, 3.0])
def test_zero_order_hold_is_the_solution_of_the_differential_equation(step):
    w = 2.0
    model = from_matrices([[0.0, 1.0], [-(w**2), 0.0]], [[0.0], [1.0]], [[1.0, 0.0]], time_step=step, continuous=True)
    sine, cosine = np.sin(w * step), np.cos(w * step)
    np.testing.assert_allclose(model.A, [[cosine, sine / w], [-w * sine, cosine]], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(model.B, [[(1.0 - cosine) / w**2], [sine / w]], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_skipped_frames_are_that_many_steps_with_the_same_input(count):
    a, b, _, _ = random_matrices(count)
    a /= np.abs(np.linalg.eigvals(a)).max()
    x, u = np.ones(4), np.array([1.0, -2.0])
    power, total = skip_frames(a, b, count)
    expected = x
    for _ in range(count):
        expected = a @ expected + b @ u
    np.testing.assert_allclose(power @ x + total @ u, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("continuous", [True, False])
def test_a_python_control_system_keeps_its_matrices_and_names(continuous):
    a, b, c, d = random_matrices(3)
    system = control.ss(a, b, c, d, *(() if continuous else (0.5,)), outputs=["left", "middle", "right"])
    model = from_control(system, 0.5 if continuous else None)
    expected = cont2discrete((a, b, c, d), 0.5, "zoh") if continuous else (a, b, c, d)
    np.testing.assert_allclose(model.A, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(model.B, expected[1], rtol=1e-12, atol=1e-12)
    assert (model.time_step, model.output_names) == (0.5, ("left", "middle", "right"))


def test_a_discrete_system_without_a_stated_step_takes_the_given_one():
    system = control.ss(A, B, C, 0, True)
    assert from_control(system).time_step == 1.0
    assert from_control(system, 0.2).time_step == 0.2


@pytest.mark.parametrize("continuous", [True, False])
def test_a_system_that_does_not_say_which_time_it_has_is_asked(continuous):
    system = control.ss(A, B, C, 0, None)
    with pytest.raises(InvalidValueError, match=r"dt is None.*continuous=True or continuous=False"):
        from_control(system, 0.2)
    model = from_control(system, 0.2, continuous=continuous)
    expected = from_matrices(A, B, C, time_step=0.2, continuous=continuous)
    np.testing.assert_array_equal(model.A, expected.A)
    assert model.time_step == 0.2 and (np.array_equal(model.A, A) != continuous)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("feedthrough", [False, True])
def test_a_delayed_model_answers_like_the_model_some_steps_later(steps, feedthrough):
    a, b, c, d = random_matrices(steps)
    model = from_matrices(a / 5.0, b, c, d if feedthrough else None)
    delayed = with_input_delay(model, steps)
    inputs = np.random.default_rng(0).normal(size=(30, 2))
    assert not delayed.D.any()
    np.testing.assert_allclose(
        outputs(delayed, inputs)[steps:], outputs(model, inputs)[:-steps], rtol=1e-12, atol=1e-12
    )
    np.testing.assert_allclose(outputs(delayed, inputs)[:steps], 0.0, atol=0.0)
    assert len(delayed.state_names) == delayed.n == model.n + 2 * steps


@pytest.mark.parametrize("steps", [1, 3])
def test_a_delayed_unstable_plant_is_designed_for_without_noise_on_the_delay(steps):
    design = lqg.design(with_input_delay(from_matrices(A, B, C, W=np.eye(2), V=np.eye(1)), steps))
    assert design.rho_control < 1.0 and design.rho_estimator < 1.0


def test_integral_action_removes_what_a_constant_disturbance_leaves():
    plain = from_matrices(A, B, C, time_step=0.1)
    model = with_integral_action(plain, [0])
    design = lqg.design(model, W=np.eye(3), V=np.eye(2))
    assert model.output_names[-1] == model.state_names[-1] == "integral of y1"

    def rests_at(model, design):
        x = estimate = np.zeros(model.n)
        push = np.zeros(model.n)
        push[1] = 0.1
        for _ in range(3000):
            innovation = model.C @ (x - estimate)
            u = -design.K @ (estimate + design.M @ innovation)
            x = model.A @ x + model.B @ u + push
            estimate = model.A @ estimate + model.B @ u + design.L @ innovation
        return model.C[0] @ x

    assert abs(rests_at(model, design)) < 1e-9
    assert abs(rests_at(plain, lqg.design(plain, W=np.eye(2), V=np.eye(1)))) > 1e-2


def test_integral_action_takes_a_cost_that_says_nothing_of_the_integral():
    model = with_integral_action(from_matrices(A, B, C, Q=np.eye(2), R=np.eye(1), W=np.eye(2), V=np.eye(1)), (0,))
    design = lqg.design(model)
    assert design.rho_control < 1.0 and design.Q[2, 2] > 0.0
    assert "plus what sees every mode" in str(design)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_matrices(A[:1], B, C), ShapeError, r"A has shape \(1, 2\); expected \(1, 1\)"),
        (lambda: from_matrices(A, B.T, C), ShapeError, r"B has shape \(1, 2\); expected \(2, any\)"),
        (lambda: from_matrices(A, B, C.T), ShapeError, r"C has shape \(2, 1\); expected \(any, 2\)"),
        (lambda: from_matrices(A, B, C, [[1.0, 2.0]]), ShapeError, r"D has shape \(1, 2\); expected \(1, 1\)"),
        (lambda: from_matrices(A, B, C, Bw=[[1.0]]), ShapeError, "Bw has shape"),
        (lambda: from_matrices(A, B, C, W=np.eye(3)), ShapeError, "W has shape"),
        (lambda: from_matrices(np.nan * A, B, C), NonFiniteError, "A holds NaN"),
        (lambda: from_matrices("matrix", B, C), InvalidValueError, "A is not an array of numbers"),
        (lambda: from_matrices(A, B, C, time_step=0.0), InvalidValueError, "time_step is 0.0"),
        (lambda: from_matrices(1e5 * A, B, C, continuous=True), NonFiniteError, "grows beyond all numbers"),
        (lambda: from_matrices(A, B, C, state_names=("x",)), InvalidValueError, "state_names has 1 name"),
        (lambda: from_matrices(A, B, C, angles=(1,)), InvalidValueError, r"angles is \(1,\)"),
        (lambda: from_control(control.tf([1], [1, 1])), InvalidValueError, "expected a python-control StateSpace"),
        (lambda: from_control(control.ss(A, B, C, 0)), InvalidValueError, "time_step is missing"),
        (lambda: from_control(control.ss(A, B, C, 0, None), 0.2), InvalidValueError, "dt is None, which leaves open"),
        (lambda: from_control(control.ss(A, B, C, 0, 0), 0.2, continuous=False), InvalidValueError, "own dt is 0"),
        (lambda: from_control(control.ss(A, B, C, 0, 0.2), continuous=True), InvalidValueError, "own dt is 0.2"),
        (lambda: from_control(control.ss(A, B, C, 0, 0.1), 0.2), InvalidValueError, "the system's own, 0.1 s"),
        (lambda: with_input_delay(from_matrices(A, B, C), 0), InvalidValueError, "steps is 0"),
        (lambda: with_integral_action(from_matrices(A, B, C), [1]), InvalidValueError, r"outputs is \[1\]"),
        (lambda: with_integral_action(from_matrices(A, B, C), []), InvalidValueError, r"outputs is \[\]"),
        (lambda: with_integral_action(from_matrices(A, B, C, [[1.0]]), [0]), InvalidValueError, "with_input_delay"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def test_a_model_keeps_its_own_copies():
    given = A.copy()
    model = LinearModel(A=given, B=B, C=C)
    given[0, 0] = 7.0
    assert model.A[0, 0] == 1.1
