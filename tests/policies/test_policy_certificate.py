import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_models import SMALL, ShortEpisodes, randomize, short_model
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from robust_policies.errors import NotCertifiableError
from robust_policies.files import numbers
from robust_policies.policies import load_policy, save_policy

CERTIFIED = ("r2dn", "ren", "lbdn")
MAPS = {"observation_scale": [2.0, 0.5, 4.0], "observation_offset": [0.0, 3.0, 1.0], "action_scale": [3.0, 1.0]}


def secant(actor, seed, steps=30):
    """Return |difference of actions| / |difference of observations| of two random sequences, in float64."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(steps, 1, 3, generator=generator, dtype=torch.float64)
    b = a + 0.1 * torch.randn(steps, 1, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        state = torch.zeros(1, actor.cell.state_size, dtype=torch.float64)
        return float((actor(a, state)[0] - actor(b, state)[0]).norm() / (a - b).norm())


@pytest.mark.parametrize("cell", CERTIFIED)
@pytest.mark.parametrize("head", [None, 4])
def test_the_gain_is_the_product_of_named_factors_and_bounds_what_happens(cell, head):
    policy = randomize(short_model(cell, cell_output_size=head, **MAPS).policy, 0.3)
    certificate = policy.certificate()
    assert certificate.status == "PASS", certificate.reason
    gains = {factor.name: factor.gain for factor in certificate.factors}
    assert list(gains)[:5] == ["observation scale", "cell", "head", "action scale", "action clip"]
    assert list(gains)[5:] in ([], ["joint proof"]) and gains.get("joint proof", 0.5) < 1
    assert gains["observation scale"] == pytest.approx(2.0) and gains["action scale"] == 3.0
    norm = (
        1.0 if head is None else float(torch.linalg.matrix_norm(policy.action_net.linear.weight.detach().double(), 2))
    )
    assert gains["head"] == pytest.approx(norm, rel=1e-6) and gains["head"] >= norm * (1 - 1e-12)
    assert certificate.gamma_core <= SMALL[cell]["gamma"] * (1 + 1e-3)
    assert certificate.gamma_raw == pytest.approx(np.prod(list(gains.values())), rel=1e-12)
    actor = policy.actor.double()
    for seed in range(20):
        assert secant(actor, seed) <= certificate.gamma_raw * (1 + 1e-9)


def test_the_deployed_policy_has_the_same_certificate(tmp_path):
    policy = randomize(short_model("r2dn", **MAPS).policy)
    save_policy(policy, tmp_path)
    assert load_policy(tmp_path).certificate() == policy.certificate()


def test_a_contracting_cell_has_a_proven_rate():
    policy = short_model("r2dn", cell_kwargs={"state_size": 4, "features": 5, "hidden_sizes": (6,), "rate": 0.9}).policy
    certificate = randomize(policy).certificate()
    assert certificate.status == "PASS" and certificate.rate <= 0.9 + 1e-9


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_gated_cell_is_refused_with_the_reason(cell):
    with pytest.raises(NotCertifiableError, match="gates"):
        short_model(cell).policy.certificate()


def test_state_dependent_noise_is_refused():
    model = short_model(settings={"use_sde": True})
    with pytest.raises(NotCertifiableError, match="state-dependent noise"):
        model.policy.certificate()


def test_of_choices_the_gain_to_the_logits_and_a_margin_are_proven():
    env = make_vec_env(lambda: ShortEpisodes(spaces.Discrete(3)), 1)
    policy = short_model(env=env).policy
    # The first output of an untrained policy is 0 whatever it reads.
    assert "the logits of the choices are constant" in policy.certificate().claim
    certificate = randomize(policy).certificate()
    assert certificate.status == "PASS" and certificate.choices["memory"]
    assert f"is at most {numbers.upper(certificate.gamma_raw)} times" in certificate.claim
    divisor = numbers.upper(2**0.5 * certificate.gamma_raw)
    assert f"best and the second logit at that step divided by {divisor}" in certificate.claim


def test_normalisation_is_a_factor_once_frozen_and_refused_before():
    env = VecNormalize(make_vec_env(ShortEpisodes, 2, seed=0))
    model = short_model(env=env).learn(100)
    with pytest.raises(NotCertifiableError, match=r"env\.training = False"):
        model.policy.certificate(env)
    env.training = False
    certificate = model.policy.certificate(env)
    gains = {factor.name: factor.gain for factor in certificate.factors}
    smallest = np.sqrt(env.obs_rms.var + env.epsilon).min()
    assert gains["observation normalization"] == pytest.approx(1 / smallest, rel=1e-12)
    assert gains["observation clip"] == 1.0
    assert certificate.gamma_raw == pytest.approx(np.prod(list(gains.values())), rel=1e-12)
    assert certificate.gamma_raw <= 5.0 / smallest * (1 + 1e-3)
