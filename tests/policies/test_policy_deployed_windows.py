"""Windowed policies without their library: the window is the state of `predict`."""

import numpy as np
import pytest
from gymnasium import spaces
from policy_models import SMALL, ShortEpisodes, randomize, short_model
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from robust_policies.certificates import empirical_gain
from robust_policies.errors import NotCertifiableError, UserError
from robust_policies.policies import (
    HistoryWrapper,
    VecHistory,
    WindowedExtractor,
    certify_model,
    deploy,
    load_policy,
    save_policy,
)

WINDOW = 4
BOX = spaces.Box(0.0, 5.0, (2,), np.float32)


def plain():
    return DummyVecEnv([lambda: ShortEpisodes(BOX)])


def normalised():
    env = VecNormalize(plain(), norm_reward=False)
    env.reset()
    for _ in range(50):
        env.step(np.zeros((1, 2)))
    env.training = False
    return env


WRAPPED = {
    "HistoryWrapper": lambda: HistoryWrapper(ShortEpisodes(BOX), WINDOW),
    "VecHistory": lambda: VecHistory(plain(), WINDOW),
    "VecHistory(VecNormalize)": lambda: VecHistory(normalised(), WINDOW),
    "VecFrameStack": lambda: VecFrameStack(plain(), WINDOW),
    "VecFrameStack(VecNormalize)": lambda: VecFrameStack(normalised(), WINDOW),
}


def windowed(algorithm, env, **options):
    stacked = {"window": WINDOW} if isinstance(env, VecFrameStack) else {}
    reader = {"cell": "r2dn", "cell_kwargs": SMALL["r2dn"], "features_dim": 5, "observation_offset": [1.0, 0.0, 2.0]}
    kwargs = {
        "features_extractor_class": WindowedExtractor,
        "features_extractor_kwargs": {**reader, "observation_scale": [2.0, 1.0, 4.0], **stacked, **options},
        "net_arch": [8],
    }
    settings = {"n_steps": 32, "batch_size": 32} if algorithm is PPO else {"buffer_size": 50}
    model = algorithm("MlpPolicy", env, policy_kwargs=kwargs, seed=0, **settings)
    randomize(model.policy, 0.1)
    return model


@pytest.mark.parametrize(
    ("algorithm", "wrapping"), [*((PPO, name) for name in WRAPPED), (SAC, "HistoryWrapper"), (TD3, "VecFrameStack")]
)
def test_the_loaded_pair_acts_on_single_observations_as_the_model_on_windows(algorithm, wrapping, tmp_path):
    model = windowed(algorithm, WRAPPED[wrapping]())
    save_policy(model, tmp_path)
    ours, env = load_policy(tmp_path), model.get_env()
    assert ours.observation_space.shape == (3,)
    normal = env.venv if "Normalize" in wrapping else None
    observations, state, start, ends = env.reset(), None, True, 0
    for _ in range(30):
        last = observations[0][-1, :-1] if observations.ndim == 3 else observations[0][-3:]
        raw = last if normal is None else normal.get_original_obs()[0]
        expected = model.predict(observations, deterministic=True)[0]
        action, state = ours.predict(raw, state, start)
        np.testing.assert_allclose(action, expected[0], atol=2e-6)
        observations, _, done, _ = env.step(expected)
        start, ends = bool(done[0]), ends + int(done[0])
    assert ends > 1
    certificate, whole = ours.certificate(), certify_model(model)
    np.testing.assert_allclose(certificate.gamma_raw, whole.gamma_raw, rtol=1e-9)
    assert certificate.status == "PASS" and certificate.rate is None


def test_the_search_stays_below_the_gain_that_is_proven_of_a_window():
    policy = deploy(windowed(PPO, WRAPPED["VecHistory"]()))
    assert empirical_gain(policy, steps=10).gain <= policy.certificate().gamma_raw * (1 + 1e-9)
    certificate = policy.certificate([2.0, 1.0, 4.0])
    assert certificate.gamma_weighted is not None and certificate.gamma_weighted >= certificate.gamma_raw
    with pytest.raises(NotCertifiableError, match="window"):
        policy.matrices()


@pytest.mark.parametrize(
    "make",
    [
        lambda: short_model(env=VecFrameStack(normalised(), WINDOW), settings={"n_steps": 24}),
        lambda: PPO("MlpPolicy", VecFrameStack(normalised(), WINDOW), n_steps=32, batch_size=32),
        lambda: windowed(PPO, VecNormalize(VecHistory(plain(), WINDOW), norm_reward=False)),
    ],
)
def test_a_normaliser_of_something_else_than_the_policy_reads_is_refused_in_one_short_line(make, tmp_path):
    with pytest.raises(UserError, match="frame stack or history") as caught:
        save_policy(make(), tmp_path)
    assert len(str(caught.value)) < 400 and not list(tmp_path.iterdir())


def test_a_policy_on_another_space_is_refused_without_printing_it(tmp_path):
    model = windowed(PPO, WRAPPED["VecHistory"]())
    model.policy.features_extractor_class = type("Other", (WindowedExtractor,), {})
    with pytest.raises(UserError, match="windows of them") as caught:
        save_policy(model, tmp_path)
    assert len(str(caught.value)) < 400
