"""The linear tasks: exact discretisation, stated optima, and controllers that reach them on the plant itself."""

import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

from robust_policies.control import lqg
from robust_policies.envs import load_plant
from robust_policies.files import assets

CONTINUOUS = ["double_integrator", "mass_spring_damper", "aircraft_pitch", "dc_motor"]
TASKS = [*CONTINUOUS, "doyle_lqg"]


def matrices(plant):
    """Return A, B, C, Q, R, W and V of one step."""
    return plant.A, plant.B, plant.C, plant.Q, plant.R, plant.E @ plant.E.T, plant.F @ plant.F.T


def simulate(plant, K, gain=None, estimator="current", copies=2000, burn_in=600, steps=600, seed=0):
    """Return the mean cost per step, its standard error and the number of clipped actions; gain None: state known."""
    generator = torch.Generator().manual_seed(seed)
    double = {"dtype": torch.float64}
    params = plant.prepare(plant.nominal())
    A, B, C, K = (torch.as_tensor(matrix) for matrix in (plant.A, plant.B, plant.C, K))
    L = None if gain is None else torch.as_tensor(gain)
    limit = torch.as_tensor(plant.action_high)
    state = torch.zeros(copies, plant.state_size, **double)
    predicted, total, clipped = torch.zeros_like(state), torch.zeros(copies, **double), 0
    for step in range(burn_in + steps):
        output = plant.observe(
            state, params, torch.randn(copies, plant.measurement_noise_size, generator=generator, **double)
        )
        innovation = output - predicted @ C.T
        if L is None:
            estimate = state
        else:
            estimate = predicted + innovation @ L.T if estimator == "current" else predicted
        action = -estimate @ K.T
        clipped += int((action.abs() > limit).sum())
        noise = torch.randn(copies, plant.process_noise_size, generator=generator, **double)
        following = plant.advance(state, action, params, noise)
        if step >= burn_in:
            total = total - plant.reward(state, action, following, params)
        predicted = estimate @ A.T + action @ B.T
        if L is not None and estimator == "predictor":
            predicted = predicted + innovation @ L.T
        state = following
    cost = total / steps
    return float(cost.mean()), float(cost.std()) / copies**0.5, clipped


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_discretisation_is_scipys_zero_order_hold(name):
    plant = load_plant(name)
    nominal = plant.nominal()
    A, B = plant.matrices["A"](nominal).numpy(), plant.matrices["B"](nominal).numpy()
    G = plant.matrices["G"](nominal).numpy() if "G" in plant.matrices else B
    exact_A, exact_B, *_ = cont2discrete((A, np.hstack((B, G)), plant.C, np.zeros((1, 2))), plant.time_step, "zoh")
    # The motor's exponential is of a matrix of norm 7000, which costs three to four digits in either library.
    tolerance = 1e-11 if name == "dc_motor" else 1e-12
    for given, exact in ((plant.A, exact_A), (plant.B, exact_B[:, :1]), (plant.G, exact_B[:, 1:])):
        assert np.abs(given - exact).max() < tolerance * max(1.0, np.abs(exact).max())


def test_the_motors_discretisation_is_that_of_its_motion_without_inductance():
    plant = load_plant("dc_motor")
    J, b, K, R, _ = (float(value) for value in list(plant.nominal().values())[:5])
    rate = (b + K**2 / R) / J
    decay = np.exp(-rate * plant.time_step)
    # The current's own time constant, 0.7 microseconds, is 1.4e-4 of a step.
    np.testing.assert_allclose(plant.A[1, 1], decay, rtol=1e-4)
    np.testing.assert_allclose(plant.A[0, 1], (1.0 - decay) / rate, rtol=1e-4)
    np.testing.assert_allclose(plant.B[1, 0], K / (R * J) * (1.0 - decay) / rate, rtol=1e-4)


def test_the_mass_spring_damper_in_physics_is_the_linear_task_in_numbers():
    physics, numbers = load_plant("mass_spring_damper"), load_plant("linear")
    for name in "ABCGQREF":
        np.testing.assert_allclose(getattr(physics, name), getattr(numbers, name), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", TASKS)
def test_the_stated_optimum_is_what_python_control_computes(name):
    plant = load_plant(name)
    A, B, C, Q, R, W, V = matrices(plant)
    assert plant.task.optimum.lqr == pytest.approx(lqg.stationary_cost_lqr(A, B, Q, R, W), rel=1e-6)
    assert plant.task.optimum.lqg == pytest.approx(lqg.stationary_cost_lqg(A, B, C, Q, R, W, V), rel=1e-6)
    page = (assets.task_folder(name) / "README.md").read_text(encoding="utf-8")
    stated = [line.split("|")[2] for line in page.splitlines() if line.startswith(("| LQR", "| LQG"))]
    assert [float(figure) for figure in stated] == pytest.approx(
        [plant.task.optimum.lqr, plant.task.optimum.lqg], rel=1e-4
    )


@pytest.mark.parametrize(
    "name",
    [
        "double_integrator",
        "dc_motor",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("mass_spring_damper", "aircraft_pitch")),
    ],
)
def test_lqr_and_lqg_reach_the_stated_optimum_without_clipping(name):
    plant = load_plant(name)
    A, B, C, Q, R, W, V = matrices(plant)
    K = lqg.lqr_gain(A, B, Q, R)
    for gain, optimum in ((None, plant.task.optimum.lqr), (lqg.kalman_gain(A, C, W, V), plant.task.optimum.lqg)):
        cost, error, clipped = simulate(plant, K, gain)
        assert abs(cost - optimum) < 3.0 * error + 0.01 * optimum
        assert clipped == 0


@pytest.mark.parametrize("controller", ["base", *(pytest.param(one, marks=pytest.mark.soak) for one in ("lqr", "lqg"))])
def test_controllers_of_doyles_example_cost_what_is_published(controller):
    plant = load_plant("doyle_lqg")
    A, B, C, Q, R, W, V = matrices(plant)
    K = lqg.lqr_gain(A, B, 1e3 * np.eye(2) if controller == "base" else Q, R)
    settle = 600 if controller == "base" else 6000
    estimator = "current" if controller == "lqg" else "predictor"
    gain = (
        None if controller == "lqr" else lqg.kalman_gain(A, C, W / 100.0 if controller == "base" else W, V, estimator)
    )
    expected = {"lqr": 1921.22, "lqg": 3623.0, "base": 16890.0}[controller]
    # The slowest mode, a tenth of the cost, decays by 0.99968 a step: after 6000 steps all but 2 % of it is there.
    cost, error, clipped = simulate(plant, K, gain, estimator, copies=1000, burn_in=settle, steps=1000)
    assert abs(cost - expected) < 3.0 * error + 0.01 * expected
    assert clipped == 0


@pytest.mark.parametrize("name", TASKS)
def test_the_regulator_does_not_clip_from_any_start_state(name):
    plant = load_plant(name)
    K = lqg.lqr_gain(plant.A, plant.B, plant.Q, plant.R)
    corners = plant.mean + plant.spread * np.stack(np.meshgrid(*[[-1, 1]] * plant.state_size), -1).reshape(
        -1, plant.state_size
    )
    assert (np.abs(corners @ K.T) <= plant.action_high).all()


@pytest.mark.parametrize("name", TASKS)
def test_the_regulator_stabilises_the_plant_at_the_ends_of_its_random_physics(name):
    plant = load_plant(name)
    nominal = plant.nominal()
    assert plant.task.randomize
    for parameter, factors in plant.task.randomize.items():
        for factor in factors:
            A, B = (plant.prepare(nominal | {parameter: nominal[parameter] * factor})[m].numpy() for m in "AB")
            K = lqg.lqr_gain(plant.A, plant.B, plant.Q, plant.R)
            assert np.abs(np.linalg.eigvals(A - B @ K)).max() < 1.0


@pytest.mark.parametrize("name", TASKS)
def test_physical_parameters_of_each_copy_equal_a_loop_and_have_gradients(name):
    plant = load_plant(name)
    nominal = plant.nominal()
    generator = torch.Generator().manual_seed(0)
    factors = 0.8 + 0.4 * torch.rand(4, generator=generator, dtype=torch.float64)
    own = {key: (value * factors.reshape(-1, *([1] * value.ndim))).requires_grad_() for key, value in nominal.items()}
    state, action = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (plant.state_size, 1))
    push = torch.randn(4, len(plant.disturbance_names), generator=generator, dtype=torch.float64)
    params = plant.prepare(own)
    following = plant.advance(state, action, params, None, push)
    for i in range(4):
        one = plant.prepare({key: value[i] for key, value in own.items()})
        alone = plant.advance(state[i], action[i], one, None, push[i])
        torch.testing.assert_close(following[i], alone, rtol=1e-9, atol=1e-9)
    (following.sum() + plant.observe(following, params).sum()).backward()
    for key, value in own.items():
        assert value.grad is not None and torch.isfinite(value.grad).all() and value.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", TASKS)
def test_a_gradient_to_the_physical_parameters_is_that_of_finite_differences(name):
    plant = load_plant(name)
    nominal = {key: value for key, value in plant.nominal().items() if value.ndim == 0}
    rest = {key: value for key, value in plant.nominal().items() if value.ndim > 0}
    if not nominal:
        nominal, rest = rest, {}
    state, action = torch.ones(1, plant.state_size, dtype=torch.float64), 0.1 * torch.ones(1, 1, dtype=torch.float64)

    def scaled(*factors):
        changed = {key: value * factor for (key, value), factor in zip(nominal.items(), factors, strict=True)}
        return plant.advance(state, action, plant.prepare(changed | rest), None, action.expand(-1, plant.G.shape[1]))

    factors = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in nominal]
    # The motor's numbers are as large as 10^3, and finite differences of them that much less exact.
    assert torch.autograd.gradcheck(scaled, factors, atol=1e-2 if name == "dc_motor" else 1e-5, rtol=1e-4)
