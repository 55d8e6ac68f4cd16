"""A certificate says exactly which signals its gain is of, and never more than is known of them."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_models import ShortEpisodes, randomize, short_model
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from robust_policies.certificates import Certificate, empirical_gain
from robust_policies.certificates.signals import BEFORE_NORMALISATION, GIVEN, RAW, WINDOWED
from robust_policies.policies import VecHistory, WindowedExtractor, deploy, load_policy, save_policy
from robust_policies.policies.sb3.certify import certify_model
from robust_policies.policies.sb3.reading import signal_read


def normalized(training=False):
    """Return a model behind a VecNormalize that makes small observations of small deviation large."""
    env = VecNormalize(make_vec_env(ShortEpisodes, 2, seed=0))
    model = short_model(env=env)
    randomize(model.policy, 0.3)
    env.obs_rms.var[:] = [0.04, 0.25, 1.0]
    env.training = training
    return model


def speaks_of_raw(certificate):
    return "raw observation" in certificate.claim


@pytest.mark.parametrize("training", [True, False])
def test_a_policy_alone_never_speaks_of_raw_observations(training):
    model = normalized(training)
    alone = model.policy.certificate()
    assert alone.status == "PASS" and alone.signals.reads == GIVEN and not speaks_of_raw(alone)
    assert not speaks_of_raw(certify_model(model.policy)) and not speaks_of_raw(deploy(model.policy).certificate())


def test_with_its_environment_the_gain_is_of_raw_observations_and_no_search_refutes_it(tmp_path):
    model = normalized()
    alone, within = model.policy.certificate(), model.policy.certificate(model.get_env())
    assert within.signals.reads == RAW and speaks_of_raw(within)
    assert within.gamma_raw > 1.5 * alone.gamma_raw
    save_policy(model, tmp_path)
    policy = load_policy(tmp_path)
    assert policy.certificate() == within == certify_model(model)
    found = empirical_gain(policy, steps=10, batch=4, power_iterations=5, adam_iterations=10).gain
    assert alone.gamma_raw < found <= within.gamma_raw * (1 + 1e-9)


def test_what_a_policy_reads_outlives_saving_and_an_old_file_claims_less(tmp_path):
    save_policy(normalized(), tmp_path)
    path = tmp_path / "policy.json"
    path.write_text(path.read_text().replace('"raw_observations": true,\n', ""))
    old = load_policy(tmp_path).certificate()
    assert old.signals.reads == BEFORE_NORMALISATION and not speaks_of_raw(old)


class Scaled(gymnasium.ObservationWrapper):
    def observation(self, observation):
        return 10.0 * observation


def test_a_wrapper_that_may_change_observations_is_not_passed_over():
    assert signal_read(make_vec_env(ShortEpisodes, 1)) == RAW
    assert signal_read(None) == GIVEN
    for env in (
        make_vec_env(lambda: Scaled(ShortEpisodes()), 1),
        VecFrameStack(make_vec_env(ShortEpisodes, 1), 2),
        VecHistory(make_vec_env(ShortEpisodes, 1), 2),
    ):
        assert signal_read(env) == GIVEN
        assert signal_read(VecNormalize(env), normalized=True) == BEFORE_NORMALISATION
    twice = VecNormalize(VecNormalize(make_vec_env(ShortEpisodes, 1)))
    assert signal_read(twice, normalized=True) == BEFORE_NORMALISATION
    assert signal_read(VecHistory(make_vec_env(ShortEpisodes, 1), 2), windows=True) == RAW


def test_an_extractor_alone_is_about_its_features():
    cell = {"state_size": 3, "features": 4, "hidden_sizes": (5,), "gamma": 2.0, "rate": 0.9}
    extractor = WindowedExtractor(spaces.Box(-1.0, 1.0, (4, 4)), cell_kwargs=cell, features_dim=3)
    certificate = extractor.certificate()
    assert certificate.signals.reads == WINDOWED and "features" in certificate.claim
    assert "action" not in certificate.claim.split("This is")[0] and not speaks_of_raw(certificate)
    # What is older than the window is gone at once: the cell's rate is none of the extractor's.
    assert certificate.rate is None and certificate.forgets is None


def test_a_flat_policy_on_windows_alone_is_about_what_it_is_given():
    model = PPO("MlpPolicy", make_vec_env(ShortEpisodes, 1), device="cpu", policy_kwargs={"net_arch": [4]})
    assert certify_model(model).signals.reads == RAW
    alone = certify_model(model.policy)
    assert alone.signals.reads == GIVEN and alone.gamma_raw == certify_model(model).gamma_raw


def test_the_claim_has_a_worked_number_that_holds(tmp_path):
    model = short_model()
    randomize(model.policy, 0.3)
    certificate = deploy(model).certificate()
    signals = certificate.signals
    width = float(np.prod(model.action_space.shape))
    assert signals.inputs == 3 and signals.outputs == width and len(signals.ranges) == width
    assert "summed over all time steps and channels" in certificate.claim
    norm = 0.1 * np.sqrt(3 * 200)
    assert f"0.1 * sqrt(3 * 200) = {norm:.4g}" in certificate.claim
    share = certificate.gamma_raw * 0.1 * np.sqrt(3) / np.linalg.norm(signals.ranges)
    printed = float(certificate.claim.split("root mean square, ")[1].split("%")[0])
    assert 100 * share <= printed <= 100 * share * 1.001
    # The example itself: an error of 0.1 on every sensor, and what it does.
    actor = model.policy.actor.double()
    with torch.no_grad():
        base = torch.randn(200, 1, 3, dtype=torch.float64)
        moved = actor(base + 0.1)[0] - actor(base)[0]
    assert float(moved.norm()) <= certificate.gamma_raw * norm
    named = certificate.named(["angle [rad]", "speed [rad/s]", "height [m]"], ["force [N]"] * int(width))
    assert "angle [rad], speed [rad/s], height [m]" in named.claim and "force [N]" in named.claim
    assert certificate.named(["of another task"], []) == certificate
    assert Certificate.from_json(named.to_json(tmp_path / "certificate.json")) == named


def test_a_constant_action_is_called_constant():
    certificate = short_model().policy.certificate()
    assert certificate.status == "PASS" and certificate.gamma_raw == 0.0
    assert "the mean actions are constant" in certificate.claim and "at most" not in certificate.claim
    searched = certificate.with_search(0.0, None)
    assert searched.status == "PASS" and searched.ratio is None
