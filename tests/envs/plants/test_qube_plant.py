"""The rotary pendulum obeys Lagrange's equations of the geometry it claims, and can be balanced."""

import numpy as np
import pytest
import scipy.linalg
import torch

from robust_policies.envs import load_plant

STILL = torch.zeros(1, dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_point(count=6, seed=0):
    """States and voltages away from every limit."""
    scale = torch.tensor([6.0, 6.0, 20.0, 20.0], dtype=torch.float64)
    return (uniform(count, 4, seed=seed) - 0.5) * scale, (uniform(count, 1, seed=seed + 1) - 0.5) * 30.0


def frictionless(plant):
    losses = ("arm_damping", "pendulum_damping", "back_emf_constant")
    return {name: value * (name not in losses) for name, value in plant.nominal().items()}


def place(angles, along, params, rod):
    """Where a point of the arm or pendulum is, `along` metres from its pivot."""
    arm, pendulum = angles
    outwards, around = torch.stack((arm.cos(), arm.sin())), torch.stack((-arm.sin(), arm.cos()))
    if rod == "arm":
        return torch.cat((along * outwards, torch.zeros(1, dtype=torch.float64)))
    level = params["arm_length"] * outwards + along * pendulum.sin() * around
    return torch.cat((level, (along * pendulum.cos()).reshape(1)))


def lagrangian(angles, speeds, params):
    """Kinetic minus potential energy of two uniform rods, from the positions of their points alone."""
    energy = torch.zeros((), dtype=torch.float64)
    # Two Gauss points integrate the squares of speeds that are linear along a rod exactly.
    for rod in ("arm", "pendulum"):
        mass, length = params[f"{rod}_mass"], params[f"{rod}_length"]
        for node in (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5):

            def point(angles, along=node * length, rod=rod):
                return place(angles, along, params, rod)

            velocity = torch.func.jvp(point, (angles,), (speeds,))[1]
            energy = energy + 0.5 * mass * (0.5 * velocity @ velocity - params["gravity"] * point(angles)[2])
    return energy


def accelerations(angles, speeds, torques, params):
    """Solve d/dt dL/dq' - dL/dq = torques for q'', every derivative by autograd."""
    momentum = torch.func.grad(lagrangian, argnums=1)
    mass = torch.func.jacfwd(momentum, argnums=1)(angles, speeds, params)
    change = torch.func.jvp(lambda q: momentum(q, speeds, params), (angles,), (speeds,))[1]
    force = torch.func.grad(lagrangian)(angles, speeds, params)
    return torch.linalg.solve(mass, torques + force - change)


@pytest.mark.parametrize("seed", range(10))
def test_the_accelerations_are_those_of_the_lagrangian(seed):
    plant = load_plant("qube_servo")
    params = {name: value * (0.5 + uniform(1, seed=seed)[0]) for name, value in plant.nominal().items()}
    (state,), (voltage,) = smooth_point(1, seed=seed)
    push = (uniform(2, seed=seed + 2) - 0.5) * 0.1
    angles, speeds = state[:2], state[2:]
    current = (voltage[0] - params["back_emf_constant"] * speeds[0]) / params["resistance"]
    damping = torch.stack((params["arm_damping"], params["pendulum_damping"])) * speeds
    motor = torch.stack((params["torque_constant"] * current, torch.zeros((), dtype=torch.float64)))
    expected = accelerations(angles, speeds, motor + push - damping, params)
    rate = plant.derivative(voltage, plant.prepare(params), push)(state)
    torch.testing.assert_close(rate[:2], speeds, rtol=0, atol=0)
    torch.testing.assert_close(rate[2:], expected, rtol=1e-9, atol=1e-9)


def test_energy_without_losses_and_voltage_is_kept_to_fourth_order():
    plant = load_plant("qube_servo")
    params = frictionless(plant)
    start = torch.tensor([[0.0, 0.5, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0], [0.0, -1.0, 3.0, 10.0]], dtype=torch.float64)
    energy = plant.energy(start, params)

    def drift(substeps):
        plant.substeps = substeps
        state, worst = start, 0.0
        for _ in range(75):
            state = plant.advance(state, STILL, params)
            worst = max(worst, float((plant.energy(state, params) - energy).abs().max()))
        return worst

    drifts = [drift(substeps) for substeps in (4, 8, 16)]
    # Energies of about 0.02 J over 1.5 s, the shipped number of substeps first.
    assert drifts[0] < 5e-7 and drifts[1] < 2e-8
    assert np.log2(drifts[1] / drifts[2]) == pytest.approx(4.0, abs=0.3)


def test_the_losses_and_the_motor_are_all_that_changes_the_energy():
    plant = load_plant("qube_servo")
    params = plant.nominal()
    state, voltage = smooth_point(20)
    push = (uniform(20, 2, seed=2) - 0.5) * 0.1
    state = state.requires_grad_()
    (slope,) = torch.autograd.grad(plant.energy(state, params).sum(), state)
    change = (slope * plant.derivative(voltage, params, push)(state)).sum(-1)
    turning, tilting = state[:, 2], state[:, 3]
    motor = 0.042 * (voltage[:, 0] - 0.042 * turning) / 8.4
    power = (motor + push[:, 0] - 0.0015 * turning) * turning + (push[:, 1] - 0.0005 * tilting) * tilting
    torch.testing.assert_close(change, power, rtol=0, atol=1e-12)


def test_upright_has_one_unstable_mode_and_hanging_none():
    plant = load_plant("qube_servo")
    rate = plant.derivative(STILL, plant.nominal())
    for angle, unstable in ((0.0, 1), (torch.pi, 0)):
        state = torch.tensor([0.0, angle, 0.0, 0.0], dtype=torch.float64)
        assert rate(state).abs().max() < 1e-12
        modes = torch.linalg.eigvals(torch.autograd.functional.jacobian(rate, state)).real
        assert int((modes > 1e-6).sum()) == unstable
        # The arm's angle itself is the one mode that neither grows nor decays.
        assert int((modes.abs() <= 1e-6).sum()) == 1


def test_a_linear_regulator_balances_it_from_moderate_angles():
    plant = load_plant("qube_servo")
    params, upright = plant.nominal(), torch.zeros(4, dtype=torch.float64)
    A, B = torch.autograd.functional.jacobian(lambda x, u: plant.advance(x, u, params), (upright, STILL))
    cost = scipy.linalg.solve_discrete_are(A.numpy(), B.numpy(), np.diag([1.0, 5.0, 0.01, 0.01]), [[0.01]])
    weighed = B.T @ torch.as_tensor(cost)
    gain = torch.linalg.solve(0.01 + weighed @ B, weighed @ A)
    state = 0.5 * plant.initial(uniform(200, 4), params)
    for _ in range(plant.max_episode_steps):
        state = plant.advance(state, -state @ gain.T, params)
    assert state[:, 1].abs().max() < 0.02


def test_the_noise_has_the_stated_sizes():
    plant = load_plant("qube_servo")
    params = plant.nominal()
    assert (plant.process_noise_size, plant.measurement_noise_size) == (4, 2)
    (state,), (voltage,) = smooth_point(1)
    noise = torch.tensor([1.0, -2.0, 3.0, -4.0], dtype=torch.float64)
    shaken = plant.advance(state, voltage, params, noise) - plant.advance(state, voltage, params)
    torch.testing.assert_close(shaken, 0.01 * noise)
    torch.testing.assert_close(plant.observe(state, params, noise[:2]), state[:2] + 0.01 * noise[:2])
    assert plant.observe(state, params).shape == (2,)


def test_the_voltage_is_clipped_and_the_reward_is_the_quadratic_cost():
    plant = load_plant("qube_servo")
    params, state = plant.nominal(), torch.tensor([0.5, -0.2, 3.0, -4.0], dtype=torch.float64)
    strong, limit = STILL + 35.0, STILL + 20.0
    torch.testing.assert_close(
        plant.advance(state, strong, params), plant.advance(state, limit, params), rtol=0, atol=0
    )
    expected = -(1.0 * 0.25 + 5.0 * 0.04 + 0.01 * 9.0 + 0.01 * 16.0 + 0.01 * 400.0)
    assert float(plant.reward(state, strong, state, params)) == pytest.approx(expected, abs=1e-12)
    assert float(plant.reward(0.0 * state, STILL, state, params)) == 0.0


def test_starts_fill_the_stated_box():
    plant = load_plant("qube_servo")
    corners = plant.initial(torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64), plant.nominal())
    half = torch.tensor([0.5, 0.5, 0.2, 0.2], dtype=torch.float64)
    torch.testing.assert_close(corners, torch.stack((-half, half)))


def test_gradients_flow_through_step_observation_and_reward():
    plant = load_plant("qube_servo")
    state, voltage = smooth_point(3)
    names, values = zip(*plant.nominal().items(), strict=True)

    def run(state, voltage, push, *values):
        params = plant.prepare(dict(zip(names, values, strict=True)))
        following = plant.advance(state, voltage, params, disturbance=push)
        return following, plant.observe(following, params), plant.reward(state, voltage, following, params)

    # Lower speeds: one step of the fastest tumbling is too curved for the finite differences of the check.
    given = (0.3 * state, voltage, 0.01 * torch.ones(3, 2, dtype=torch.float64), *values)
    assert torch.autograd.gradcheck(run, [value.clone().requires_grad_() for value in given])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_with_parameters_of_its_own_equals_a_loop(dtype):
    plant = load_plant("qube_servo")
    state, voltage = (value.to(dtype) for value in smooth_point())
    params = {name: value * (0.5 + uniform(6, seed=3)) for name, value in plant.nominal().items()}
    together = plant.advance(state, voltage, plant.prepare(params))
    assert together.dtype == plant.observe(together, params).dtype == dtype
    assert plant.reward(state, voltage, together, params).dtype == dtype
    for row in range(6):
        own = plant.prepare({name: value[row] for name, value in params.items()})
        alone = plant.advance(state[row], voltage[row], own)
        tolerance = 1e-5 if dtype is torch.float32 else 1e-13
        torch.testing.assert_close(together[row], alone, rtol=tolerance, atol=tolerance)


def test_one_graph_holds_a_whole_step():
    plant = load_plant("qube_servo")
    params, (state, voltage) = plant.nominal(), smooth_point()
    process, encoders = uniform(6, 4), uniform(6, 2)

    def run(state, voltage):
        following = plant.advance(state, voltage, params, process)
        return plant.observe(following, params, encoders), plant.reward(state, voltage, following, params)

    traced = torch.compile(run, backend="eager", fullgraph=True)(state, voltage)
    torch.testing.assert_close(traced, run(state, voltage))


@pytest.mark.parametrize("steps", [500, pytest.param(4000, marks=pytest.mark.soak)])
def test_random_voltages_leave_everything_finite(steps):
    plant = load_plant("qube_servo")
    params = plant.nominal()
    state, total = plant.initial(uniform(64, 4), params), torch.zeros(64, dtype=torch.float64)
    for voltage in 60.0 * (uniform(steps, 64, 1, seed=1) - 0.5):
        following = plant.advance(state, voltage, params)
        total += plant.reward(state, voltage, following, params)
        state = following
    assert torch.isfinite(state).all() and torch.isfinite(total).all()
    # Twenty volts turn the arm at 58 rad/s for good; nothing here turns much faster.
    assert state[:, 2:].abs().max() < 200.0
