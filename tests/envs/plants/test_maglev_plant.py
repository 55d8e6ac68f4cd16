"""The levitated ball: equilibrium, energy balance and stops."""

import numpy as np
import pytest
import scipy.linalg
import torch

from robust_policies.envs import load_plant
from robust_policies.envs.plants.integrate import rk4
from robust_policies.errors import InvalidValueError


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_point(count=6):
    """States and voltages away from every limit, and from the stops for the whole step."""
    low, high = torch.tensor([0.03, -0.5, 2.0]).double(), torch.tensor([0.07, 0.5, 10.0]).double()
    return low + (high - low) * uniform(count, 3), 1.0 + 13.0 * uniform(count, 1, seed=1)


def held(plant, params):
    current, voltage = plant.equilibrium(params)
    position = torch.full_like(current, plant.setpoint)
    return torch.stack((position, torch.zeros_like(current), current), dim=-1), voltage.unsqueeze(-1)


def test_the_equilibrium_is_a_fixed_point_also_of_other_parameters():
    plant = load_plant("maglev")
    current, voltage = plant.equilibrium(plant.nominal())
    # The force balance of the published numbers, m g = L0 a i^2 / (2 (a + z)^2), and R = 1 ohm.
    assert float(current) == pytest.approx((2 * 0.1 * 9.81 * 0.1**2 / (0.01 * 0.05)) ** 0.5, abs=1e-12)
    assert float(voltage) == float(current) == pytest.approx(6.264, abs=1e-3)
    each = {name: value * (0.7 + 0.6 * uniform(20, seed=i)) for i, (name, value) in enumerate(plant.nominal().items())}
    for params in (plant.nominal(), each):
        state, action = held(plant, params)
        assert (action > 0.0).all() and (action < plant.limits.voltage).all()
        torch.testing.assert_close(plant.advance(state, action, params), state, rtol=0, atol=1e-12)
        assert plant.reward(state, action, state, params).abs().max() < 1e-20


def test_the_equilibrium_is_unstable_in_one_mode():
    plant = load_plant("maglev")
    params = plant.nominal()
    state, action = held(plant, params)
    modes = torch.linalg.eigvals(torch.autograd.functional.jacobian(plant.derivative(action, params), state))
    assert sorted((modes.real > 0.0).tolist()) == [False, False, True]
    assert modes.imag.abs().max() == 0.0


def test_the_energy_changes_by_the_power_of_source_resistance_friction_and_disturbance():
    plant = load_plant("maglev")
    params = {name: value * (0.5 + uniform(20, seed=i)) for i, (name, value) in enumerate(plant.nominal().items())}
    state, action = smooth_point(20)
    push = uniform(20, 1, seed=2) - 0.5
    state = state.requires_grad_()
    (slope,) = torch.autograd.grad(plant.energy(state, params).sum(), state)
    change = (slope * plant.derivative(action, params, push)(state)).sum(-1)
    _, speed, current = state.unbind(-1)
    source = action[:, 0] * current - params["resistance"] * current**2
    ball = push[:, 0] * speed - params["friction"] * speed**2
    torch.testing.assert_close(change, source + ball, rtol=0, atol=1e-11)


def test_over_a_step_the_energy_balance_closes_to_fourth_order():
    plant = load_plant("maglev")
    params = plant.nominal()
    start, action = smooth_point(20)
    change = plant.derivative(action, params)

    def both(state):
        _, speed, current = state[..., :3].unbind(-1)
        power = action[:, 0] * current - params["resistance"] * current**2 - params["friction"] * speed**2
        return torch.cat((change(state[..., :3]), power.unsqueeze(-1)), dim=-1)

    def gap(substeps):
        plant.substeps = substeps
        following, supplied = plant.advance(start, action, params), torch.cat((start, torch.zeros(20, 1)), dim=-1)
        supplied = rk4(both, supplied, plant.time_step, substeps)
        torch.testing.assert_close(supplied[:, :3], following, rtol=0, atol=1e-14)
        stored = plant.energy(following, params) - plant.energy(start, params)
        return float((stored - supplied[:, 3]).abs().max())

    gaps = [gap(substeps) for substeps in (1, 2, 4)]
    # Energies of about 1 J; the shipped number of substeps is the last.
    assert gaps[2] < 1e-7
    assert np.log2(gaps[0] / gaps[1]) == pytest.approx(4.0, abs=0.3)
    assert np.log2(gaps[1] / gaps[2]) == pytest.approx(4.0, abs=0.3)


def test_the_ball_falls_on_the_lower_stop_and_stays_there():
    plant = load_plant("maglev")
    params, off = plant.nominal(), torch.zeros(1, dtype=torch.float64)
    state = torch.tensor([0.05, 0.0, 0.0], dtype=torch.float64)
    for step in range(1, 60):
        state = plant.advance(state, off, params)
        if step == 10:
            # Free fall but for the friction, whose share is below 1e-5 m here.
            assert float(state[0]) == pytest.approx(0.05 + 0.5 * 9.81 * 0.05**2, abs=1e-5)
    assert state.tolist() == [0.1, 0.0, 0.0]


def test_the_ball_hits_the_magnet_sticks_and_leaves_it_again():
    plant = load_plant("maglev")
    params, state = plant.nominal(), torch.tensor([0.05, 0.0, 6.0], dtype=torch.float64)
    for _ in range(60):
        state = plant.advance(state, torch.full((1,), 15.0, dtype=torch.float64), params)
        assert float(state[0]) >= 0.0
    assert state[:2].tolist() == [0.0, 0.0] and float(state[2]) > 12.0
    for _ in range(60):
        state = plant.advance(state, torch.zeros(1, dtype=torch.float64), params)
    assert float(state[0]) > 0.01


def test_a_stop_takes_only_the_speed_towards_it():
    plant = load_plant("maglev")
    params, off = plant.nominal(), torch.zeros(1, dtype=torch.float64)
    rising = plant.advance(torch.tensor([0.1, -0.5, 0.0], dtype=torch.float64), off, params)
    assert float(rising[0]) < 0.1 and float(rising[1]) == pytest.approx(-0.5 + 9.81 * 0.005, abs=1e-4)


@pytest.mark.parametrize("steps", [500, pytest.param(4000, marks=pytest.mark.soak)])
def test_random_voltages_stay_within_the_stops(steps):
    plant = load_plant("maglev")
    params = plant.nominal()
    state, total = plant.initial(uniform(64, 3), params), torch.zeros(64, dtype=torch.float64)
    lowest, highest = state, state
    for action in 20.0 * uniform(steps, 64, 1, seed=1) - 2.5:
        following = plant.advance(state, action, params)
        total += plant.reward(state, action, following, params)
        state = following
        lowest, highest = torch.minimum(lowest, state), torch.maximum(highest, state)
    assert torch.isfinite(state).all() and torch.isfinite(total).all()
    assert lowest[:, 0].min() == 0.0 and highest[:, 0].max() == 0.1
    # A voltage that is never negative drives no negative current.
    assert lowest[:, 2].min() >= 0.0 and highest[:, 2].max() < 50.0


def test_a_linear_regulator_holds_the_ball_from_every_start():
    plant = load_plant("maglev")
    params = plant.nominal()
    state, action = held(plant, params)
    A, B = torch.autograd.functional.jacobian(lambda x, u: plant.advance(x, u, params), (state, action))
    cost = scipy.linalg.solve_discrete_are(A.numpy(), B.numpy(), np.diag([1000.0, 1.0, 0.01]), [[0.001]])
    weighed = B.T @ torch.as_tensor(cost)
    gain = torch.linalg.solve(0.001 + weighed @ B, weighed @ A)
    moving = plant.initial(uniform(300, 3), params)
    for _ in range(plant.max_episode_steps):
        moving = plant.advance(moving, action - (moving - state) @ gain.T, params)
    assert (moving[:, 0] - plant.setpoint).abs().max() < 5e-3


def test_actions_observations_and_starts_have_the_stated_ranges():
    plant = load_plant("maglev")
    params, (state, _) = plant.nominal(), smooth_point(2)
    assert plant.action_low.tolist() == [0.0] and plant.action_high.tolist() == [15.0]
    for given, clipped in ((-3.0, 0.0), (40.0, 15.0)):
        beyond, limit = (torch.full((2, 1), value, dtype=torch.float64) for value in (given, clipped))
        torch.testing.assert_close(
            plant.advance(state, beyond, params), plant.advance(state, limit, params), rtol=0, atol=0
        )
    noise = torch.tensor([[1.0, -2.0], [3.0, -4.0]], dtype=torch.float64)
    torch.testing.assert_close(plant.observe(state, params), state[:, [0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(plant.observe(state, params, noise), state[:, [0, 2]] + 1e-3 * noise)
    heavy = {**params, "mass": params["mass"] * torch.tensor([1.0, 1.2], dtype=torch.float64)}
    corners = plant.initial(torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64), heavy)
    currents = plant.equilibrium(heavy)[0]
    torch.testing.assert_close(corners[:, :2], torch.tensor([[0.02, -0.1], [0.08, 0.1]], dtype=torch.float64))
    torch.testing.assert_close(corners[:, 2], currents)


def test_a_setpoint_beyond_the_stop_is_refused(own_task):
    with pytest.raises(InvalidValueError, match=r"setpoint is 0.2 m; expected less than limits.position, 0.1 m"):
        load_plant(own_task("maglev", lambda content: content.update(setpoint=0.2)))


def test_gradients_flow_through_step_observation_and_reward():
    plant = load_plant("maglev")
    state, action = smooth_point(3)
    names, values = zip(*plant.nominal().items(), strict=True)

    def run(state, action, push, *values):
        params = plant.prepare(dict(zip(names, values, strict=True)))
        following = plant.advance(state, action, params, disturbance=push)
        return following, plant.observe(following, params), plant.reward(state, action, following, params)

    given = (state, action, 0.1 * torch.ones_like(action), *values)
    assert torch.autograd.gradcheck(run, [value.clone().requires_grad_() for value in given])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_with_parameters_of_its_own_equals_a_loop(dtype):
    plant = load_plant("maglev")
    state, action = (value.to(dtype) for value in smooth_point())
    params = {name: value * (0.5 + uniform(6, seed=3)) for name, value in plant.nominal().items()}
    together = plant.advance(state, action, plant.prepare(params))
    rewards = plant.reward(state, action, together, params)
    assert together.dtype == plant.observe(together, params).dtype == rewards.dtype == dtype
    for row in range(6):
        own = plant.prepare({name: value[row] for name, value in params.items()})
        alone = plant.advance(state[row], action[row], own)
        tolerance = 1e-5 if dtype is torch.float32 else 1e-13
        torch.testing.assert_close(together[row], alone, rtol=tolerance, atol=tolerance)
        reward = plant.reward(state[row], action[row], alone, own)
        torch.testing.assert_close(rewards[row], reward, rtol=tolerance, atol=tolerance)


def test_one_graph_holds_a_whole_step():
    plant = load_plant("maglev")
    params, (state, action), noise = plant.nominal(), smooth_point(), uniform(6, 2)

    def run(state, action):
        following = plant.advance(state, action, params)
        return plant.observe(following, params, noise), plant.reward(state, action, following, params)

    traced = torch.compile(run, backend="eager", fullgraph=True)(state, action)
    torch.testing.assert_close(traced, run(state, action))
