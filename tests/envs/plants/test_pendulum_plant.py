"""Our pendulum is Gymnasium's Pendulum-v1."""

import gymnasium
import numpy as np
import pytest
import torch

import robust_policies.envs  # noqa: F401
from robust_policies.envs import TorchVectorEnv, load_plant
from robust_policies.errors import InvalidValueError

OURS, THEIRS = "robust_policies/Pendulum-v0", "Pendulum-v1"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_gymnasium_step_by_step_through_resets(dtype):
    ours, theirs = gymnasium.make(OURS), gymnasium.make(THEIRS)
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    rng = np.random.default_rng(3)
    observation, expected = ours.reset(seed=11)[0], theirs.reset(seed=11)[0]
    np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-6)
    ends = 0
    for _ in range(1300):
        action = rng.uniform(-3, 3, 1).astype(dtype)
        observation, reward, *flags, _ = ours.step(action)
        expected, expected_reward, *expected_flags, _ = theirs.step(action)
        np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-6)
        assert observation.dtype == expected.dtype
        assert abs(reward - expected_reward) < 1e-6
        assert flags == expected_flags
        if flags[1]:
            ends += 1
            np.testing.assert_allclose(ours.reset()[0], theirs.reset()[0], rtol=0, atol=1e-6)
    assert ends == 6


def test_the_vectorized_pendulum_agrees_with_gymnasiums_vectorized_one():
    ours = gymnasium.make_vec(OURS, num_envs=5)
    theirs = gymnasium.make_vec(
        THEIRS, 5, vectorization_mode="sync", vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    )
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(ours.reset(seed=4)[0].numpy(), theirs.reset(seed=4)[0], rtol=0, atol=1e-6)
    for _ in range(410):
        action = rng.uniform(-2, 2, (5, 1)).astype(np.float32)
        observation, reward, terminated, truncated, info = ours.step(torch.as_tensor(action))
        expected = theirs.step(action)
        np.testing.assert_allclose(observation.numpy(), expected[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(reward.numpy(), expected[1], rtol=1e-6, atol=1e-6)
        assert np.array_equal(terminated.numpy(), expected[2])
        assert np.array_equal(truncated.numpy(), expected[3])
        assert ("final_obs" in info) == ("final_obs" in expected[4])
        if "final_obs" in info:
            np.testing.assert_allclose(info["final_obs"].numpy(), np.stack(expected[4]["final_obs"]), rtol=0, atol=1e-6)


def test_reset_options_are_gymnasiums():
    ours, theirs = gymnasium.make(OURS), gymnasium.make(THEIRS)
    options = {"x_init": 0.3, "y_init": 0.1}
    np.testing.assert_allclose(
        ours.reset(seed=1, options=options)[0], theirs.reset(seed=1, options=options)[0], rtol=0, atol=1e-6
    )


def test_gradients_flow_through_the_plant():
    plant = load_plant("pendulum")
    generator = torch.Generator().manual_seed(0)
    # Away from the clipped speeds and torques, and from the angle where the wrapped one jumps.
    state = (torch.rand(6, 2, generator=generator, dtype=torch.float64) - 0.5).mul(4.0).requires_grad_()
    action = (torch.rand(6, 1, generator=generator, dtype=torch.float64) - 0.5).requires_grad_()
    params = {name: value.requires_grad_() for name, value in plant.nominal().items()}
    names = sorted(params)

    def run(state, action, *values):
        given = dict(zip(names, values, strict=True))
        following = plant.advance(state, action, given)
        return following, plant.observe(following, given), plant.reward(state, action, following, given)

    inputs = (state, action, *(params[name] for name in names))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_every_environment_may_have_its_own_mass():
    env = TorchVectorEnv("pendulum", 3)
    env.reset(seed=0, options={"state": np.zeros((3, 2))})
    env.params["mass"] = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    env.step(torch.ones(3, 1))
    torch.testing.assert_close(env.state[:, 1], 3.0 / env.params["mass"] * 0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_with_parameters_of_its_own_equals_a_loop(dtype):
    plant = load_plant("pendulum")
    generator = torch.Generator().manual_seed(0)
    state, action = torch.randn(6, 2, generator=generator).to(dtype), torch.randn(6, 1, generator=generator).to(dtype)
    factors = torch.rand(3, 6, generator=generator, dtype=torch.float64) + 0.5
    params = {name: value * factor for (name, value), factor in zip(plant.nominal().items(), factors, strict=True)}
    together = plant.advance(state, action, params)
    assert together.dtype == plant.observe(together, params).dtype == dtype
    for row in range(6):
        alone = plant.advance(state[row], action[row], {name: value[row] for name, value in params.items()})
        torch.testing.assert_close(together[row], alone, rtol=1e-5 if dtype is torch.float32 else 1e-14, atol=1e-6)


@pytest.mark.parametrize("task", ["pendulum", "pendulum_no_velocity"])
def test_one_graph_holds_a_whole_step(task):
    plant = load_plant(task)
    params, state, action = plant.nominal(), torch.ones(6, 2, dtype=torch.float64), torch.ones(6, 1)

    def run(state, action):
        following = plant.advance(state, action, params)
        return plant.observe(following, params), plant.reward(state, action, following, params)

    traced = torch.compile(run, backend="eager", fullgraph=True)(state, action)
    torch.testing.assert_close(traced, run(state, action))


def test_without_velocity_it_is_the_same_pendulum_seen_through_two_numbers():
    full, partial = load_plant("pendulum"), load_plant("pendulum_no_velocity")
    params, state = full.nominal(), torch.tensor([[0.3, -2.0], [3.0, 7.0]], dtype=torch.float64)
    action = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    following = full.advance(state, action, params)
    assert torch.equal(partial.advance(state, action, partial.nominal()), following)
    rewards = (plant.reward(state, action, following, params) for plant in (full, partial))
    assert torch.equal(*rewards)
    assert torch.equal(partial.observe(following, params), full.observe(following, params)[:, :2])
    assert partial.observation_size == len(partial.output_names) == 2
    assert partial.observation_high.tolist() == [1.0, 1.0] and partial.observation_low.tolist() == [-1.0, -1.0]


def test_a_task_may_list_what_is_observed_in_any_order(own_task):
    plant = load_plant(own_task("pendulum", lambda content: content.update(observed=["speed", "cos"])))
    assert plant.output_names == ("speed [rad/s]", "cos(angle)")
    assert plant.observation_high.tolist() == [8.0, 1.0]
    assert plant.observe(torch.tensor([0.0, 3.0]), {}).tolist() == [3.0, 1.0]
    for wrong, reason in (([], "at least 1"), (["cos", "cos"], "at most once"), (["angle"], "one of cos, sin, speed")):
        with pytest.raises(InvalidValueError, match=reason):
            load_plant(own_task("pendulum", lambda content, wrong=wrong: content.update(observed=wrong), reason[:5]))


def test_energy_stays_bounded_and_converges_with_first_order():
    plant = load_plant("pendulum")
    params = plant.nominal()
    # About hanging, slowly enough for the limit of 8 rad/s never to clip; the energy lies between -5 J and 5 J.
    start = torch.tensor([[np.pi - 0.5, 0.0], [np.pi - 2.0, 0.0], [np.pi, 4.0]], dtype=torch.float64)
    energy, still = plant.energy(start, params), torch.zeros(3, 1, dtype=torch.float64)

    def errors(time_step, seconds):
        plant.time_step = time_step
        state, found = start, []
        for _ in range(round(seconds / time_step)):
            state = plant.advance(state, still, params)
            found.append((plant.energy(state, params) - energy).abs().max())
        assert state[:, 1].abs().max() < plant.limits.speed
        return torch.stack(found)

    # Semi-implicit Euler does not conserve energy: at the task's own step it is off by up to 0.6 J. But it is
    # symplectic, so the error swings and does not grow: in a hundred episodes' time it is what it was in the first ten.
    long = errors(0.05, 1000.0)
    assert 0.01 < long.max() < 1.0
    assert long[len(long) // 10 :].max() < 1.05 * long[: len(long) // 10].max()
    steps = (0.01, 0.005, 0.0025)
    worst = [float(errors(step, 5.0).max()) for step in steps]
    orders = np.log2(np.array(worst[:-1]) / worst[1:])
    np.testing.assert_allclose(orders, 1.0, atol=0.1)
    assert worst[-1] < 0.05


def test_a_torque_is_all_that_changes_the_energy():
    plant = load_plant("pendulum")
    params, state = plant.nominal(), torch.tensor([[0.3, -2.0], [3.0, 4.0]], dtype=torch.float64).requires_grad_()
    torque, push = torch.tensor([[1.0], [-2.0]]).double(), torch.tensor([[0.5], [3.0]]).double()
    (slope,) = torch.autograd.grad(plant.energy(state, params).sum(), state)
    # The change of the speed in a step is the acceleration before it times the step.
    change = (plant.advance(state, torque, params, disturbance=push) - state)[:, 1] / plant.time_step
    power = slope[:, 0] * state[:, 1] + slope[:, 1] * change
    torch.testing.assert_close(power, (torque + push)[:, 0] * state[:, 1])


def test_random_torques_for_4000_steps_leave_everything_finite():
    plant = load_plant("pendulum")
    params, generator = plant.nominal(), torch.Generator().manual_seed(0)
    state = plant.initial(torch.rand(64, 2, generator=generator, dtype=torch.float64), params)
    for action in 6.0 * (torch.rand(4000, 64, 1, generator=generator, dtype=torch.float64) - 0.5):
        following = plant.advance(state, action, params)
        reward = plant.reward(state, action, following, params)
        state = following
    assert torch.isfinite(state).all() and torch.isfinite(reward).all()
    assert state[:, 1].abs().max() <= 8.0


def test_a_picture_shows_the_rod_where_the_angle_says():
    env = gymnasium.make(OURS, render_mode="rgb_array").unwrapped
    env.reset(seed=0, options={"state": [0.0, 0.0]})
    upright = env.render()
    assert upright.shape == (480, 480, 3) and upright.dtype == np.uint8
    env.state = [np.pi / 2, 0.0]
    left = env.render()

    def rod(picture):
        return np.argwhere((picture[..., 0] > 150) & (picture[..., 1] < 120)).mean(0)

    assert rod(upright)[0] < 200 and abs(rod(upright)[1] - 240) < 5
    assert rod(left)[1] < 200 and abs(rod(left)[0] - 240) < 5
