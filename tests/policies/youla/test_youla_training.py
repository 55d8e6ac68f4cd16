"""Stable-Baselines3 trains on the wrapped environments as they are, and what it learnt runs outside them."""

import gymnasium
import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from youla_cases import batch, task

from robust_policies.envs.bridges.sb3 import SB3VecEnv
from robust_policies.policies import RecurrentCellPolicy, YoulaPolicy, YoulaWrapper, load_policy, save_policy
from robust_policies.train import TensorRecurrentPPO

CELL = {
    "cell": "r2dn",
    "cell_kwargs": {"state_size": 4, "features": 4, "hidden_sizes": (6,), "gamma": 5.0},
    "net_arch": [8],
}


def single(name="DoubleIntegrator"):
    return YoulaWrapper(gymnasium.make(task(name), max_episode_steps=20), limit=0.5)


def many(name="DoubleIntegrator"):
    return SB3VecEnv(batch(name, 4, dtype="float32", steps=20, limit=0.5))


@pytest.mark.parametrize("make", [single, many])
@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3])
def test_mlp_policies_learn_on_it_and_run_outside(make, algorithm, tmp_path):
    options = {"n_steps": 32, "batch_size": 32, "n_epochs": 1} if algorithm is PPO else {"learning_starts": 20}
    model = algorithm("MlpPolicy", make(), seed=0, device="cpu", policy_kwargs={"net_arch": [16, 16]}, **options)
    model.learn(100)
    wrapped, plain = single(), gymnasium.make(task("DoubleIntegrator"), max_episode_steps=20)
    save_policy(YoulaPolicy.of(wrapped, model), tmp_path)
    policy = load_policy(tmp_path)
    seen, _ = wrapped.reset(seed=7)
    observation, _ = plain.reset(seed=7)
    state = None
    for _ in range(20):
        youla, _ = model.predict(seen, deterministic=True)
        assert wrapped.action_space.contains(youla) and np.abs(youla).max() > 0
        action, state = policy.predict(observation, state)
        seen, reward, _, _, info = wrapped.step(youla)
        observation, other, *_ = plain.step(action)
        # Stable-Baselines3 unscales squashed actions in another order.
        np.testing.assert_allclose(info["applied_input"], action, rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(other, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("make", [single, many])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_recurrent_r2dn_learns_on_it_and_runs_outside(make, normalized, tmp_path):
    env = make_vec_env(make, 2, seed=0) if make is single else make()
    env = VecNormalize(env) if normalized else env
    model = RecurrentPPO(
        RecurrentCellPolicy, env, policy_kwargs=CELL, n_steps=24, batch_size=24, n_epochs=1, seed=0, device="cpu",
        learning_rate=0.01,
    ).learn(200)  # fmt: skip
    save_policy(YoulaPolicy.of(env, model), tmp_path)
    policy = load_policy(tmp_path)
    wrapped = single()
    plain = gymnasium.make(task("DoubleIntegrator"), max_episode_steps=20)
    seen, _ = wrapped.reset(seed=7)
    observation, _ = plain.reset(seed=7)
    state = hidden = None
    moved = False
    for t in range(20):
        given = env.normalize_obs(seen) if normalized else seen
        youla, hidden = model.predict(given, hidden, episode_start=np.array([t == 0]), deterministic=True)
        action, state = policy.predict(observation, state, episode_start=[t == 0])
        seen, _, _, _, info = wrapped.step(youla)
        observation, *_ = plain.step(action)
        if normalized:
            # VecNormalize rounds to float32 before the policy reads it; a stored normaliser does not.
            np.testing.assert_allclose(info["applied_input"], action, rtol=1e-5, atol=1e-6)
        else:
            assert np.array_equal(info["applied_input"].astype(np.float32), action)
        moved |= bool(np.abs(youla).max() > 0)
    assert moved


def test_the_tensor_rollouts_work_on_it():
    model = TensorRecurrentPPO(
        RecurrentCellPolicy, many("QubeServo"), policy_kwargs=CELL, n_steps=20, batch_size=40, n_epochs=1, seed=0,
        device="cpu",
    ).learn(160)  # fmt: skip
    assert YoulaPolicy.of(model.get_env(), model).policy.certificate().status == "PASS"
