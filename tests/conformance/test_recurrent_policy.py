"""What sb3-contrib asks of its recurrent policies, asked of ours."""

import runpy
import sys

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from robust_policies.policies import (
    RecurrentCellCnnPolicy,
    RecurrentCellMultiInputPolicy,
    RecurrentCellPolicy,
    load_policy,
    save_policy,
)

R2DN = {"cell": "r2dn", "cell_kwargs": {"state_size": 4, "features": 6, "hidden_sizes": (6,)}}
VARIANTS = [
    R2DN,
    {**R2DN, "critic": "shared"},
    {**R2DN, "critic": "mlp"},
    {**R2DN, "share_features_extractor": False},
    {**R2DN, "critic": "mlp", "share_features_extractor": False},
    {**R2DN, "cell_output_size": 5, "critic_kwargs": {"cell": "lstm", "state_size": 8}},
    {"cell": "ren", "cell_kwargs": {"state_size": 4, "features": 4, "gamma": 2.0}},
    {"cell": "lstm", "cell_kwargs": {"state_size": 8}},
    {"cell": "gru", "cell_kwargs": {"state_size": 4}, "critic": "shared"},
    {"cell": "mlp", "cell_kwargs": {"hidden_sizes": (8,)}},
]
# One that has a state of its own and a critic with another, and one without states; the soak has every one.
SOME_VARIANTS = [
    one if one in (R2DN, VARIANTS[1], VARIANTS[-1]) else pytest.param(one, marks=pytest.mark.soak) for one in VARIANTS
]


class PositionsOnly(gymnasium.ObservationWrapper):
    """CartPole without its velocities: not solvable without memory."""

    def __init__(self, env):
        super().__init__(env)
        space = env.observation_space
        self.observation_space = spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=np.float32)

    def observation(self, observation):
        return observation[[0, 2]]


class AsDict(gymnasium.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict({"first": env.observation_space, "again": env.observation_space})

    def observation(self, observation):
        return {"first": observation, "again": observation}


def model_of(policy, env, policy_kwargs, **settings):
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu", **settings}
    return RecurrentPPO(policy, env, policy_kwargs=policy_kwargs, **settings)


def test_the_environment_is_valid():
    check_env(PositionsOnly(gymnasium.make("CartPole-v1")))


@pytest.mark.parametrize("policy_kwargs", VARIANTS)
@pytest.mark.parametrize("env", ["CartPole-v1", pytest.param("Pendulum-v1", marks=pytest.mark.soak)])
def test_it_trains_on_vectors(env, policy_kwargs):
    model = model_of(RecurrentCellPolicy, env, policy_kwargs).learn(48)
    assert all(bool(torch.isfinite(p).all()) for p in model.policy.parameters())


@pytest.mark.parametrize("policy_kwargs", SOME_VARIANTS)
def test_it_trains_on_images(policy_kwargs):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3)
    policy_kwargs = {**policy_kwargs, "features_extractor_kwargs": {"features_dim": 16}}
    model = model_of(RecurrentCellCnnPolicy, env, policy_kwargs).learn(32)
    assert model.num_timesteps == 32


@pytest.mark.parametrize("policy_kwargs", SOME_VARIANTS)
def test_it_trains_on_dicts(policy_kwargs):
    env = make_vec_env("CartPole-v1", n_envs=2, wrapper_class=AsDict)
    model = model_of(RecurrentCellMultiInputPolicy, env, policy_kwargs).learn(64)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    assert mean >= 1


def test_it_trains_with_state_dependent_exploration(tmp_path):
    settings = {"use_sde": True, "sde_sample_freq": 4, "clip_range_vf": 0.1}
    model = model_of(RecurrentCellPolicy, "Pendulum-v1", R2DN, **settings).learn(100)
    assert model.policy.use_sde and model.predict(np.zeros(3))[0].shape == (1,)
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model", device="cpu")
    observation = np.ones(3, np.float32)
    expected = model.predict(observation, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    save_policy(model, tmp_path)
    np.testing.assert_array_equal(load_policy(tmp_path).predict(observation, deterministic=True)[0], expected)


@pytest.mark.parametrize("policy_kwargs", SOME_VARIANTS)
def test_the_same_seed_trains_the_same_weights(policy_kwargs):
    first, second = (
        model_of(RecurrentCellPolicy, "CartPole-v1", policy_kwargs).learn(48).get_parameters()["policy"]
        for _ in range(2)
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("policy_kwargs", VARIANTS)
@pytest.mark.parametrize("use_sde", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_model_and_policy_survive_save_and_load(policy_kwargs, use_sde, tmp_path):
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    model = model_of(RecurrentCellPolicy, env, policy_kwargs, use_sde=use_sde).learn(64)
    observations = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)

    def actions(predictor):
        state, taken = None, []
        for t, observation in enumerate(observations):
            action, state = predictor.predict(observation, state, np.array([t == 3, False]), deterministic=True)
            taken.append(action)
        return np.stack(taken)

    expected = actions(model)
    model.save(tmp_path / "model")
    loaded = RecurrentPPO.load(tmp_path / "model", env=env, device="cpu")
    np.testing.assert_array_equal(actions(loaded), expected)
    loaded.learn(32)
    model.policy.save(tmp_path / "policy")
    np.testing.assert_array_equal(actions(RecurrentCellPolicy.load(tmp_path / "policy", device="cpu")), expected)
    save_policy(model, tmp_path)
    np.testing.assert_array_equal(actions(load_policy(tmp_path)), expected)


def test_training_mode_is_set_and_left_as_upstream_does():
    model = model_of(RecurrentCellPolicy, "CartPole-v1", R2DN).learn(32)
    assert model.policy.training
    model.predict(np.zeros(4))
    assert not model.policy.training


def zoo_yaml(path):
    settings = {
        "n_timesteps": 64,
        "policy": "robust_policies.policies.RecurrentCellPolicy",
        "n_steps": 16,
        "batch_size": 16,
        "n_envs": 2,
        "policy_kwargs": "dict(cell='r2dn', cell_kwargs=dict(state_size=4, features=4, hidden_sizes=(4,), gamma=5.0))",
    }
    path.write_text(yaml.safe_dump({"Pendulum-v1": settings}))
    return path


@pytest.mark.slow
def test_rl_zoo_trains_it_by_its_dotted_name(tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    command = ["train.py", "--algo", "ppo_lstm", "--env", "Pendulum-v1", "--eval-freq", "-1"]
    command += ["-conf", str(zoo_yaml(tmp_path / "zoo.yml")), "-f", str(tmp_path / "logs"), "--device", "cpu"]
    # In this process: another one's imports take longer than the training.
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(tmp_path)
    runpy.run_module("rl_zoo3.train", run_name="__main__")
    saved = list((tmp_path / "logs").rglob("Pendulum-v1.zip"))
    assert len(saved) == 1
    assert load_policy(saved[0], allow_pickle=True).certificate().status == "PASS"


@pytest.mark.soak
def test_it_learns_cartpole_without_velocities():
    torch.set_num_threads(1)

    def make():
        return TimeLimit(PositionsOnly(gymnasium.make("CartPole-v1").unwrapped), 500)

    policy_kwargs = {
        "cell": "r2dn",
        "cell_kwargs": {"state_size": 16, "features": 16, "hidden_sizes": (16,)},
        "observation_scale": [1.0, 0.1],
        "net_arch": {"vf": [64]},
    }
    settings = {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "gae_lambda": 0.95, "learning_rate": 2e-3}
    env, held_out = (VecNormalize(make_vec_env(make, n, seed=n), norm_obs=False, norm_reward=n == 8) for n in (8, 4))
    stop = StopTrainingOnRewardThreshold(450)
    callback = EvalCallback(held_out, callback_on_new_best=stop, n_eval_episodes=8, eval_freq=512, verbose=0)
    model = model_of(RecurrentCellPolicy, env, policy_kwargs, **settings).learn(60_000, callback)
    mean, _ = evaluate_policy(model, held_out, n_eval_episodes=20, warn=False)
    assert mean >= 400


@pytest.mark.slow
def test_it_learns_to_balance_a_pole():
    torch.set_num_threads(1)
    policy_kwargs = {
        "cell": "r2dn",
        "cell_kwargs": {"state_size": 4, "features": 8, "hidden_sizes": (8,), "gamma": 10.0},
        "observation_scale": [1.0, 0.5, 0.1, 0.5],
        "critic": "mlp",
        "net_arch": {"vf": [32]},
    }
    settings = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "learning_rate": 1e-2}
    env = VecNormalize(make_vec_env("CartPole-v1", 8, seed=0), norm_obs=False, gamma=0.98)
    held_out = make_vec_env("CartPole-v1", 8, seed=1000)
    model = model_of(RecurrentCellPolicy, env, policy_kwargs, **{**settings, "n_epochs": 10})
    before, _ = evaluate_policy(model, held_out, n_eval_episodes=16, warn=False)
    model.learn(5120)
    after, _ = evaluate_policy(model, held_out, n_eval_episodes=16, warn=False)
    assert before < 30
    assert after >= 150
    assert model.policy.certificate().status == "PASS"


@pytest.mark.soak
def test_it_learns_pendulum():
    torch.set_num_threads(1)
    policy_kwargs = {
        "cell": "r2dn",
        "cell_kwargs": {"state_size": 8, "features": 16, "hidden_sizes": (16,), "gamma": 10.0},
        "observation_scale": [1.0, 1.0, 4.0],
        "action_scale": 2.0,
        "critic": "mlp",
        "net_arch": {"vf": [64, 64]},
    }
    settings = {"n_steps": 200, "batch_size": 800, "n_epochs": 10, "gamma": 0.9, "learning_rate": 3e-3}
    env = VecNormalize(make_vec_env("Pendulum-v1", 16, seed=0), norm_obs=False, gamma=0.9)
    held_out = make_vec_env("Pendulum-v1", 10, seed=1000)
    enough = StopTrainingOnRewardThreshold(-250)
    frozen = VecNormalize(held_out, norm_obs=False, norm_reward=False, training=False)
    callback = EvalCallback(frozen, callback_on_new_best=enough, n_eval_episodes=20, eval_freq=800, verbose=0)
    model = model_of(RecurrentCellPolicy, env, policy_kwargs, **settings).learn(160_000, callback)
    mean, _ = evaluate_policy(model, held_out, n_eval_episodes=40, warn=False)
    assert mean >= -350
    assert model.policy.certificate().status == "PASS"
