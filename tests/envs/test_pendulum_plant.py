"""Our pendulum is Gymnasium's Pendulum-v1."""

import gymnasium
import numpy as np
import pytest
import torch

import robust_policies.envs  # noqa: F401
from robust_policies.envs import TorchVectorEnv, load_plant

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
        following = plant.step(state, action, given)
        return following, plant.observe(following, given), plant.reward(state, action, given)

    inputs = (state, action, *(params[name] for name in names))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_every_environment_may_have_its_own_mass():
    env = TorchVectorEnv("pendulum", 3)
    env.reset(seed=0, options={"state": np.zeros((3, 2))})
    env.params["mass"] = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    env.step(torch.ones(3, 1))
    torch.testing.assert_close(env.state[:, 1], 3.0 / env.params["mass"] * 0.05)


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
