"""Our cart-pole is Gymnasium's CartPole-v1; continuous force, swing-up and the mechanics behind all three."""

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs import load_plant
from robust_policies.errors import InvalidValueError, UnknownNameError

TASKS = ["cartpole", "cartpole_continuous", "cartpole_swingup"]


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_point(plant, count=6):
    """States and forces away from every limit."""
    scale = torch.tensor([1.0, 2.0, 0.3, 2.0], dtype=torch.float64)
    return (uniform(count, 4) - 0.5) * scale, (uniform(count, 1, seed=1) - 0.5) * 10.0


def with_substeps(plant, substeps):
    plant.integration = plant.integration.model_copy(update={"substeps": substeps})
    return plant


def test_episodes_of_random_forces_are_gymnasiums_in_float64():
    plant, theirs = load_plant("cartpole"), gymnasium.make("CartPole-v1").unwrapped
    params, rng = plant.nominal(), np.random.default_rng(5)
    steps = 0
    for seed in range(80):
        theirs.reset(seed=seed)
        state = torch.as_tensor(theirs.state)
        ended = False
        while not ended:
            choice = int(rng.integers(2))
            action = torch.as_tensor(plant.discrete_actions[choice])
            following = plant.advance(state, action, params)
            reward = plant.reward(state, action, following, params)
            _, expected_reward, ended, _, _ = theirs.step(choice)
            np.testing.assert_allclose(following.numpy(), theirs.state, rtol=0, atol=1e-10)
            assert float(reward) == expected_reward
            assert bool(plant.terminated(following, params)) == ended
            state, steps = following, steps + 1
    assert steps > 1000


def test_every_step_of_long_balanced_episodes_is_gymnasiums():
    plant, theirs = load_plant("cartpole"), gymnasium.make("CartPole-v1").unwrapped
    params, rng = plant.nominal(), np.random.default_rng(6)
    steps = 0
    for seed in range(4):
        theirs.reset(seed=seed)
        for _ in range(500):
            before = theirs.state.copy()
            leaning = before @ [0.1, 0.3, 1.0, 0.4] > 0
            choice = int(leaning if rng.random() > 0.1 else rng.integers(2))
            ended = theirs.step(choice)[2]
            following = plant.advance(torch.as_tensor(before), torch.as_tensor(plant.discrete_actions[choice]), params)
            np.testing.assert_allclose(following.numpy(), theirs.state, rtol=0, atol=1e-13)
            assert bool(plant.terminated(following, params)) == ended
            steps += 1
            if ended:
                break
    assert steps > 1000


def test_the_environment_is_gymnasiums_through_resets():
    ours, theirs = gymnasium.make("robust_policies/CartPole-v0"), gymnasium.make("CartPole-v1")
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    rng = np.random.default_rng(3)
    observation, expected = ours.reset(seed=11)[0], theirs.reset(seed=11)[0]
    ends = 0
    for _ in range(600):
        np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-6)
        choice = int(rng.integers(2))
        observation, *ending, _ = ours.step(choice)
        expected, *expected_ending, _ = theirs.step(choice)
        assert ending == expected_ending
        if ending[1]:
            ends += 1
            observation, expected = ours.reset()[0], theirs.reset()[0]
    assert ends > 10


def test_the_termination_limits_are_gymnasiums_to_the_last_bit():
    plant, theirs = load_plant("cartpole"), gymnasium.make("CartPole-v1").unwrapped
    assert (plant.limits.position, plant.limits.angle) == (theirs.x_threshold, theirs.theta_threshold_radians)
    edge = torch.tensor([2.4, 0.0, plant.limits.angle, 0.0], dtype=torch.float64)
    inside = torch.stack((edge, -edge))
    outside = torch.nextafter(inside, inside * 2.0)
    assert not plant.terminated(inside, {}).any() and plant.terminated(outside, {}).all()
    assert plant.terminated(torch.full((4,), torch.nan), {})


@pytest.mark.parametrize("options", [None, {"low": -0.1, "high": 0.2}, {"high": 0.01}])
def test_start_states_of_a_seed_are_gymnasiums(options):
    plant, theirs = load_plant("cartpole"), gymnasium.make("CartPole-v1").unwrapped
    for seed in (0, 1, 123):
        theirs.reset(seed=seed, options=options)
        drawn = torch.as_tensor(np.random.default_rng(seed).random((1, 4)))
        assert np.array_equal(plant.initial(drawn, {}, options)[0].numpy(), theirs.state)


def test_the_observation_bounds_are_gymnasiums():
    plant, space = load_plant("cartpole"), gymnasium.make("CartPole-v1").observation_space
    np.testing.assert_array_equal(plant.observation_high.astype(np.float32), space.high)
    np.testing.assert_array_equal(plant.observation_low.astype(np.float32), space.low)
    np.testing.assert_array_equal(plant.discrete_actions, [[-10.0], [10.0]])
    assert load_plant("cartpole_continuous").discrete_actions is None


def test_wrong_reset_options_are_named():
    plant = load_plant("cartpole")
    with pytest.raises(InvalidValueError, match=r"low is 0.1 and high 0.05; expected low <= high"):
        plant.check_options({"low": 0.1})
    with pytest.raises(InvalidValueError, match="reset option high is 'wide'"):
        plant.check_options({"high": "wide"})
    with pytest.raises(UnknownNameError, match="Did you mean 'low'"):
        plant.check_options({"lows": 0.1})


def test_a_reward_that_needs_weights_says_so(own_task):
    folder = own_task("cartpole_swingup", lambda content: content.pop("cost"))
    with pytest.raises(InvalidValueError, match=r"cost is missing; .*reward: swing_up needs"):
        load_plant(folder)


def test_energy_without_force_is_kept_to_fourth_order():
    plant = load_plant("cartpole_swingup")
    params = plant.nominal()
    start = torch.tensor([[0.0, 0.0, 0.5, 0.0], [0.0, 1.0, 2.0, 3.0], [0.0, -1.0, 3.0, 6.0]], dtype=torch.float64)
    energy, still = plant.energy(start, params), torch.zeros(3, 1, dtype=torch.float64)

    def drift(substeps):
        state, worst = start, 0.0
        for _ in range(250):
            state = with_substeps(plant, substeps).advance(state, still, params)
            worst = max(worst, float((plant.energy(state, params) - energy).abs().max()))
        return worst

    drifts = [drift(substeps) for substeps in (2, 4, 8)]
    # Energies of about 1 J over 5 s: the shipped number of substeps, then twice and four times as many.
    assert drifts[0] < 1e-7 and drifts[1] < 1e-8
    assert np.log2(drifts[1] / drifts[2]) == pytest.approx(4.0, abs=0.3)


@pytest.mark.parametrize("task", TASKS)
def test_the_forces_are_all_that_changes_the_energy(task):
    plant = load_plant(task)
    params = plant.nominal()
    state, action = smooth_point(plant, 20)
    push = (uniform(20, 1, seed=2) - 0.5) * 4.0
    state = state.requires_grad_()
    (slope,) = torch.autograd.grad(plant.energy(state, params).sum(), state)
    power = (slope * plant.derivative(action, params, push)(state)).sum(-1)
    torch.testing.assert_close(power, (action + push)[:, 0] * state[:, 1], rtol=0, atol=1e-12)


def test_forces_beyond_the_limit_are_clipped_and_disturbances_are_not():
    plant = load_plant("cartpole_swingup")
    params, (state, _) = plant.nominal(), smooth_point(plant, 3)
    strong = torch.full((3, 1), 25.0, dtype=torch.float64)
    limit = torch.full((3, 1), 10.0, dtype=torch.float64)
    torch.testing.assert_close(
        plant.advance(state, strong, params), plant.advance(state, limit, params), rtol=0, atol=0
    )
    pushed = plant.advance(state, limit, params, disturbance=strong - 20.0)
    assert (pushed - plant.advance(state, limit, params)).abs().min(0).values[1] > 1e-3
    torch.testing.assert_close(pushed, plant.advance(state, 0.5 * limit, params, disturbance=limit))


def test_the_rewards_are_best_upright_in_the_middle_and_never_pay_for_leaving():
    swing_up, balance = load_plant("cartpole_swingup"), load_plant("cartpole_continuous")
    params, still = balance.nominal(), torch.zeros(1, dtype=torch.float64)
    upright, hanging = torch.zeros(4, dtype=torch.float64), torch.tensor([0.0, 0.0, torch.pi, 0.0]).double()
    for plant in (swing_up, balance):
        assert float(plant.reward(upright, still, upright, params)) == 1.0
    assert float(swing_up.reward(hanging, still, hanging, params)) == pytest.approx(0.0, abs=1e-12)
    anywhere = (uniform(500, 4) - 0.5) * torch.tensor([4.8, 10.0, 6.3, 20.0])
    force = (uniform(500, 1, seed=1) - 0.5) * 20.0
    rewards = swing_up.reward(anywhere, force, anywhere, params)
    assert -0.05 <= float(rewards.min()) and float(rewards.max()) < 1.0
    # A hanging pole at rest with no force loses nothing, so leaving the track gains nothing.
    assert float(swing_up.reward(anywhere, 0.0 * force, anywhere, params).min()) >= 0.0
    corner = torch.tensor([2.4, 4.0, 0.2094, 4.0], dtype=torch.float64)
    assert float(balance.reward(corner, still + 10.0, corner, params)) > 0.2


def test_swing_up_starts_hanging_and_ends_only_at_the_ends_of_the_track():
    plant = load_plant("cartpole_swingup")
    start = plant.initial(uniform(1000, 4), plant.nominal())
    assert (start - torch.tensor([0.0, 0.0, torch.pi, 0.0])).abs().max() < 0.0501
    assert not plant.terminated(start, {}).any()
    ends = torch.tensor([[2.41, 0.0, 0.0, 0.0], [-2.41, 0.0, 0.0, 0.0], [2.39, 0.0, 9.0, 0.0]])
    assert plant.terminated(ends, {}).tolist() == [True, True, False]
    seen = plant.observe(torch.tensor([1.0, 2.0, torch.pi / 2, 3.0]), {})
    torch.testing.assert_close(seen, torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0]))


def test_pumping_energy_and_then_balancing_swings_the_pole_up():
    plant = load_plant("cartpole_swingup")
    params = plant.nominal()
    mass, length, gravity = 0.1, 0.5, 9.8
    gain = torch.tensor([3.0, 4.0, 44.0, 10.0], dtype=torch.float64)
    state, total = plant.initial(uniform(50, 4), params), torch.zeros(50, dtype=torch.float64)
    for _ in range(plant.max_episode_steps):
        position, speed, angle, turning = state.unbind(-1)
        wrapped = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
        missing = 2 / 3 * mass * length**2 * turning**2 + mass * gravity * length * (angle.cos() - 1.0)
        pump = 20.0 * missing * turning * angle.cos() - 5.0 * (position + speed)
        balance = torch.stack((position, speed, wrapped, turning), dim=-1) @ gain
        near = (wrapped.abs() < 0.35) & (turning.abs() < 3.0)
        action = torch.where(near, balance, pump).unsqueeze(-1)
        following = plant.advance(state, action, params)
        total += plant.reward(state, action, following, params)
        state = following
        assert not plant.terminated(state, params).any()
    assert float(total.min()) > 410.0


@pytest.mark.parametrize("task", TASKS)
def test_gradients_flow_through_step_observation_and_reward(task):
    plant = load_plant(task)
    state, action = smooth_point(plant)
    names, values = zip(*plant.nominal().items(), strict=True)

    def run(state, action, push, *values):
        params = plant.prepare(dict(zip(names, values, strict=True)))
        following = plant.advance(state, action, params, disturbance=push)
        return following, plant.observe(following, params), plant.reward(state, action, following, params)

    inputs = [value.clone().requires_grad_() for value in (state, action, 0.1 * action, *values)]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_with_parameters_of_its_own_equals_a_loop(task, dtype):
    plant = load_plant(task)
    state, action = (value.to(dtype) for value in smooth_point(plant))
    params = {name: value * (0.5 + uniform(6, seed=3)) for name, value in plant.nominal().items()}
    together = plant.advance(state, action, plant.prepare(params))
    assert together.dtype == plant.observe(together, params).dtype == dtype
    assert plant.reward(state, action, together, params).dtype == dtype
    for row in range(6):
        own = plant.prepare({name: value[row] for name, value in params.items()})
        alone = plant.advance(state[row], action[row], own)
        torch.testing.assert_close(together[row], alone, rtol=1e-6 if dtype is torch.float32 else 1e-14, atol=1e-7)


@pytest.mark.parametrize("task", TASKS)
def test_one_graph_holds_a_whole_step(task):
    plant = load_plant(task)
    params, (state, action) = plant.nominal(), smooth_point(plant)

    def run(state, action):
        following = plant.advance(state, action, params)
        ended = plant.terminated(following, params)
        return plant.observe(following, params), plant.reward(state, action, following, params), ended

    traced = torch.compile(run, backend="eager", fullgraph=True)(state, action)
    torch.testing.assert_close(traced, run(state, action))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("steps", [500, pytest.param(4000, marks=pytest.mark.soak)])
def test_random_forces_leave_everything_finite(task, steps):
    plant = load_plant(task)
    params = plant.nominal()
    state = plant.initial(uniform(64, 4), params)
    forces = 30.0 * (uniform(steps, 64, 1, seed=1) - 0.5)
    total = torch.zeros(64, dtype=torch.float64)
    for action in forces:
        following = plant.advance(state, action, params)
        total += plant.reward(state, action, following, params)
        state = following
    assert torch.isfinite(state).all() and torch.isfinite(total).all()
    # As fast as these forces can turn the pole, and no faster: the integration has not blown up.
    assert state[:, 3].abs().max() < 100.0
