"""Every task of the package: a linear model at an equilibrium, and a design that holds the task's own plant there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robust_policies.control import lqg
from robust_policies.control.linearize import goal, linearize_plant
from robust_policies.envs import load_plant
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError
from robust_policies.files import assets

WALKERS = {"half_cheetah", "hopper", "hopper_no_velocity", "walker2d"}
TASKS = sorted(set(assets.task_names()) - WALKERS)
LINEAR = {"linear", "double_integrator", "mass_spring_damper", "aircraft_pitch", "dc_motor", "doyle_lqg"}


class Simulated:
    """A plant at its nominal parameters, its state that of a model: what the model leaves out stays as it starts."""

    def __init__(self, name):
        self.name, self.plant = name, load_plant(name)
        self.model = linearize_plant(self.plant)
        self.params = self.plant.prepare(self.plant.nominal())
        self.rest = torch.as_tensor(goal(self.plant)).unsqueeze(0)
        self.places = [self.plant.state_names.index(name) for name in self.model.state_names]

    def whole(self, deviation):
        state = self.rest.clone()
        state[0, self.places] = torch.as_tensor(self.model.x0 + deviation)
        return state

    def step(self, deviation, u):
        action = torch.as_tensor(self.model.u0 + u).unsqueeze(0)
        following = self.plant.advance(self.whole(deviation), action, self.params)
        return following[0, self.places].numpy() - self.model.x0

    def observe(self, deviation):
        y = self.plant.observe(self.whole(deviation), self.params)[0].numpy() - self.model.y0
        angles = list(self.model.angles)
        y[angles] = np.remainder(y[angles] + np.pi, 2 * np.pi) - np.pi
        return y


@pytest.fixture(scope="module", params=TASKS)
def simulated(request):
    return Simulated(request.param)


def test_the_model_predicts_the_plants_step_to_first_order(simulated):
    model, rng = simulated.model, np.random.default_rng(0)
    assert np.linalg.norm(simulated.step(np.zeros(model.n), np.zeros(model.m))) <= 1e-9 * max(1, *np.abs(model.x0))
    np.testing.assert_allclose(simulated.observe(np.zeros(model.n)), 0.0, atol=1e-9)
    room = np.minimum(model.action_high - model.u0, model.u0 - model.action_low)
    assert (room > 0).all()
    for _ in range(5):
        # States that a step leads to: a reading of a simulator is not free of its positions.
        x = model.A @ (rng.normal(size=model.n) * model.state_range)
        u = rng.uniform(-1, 1, size=model.m) * room
        errors = []
        for size in (1e-3, 1e-4):
            step_error = simulated.step(size * x, size * u) - size * (model.A @ x + model.B @ u)
            output_error = simulated.observe(size * x) - size * (model.C @ x)
            errors.append(max(np.abs(step_error).max(), np.abs(output_error).max()))
        # Second order: a tenth of the deviation makes a hundredth of the error, but for rounding.
        assert errors[1] <= 0.03 * errors[0] + 1e-9 * (1.0 + np.abs(model.x0).max())


def test_the_default_design_is_stable_and_the_plant_follows_its_linear_closed_loop(simulated):
    model = simulated.model
    design = lqg.design(model)
    assert design.rho_control < 1.0 and design.rho_estimator < 1.0

    def run(step, observe):
        x, estimate, visited = 1e-4 * model.state_range, np.zeros(model.n), []
        for _ in range(150):
            innovation = observe(x) - model.C @ estimate
            wanted = -design.K @ (estimate + design.M @ innovation)
            u = np.clip(model.u0 + wanted, model.action_low, model.action_high) - model.u0
            x = step(x, u)
            estimate = model.A @ estimate + model.B @ u + design.L @ innovation
            visited.append(x / model.state_range)
        return np.array(visited)

    predicted = run(lambda x, u: model.A @ x + model.B @ u, lambda x: model.C @ x)
    np.testing.assert_allclose(run(simulated.step, simulated.observe), predicted, atol=0.02 * np.abs(predicted).max())


def test_the_design_shows_its_weights(simulated):
    text = str(lqg.design(simulated.model))
    assert [line.split(" = ")[0].strip() for line in text.splitlines()[1:]] == list("QRWV")
    assert all(line.rpartition(": ")[2] for line in text.splitlines()[1:])


def test_the_page_states_sizes_and_spectral_radii(simulated):
    page = Path(__file__).resolve().parents[2] / "docs" / "control.md"
    rows = [line.split("|")[1:-1] for line in page.read_text().splitlines() if line.startswith("| `")]
    (row,) = (row for row in rows if row[0].strip() == f"`{simulated.name}`")
    model, design = simulated.model, lqg.design(simulated.model)
    assert [int(size) for size in row[1].split(",")] == [model.n, model.m, model.p]
    radii = [np.abs(np.linalg.eigvals(model.A)).max(), design.rho_control, design.rho_estimator]
    assert [float(cell) for cell in row[2:5]] == pytest.approx(radii, abs=6e-5)


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_of_a_linear_plant_the_model_is_its_matrices_cost_and_noise(name):
    plant = load_plant(name)
    model = linearize_plant(plant)
    assert model.exact and not model.angles and not model.x0.any()
    pairs = ((model.A, plant.A), (model.B, plant.B), (model.C, plant.C), (model.Bw, plant.G), (model.Q, plant.Q),
             (model.R, plant.R), (model.W, plant.E @ plant.E.T), (model.V, plant.F @ plant.F.T))  # fmt: skip
    for found, wanted in pairs:
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("pendulum", ([1.0, 0.1], [0.001])), ("qube_servo", ([1.0, 5.0, 0.01, 0.01], [0.01])),
     ("maglev", ([1000.0, 1.0, 0.01], [0.001])), ("cartpole_swingup", ([0.2, 0.01, 0.25, 0.02], [0.0005]))],
)  # fmt: skip
def test_the_cost_is_the_curvature_of_the_tasks_reward(name, weights):
    model = linearize_plant(load_plant(name))
    for found, wanted in zip((model.Q, model.R), weights, strict=True):
        np.testing.assert_allclose(found, np.diag(wanted), rtol=1e-9, atol=1e-12)


def test_the_ball_hangs_at_the_setpoint_by_the_published_current():
    plant = load_plant("maglev")
    model = linearize_plant(plant)
    current, voltage = plant.equilibrium(plant.nominal())
    np.testing.assert_allclose(model.x0, [plant.setpoint, 0.0, current], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.u0, [voltage], rtol=1e-9)


def test_motors_hover_and_the_clock_is_held():
    model = linearize_plant(load_plant("quadrotor"))
    np.testing.assert_allclose(model.u0, 0.027 * 9.81 / 4, rtol=1e-9)
    assert "clock [s]" not in model.state_names and "held: clock [s]" in model.origin


def test_the_swing_up_task_is_linearized_where_it_wants_to_be_not_where_it_starts():
    plant = load_plant("cartpole_swingup")
    hanging = linearize_plant(plant, [0.0, 0.0, np.pi, 0.0])
    assert np.abs(np.linalg.eigvals(linearize_plant(plant).A)).max() > 1.01
    assert np.abs(np.linalg.eigvals(hanging.A)).max() < 1.0 + 1e-6
    np.testing.assert_allclose(hanging.x0[2], np.pi)


def test_a_leaning_pendulum_is_held_by_a_torque():
    model = linearize_plant(load_plant("pendulum"), [0.1, 0.0])
    np.testing.assert_allclose(model.x0, [0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(model.u0, -5.0 * np.sin(0.1), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(WALKERS))
def test_what_walks_stands_nowhere_near_its_start(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValueError, match="No equilibrium was found") as caught:
        linearize_plant(load_plant(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "action", "error", "message"),
    [
        ([0.0], None, ShapeError, r"state has shape \(1,\); expected \(2\)"),
        ([0.0, np.nan], None, NonFiniteError, "state holds NaN"),
        (None, [0.0, 0.0], ShapeError, r"action has shape \(2,\); expected \(1\)"),
    ],
)
def test_a_guess_that_does_not_fit_is_named(state, action, error, message):
    with pytest.raises(error, match=message):
        linearize_plant(load_plant("pendulum"), state, action)


def test_an_equilibrium_beyond_the_end_of_the_episode_is_none():
    with pytest.raises(InvalidValueError, match="is where the episode ends"):
        linearize_plant(load_plant("cartpole"), [3.0, 0.0, 0.0, 0.0])


def test_a_plant_that_must_keep_moving_has_no_equilibrium():
    plant = load_plant("quadrotor_planar")
    heavy = plant.task.parameters.model_copy(update={"mass": 1.0})
    plant.task = plant.task.model_copy(update={"parameters": heavy})
    with pytest.raises(InvalidValueError, match=r"No equilibrium was found.*actions from \[0, 0\] to \[0.3, 0.3\]"):
        linearize_plant(plant)


def test_every_listed_task_is_tested():
    assert set(TASKS) | WALKERS == set(assets.task_names()) and len(TASKS) == 19


class Rooted:
    """A plant of one's own, no more than what is asked of one: x+ = x + h (sqrt(x) - u), the root shown."""

    time_step, state_size, reset_size = 0.1, 1, 1
    state_names, action_names, output_names, disturbance_names = ("level [m]",), ("valve",), ("flow",), ()
    process_noise_size = measurement_noise_size = 0
    action_low, action_high = np.array([0.0]), np.array([2.0])

    def nominal(self):
        return {}

    def prepare(self, physical):
        return physical

    def advance(self, state, action, params, noise=None, disturbance=None):
        return state + self.time_step * (state.sqrt() - action)

    def observe(self, state, params, noise=None):
        return state.sqrt()

    def reward(self, state, action, following, params):
        return -((state - 1.0) ** 2).sum(-1)

    def initial(self, uniform, params, options=None):
        return 1.0 + 0.1 * (2.0 * uniform - 1.0)

    def terminated(self, state, params):
        return state[..., 0] < 0.0


def test_a_plant_of_ones_own_needs_no_more_than_its_functions():
    model = linearize_plant(Rooted())
    np.testing.assert_allclose([model.x0, model.u0, model.y0], 1.0)
    np.testing.assert_allclose(np.hstack((model.A, model.B, model.C, model.Q)), [[1.05, -0.1, 0.5, 1.0]])
    assert model.Bw is None and model.W is None and model.V is None
    assert lqg.design(model).rho_control < 1.0


def test_a_state_without_a_derivative_is_named():
    with pytest.raises(InvalidValueError, match=r"no finite derivative at the state \[0\] and action \[1\]"):
        linearize_plant(Rooted(), [0.0])
