"""Recipes of Stable-Baselines3's own SAC, TD3 and PPO: settings, what is kept of a training, and what is refused."""

import inspect
from collections import deque

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from robust_policies import runtime
from robust_policies.envs import make_sb3_vec_env
from robust_policies.errors import InvalidValueError, UnknownNameError, UserError
from robust_policies.networks import LBDN
from robust_policies.policies import VecHistory, certify_model, deploy, load_policy
from robust_policies.policies.sb3.history import NormalizedHistory
from robust_policies.train import load_recipe, parse_recipe, train
from robust_policies.train.environment import make_env
from robust_policies.train.sb3.buffer import WindowReplayBuffer
from robust_policies.train.sb3.model import make_model

PENDULUM = "robust_policies/Pendulum-v0"
SMALL = {"cell": "r2dn", "state_size": 4, "features": 4, "hidden_sizes": [4], "gamma": 2.0, "cell_output_size": 4}
SHORT = {"every": 1000, "evaluate_every": 100, "evaluate_episodes": 2, "certify_every": 0}


def recipe_of(policy, algorithm, task=PENDULUM, **sections):
    data = {"task": {"id": task, "kwargs": {"max_episode_steps": 30}}, "policy": policy, "checkpoints": SHORT}
    return parse_recipe({**data, "algorithm": {"total_steps": 200, **algorithm}, **sections}, "test")


@pytest.mark.parametrize(("name", "theirs"), [("sac", SAC), ("td3", TD3), ("ppo", PPO)])
def test_defaults_are_stable_baselines3s(name, theirs):
    settings = recipe_of({"cell": "mlp"}, {"name": name}).algorithm
    defaults = {key: p.default for key, p in inspect.signature(theirs).parameters.items()}
    defaults["discount"] = defaults["gamma"]
    keys = set(type(settings).model_fields) & set(defaults)
    assert len(keys) >= 11
    for key in keys:
        assert getattr(settings, key) == defaults[key], key
    assert recipe_of({"cell": "mlp"}, {"name": name}).task.num_envs == 1


def test_gamma_is_the_discount():
    assert recipe_of({"cell": "mlp"}, {"name": "sac", "gamma": 0.9}).algorithm.discount == 0.9
    with pytest.raises(UserError, match=r"gamma and algorithm\.discount"):
        recipe_of({"cell": "mlp"}, {"name": "sac", "gamma": 0.9, "discount": 0.9})


@pytest.mark.parametrize(
    ("policy", "algorithm", "words"),
    [
        ({"cell": "mlp"}, {"name": "sac", "leraning_rate": 1e-3}, r"Did you mean 'algorithm\.learning_rate'"),
        ({"cell": "mlp"}, {"name": "sacc"}, "Did you mean 'sac'"),
        ({"cell": "mlp"}, {"name": "sac", "ent_coef": "automatic"}, "auto_NUMBER"),
        ({"cell": "mlp"}, {"name": "td3", "train_freq": [1, "day"]}, r"\[1, episode\]"),
        ({"cell": "mlp", "action_scale": 2.0}, {"name": "sac"}, "knows the actuators' range"),
        ({"cell": "mlp", "log_std_init": -1.0}, {"name": "sac"}, "log_std_init"),
        ({"cell": "mlp", "critic_kwargs": {"hiden_sizes": [4]}}, {"name": "sac"}, "Did you mean 'hidden_sizes'"),
        ({**SMALL, "critic": "mlp"}, {"name": "ppo", "n_steps": 64}, "own or shared"),
        ({"cell": "mlp", "critic": {"cell": "lbdn", "gamma": 1}}, {"name": "ppo", "n_steps": 64}, "expected sac, td3"),
        (
            {**SMALL, "critic": {"cell": "lbdn", "gamma": 1}, "critic_kwargs": {"hidden_sizes": [4]}},
            {"name": "sac"},
            "hidden_sizes of its own",
        ),
        ({**SMALL, "window": 4}, {"name": "apg"}, r"policy\.window is 4"),
    ],
)
def test_what_does_not_fit_is_refused(policy, algorithm, words):
    with pytest.raises(UserError, match=words):
        recipe_of(policy, algorithm)


@pytest.mark.parametrize(
    ("policy", "algorithm", "task", "words"),
    [
        ({"cell": "mlp"}, {"name": "sac"}, "robust_policies/CartPole-v0", "Box with finite limits"),
        ({"cell": "mlp", "window": 4}, {"name": "sac"}, PENDULUM, "expected null"),
        ({**SMALL, "window": 8}, {"name": "sac", "buffer_size": 7}, PENDULUM, "window of 8 steps"),
    ],
)
def test_what_the_task_does_not_allow_is_refused_before_anything_is_written(policy, algorithm, task, words, tmp_path):
    with pytest.raises(InvalidValueError, match=words):
        train(recipe_of(policy, algorithm, task), tmp_path / "run")
    assert not (tmp_path / "run").exists()


CASES = {
    "sac, windows, normalised": (
        {**SMALL, "window": 5, "critic": "mlp", "critic_kwargs": {"hidden_sizes": [8]}},
        {"name": "sac", "normalize_observation": True, "normalize_reward": True},
    ),
    "td3, lbdn": (
        {"cell": "lbdn", "hidden_sizes": [8], "gamma": 3.0, "cell_output_size": 4, "observation_scale": [1, 1, 4]},
        {"name": "td3", "action_noise": 0.1},
    ),
    "sac, mlp, normalised": (
        {"cell": "mlp", "hidden_sizes": [8], "activation": "tanh", "observation_scale": [1, 1, 4]},
        {"name": "sac", "normalize_observation": True},
    ),
    "ppo, windows": ({**SMALL, "window": 3, "critic": "shared"}, {"name": "ppo", "n_steps": 50, "batch_size": 25}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_policy_that_is_kept_is_the_one_that_was_trained(case, tmp_path):
    policy, algorithm = CASES[case]
    steps = {"total_steps": 110} if algorithm["name"] == "ppo" else {"learning_starts": 90, "batch_size": 16}
    recipe = recipe_of(policy, {**algorithm, "total_steps": 110, **steps})
    train(recipe, tmp_path / "run")
    kept, light = load_policy(tmp_path / "run"), runtime.load(tmp_path / "run")
    certificate = kept.certificate()
    assert certificate.status == "PASS"
    names = {factor.name for factor in certificate.factors}
    assert ("observation normalization" in names) == bool(algorithm.get("normalize_observation"))
    assert ("history window" in names) == ("window" in policy)
    # What acts in the environment while training, with the kept weights and statistics.
    env = make_env(recipe, 1, 0, "cpu", training=False)
    model = make_model(recipe, env)
    loaded = type(model).load(tmp_path / "run" / "policy.zip")
    model.policy.load_state_dict(loaded.policy.state_dict())
    if isinstance(env, VecNormalize):
        frozen = kept.actor.normalizer
        env.obs_rms.mean, env.obs_rms.var = frozen.mean.numpy(), frozen.std.numpy() ** 2 - env.epsilon
    source = make_sb3_vec_env(PENDULUM, 1, 3)
    env.seed(3)
    seen, raw, state, other = env.reset(), source.reset(), None, None
    for _ in range(12):
        expected, _ = model.predict(seen, deterministic=True)
        action, state = kept.predict(raw, state)
        same, other = light.predict(raw, other)
        np.testing.assert_allclose(action, expected, atol=2e-6)
        np.testing.assert_allclose(same, expected, atol=2e-6)
        seen, raw = env.step(expected)[0], source.step(expected)[0]


@pytest.mark.parametrize(
    ("name", "policy"), [("sac", {"cell": "mlp", "hidden_sizes": [8]}), ("td3", {**SMALL, "window": 3})]
)
def test_critics_of_bounded_gain_keep_it(name, policy, tmp_path):
    critic = {"cell": "lbdn", "gamma": 2.0, "hidden_sizes": [8, 6]}
    settings = {"name": name, "learning_starts": 20, "batch_size": 16, "learning_rate": 3e-2}
    recipe = recipe_of({**policy, "critic": critic}, settings)
    model = make_model(recipe, make_env(recipe, 1, 0, "cpu", training=True))
    before = [one.detach().clone() for one in model.critic.parameters()]
    model.learn(60)
    model.save(tmp_path / "model.zip")
    loaded = type(model).load(tmp_path / "model.zip")
    critics = loaded.policy.critic
    assert all(isinstance(one, LBDN) and one.hidden_sizes == (8, 6) for one in critics.q_networks)
    assert any(not torch.equal(old, new) for old, new in zip(before, critics.parameters(), strict=True))
    target = loaded.policy.critic_target.state_dict()
    assert set(target) == set(critics.state_dict()) and any("XY" in name for name in target)
    seen = torch.as_tensor(np.stack([loaded.observation_space.sample() for _ in range(48)]))
    actions = 2 * torch.rand(48, 1, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        read = torch.cat((critics.extract_features(seen, critics.features_extractor), actions), 1)
        values = critics(seen, actions)
        assert torch.equal(values[0], model.critic(seen, actions)[0])
    for value in values:
        assert (torch.cdist(value, value) <= 2.0 * torch.cdist(read, read) + 1e-5).all() and value.std() > 0


def test_a_live_model_has_the_certificate_of_its_deployed_policy():
    recipe = recipe_of(*CASES["td3, lbdn"])
    model = make_model(recipe, make_env(recipe, 1, 0, "cpu", training=True))
    assert certify_model(model).gamma_raw == deploy(model).certificate().gamma_raw


def histories(count, window, seed=0):
    """Return an environment with windows whose episodes end at different times."""
    env = make_sb3_vec_env(PENDULUM, count, seed, env_kwargs={"max_episode_steps": 7})
    return VecHistory(env, window)


def test_windows_put_together_are_those_that_were_seen():
    env = histories(3, 4)
    spaces = (env.observation_space, env.action_space)
    small, plain = (kind(90, *spaces, device="cpu", n_envs=3) for kind in (WindowReplayBuffer, ReplayBuffer))
    seen, generator = env.reset(), np.random.default_rng(0)
    for _ in range(47):
        action = generator.uniform(-2, 2, (3, 1)).astype(np.float32)
        after, reward, done, infos = env.step(action)
        final = after.copy()
        for i in np.flatnonzero(done):
            final[i] = infos[i]["terminal_observation"]
        for buffer in (small, plain):
            buffer.add(seen, final, action, reward, done, infos)
        seen = after
    assert small.full
    # All whose window is still there.
    steps = (small.pos + np.arange(3, 30)) % 30
    for repeat in range(5):
        np.random.seed(repeat)
        found = small._get_samples(steps)
        np.random.seed(repeat)
        for mine, theirs in zip(found, plain._get_samples(steps), strict=True):
            assert mine is theirs is None or torch.equal(mine, theirs)
    ages = small.ages.reshape(-1)
    assert set(ages) == {1, 2, 3, 4}


def test_a_full_buffer_samples_no_window_that_is_cut():
    env = histories(1, 4)
    buffer = WindowReplayBuffer(10, env.observation_space, env.action_space, "cpu")
    seen, history = env.reset(), deque(maxlen=10)
    for _ in range(23):
        after, reward, done, infos = env.step(np.zeros((1, 1), np.float32))
        buffer.add(seen, after, np.zeros((1, 1)), reward, done, infos)
        history.append(seen[0])
        seen = after
    known = {window.tobytes() for window in history}
    np.random.seed(0)
    for window in buffer.sample(200).observations.numpy():
        assert window.tobytes() in known


def test_statistics_of_windows_are_those_of_single_observations():
    inner, outer = make_sb3_vec_env(PENDULUM, 2, 0), make_sb3_vec_env(PENDULUM, 2, 0)
    reference = VecHistory(VecNormalize(inner, norm_reward=False), 3)
    env = NormalizedHistory(VecHistory(outer, 3), norm_reward=False)
    np.testing.assert_array_equal(reference.reset()[:, -1], env.reset()[:, -1])
    for _ in range(5):
        one, other = (each.step(np.ones((2, 1), np.float32))[0] for each in (reference, env))
        # Older rows keep the statistics of their time there, and have the newest here.
        np.testing.assert_array_equal(one[:, -1], other[:, -1])
    raw = env.get_original_obs()
    np.testing.assert_allclose(env.unnormalize_obs(env.normalize_obs(raw)), raw, atol=1e-5)
    assert not env.normalize_obs(raw * 0.0).any()


def test_other_packages_environments_train_too(tmp_path):
    recipe = load_recipe(
        "pendulum_sac_mlp",
        [
            "task.id=Pendulum-v1",
            "algorithm.total_steps=60",
            "algorithm.learning_starts=50",
            "checkpoints.evaluate_episodes=1",
            "checkpoints.certify_every=0",
            "task.kwargs={max_episode_steps: 20}",
            "evaluation.tasks=[]",
        ],
    )
    assert train(recipe, tmp_path / "run").num_timesteps == 60


def test_an_unknown_cell_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'r2dn'"):
        train(recipe_of({**SMALL, "cell": "r2dm"}, {"name": "sac"}), tmp_path / "run")
