"""The quadrotor in space: rigid-body motion against exact results, its waypoints, and a controller that flies it."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import solve_discrete_are
from scipy.spatial.transform import Rotation

from robust_policies.envs import gradient, load_plant
from robust_policies.envs.plants import rotation
from robust_policies.errors import InvalidValueError, UnknownNameError

PLANT = load_plant("quadrotor")
J = np.array([1.4e-5, 1.4e-5, 2.17e-5])


def starts(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, PLANT.reset_size, generator=generator, dtype=dtype)
    return PLANT.initial(uniform, PLANT.nominal(dtype=dtype))


def thrusts(count, seed=0, dtype=torch.float64):
    return 0.15 * torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def state(p=(0.0, 0.0, 1.0), q=(1.0, 0.0, 0.0, 0.0), v=(0.0, 0.0, 0.0), omega=(0.0, 0.0, 0.0), clock=0.0):
    return torch.tensor([*p, *q, *v, *omega, clock], dtype=torch.float64)


def turned(values):
    """Return the attitudes of states as SciPy's rotations."""
    return Rotation.from_quat(np.asarray(values)[..., 3:7], scalar_first=True)


def quaternion(vector):
    """Return the quaternion of a rotation vector (3,) as one tensor."""
    return torch.stack(rotation.from_rotation_vector(vector.unbind(-1)))


def coast(values, steps, params):
    for _ in range(steps):
        values = PLANT.advance(values, torch.zeros(*values.shape[:-1], 4), params)
    return values


def drifting():
    """Return the parameters without gravity and drag."""
    return PLANT.nominal() | {
        "gravity": torch.tensor(0.0, dtype=torch.float64),
        "drag": torch.tensor(0.0, dtype=torch.float64),
    }


def hover(params):
    return (params["mass"] * params["gravity"] / 4).unsqueeze(-1).expand(*params["mass"].shape, 4)


def test_quaternions_agree_with_scipy():
    vectors = 3.0 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quaternions = rotation.from_rotation_vector(vectors.unbind(-1))
    exact = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    matrices = torch.stack(rotation.matrix(quaternions), dim=-1).reshape(-1, 3, 3)
    np.testing.assert_allclose(matrices, exact, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.stack(rotation.vertical(quaternions), dim=-1), matrices[:, :, 2])
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert quaternion(zero).tolist() == [1.0, 0.0, 0.0, 0.0]
    jacobian = torch.autograd.functional.jacobian(quaternion, zero)
    np.testing.assert_allclose(jacobian, np.vstack((np.zeros(3), 0.5 * np.eye(3))), rtol=0, atol=1e-15)


def test_the_hover_thrust_keeps_the_quadrotor_where_it_is():
    params = PLANT.nominal() | {"mass": torch.tensor([0.02, 0.027, 0.04], dtype=torch.float64)}
    yawed = Rotation.from_euler("z", 1.0).as_quat(scalar_first=True)
    before = state(p=(0.3, -0.2, 1.2), q=yawed).expand(3, 14)
    after = PLANT.advance(before, hover(params), params)
    torch.testing.assert_close(after[:, :13], before[:, :13], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("motor", "signs"), [(0, (-1, -1, -1)), (1, (-1, 1, 1)), (2, (1, 1, -1)), (3, (1, -1, 1))])
def test_each_motor_turns_the_body_as_its_place_and_spin_say(motor, signs):
    params = PLANT.nominal() | {"drag": torch.tensor(0.0, dtype=torch.float64)}
    action = hover(params).clone()
    action[motor] += 1e-4
    after = PLANT.advance(state(), action, params)
    lever = 0.0397 / math.sqrt(2)
    expected = np.array(signs) * 1e-4 * np.array([lever, lever, 0.025127]) / J * 0.02
    np.testing.assert_allclose(after[10:13], expected, rtol=1e-4)
    assert float(after[9]) == pytest.approx(1e-4 / 0.027 * 0.02, rel=1e-3)


def test_a_step_solves_the_equations_of_motion_written_with_rotation_matrices():
    lever, ratio, m, drag = 0.0397 / math.sqrt(2), 0.025127, 0.027, 0.0056
    mixer = np.array([[-lever, -lever, lever, lever], [-lever, lever, lever, -lever], [-ratio, ratio, -ratio, ratio]])
    finer = load_plant("quadrotor")
    finer.substeps = 40
    for before, action in zip(starts(5), thrusts(5), strict=True):
        lift, torque = float(action.sum()), mixer @ action.numpy()

        def derivative(_, s, lift=lift, torque=torque):
            R, v, omega = s[3:12].reshape(3, 3), s[12:15], s[15:]
            a, b, c = omega
            spin = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
            acceleration = lift / m * R[:, 2] - [0, 0, 9.81] - drag / m * v
            return np.concatenate((v, (R @ spin).ravel(), acceleration, (torque - np.cross(omega, J * omega)) / J))

        begin = np.concatenate((before[:3], turned(before).as_matrix().ravel(), before[7:13]))
        exact = solve_ivp(derivative, (0, 0.02), begin, rtol=1e-12, atol=1e-12).y[:, -1]
        for plant, tolerance in ((PLANT, 1e-4), (finer, 1e-9)):
            after = plant.advance(before, action, plant.nominal())
            assert float(after[3:7].norm()) == pytest.approx(1.0, abs=1e-15)
            given = np.concatenate((after[:3], turned(after).as_matrix().ravel(), after[7:13]))
            np.testing.assert_allclose(given, exact, rtol=0, atol=tolerance)


# The phase error of a Runge-Kutta step of h seconds is 2 (pi h)^5 / 120 rad at one turn a second.
@pytest.mark.parametrize(
    ("axis", "substeps", "tolerance"),
    [
        (1, 2, 3e-7),
        (2, 2, 3e-7),
        pytest.param(0, 2, 3e-7, marks=pytest.mark.soak),
        pytest.param(1, 10, 1e-9, marks=pytest.mark.soak),
    ],
)
def test_a_constant_body_rate_turns_several_times_about_its_axis_through_every_attitude(axis, substeps, tolerance):
    plant = load_plant("quadrotor")
    plant.substeps = substeps
    rates = np.zeros(3)
    rates[axis] = 2 * math.pi
    now, params = state(omega=rates), drifting()
    for step in range(1, 201):
        now = plant.advance(now, torch.zeros(4), params)
        # Four turns; about y that is through a pitch of 90 degrees, where Euler angles are singular.
        exact = Rotation.from_rotvec(rates * step * 0.02).as_matrix()
        np.testing.assert_allclose(turned(now).as_matrix(), exact, rtol=0, atol=tolerance)
        np.testing.assert_allclose(plant.observe(now, params)[3:12].reshape(3, 3), exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(now[10:13], rates, rtol=0, atol=1e-12)


def test_a_symmetric_body_precesses_as_the_exact_solution_says():
    # R(t) = exp(t [L / I1]) R(0) exp(t (1 - I3 / I1) omega3 [e3]) with L the constant angular momentum in the world.
    omega = np.array([3.0, -2.0, 5.0])
    begin = Rotation.from_rotvec([0.4, 1.1, -0.3])
    now, params = state(q=begin.as_quat(scalar_first=True), omega=omega), drifting()
    momentum = begin.apply(J * omega)
    for step in range(1, 151):
        now = coast(now, 1, params)
        t = 0.02 * step
        own = Rotation.from_rotvec([0, 0, t * (1 - J[2] / J[0]) * omega[2]])
        exact = Rotation.from_rotvec(t * momentum / J[0]) * begin * own
        np.testing.assert_allclose(turned(now).as_matrix(), exact.as_matrix(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(now[10:13], exact.inv().apply(momentum) / J, rtol=0, atol=1e-6)


def test_torque_free_motion_of_an_unsymmetric_body_keeps_angular_momentum_and_energy():
    params = drifting() | {"inertia_y": torch.tensor(1.8e-5, dtype=torch.float64)}
    inertia = np.array([1.4e-5, 1.8e-5, 2.17e-5])
    now = starts(16)
    now[:, 10:13] = 4.0 * torch.randn(16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    momentum = turned(now).apply(inertia * now[:, 10:13].numpy())
    energy = PLANT.energy(now, params)
    now = coast(now, 200, params)
    scale = np.linalg.norm(momentum, axis=-1).max()
    np.testing.assert_allclose(turned(now).apply(inertia * now[:, 10:13].numpy()), momentum, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(PLANT.energy(now, params), energy, rtol=1e-5, atol=0)


def test_energy_is_conserved_without_thrust_and_drag():
    params = PLANT.nominal() | {"drag": torch.tensor(0.0, dtype=torch.float64)}
    now = starts(16)
    energy = PLANT.energy(now, params)
    torch.testing.assert_close(PLANT.energy(coast(now, 100, params), params), energy, rtol=1e-9, atol=0)


def test_drag_slows_the_quadrotor_exponentially():
    params = drifting() | {"drag": torch.tensor(0.0056, dtype=torch.float64)}
    now = coast(state(v=(1.0, -0.5, 0.2)), 50, params)
    expected = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) * math.exp(-0.0056 / 0.027)
    torch.testing.assert_close(now[7:10], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("dtype", "steps", "tolerance"),
    [
        (torch.float32, 500, 1e-6),
        pytest.param(torch.float64, 500, 1e-12, marks=pytest.mark.soak),
        pytest.param(torch.float32, 4000, 1e-6, marks=pytest.mark.soak),
        pytest.param(torch.float64, 4000, 1e-12, marks=pytest.mark.soak),
    ],
)
def test_random_actions_leave_everything_finite_within_limits_even_without_resets(dtype, steps, tolerance):
    params = PLANT.nominal(dtype=dtype)
    now, generator = starts(64, dtype=dtype), torch.Generator().manual_seed(1)
    high = torch.as_tensor(PLANT.observation_high, dtype=dtype)
    within = torch.ones(64, dtype=torch.bool)
    longest = torch.zeros(64, dtype=dtype)
    with torch.inference_mode():
        for _ in range(steps):
            action = 0.15 * torch.rand(64, 4, generator=generator, dtype=dtype)
            now, observation, reward, _ = gradient.transition(PLANT, now, action, params)
            within &= ((observation.abs() <= high) & observation.isfinite()).all(-1) & (reward >= 0) & (reward <= 1)
            longest = longest.maximum((now[:, 3:7].norm(dim=-1) - 1).abs())
    assert within.all()
    assert float(longest.max()) <= tolerance


def test_full_throttle_on_one_motor_saturates_the_body_rates_and_stays_finite():
    now, params = starts(4), PLANT.nominal()
    action = torch.tensor([0.15, 0.0, 0.0, 0.0], dtype=torch.float64).expand(4, 4)
    for _ in range(500):
        now = PLANT.advance(now, action, params)
    assert now.isfinite().all()
    assert now[:, 10:13].abs().amax(-1).tolist() == [100.0] * 4


def test_a_quaternion_and_its_negative_are_the_same_attitude():
    params, action = PLANT.nominal(), thrusts(8)
    one = starts(8)
    other = one.clone()
    other[:, 3:7] *= -2.0
    for given, expected in zip(
        gradient.step(PLANT, other, action, params)[1:], gradient.step(PLANT, one, action, params)[1:], strict=True
    ):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(PLANT.observe(other, params), PLANT.observe(one, params), rtol=0, atol=1e-12)


def test_a_disturbance_is_a_force_in_the_world_and_a_torque_in_the_body():
    params = drifting()
    sideways = Rotation.from_euler("x", 90, degrees=True).as_quat(scalar_first=True)
    push = torch.tensor([0.01, -0.02, 0.03, 0.0, 0.0, 0.0], dtype=torch.float64)
    after = PLANT.advance(state(q=sideways), torch.zeros(4), params, disturbance=push)
    torch.testing.assert_close(after[7:10], push[:3] * 0.02 / 0.027, rtol=1e-12, atol=0)
    twist = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1e-6], dtype=torch.float64)
    after = PLANT.advance(state(q=sideways), torch.zeros(4), params, disturbance=twist)
    np.testing.assert_allclose(after[10:13], [0.0, 0.0, 1e-6 * 0.02 / J[2]], rtol=1e-12)


def test_the_observation_holds_errors_rotation_and_velocities():
    attitude = Rotation.from_rotvec([0.3, -0.2, 0.9])
    now = state((0.1, 0.2, 1.5), attitude.as_quat(scalar_first=True), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), clock=3.0)
    observation = PLANT.observe(now, PLANT.nominal())
    expected = [-0.4, 0.2, 0.5, *attitude.as_matrix().ravel(), 1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_waypoints_change_at_their_steps_whatever_the_clocks_rounding(dtype):
    params, now, wanted = PLANT.nominal(dtype=dtype), state().to(dtype), []
    for _ in range(501):
        wanted.append(PLANT.reference(now[13]).tolist())
        now = PLANT.advance(now, hover(params), params)
    exact = [[0, 0, 1]] * 125 + [[0.5, 0, 1]] * 125 + [[0.5, 0.5, 1.4]] * 125 + [[0, 0, 1]] * 126
    np.testing.assert_allclose(wanted, exact, rtol=0, atol=1e-7)


def test_the_reward_is_one_for_perfect_hovering_and_never_below_zero():
    params = PLANT.nominal()
    assert PLANT.reward(state(), hover(params), state(clock=0.02), params) == 1.0
    attitude = Rotation.from_rotvec([0.6, 0.0, 0.8]).as_quat(scalar_first=True)
    far = state((0.1, 0.2, 0.8), attitude, (1.0, 0.0, 2.0), (3.0, 0.0, 1.0))
    cost = 10 * 0.09 + 0.2 * 5 + 0.5 * 2 * (1 - math.cos(1.0)) + 0.002 * 10 + 4 * (0.15 - 0.027 * 9.81 / 4) ** 2
    reward = PLANT.reward(state(), torch.full((4,), 0.15, dtype=torch.float64), far, params)
    assert float(reward) == pytest.approx(1 / (1 + cost), rel=1e-12)
    assert PLANT.reward(state(), hover(params), state(p=(1e6, 0.0, 0.0)), params) > 0


@pytest.mark.parametrize(
    "outside",
    [{"p": (2.1, 0.0, 1.0)}, {"p": (0.0, -2.1, 1.0)}, {"p": (0.0, 0.0, -0.1)}, {"p": (0.0, 0.0, 3.1)},
     {"omega": (math.nan, 0.0, 0.0)}, {"q": (math.nan, 0.0, 0.0, 0.0)}],
)  # fmt: skip
def test_an_episode_ends_outside_the_box_and_at_nan(outside):
    assert PLANT.terminated(state(**outside), PLANT.nominal())
    assert not PLANT.terminated(state(p=(1.9, -1.9, 2.9), q=(0.0, 1.0, 0.0, 0.0)), PLANT.nominal())


def test_start_states_lie_about_the_first_waypoint():
    begin = starts(4000, seed=5)
    assert not PLANT.terminated(begin, PLANT.nominal()).any()
    torch.testing.assert_close(begin[:, 3:7].norm(dim=-1), torch.ones(4000, dtype=torch.float64), rtol=0, atol=1e-14)
    vectors = torch.from_numpy(turned(begin).as_rotvec())
    spread = torch.cat((begin[:, :3] - state()[:3], vectors, begin[:, 7:13]), dim=-1).abs()
    half = torch.tensor([0.2] * 3 + [0.5] * 3 + [0.2] * 3 + [0.5] * 3, dtype=torch.float64)
    assert (spread <= half + 1e-12).all() and (spread.amax(0) >= 0.95 * half).all()
    assert (begin[:, 13] == 0).all()


def test_gradients_flow_to_state_action_parameters_and_disturbance():
    nominal = PLANT.nominal()
    names = sorted(nominal)
    # The finite difference's step would exceed inertias in kg m^2 and forces in N.
    scale = {name: 1e-5 if name.startswith("inertia") else 1.0 for name in names}

    def run(before, action, push, *values):
        params = {name: value * scale[name] for name, value in zip(names, values, strict=True)}
        return gradient.step(PLANT, before, action, params, disturbance=push * 1e-4)[:3]

    push = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = (starts(2), 0.02 + 0.7 * thrusts(2), push, *(nominal[name] / scale[name] for name in names))
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
            torch.testing.assert_close(row[i], one, rtol=1e-13, atol=1e-13)


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


def regulator(params):
    """Return the gain of the discrete-time LQR about hovering on (p, rotation vector, v, omega)."""

    def away(error):
        return torch.cat((error[:3], quaternion(error[3:6]), error[6:], error.new_zeros(1)))

    def back(values):
        return torch.cat((values[:3], 2.0 * values[4:7], values[7:13]))

    level, still = hover(params), torch.zeros(12, dtype=torch.float64)
    A = torch.func.jacrev(lambda error: back(PLANT.advance(away(error), level, params)))(still).numpy()
    B = torch.func.jacrev(lambda action: back(PLANT.advance(away(still), action, params)))(level).numpy()
    Q, R = np.diag([10.0] * 3 + [1.0] * 6 + [0.01] * 3), 200.0 * np.eye(4)
    P = solve_discrete_are(A, B, Q, R)
    return torch.from_numpy(np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A))


def test_lqr_flies_from_waypoint_to_waypoint():
    params = PLANT.nominal()
    gain, level = regulator(params), hover(params)

    def policy(observation, _):
        R = observation[..., 3:12].unflatten(-1, (3, 3))
        # The vector part of the rotation matrix: the rotation vector, while it is small.
        skew = 0.5 * (R - R.mT)
        tilt = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), dim=-1)
        return level - torch.cat((observation[..., :3], tilt, observation[..., 12:]), dim=-1) @ gain.mT

    with torch.inference_mode():
        states, _, rewards = gradient.rollout(PLANT, starts(64, seed=7), policy, params, PLANT.max_episode_steps)
        error = PLANT.observe(states, params)[..., :3].norm(dim=-1)
    assert not PLANT.terminated(states, params).any()
    assert float(error.mean()) < 0.13
    assert float(error[[124, 249, 374, 500]].max()) < 0.005
    assert float(rewards.sum(0).min()) > 410


def test_a_hover_task_needs_one_position(own_task):
    def hovering(content):
        content["reference"] = {"kind": "hover", "positions": [[0.1, 0.2, 1.3]]}

    plant = load_plant(own_task("quadrotor", hovering))
    assert plant.reference(torch.tensor([0.0, 9.0])).tolist() == [pytest.approx([0.1, 0.2, 1.3])] * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "hover"}, InvalidValueError, "reference hovers with 4 positions and times"),
        ({"times": None}, InvalidValueError, r"times is \[\]; expected 4 rising times from 0"),
        ({"times": [0.0, 2.0, 2.0, 3.0]}, InvalidValueError, "expected 4 rising times"),
        ({"times": [1.0, 2.0, 3.0, 4.0]}, InvalidValueError, "rising times from 0"),
        ({"positions": [[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 9]]}, InvalidValueError, r"holds \[0.0, 0.0, 9.0\]"),
        ({"positions": [[0, 0]]}, InvalidValueError, "reference.positions.0.2 is missing"),
        ({"postions": []}, UnknownNameError, r"Did you mean 'reference.positions'.*positions \[m\]"),
    ],
)
def test_a_wrong_reference_is_named(own_task, change, error, message):
    folder = own_task("quadrotor", lambda content: content["reference"].update(change))
    with pytest.raises(error, match=message):
        load_plant(folder)
