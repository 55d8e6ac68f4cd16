"""What Stable-Baselines3 asks of a custom features extractor, asked of ours in PPO, SAC and TD3."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from robust_policies.policies import HistoryWrapper, VecHistory, WindowedExtractor

CELL = {"cell": "r2dn", "cell_kwargs": {"state_size": 4, "features": 4, "hidden_sizes": (4,)}, "features_dim": 6}
ALGORITHMS = {
    PPO: {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
    SAC: {"learning_starts": 20, "batch_size": 16, "buffer_size": 200},
    TD3: {"learning_starts": 20, "batch_size": 16, "buffer_size": 200},
}


def model_of(algorithm, env, **policy_kwargs):
    extractor = {"features_extractor_class": WindowedExtractor, "features_extractor_kwargs": CELL, "net_arch": [8]}
    policy_kwargs = {**extractor, **policy_kwargs}
    return algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **ALGORITHMS[algorithm])


def windows(n_envs=1):
    return make_vec_env("Pendulum-v1", n_envs, wrapper_class=HistoryWrapper, wrapper_kwargs={"window": 4}, seed=0)


@pytest.mark.parametrize(
    ("algorithm", "shared"),
    [
        (PPO, True),
        (PPO, False),
        (SAC, False),
        (TD3, True),
        pytest.param(SAC, True, marks=pytest.mark.soak),
        pytest.param(TD3, False, marks=pytest.mark.soak),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_it_trains_its_weights_move_and_survive_save_and_load(algorithm, shared, tmp_path):
    model = model_of(algorithm, windows(), share_features_extractor=shared)
    actor = model.policy if algorithm is PPO else model.policy.actor
    before = {name: value.clone() for name, value in actor.features_extractor.state_dict().items()}
    model.learn(64)
    assert any(not torch.equal(before[name], value) for name, value in actor.features_extractor.state_dict().items())
    observation = model.env.reset()
    action, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)
    evaluate_policy(loaded, windows(), n_eval_episodes=1, warn=False)
    if algorithm is PPO and not shared:
        # Stable-Baselines3's own policy.save forgets share_features_extractor; the model's zip, above, does not.
        return
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(policy.predict(observation, deterministic=True)[0], action)


@pytest.mark.parametrize("algorithm", [PPO, TD3, pytest.param(SAC, marks=pytest.mark.soak)], ids=lambda a: a.__name__)
def test_the_same_seed_trains_the_same_weights(algorithm):
    first, second = (model_of(algorithm, windows()).learn(50).get_parameters()["policy"] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("algorithm", [SAC, TD3], ids=lambda a: a.__name__)
def test_target_networks_follow_the_extractor(algorithm):
    model = model_of(algorithm, windows()).learn(60)
    online, target = model.critic.features_extractor, model.critic_target.features_extractor
    window = torch.randn(3, 4, 4)
    with torch.no_grad():
        before = target(window)
        for source, copy in zip(online.parameters(), target.parameters(), strict=True):
            copy.data.copy_(source.data + 0.1)
        assert not torch.equal(target(window), before)


@pytest.mark.parametrize(
    ("around", "window"),
    [
        (lambda env: VecFrameStack(env, 4), {"window": 4}),
        (lambda env: VecHistory(VecNormalize(env), 4), {}),
    ],
    ids=["stacked frames", "normalised histories"],
)
def test_it_learns_on_windows_that_vector_wrappers_make(around, window):
    model = model_of(PPO, around(make_vec_env("Pendulum-v1", 2)), features_extractor_kwargs={**CELL, **window})
    before = {name: value.clone() for name, value in model.policy.features_extractor.state_dict().items()}
    after = model.learn(64).policy.features_extractor.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


def test_a_window_makes_plain_ppo_see_the_velocity():
    env = HistoryWrapper(gymnasium.make("Pendulum-v1"), 2)
    policy = model_of(PPO, env).policy
    first, _ = env.reset(seed=0)
    other = first.copy()
    other[0] = [1.0, 0.0, 0.0, 1.0]
    with torch.no_grad():
        features = policy.extract_features(torch.as_tensor(np.stack([first, other])))
    assert not torch.equal(features[0], features[1])
