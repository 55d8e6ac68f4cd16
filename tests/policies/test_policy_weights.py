"""Gains of sensors in units of their own, and scales folded into the proof."""

import numpy as np
import pytest
import torch
from policy_models import randomize, short_model

from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.policies import load_policy, save_policy

SCALES = {"observation_scale": [2.0, 0.5, 40.0], "action_scale": [3.0, 0.1]}


def secants(actor, units, count=20, steps=20):
    """Return gains of random pairs of sequences, with the observations in `units`, in float64."""
    generator = torch.Generator().manual_seed(0)
    actor = actor.double()
    a = torch.randn(steps, count, 3, generator=generator, dtype=torch.float64)
    b = a + 0.1 * torch.randn(1, count, 3, generator=generator, dtype=torch.float64)
    state = torch.zeros(count, actor.cell.state_size, dtype=torch.float64)
    with torch.no_grad():
        moved = (actor(a, state)[0] - actor(b, state)[0]).square().sum((0, 2)).sqrt()
    return moved / ((a - b) / torch.tensor(units)).square().sum((0, 2)).sqrt()


@pytest.mark.parametrize("cell", ["r2dn", "ren", "lbdn", "mlp"])
@pytest.mark.parametrize("head", [None, 4])
def test_the_chain_proven_together_is_tighter_than_its_factors_and_still_a_bound(cell, head):
    policy = randomize(short_model(cell, cell_output_size=head, **SCALES).policy, 0.3)
    units = [1.0, 0.1, 30.0]
    certificate = policy.certificate(weights=units)
    factors = [factor.gain for factor in certificate.factors if factor.name != "joint proof"]
    assert certificate.gamma_raw <= np.prod(factors) * (1 + 1e-12)
    assert (certificate.gamma_raw < 0.99 * np.prod(factors)) or cell == "lbdn"
    assert certificate.gamma_raw == pytest.approx(np.prod([factor.gain for factor in certificate.factors]), rel=1e-12)
    assert float(secants(policy.actor, [1.0, 1.0, 1.0]).max()) <= certificate.gamma_raw * (1 + 1e-9)
    assert float(secants(policy.actor, units).max()) <= certificate.gamma_weighted * (1 + 1e-9)
    assert certificate.weights == tuple(units) and "units of 1, 0.1, 30" in certificate.claim


def test_equal_weights_scale_the_gain_and_one_unit_each_changes_nothing(tmp_path):
    policy = randomize(short_model("r2dn", **SCALES).policy)
    save_policy(policy, tmp_path)
    policy = load_policy(tmp_path)
    plain = policy.certificate()
    assert plain.weights is None and plain.gamma_weighted is None and "units of" not in plain.claim
    assert policy.certificate([1, 1, 1]).gamma_weighted == pytest.approx(plain.gamma_raw, rel=1e-6)
    assert policy.certificate([2, 2, 2]).gamma_weighted == pytest.approx(2 * plain.gamma_raw, rel=1e-6)


def test_wrong_weights_are_refused_by_name():
    policy = short_model("r2dn").policy
    with pytest.raises(ShapeError, match=r"2 number\(s\) and an observation 3"):
        policy.certificate(weights=[1.0, 1.0])
    for wrong in ([1.0, -1.0, 1.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 1.0]):
        with pytest.raises(InvalidValueError, match="> 0"):
            policy.certificate(weights=wrong)


@pytest.mark.parametrize("activation", ["tanh", "relu", "maxmin"])
def test_a_perceptron_is_proven_with_its_method_named(activation):
    policy = short_model("mlp", cell_kwargs={"hidden_sizes": (8,), "activation": activation}).policy
    certificate = randomize(policy).certificate()
    assert certificate.status == "PASS" and certificate.rate is None
    assert "LipSDP" in certificate.claim and "LipSDP" in certificate.method
    assert any("mlp" in factor.note and "LipSDP" in factor.note for factor in certificate.factors)
