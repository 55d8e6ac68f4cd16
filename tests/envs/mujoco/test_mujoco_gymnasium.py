"""The six MuJoCo tasks are Gymnasium's v5 environments, step by step."""

import gymnasium
import numpy as np
import pytest
import torch

from robust_policies.envs import load_plant

pytestmark = pytest.mark.filterwarnings("ignore:compiler attribute")
TASKS = {
    "inverted_pendulum": "InvertedPendulum-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
    "reacher": "Reacher-v5",
    "hopper": "Hopper-v5",
    "half_cheetah": "HalfCheetah-v5",
    "walker2d": "Walker2d-v5",
}
DOUBLE = "inverted_double_pendulum"
UNIFORM = ("inverted_pendulum", "hopper", "walker2d")
"""Tasks whose start is uniform in Gymnasium, drawn in the same order as ours."""


def put(env, state):
    """Set Gymnasium's environment to a state of ours, without memory of what it did before."""
    model = env.model
    numbers = state[0].numpy()
    env.data.ctrl[:] = 0.0
    env.set_state(numbers[: model.nq], numbers[model.nq : model.nq + model.nv])
    env.data.qacc_warmstart[:] = 0.0


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("steps", [400, pytest.param(1000, marks=pytest.mark.soak)])
def test_agrees_with_gymnasium_over_random_steps(name, steps):
    plant, env = load_plant(name), gymnasium.make(TASKS[name]).unwrapped
    params = plant.prepare(plant.nominal())
    env.reset(seed=0)
    rng = np.random.default_rng(5)
    state, ends, pushed = None, 0, 0
    for step in range(steps):
        if state is None:
            state = plant.initial(torch.as_tensor(rng.random((1, plant.reset_size))), params)
            put(env, state)
            np.testing.assert_allclose(plant.observe(state, params)[0].numpy(), env._get_obs(), rtol=0, atol=1e-6)
        put(env, state)
        action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
        expected, expected_reward, expected_end, _, _ = env.step(action)
        sent = torch.from_numpy(action).unsqueeze(0)
        following = plant.advance(state, sent, params)
        np.testing.assert_allclose(plant.observe(following, params)[0].numpy(), expected, rtol=0, atol=1e-6)
        assert abs(plant.reward(state, sent, following, params).item() - expected_reward) < 1e-6
        assert plant.terminated(following, params).item() == expected_end
        pushed += bool(np.any(env.data.qfrc_constraint))
        ends += expected_end
        state = None if expected_end or (step + 1) % plant.max_episode_steps == 0 else following
    assert (ends > 10) == (name not in {"reacher", "half_cheetah"})
    assert pushed > 0 or name not in {"reacher", "hopper", "half_cheetah", "walker2d"}


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_force_of_the_sliders_limit_is_the_one_gymnasium_reads(own_task, side):
    def unclipped(content):
        content["observation"][-1].pop("clip")

    plant, env = load_plant(own_task("inverted_double_pendulum", unclipped)), gymnasium.make(TASKS[DOUBLE]).unwrapped
    params = plant.prepare(plant.nominal())
    env.reset(seed=0)
    forces = []
    for start in np.linspace(0.9, 1.005, 12):
        state = torch.zeros((1, plant.state_size), dtype=torch.float64)
        state[0, 0], state[0, 3] = side * start, side * 1.0
        put(env, state)
        action = torch.full((1, 1), 0.2 * side)
        env.step(action[0].numpy())
        forces.append(float(env.data.qfrc_constraint[0]))
        seen = plant.observe(plant.advance(state, action, params), params)[0, -1].item()
        assert seen == pytest.approx(forces[-1], rel=1e-6, abs=1e-6)
    assert sum(side * force < -1.0 for force in forces) >= 3
    assert 0.0 in forces


@pytest.mark.parametrize("name", TASKS)
def test_spaces_time_step_and_length_are_gymnasiums(name):
    plant, env = load_plant(name), gymnasium.make(TASKS[name])
    np.testing.assert_array_equal(plant.action_low, env.action_space.low)
    np.testing.assert_array_equal(plant.action_high, env.action_space.high)
    assert (plant.observation_size,) == env.observation_space.shape
    assert plant.time_step == pytest.approx(env.unwrapped.dt, rel=1e-12)
    assert plant.max_episode_steps == env.spec.max_episode_steps


@pytest.mark.parametrize("name", UNIFORM)
def test_a_seed_starts_where_gymnasium_starts(name):
    plant, env = load_plant(name), gymnasium.make(TASKS[name])
    uniform = torch.as_tensor(np.random.default_rng(17).random((1, plant.reset_size)))
    params = plant.prepare(plant.nominal())
    start = plant.observe(plant.initial(uniform, params), params)[0].numpy()
    np.testing.assert_allclose(start, env.reset(seed=17)[0], rtol=0, atol=1e-12)


def test_the_reachers_target_starts_uniformly_in_its_disc_and_stands_still():
    plant = load_plant("reacher")
    grid = torch.rand((4000, plant.reset_size), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = plant.initial(grid, plant.prepare(plant.nominal()))
    radius = state[:, 2:4].norm(dim=-1)
    assert radius.max() <= 0.2
    # Uniform in a disc: a quarter of the targets lie within half the radius (four standard deviations: 0.028).
    assert abs((radius < 0.1).double().mean().item() - 0.25) < 0.03
    assert state[:, 6:8].abs().max() == 0.0
    assert state[:, :2].abs().max() <= 0.1
