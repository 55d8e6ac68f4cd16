"""Gains of Stable-Baselines3's own policies, with and without a cell over a window."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_models import ShortEpisodes, randomize
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from robust_policies.errors import NotCertifiableError
from robust_policies.policies import HistoryWrapper, VecHistory, WindowedExtractor
from robust_policies.policies.sb3.certify import certify_model

WINDOW = 4
CELL = {"state_size": 3, "features": 4, "hidden_sizes": (5,), "gamma": 2.0}


def wide():
    return ShortEpisodes(spaces.Box(-2.0, 3.0, (2,), dtype=np.float32))


def windowed(algorithm, env=None, **extractor):
    env = env or make_vec_env(lambda: HistoryWrapper(wide(), WINDOW), 1)
    kwargs = {"cell": "r2dn", "cell_kwargs": CELL, "features_dim": 3, "observation_scale": [2.0, 0.5, 1.0], **extractor}
    options = {"features_extractor_class": WindowedExtractor, "features_extractor_kwargs": kwargs, "net_arch": [6]}
    return algorithm("MlpPolicy", env, policy_kwargs=options, device="cpu", seed=0)


def windows_of(rows):
    """Return the windows (time, WINDOW, 4) that HistoryWrapper makes of an episode's observations (time, 3)."""
    padded = np.zeros((len(rows) + WINDOW - 1, 4))
    padded[WINDOW - 1 :, :3], padded[WINDOW - 1 :, 3] = rows, 1.0
    return np.stack([padded[t : t + WINDOW] for t in range(len(rows))])


def mean_actions(model, observations):
    """Return the deterministic actions before the clip, in float64 (SB3 itself rounds observations to float32)."""
    policy = model.policy.double()
    actor = policy if isinstance(model, PPO) else policy.actor
    with torch.no_grad():
        features = actor.features_extractor(torch.as_tensor(observations, dtype=torch.float64))
        if isinstance(model, PPO):
            return policy.action_net(policy.mlp_extractor.policy_net(features)).numpy()
        squashed = actor.mu(features) if isinstance(model, TD3) else torch.tanh(actor.mu(actor.latent_pi(features)))
    space = model.action_space
    return space.low + 0.5 * (squashed.numpy() + 1.0) * (space.high - space.low)


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3])
def test_a_policy_on_windows_has_named_factors_that_bound_what_happens(algorithm):
    model = windowed(algorithm)
    actor = model.policy if algorithm is PPO else model.policy.actor
    randomize(actor, 0.5)
    certificate = certify_model(model)
    assert certificate.status == "PASS", certificate.reason
    gains = {factor.name: factor.gain for factor in certificate.factors}
    tail = ["action scale", "action clip"] if algorithm is PPO else ["squashing", "action scale", "action clip"]
    assert list(gains) == ["history window", "observation scale", "cell", "perceptron", *tail]
    assert gains["history window"] == pytest.approx(2.0) and gains["observation scale"] == pytest.approx(2.0)
    assert gains["cell"] <= 2.0 * (1 + 1e-3)
    assert gains["action scale"] == pytest.approx(1.0 if algorithm is PPO else 2.5)
    assert certificate.gamma_raw == pytest.approx(np.prod(list(gains.values())), rel=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(10):
        a = rng.standard_normal((12, 3))
        b = a + 0.1 * rng.standard_normal((12, 3))
        moved = np.linalg.norm(mean_actions(model, windows_of(a)) - mean_actions(model, windows_of(b)))
        assert moved <= certificate.gamma_raw * np.linalg.norm(a - b) * (1 + 1e-9)


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3])
def test_a_plain_perceptron_policy_is_bounded(algorithm):
    kwargs = {"net_arch": [6, 5], "activation_fn": nn.ReLU}
    model = algorithm("MlpPolicy", make_vec_env(wide, 1), policy_kwargs=kwargs, device="cpu", seed=0)
    certificate = certify_model(model.policy)
    assert certificate.status == "PASS" and certificate.rate is None and "LipSDP" in certificate.method
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200, 3))
    moved = np.linalg.norm(mean_actions(model, a) - mean_actions(model, b), axis=1)
    assert (moved <= certificate.gamma_raw * np.linalg.norm(a - b, axis=1) * (1 + 1e-9)).all()


def test_an_extractor_alone_and_a_frozen_normalizer():
    env = VecHistory(VecNormalize(make_vec_env(wide, 1)), WINDOW)
    model = windowed(PPO, env)
    with pytest.raises(NotCertifiableError, match=r"env\.training = False"):
        certify_model(model)
    env.venv.training = False
    names = [factor.name for factor in certify_model(model).factors]
    assert names[:3] == ["observation normalization", "observation clip", "history window"]
    alone = model.policy.features_extractor.certificate()
    cell = {factor.name: factor.gain for factor in alone.factors}["cell"]
    assert cell <= 2.0 * (1 + 1e-3) and alone.gamma_raw == pytest.approx(2.0 * 2.0 * cell, rel=1e-3)


def test_what_has_no_bound_is_refused_with_the_reason():
    with pytest.raises(NotCertifiableError, match="gates"):
        certify_model(windowed(PPO, cell="lstm", cell_kwargs={"state_size": 4}))
    env = make_vec_env(wide, 1)
    with pytest.raises(NotCertifiableError, match="SiLU"):
        certify_model(PPO("MlpPolicy", env, policy_kwargs={"activation_fn": nn.SiLU}, device="cpu"))
    with pytest.raises(NotCertifiableError, match="state-dependent noise"):
        certify_model(PPO("MlpPolicy", env, use_sde=True, device="cpu"))
    discrete = make_vec_env(lambda: ShortEpisodes(spaces.Discrete(3)), 1)
    with pytest.raises(NotCertifiableError, match="No chain of factors is known for a DQNPolicy"):
        certify_model(DQN("MlpPolicy", discrete, device="cpu"))
