"""The independent check, the gain search and certificate.json."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from robust_policies.certificates import Certificate, Factor, GainResult, compose, empirical_gain, secant_gain, verify
from robust_policies.certificates.lmi import assemble, gain_supply, matrices, prove_positive
from robust_policies.certificates.multipliers import LipschitzMultiplier
from robust_policies.certificates.signals import MEAN_ACTIONS, RAW, Signals
from robust_policies.certificates.verify import verify_arrays
from robust_policies.errors import (
    CorruptFileError,
    InvalidValueError,
    MissingFileError,
    NotCertifiableError,
    SchemaError,
)
from robust_policies.files import numbers
from robust_policies.networks import R2DN, REN, Contracting, Dissipative, LBDNCell, Lipschitz, LSTMCell

SIGNALS = Signals(RAW, MEAN_ACTIONS, 3, 2, ranges=(4.0, 4.0))
NAMES = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")
DISSIPATIVE = Dissipative(-torch.eye(2), torch.zeros(3, 2), 4 * torch.eye(3))


def make(kind, guarantee, rate=1.0, seed=0, nu=3, ny=2, dtype=torch.float64):
    torch.manual_seed(seed)
    kwargs = {"hidden_sizes": (7, 9)} if kind is R2DN else {}
    return kind(nu, 4, ny, features=6, guarantee=guarantee, rate=rate, **kwargs).to(dtype)


def explicit_matrices(cell):
    explicit = cell.explicit64()
    return matrices(*(getattr(explicit, name).detach().numpy() for name in NAMES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [1.0, 0.9])
@pytest.mark.parametrize("guarantee", [Contracting(), Lipschitz(3.0), DISSIPATIVE], ids=["contracting", "gain", "qsr"])
@pytest.mark.parametrize("kind", [R2DN, REN])
def test_random_models_are_proven_from_their_arrays(kind, guarantee, rate, dtype):
    for seed in range(4):
        found = verify(make(kind, guarantee, rate, seed, dtype=dtype))
        assert found.status == "PASS" and found.margin > found.shift > 0
        assert found.rate <= rate * (1 + 1e-3)
        if isinstance(guarantee, Lipschitz):
            assert found.claimed_gamma == 3.0 and found.gamma <= 3.0 * (1 + 1e-3)


@pytest.mark.parametrize("rate", [1.0, 0.9])
def test_metric_is_recovered_without_the_hint(rate):
    model = explicit_matrices(make(R2DN, Lipschitz(3.0), rate))
    assert verify_arrays(model, rate=rate, gamma=3.0).status == "PASS"
    assert verify_arrays(model, rate=rate).status == "PASS"


def test_a_tampered_array_of_a_tight_model_does_not_pass():
    a, c = 0.5, 1.0
    zero = np.zeros((1, 1))
    # x+ = x/2 + u, y = x: the gain is exactly 2, and no margin is left for a larger C2.
    model = matrices([[a]], zero, [[1.0]], zero, zero, [[c]], zero, zero)
    assert verify_arrays(model, rate=1.0, gamma=2.0 * (1 + 1e-6)).status == "PASS"
    tampered = replace(model, C2=1.1 * model.C2)
    found = verify_arrays(tampered, rate=1.0, gamma=2.0)
    assert found.status == "NOT_CERTIFIED" and found.gamma is None and "unstable" not in found.reason


def test_broken_or_unfit_arrays_are_not_certified():
    cell = make(REN, Lipschitz(3.0))
    explicit = cell.explicit64()
    assert verify(cell, explicit._replace(D11=explicit.D11 + torch.eye(6))).status == "NOT_CERTIFIED"
    found = verify(cell, explicit._replace(A=explicit.A * float("nan")))
    assert found.status == "NOT_CERTIFIED" and "A holds NaN" in found.reason
    assert verify(cell, explicit._replace(A=explicit.A * 50)).status == "NOT_CERTIFIED"
    with pytest.raises(NotCertifiableError, match="LSTM"):
        verify(LSTMCell(3, 4, 1))
    with pytest.raises(InvalidValueError, match="gamma"):
        verify_arrays(explicit_matrices(make(R2DN, Lipschitz(3.0))), rate=1.0, gamma=-1.0)


def test_floating_point_proof_agrees_with_rational_arithmetic():
    agreed = set()
    for seed in range(3):
        model = explicit_matrices(make(R2DN, Lipschitz(3.0), seed=seed))
        P = make(R2DN, Lipschitz(3.0), seed=seed).metric().numpy()
        for gamma in (3.0, 1e-3):
            multiplier = LipschitzMultiplier(6).matrix(np.ones(1))
            F, K, _ = assemble(model, P, 1.0, multiplier, gain_supply(gamma, np.ones(2), np.ones(3)))
            proven = prove_positive(F, K).holds
            exact = _positive(F, K)
            assert exact or not proven
            assert proven == (gamma == 3.0)
            agreed.add(exact)
    assert agreed == {True, False}


def _positive(F, K):
    F, K = ([[Fraction(float(x)) for x in row] for row in array] for array in (F, K))
    n, m = len(F[0]), len(F)
    KF = [[sum(K[i][k] * F[k][j] for k in range(m) if K[i][k]) for j in range(n)] for i in range(m)]
    M = [[sum(F[k][i] * KF[k][j] for k in range(m) if F[k][i]) for j in range(n)] for i in range(n)]
    for pivot in range(n):
        if M[pivot][pivot] <= 0:
            return False
        for i in range(pivot + 1, n):
            factor = M[i][pivot] / M[pivot][pivot]
            M[i] = [x - factor * y for x, y in zip(M[i], M[pivot], strict=True)]
    return True


@pytest.mark.parametrize("kind", [R2DN, REN])
def test_search_stays_below_gamma_and_its_witness_shows_the_gain(kind, tmp_path):
    for seed in range(2):
        cell = make(kind, Lipschitz(2.0), seed=seed)
        found = empirical_gain(cell, steps=20, batch=8, power_iterations=5, adam_iterations=20, seed=seed)
        assert 0 < found.gain <= 2.0 * (1 + 1e-9)
        again = GainResult.load(found.save(tmp_path / "witness.npz"))
        assert secant_gain(cell, again.inputs_a, again.inputs_b) == pytest.approx(found.gain, rel=1e-8)


def test_search_reaches_the_gain_of_a_linear_system():
    cell = LBDNCell(3, (8,), 3, gamma=4.0, activation="identity").double()
    singular = torch.linalg.svdvals(_jacobian(cell))[0]
    found = empirical_gain(cell, steps=5, batch=4, power_iterations=60, adam_iterations=5)
    assert 0.99 * float(singular) <= found.gain <= float(singular) * (1 + 1e-6) <= 4.0 * (1 + 1e-5)


def _jacobian(cell):
    with torch.no_grad():
        base = cell(torch.zeros(1, 1, 3).double())[0]
        return torch.stack(
            [cell(row.reshape(1, 1, 3))[0].flatten() - base.flatten() for row in torch.eye(3).double()], 1
        )


def test_search_reaches_a_stated_share_of_gamma_on_a_large_gain_model():
    cell = make(R2DN, Lipschitz(5.0))
    with torch.no_grad():
        cell.Mu.mul_(20)
        cell.Mv.zero_()
        cell.Mw.zero_()
    found = empirical_gain(cell, steps=20, batch=8, power_iterations=20, adam_iterations=30)
    assert 0.95 * 5.0 <= found.gain <= 5.0 * (1 + 1e-9)


def test_certificate_round_trips_and_refuses_what_it_cannot_read(tmp_path):
    found = verify(make(R2DN, Lipschitz(3.0), 0.95))
    certificate = compose(
        found,
        signals=SIGNALS,
        before=[Factor("observation scale", 0.5)],
        after=[Factor("action scale", 2.0)],
        arrays={"A": np.eye(2)},
    )
    path = certificate.to_json(tmp_path / "certificate.json")
    assert Certificate.from_json(path) == certificate
    assert certificate.gamma_raw == pytest.approx(found.gamma) and found.gamma <= certificate.gamma_raw <= 3.0
    assert "mean action" in certificate.claim and "same initial state" in certificate.claim
    assert "does not bound the return" in certificate.claim
    assert [p.name for p in tmp_path.iterdir()] == ["certificate.json"]
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema": 2}))
    with pytest.raises(SchemaError, match="Upgrade"):
        Certificate.from_json(path)
    for broken in ("{", "[]", json.dumps({**content, "status": "FINE"}), json.dumps({**content, "gamma_raw": "3"})):
        path.write_text(broken)
        with pytest.raises(CorruptFileError):
            Certificate.from_json(path)
    with pytest.raises(MissingFileError):
        Certificate.from_json(tmp_path / "none.json")


def test_only_a_witness_clearly_above_gamma_violates():
    certificate = compose(verify(make(R2DN, Lipschitz(3.0))), signals=SIGNALS)
    gamma = certificate.gamma_raw
    assert certificate.with_search(gamma * (1 + 1e-7), "w.npz").status == "PASS"
    violated = certificate.with_search(gamma * 1.01, "w.npz")
    assert violated.status == "VIOLATED" and violated.claim.startswith("Refuted")


def test_printed_bounds_are_rounded_up():
    for value in (1.0, 4.9999999, 5.00000001, 123456.7, 3e-7):
        assert value <= float(numbers.upper(value)) <= value * (1 + 1e-3)
