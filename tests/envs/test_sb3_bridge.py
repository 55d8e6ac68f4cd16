"""The bridge says to Stable-Baselines3 what its own DummyVecEnv with a Monitor says."""

import importlib

import gymnasium
import numpy as np
import pytest
import torch
from kinds import of_each_kind
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from robust_policies.envs import ENV_IDS, SB3VecEnv, TorchVectorEnv, make_sb3_vec_env
from robust_policies.errors import InvalidValueError, UnknownNameError, UserError

PENDULUM, LINEAR = "robust_policies/Pendulum-v0", "robust_policies/Linear-v0"
LIMIT = 20


@pytest.mark.parametrize("env_id", of_each_kind(ENV_IDS))
def test_says_what_sb3s_own_says(env_id):
    limit = {"max_episode_steps": LIMIT}
    ours = make_sb3_vec_env(env_id, 3, seed=5, env_kwargs=limit)
    theirs = make_vec_env(env_id, n_envs=3, seed=5, env_kwargs=limit)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    np.testing.assert_allclose(ours.reset(), theirs.reset(), atol=1e-6)
    space = theirs.action_space
    space.seed(0)
    lengths = []
    for _ in range(2 * LIMIT + 5):
        actions = np.stack([space.sample() for _ in range(3)])
        observation, rewards, dones, infos = ours.step(actions)
        expected = theirs.step(actions)
        np.testing.assert_allclose(observation, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(rewards, expected[1], rtol=1e-5, atol=1e-6)
        assert rewards.dtype == np.float32 and np.array_equal(dones, expected[2])
        for done, info, other in zip(dones, infos, expected[3], strict=True):
            assert info.get("TimeLimit.truncated", False) == other["TimeLimit.truncated"]
            assert set(info) == ({"terminal_observation", "TimeLimit.truncated", "episode"} if done else set())
            if done:
                last = other["terminal_observation"]
                np.testing.assert_allclose(info["terminal_observation"], last, rtol=1e-5, atol=1e-6)
                assert info["episode"]["l"] == other["episode"]["l"]
                assert info["episode"]["r"] == pytest.approx(other["episode"]["r"], rel=1e-5, abs=1e-4)
                lengths.append(info["episode"]["l"])
    assert len(lengths) >= 6 and max(lengths) <= LIMIT and (max(lengths) == LIMIT or ours.env.plant.terminates)


def test_a_termination_is_not_a_truncation(own_task):
    def change(content):
        content["limits"]["state"] = [0.5, 10.0]
        content["noise"] = {}

    env = SB3VecEnv(TorchVectorEnv(own_task("linear", change), 2))
    env.set_options({"state": np.array([[0.49, 3.0], [0.0, 0.0]])})
    env.reset()
    _, _, dones, infos = env.step(np.zeros((2, 1), np.float32))
    assert dones.tolist() == [True, False]
    assert infos[0]["TimeLimit.truncated"] is False and infos[0]["episode"]["l"] == 1
    assert infos[0]["terminal_observation"][0] > 0.5 and infos[1] == {}


def test_infos_are_not_shared():
    env = make_sb3_vec_env(PENDULUM, 4, seed=0)
    env.reset()
    _, _, _, infos = env.step(np.zeros((4, 1), np.float32))
    infos[0]["mine"] = 1
    assert infos[1] == {} and all(info == {} for info in env.step(np.zeros((4, 1), np.float32))[3])


def test_seeds_are_used_once():
    env = make_sb3_vec_env(PENDULUM, 2, seed=3)
    first, second = env.reset(), env.reset()
    env.seed(3)
    assert np.array_equal(env.reset(), first) and not np.array_equal(first, second)


def test_sb3_trains_and_evaluates_on_it():
    model = PPO("MlpPolicy", make_sb3_vec_env(PENDULUM, 4, seed=0), n_steps=256, n_epochs=1, batch_size=256, seed=0)
    model.learn(1024)
    assert len(model.ep_info_buffer) == 4
    mean, _ = evaluate_policy(model, make_sb3_vec_env(PENDULUM, 2, seed=0), n_eval_episodes=2)
    assert -2000 < mean < 0
    wrapped = VecNormalize(VecMonitor(make_sb3_vec_env(LINEAR, 2, seed=0)))
    wrapped.reset()
    assert wrapped.step(np.zeros((2, 1), np.float32))[0].shape == (2, 1)


def test_other_ids_give_sb3s_own():
    env = make_sb3_vec_env("CartPole-v1", 2, seed=0)
    assert isinstance(env, DummyVecEnv) and env.num_envs == 2
    assert np.array_equal(env.reset()[1], gymnasium.make("CartPole-v1").reset(seed=1)[0])


def test_an_own_task_goes_through(own_task):
    folder = own_task("linear", lambda content: content.update(max_episode_steps=3))
    env = make_sb3_vec_env("robust_policies/Linear-v0", 2, seed=0, env_kwargs={"task": str(folder)})
    env.reset()
    dones = [env.step(np.zeros((2, 1), np.float32))[2].all() for _ in range(3)]
    assert dones == [False, False, True]


def test_wrong_input_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'robust_policies/Pendulum-v0'"):
        make_sb3_vec_env("robust_policies/Pendulm-v0")
    with pytest.raises(UnknownNameError, match="Did you mean 'CartPole-v1'"):
        make_sb3_vec_env("CartPol-v1")
    with pytest.raises(InvalidValueError, match="num_envs is 0"):
        make_sb3_vec_env(PENDULUM, 0)
    with pytest.raises(InvalidValueError, match="NEXT_STEP; expected SAME_STEP"):
        SB3VecEnv(TorchVectorEnv("pendulum", 2, autoreset_mode="NEXT_STEP"))
    env = make_sb3_vec_env(PENDULUM, 2, seed=0)
    with pytest.raises(InvalidValueError, match="step_async"):
        env.step_wait()
    env.reset()
    with pytest.raises(UserError, match="shape"):
        env.step(np.zeros((3, 1), np.float32))
    with pytest.raises(UserError, match="NaN"):
        env.step(np.full((2, 1), np.nan, np.float32))
    assert torch.isfinite(env.env.state).all()


def test_the_bridge_has_its_earlier_name_too():
    earlier = importlib.import_module("robust_policies.envs.sb3")
    assert earlier.make_sb3_vec_env is make_sb3_vec_env and earlier.SB3VecEnv is SB3VecEnv
