"""The planar quadrotor: its equations, its circle, and a controller that flies it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import solve_discrete_are

from robust_policies.envs import gradient, load_plant
from robust_policies.errors import InvalidValueError, UnknownNameError

PLANT = load_plant("quadrotor_planar")


def starts(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, PLANT.reset_size, generator=generator, dtype=dtype)
    return PLANT.initial(uniform, PLANT.nominal(dtype=dtype))


def thrusts(*size, seed=0, dtype=torch.float64):
    return 0.3 * torch.rand(*size, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def state(**values):
    names = ("x", "z", "pitch", "vx", "vz", "rate", "clock")
    return torch.tensor([values.get(name, 0.0) for name in names], dtype=torch.float64)


def hover(params):
    return (params["mass"] * params["gravity"] / 2).unsqueeze(-1).expand(*params["mass"].shape, 2)


def test_the_hover_thrust_keeps_the_quadrotor_where_it_is():
    params = PLANT.nominal() | {"mass": torch.tensor([0.02, 0.027, 0.04], dtype=torch.float64)}
    before = state(x=0.3, z=1.2).expand(3, 7)
    after = PLANT.advance(before, hover(params), params)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=1e-14)
    torch.testing.assert_close(after[:, 6], torch.full((3,), 0.02, dtype=torch.float64), rtol=0, atol=0)


def test_a_step_solves_the_equations_of_motion():
    m, inertia, arm, g = 0.027, 1.4e-5, 0.0397, 9.81
    for before, (front, rear) in zip(starts(5), thrusts(5), strict=True):
        front, rear = float(front), float(rear)

        def derivative(_, s, front=front, rear=rear):
            lift = front + rear
            turning = (rear - front) * arm / math.sqrt(2) / inertia
            return [*s[3:], lift * math.sin(s[2]) / m, lift * math.cos(s[2]) / m - g, turning]

        exact = solve_ivp(derivative, (0, 0.02), before[:6].numpy(), rtol=1e-12, atol=1e-12).y[:, -1]
        after = PLANT.advance(before, torch.tensor([front, rear], dtype=torch.float64), PLANT.nominal())
        np.testing.assert_allclose(after[:6], exact, rtol=0, atol=2e-5)
        finer = load_plant("quadrotor_planar")
        finer.substeps = 40
        after = finer.advance(before, torch.tensor([front, rear], dtype=torch.float64), PLANT.nominal())
        np.testing.assert_allclose(after[:6], exact, rtol=0, atol=1e-9)


def test_more_thrust_at_minus_x_leans_towards_plus_x_and_goes_there():
    params = PLANT.nominal()
    now = state(z=1.0)
    now = PLANT.advance(now, torch.tensor([0.13, 0.14], dtype=torch.float64), params)
    assert now[5] > 0
    for _ in range(10):
        now = PLANT.advance(now, hover(params), params)
    assert now[2] > 0 and now[0] > 0 and now[3] > 0


def test_energy_is_conserved_without_thrust():
    params = PLANT.nominal()
    now = starts(16)
    energy = PLANT.energy(now, params)
    for _ in range(100):
        now = PLANT.advance(now, torch.zeros(16, 2), params)
    torch.testing.assert_close(PLANT.energy(now, params), energy, rtol=1e-12, atol=0)


def test_a_disturbance_is_a_force_and_a_torque():
    params = PLANT.nominal()
    before = state(z=1.0)
    push = torch.tensor([0.01, -0.02, 0.0], dtype=torch.float64)
    pushed = PLANT.advance(before, hover(params), params, disturbance=push)
    torch.testing.assert_close(pushed[3:5], push[:2] * 0.02 / 0.027, rtol=1e-12, atol=0)
    turned = PLANT.advance(
        before, hover(params), params, disturbance=torch.tensor([0.0, 0.0, 1e-4], dtype=torch.float64)
    )
    assert float(turned[5]) == pytest.approx(1e-4 * 0.02 / 1.4e-5, rel=1e-12)


def test_thrust_is_clipped_to_what_the_motors_can():
    params = PLANT.nominal()
    beyond = torch.tensor([-1.0, 7.0], dtype=torch.float64)
    within = torch.tensor([0.0, 0.3], dtype=torch.float64)
    torch.testing.assert_close(PLANT.advance(starts(1)[0], beyond, params), PLANT.advance(starts(1)[0], within, params))


def test_the_reference_goes_round_its_circle_and_its_velocity_is_its_derivative():
    clock = torch.linspace(0, 10, 41, dtype=torch.float64, requires_grad=True)
    x, z, vx, vz = PLANT.reference(clock)
    torch.testing.assert_close(x**2 + (z - 1.0) ** 2, torch.full_like(x, 0.25))
    for place, velocity in ((x, vx), (z, vz)):
        torch.testing.assert_close(torch.autograd.grad(place.sum(), clock, retain_graph=True)[0], velocity)
    assert x[0] == 0.5 and z[0] == 1.0 and z[1] > 1.0
    torch.testing.assert_close(x[20], x[0])


def test_on_the_circle_the_observed_errors_are_zero():
    x, z, vx, vz = (float(value) for value in PLANT.reference(torch.tensor(1.3, dtype=torch.float64)))
    observation = PLANT.observe(state(x=x, z=z, pitch=0.2, vx=vx, vz=vz, rate=0.7, clock=1.3), PLANT.nominal())
    expected = [0, 0, math.sin(0.2), math.cos(0.2), vx, vz, 0.7, vx, vz]
    np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-12)


def test_the_reward_is_one_for_perfect_hovering_and_never_below_zero(own_task):
    plant = load_plant(own_task("quadrotor_planar", hovering))
    params = plant.nominal()
    at_rest = state(z=1.0)
    assert plant.reward(at_rest, hover(params), plant.advance(at_rest, hover(params), params), params) == 1.0
    far = state(x=0.3, z=0.6, pitch=0.5, vx=1.0, vz=2.0, rate=3.0)
    cost = 10 * (0.09 + 0.16) + 0.2 * 5 + 0.1 * 0.25 + 0.002 * 9 + 2 * (0.3 - 0.027 * 9.81 / 2) ** 2
    reward = plant.reward(at_rest, torch.full((2,), 0.3, dtype=torch.float64), far, params)
    assert float(reward) == pytest.approx(1 / (1 + cost), rel=1e-12)
    assert plant.reward(at_rest, hover(params), state(x=1e6), params) > 0


def hovering(content):
    content["reference"] = {"kind": "hover", "centre": [0.0, 1.0]}


@pytest.mark.parametrize(
    "outside",
    [{"x": 1.51}, {"x": -1.51}, {"z": -0.01}, {"z": 2.01}, {"pitch": 1.51}, {"pitch": -1.51}, {"rate": math.nan}],
)
def test_an_episode_ends_outside_the_box_beyond_the_tilt_and_at_nan(outside):
    assert PLANT.terminated(state(**{"z": 1.0, **outside}), PLANT.nominal())
    assert not PLANT.terminated(state(x=1.49, z=1.99, pitch=-1.49), PLANT.nominal())


def test_start_states_lie_about_the_start_of_the_circle():
    begin = starts(4000, seed=5)
    middle = state(x=0.5, z=1.0)
    half = torch.tensor([0.2, 0.2, 0.3, 0.2, 0.2, 0.3, 0.0], dtype=torch.float64)
    assert ((begin - middle).abs() <= half + 1e-12).all()
    assert ((begin - middle).abs().amax(0) >= 0.95 * half).all()


def test_gradients_flow_to_state_action_parameters_and_disturbance():
    nominal = PLANT.nominal()
    names = sorted(nominal)
    disturbance = torch.tensor([1e-3, 2e-3, 1e-6], dtype=torch.float64).expand(3, 3)

    def run(before, action, push, *values):
        # Inertia in 1e-5 kg m^2, or the finite difference's step would exceed it.
        params = dict(zip(names, values, strict=True))
        params["inertia"] = params["inertia"] * 1e-5
        return gradient.step(PLANT, before, action, params, disturbance=push * 1e-3)[:3]

    nominal["inertia"] = nominal["inertia"] * 1e5
    inputs = (starts(3), 0.05 + 0.5 * thrusts(3), disturbance * 1e3, *(nominal[name] for name in names))
    assert torch.autograd.gradcheck(run, [value.clone().requires_grad_() for value in inputs])


def test_every_environment_may_have_its_own_parameters():
    generator = torch.Generator().manual_seed(3)
    count = 6
    nominal = PLANT.nominal()
    each = {k: v * (0.7 + 0.6 * torch.rand(count, generator=generator, dtype=v.dtype)) for k, v in nominal.items()}
    before, action = starts(count), thrusts(count)
    together = gradient.step(PLANT, before, action, each)
    for i in range(count):
        alone = gradient.step(PLANT, before[i], action[i], {k: v[i] for k, v in each.items()})
        for one, row in zip(alone, together, strict=True):
            torch.testing.assert_close(row[i], one, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.soak)])
def test_a_compiled_step_has_no_graph_break_and_agrees(dtype):
    params = PLANT.nominal(dtype=dtype)
    before, action = starts(8, dtype=dtype), thrusts(8, dtype=dtype)
    compiled = torch.compile(gradient.transition, backend="eager", fullgraph=True)
    for given, expected in zip(
        compiled(PLANT, before, action, params), gradient.transition(PLANT, before, action, params), strict=True
    ):
        assert given.dtype == expected.dtype and given.dtype in (dtype, torch.bool)
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize(
    ("dtype", "steps"),
    [
        (torch.float32, 500),
        *(pytest.param(*case, marks=pytest.mark.soak) for case in ((torch.float32, 4000), (torch.float64, 500))),
    ],
)
def test_random_actions_leave_everything_finite_even_without_resets(dtype, steps):
    params = PLANT.nominal(dtype=dtype)
    now, generator = starts(64, dtype=dtype), torch.Generator().manual_seed(1)
    within = torch.ones(64, dtype=torch.bool)
    with torch.inference_mode():
        for _ in range(steps):
            action = 0.3 * torch.rand(64, 2, generator=generator, dtype=dtype)
            now, observation, reward, _ = gradient.transition(PLANT, now, action, params)
            within &= observation.isfinite().all(-1) & (reward >= 0) & (reward <= 1)
    assert within.all()


def regulator(params):
    """Return the gain of the discrete-time LQR about hovering, from the plant's own derivatives."""
    at_rest, level = torch.zeros(7, dtype=torch.float64), hover(params)
    A = torch.func.jacrev(lambda s: PLANT.advance(s, level, params))(at_rest)[:6, :6].numpy()
    B = torch.func.jacrev(lambda a: PLANT.advance(at_rest, a, params))(level)[:6].numpy()
    Q, R = np.diag([10.0, 10.0, 1.0, 1.0, 1.0, 0.01]), 100.0 * np.eye(2)
    P = solve_discrete_are(A, B, Q, R)
    return torch.from_numpy(np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A))


def test_lqr_with_the_circles_acceleration_fed_forward_flies_it():
    params = PLANT.nominal()
    gain, turn_rate = regulator(params), 2 * math.pi / 5.0

    def policy(observation, _):
        x, z, sine, cosine, vx, vz, rate, wanted_vx, wanted_vz = observation.unbind(-1)
        # On a circle the acceleration is the velocity turned by 90 degrees.
        ax, az = -turn_rate * wanted_vz, 9.81 + turn_rate * wanted_vx
        pitch = torch.atan2(sine, cosine) - torch.atan2(ax, az)
        error = torch.stack((x, z, pitch, vx - wanted_vx, vz - wanted_vz, rate), dim=-1)
        return 0.027 / 2 * torch.hypot(ax, az).unsqueeze(-1) - error @ gain.mT

    with torch.inference_mode():
        states, _, rewards = gradient.rollout(PLANT, starts(64, seed=7), policy, params, PLANT.max_episode_steps)
        error = PLANT.observe(states, params)[..., :2].norm(dim=-1)
    assert not PLANT.terminated(states, params).any()
    assert float(error.mean()) < 0.015
    assert float(error[250:].max()) < 0.01
    assert float(rewards.sum(0).min()) > 480


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "hover"}, InvalidValueError, "reference hovers and has a radius or a period"),
        ({"period": None}, InvalidValueError, "circle without radius or period"),
        ({"radius": 1.2}, InvalidValueError, "reference reaches from -0.2 to 2.2 m in z"),
        ({"kind": "square"}, InvalidValueError, "reference.kind is 'square'"),
        ({"raduis": 1.0}, UnknownNameError, r"Did you mean 'reference.radius'.*radius \[m\]"),
    ],
)
def test_a_wrong_reference_is_named(own_task, change, error, message):
    folder = own_task("quadrotor_planar", lambda content: content["reference"].update(change))
    with pytest.raises(error, match=message):
        load_plant(folder)
