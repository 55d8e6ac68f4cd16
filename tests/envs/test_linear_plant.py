"""The linear plant does what its matrices say, also for a task outside the repository."""

import gymnasium
import numpy as np
import torch

import robust_policies.envs  # noqa: F401
from robust_policies.envs import TorchVectorEnv, load_plant

ID = "robust_policies/Linear-v0"


def three_states(content):
    content["parameters"] = {
        "A": [[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.1, 0.0, 0.7]],
        "B": [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]],
        "C": [[1.0, 0.0, 1.0]],
    }
    content["limits"] = {"action": [1.0, 2.0]}
    content["cost"] = {"Q": np.eye(3).tolist(), "R": [[0.1, 0.0], [0.0, 0.2]]}
    content["noise"] = {}
    content["reset"] = {"distribution": "normal", "mean": [1.0, 0.0, -1.0], "spread": [0.1, 0.2, 0.0]}
    content["max_episode_steps"] = 30
    del content["names"]


def test_a_users_own_task_runs_single_and_vectorized_by_its_folder(own_task):
    folder = own_task("linear", three_states)
    single = gymnasium.make(ID, task=str(folder))
    many = gymnasium.make_vec(ID, num_envs=4, task=str(folder))
    assert single.action_space.shape == (2,) and single.observation_space.shape == (1,)
    single.reset(seed=0)
    many.reset(seed=0)
    for step in range(30):
        single_end = single.step(single.action_space.sample())[3]
        many_end = many.step(torch.zeros(4, 2))[3]
        assert single_end == (step == 29) and bool(many_end.all()) == (step == 29)


def test_the_trajectory_is_that_of_the_matrices(own_task):
    env = TorchVectorEnv(own_task("linear", three_states), 2, dtype="float64")
    plant = env.plant
    observation, _ = env.reset(seed=0)
    x = env.state.numpy()
    np.testing.assert_allclose(observation.numpy(), x @ plant.C.T, atol=1e-12)
    for k in range(20):
        u = np.array([[3.0, -3.0], [0.1 * k, -0.5]])
        clipped = np.clip(u, [-1, -2], [1, 2])
        cost = np.einsum("bi,ij,bj->b", x, plant.Q, x) + np.einsum("bi,ij,bj->b", clipped, plant.R, clipped)
        x = x @ plant.A.T + clipped @ plant.B.T
        observation, reward, *_ = env.step(torch.as_tensor(u))
        np.testing.assert_allclose(env.state.numpy(), x, atol=1e-12)
        np.testing.assert_allclose(observation.numpy(), x @ plant.C.T, atol=1e-12)
        np.testing.assert_allclose(reward.numpy(), -cost, atol=1e-12)


def test_the_start_distribution_and_the_noise_have_the_stated_size(own_task):
    def change(content):
        content["noise"] = {"process": [[0.3, 0.0], [0.3, 0.1]], "measurement": [0.5]}
        content["reset"] = {"distribution": "normal", "mean": [2.0, 0.0], "spread": [0.2, 0.0]}

    env = TorchVectorEnv(own_task("linear", change), 20000, dtype="float64")
    observation, _ = env.reset(seed=0)
    start = env.state
    assert abs(start[:, 0].mean() - 2.0) < 0.01 and abs(start[:, 0].std() - 0.2) < 0.01
    assert (start[:, 1] == 0.0).all()
    assert abs((observation - start[:, :1]).std() - 0.5) < 0.02
    observation, *_ = env.step(torch.zeros(20000, 1))
    pushed = env.state - start @ torch.as_tensor(env.plant.A).T
    expected = torch.tensor([[0.09, 0.09], [0.09, 0.10]], dtype=torch.float64)
    assert (pushed.T.cov() - expected).abs().max() < 0.005
    assert abs((observation - env.state[:, :1]).std() - 0.5) < 0.02


def test_leaving_the_state_limits_terminates_and_the_time_limit_truncates(own_task):
    def change(content):
        content["limits"]["state"] = [1.5, 10.0]
        content["max_episode_steps"] = 5
        content["noise"] = {}

    env = TorchVectorEnv(own_task("linear", change), 2, autoreset_mode="SAME_STEP")
    env.reset(seed=0, options={"state": [[1.45, 3.0], [0.0, 0.0]]})
    _, _, terminated, truncated, info = env.step(torch.zeros(2, 1))
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, False]
    assert info["_final_obs"].tolist() == [True, False]
    assert info["final_obs"][0, 0] > 1.5
    for _ in range(4):
        _, _, terminated, truncated, info = env.step(torch.zeros(2, 1))
    assert not terminated.any() and truncated.tolist() == [False, True]


def test_gradients_flow_through_the_plant():
    plant = load_plant("linear")
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    action = torch.rand(5, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(5, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    matrices = plant.nominal()
    names = sorted(matrices)

    def run(state, action, noise, *values):
        params = dict(zip(names, values, strict=True))
        following = plant.step(state, action, params, noise)
        return following, plant.observe(following, params, noise), plant.reward(state, action, params)

    shared = [matrices[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (state, action, noise, *shared))
    own = [matrices[name].detach().expand(5, -1, -1).clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (state, action, noise, *own))


def test_gradients_flow_after_a_run_in_inference_mode():
    env = TorchVectorEnv("linear", 2)
    with torch.inference_mode():
        env.reset(seed=0)
        env.step(torch.zeros(2, 1))
    action = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    following = env.plant.step(env.state, action, env.params)
    env.plant.reward(following, action, env.params).sum().backward()
    assert action.grad is not None and action.grad.abs().sum() > 0
    env.step(torch.zeros(2, 1))


def test_a_picture_has_three_panels():
    env = gymnasium.make(ID, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(10):
        env.step(env.action_space.sample())
        picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    for top in (0, 160, 320):
        assert picture[top : top + 160].reshape(-1, 3).std(0).min() > 1.0
