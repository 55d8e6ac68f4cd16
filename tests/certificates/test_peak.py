"""Bounds for every step: what errors of bounded size can do to each output, for ever."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robust_policies.certificates import Certificate, compose, matrices, verify
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.optimum import Candidate, least_peak
from robust_policies.certificates.peak import peak_bounds, proven_peak
from robust_policies.certificates.peak_search import PeakWitness, peak_secants, peak_witness
from robust_policies.certificates.signals import MEAN_ACTIONS, RAW, Signals
from robust_policies.certificates.verify import running_neurons
from robust_policies.errors import CorruptFileError, InvalidValueError
from robust_policies.networks import R2DN, REN, LBDNCell, Lipschitz, make_cell

ZERO = np.zeros


def lag(a, unit=1.0):
    model = matrices([[a]], ZERO((1, 0)), [[1.0]], ZERO((0, 1)), ZERO((0, 1)), [[1.0]], ZERO((1, 0)), [[0.0]])
    return peak_bounds(Neurons(model, ZERO(0)), np.array([unit]))[0]


def metric(cell):
    return cell.metric().detach().double().numpy()


def test_a_lag_adds_up_to_its_gain_for_constants():
    for a in (0.3, 0.99):
        assert 1 / (1 - a) <= lag(a) <= 1 / (1 - a) * (1 + 2e-3)
    assert lag(0.5, 3.0) == pytest.approx(3 * lag(0.5), rel=1e-3)
    assert peak_bounds(Neurons(matrices([[1.01]], ZERO((1, 0)), [[1.0]], ZERO((0, 1)), ZERO((0, 1)), [[1.0]],
                                        ZERO((1, 0)), [[0.0]]), ZERO(0)), np.ones(1)) is None  # fmt: skip


@pytest.mark.parametrize("kind", [R2DN, REN])
def test_no_search_exceeds_the_bound(kind):
    torch.manual_seed(0)
    options = {"hidden_sizes": (5,)} if kind is R2DN else {}
    cell = kind(2, 2, 2, features=3, activation="tanh", rate=0.9, **options).double()
    units = np.array([0.3, 2.0])
    bounds = peak_bounds(running_neurons(cell), units, metric(cell))
    assert bounds is not None
    witness = peak_witness(cell, units, steps=20)
    assert (witness.found <= bounds).all() and (witness.found >= 0.3 * bounds).all()
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, 5000, 2, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, base.shape, generator=generator) * 2.0 - 1.0
    off = torch.from_numpy(units) * torch.cat((signs, signs[:, :1].expand_as(signs)), dim=1)
    base = torch.cat((base, 0.1 * base), dim=1)
    with torch.no_grad():
        change = (cell(base + off)[0] - cell(base)[0]).abs().amax(dim=(0, 1)).numpy()
    assert (change <= bounds).all()


def test_a_cell_trained_for_it_reaches_the_bound():
    torch.manual_seed(0)
    cell = R2DN(1, 1, 1, features=3, hidden_sizes=(4,), activation="relu", rate=0.8, guarantee=Lipschitz(2.0)).double()
    optimizer = torch.optim.Adam(cell.parameters(), lr=0.03)
    base = torch.full((20, 1, 1), 3.0, dtype=torch.float64)
    for _ in range(50):
        optimizer.zero_grad()
        (-(cell(base + 0.5)[0][-1] - cell(base - 0.5)[0][-1]).abs().sum()).backward()
        optimizer.step()
    bound = peak_bounds(running_neurons(cell), np.ones(1), metric(cell))[0]
    found = peak_witness(cell, np.ones(1), steps=60).found[0]
    with torch.no_grad():
        found = max(found, float((cell(base + 0.5)[0][-1] - cell(base - 0.5)[0][-1]).abs()))
    assert 0.99 * bound <= found <= bound


def test_memoryless_cells_have_one_inequality():
    torch.manual_seed(0)
    lbdn = LBDNCell(3, (6, 5), 2, gamma=2.0).double()
    units = np.array([1.0, 0.5, 2.0])
    bounds = peak_bounds(running_neurons(lbdn), units)
    # In units of the sensors the largest change is never more than the gain allows for all of them together.
    assert (bounds <= 2.0 * np.linalg.norm(units)).all()
    for activation in ("tanh", "maxmin"):
        cell = make_cell("mlp", 3, 2, hidden_sizes=(6, 4), activation=activation).double()
        bounds = peak_bounds(running_neurons(cell), units)
        points = torch.randn(300, 3, dtype=torch.float64)
        J = torch.func.vmap(torch.func.jacrev(lambda u, net=cell: net(u.reshape(1, 1, 3))[0].flatten()))(points)
        sampled = (J.detach().abs().numpy() * units).sum(axis=2).max(axis=0)
        assert (sampled <= bounds * (1 + 1e-12)).all() and (sampled >= 0.3 * bounds).all()
        silent = running_neurons(cell.zero_output_())
        assert peak_bounds(silent, units).tolist() == [0.0, 0.0]


def test_only_what_the_inequalities_show_is_a_bound():
    torch.manual_seed(0)
    cell = REN(1, 2, 1, features=3, rate=0.9).double()
    neurons = running_neurons(cell)
    start = Candidate(metric(cell), neurons.theta)
    found = least_peak(neurons.model, neurons.family, 0.96, 0, np.ones(1), start, 1e-3)
    assert proven_peak(neurons.model, neurons.family, 0, np.ones(1), found) >= found.bound
    for wrong in (
        replace(found, theta2=-found.theta2),
        replace(found, theta1=found.theta1 - 2 * found.theta1.max()),
        replace(found, r=0.5 * found.r),
        replace(found, s=-found.s),
        replace(found, P=0.5 * found.P),
        replace(found, P=np.full_like(found.P, np.nan)),
    ):
        assert proven_peak(neurons.model, neurons.family, 0, np.ones(1), wrong) is None
    grown = replace(neurons.model, C2=1.1 * neurons.model.C2)
    assert proven_peak(grown, neurons.family, 0, np.ones(1), found) is None


def test_a_certificate_holds_and_says_it(tmp_path):
    torch.manual_seed(0)
    cell = R2DN(2, 3, 1, features=4, hidden_sizes=(5,), guarantee=Lipschitz(3.0)).double()
    signals = Signals(RAW, MEAN_ACTIONS, 2, 1, ("angle [rad]", "speed [rad/s]"), ("torque [N m]",))
    plain = compose(verify(cell), signals=signals)
    entry = {"units": [0.1, 1.0], "gamma": [0.456789], "method": "an ellipsoid"}
    certificate = plain.with_peak(entry, [0.3], "peak_witness.npz")
    assert certificate.status == "PASS"
    assert "angle [rad] by 0.1, speed [rad/s] by 1" in certificate.claim
    assert "torque [N m] by 0.4568" in certificate.claim and "for ever" in certificate.claim
    assert Certificate.from_json(certificate.to_json(tmp_path / "certificate.json")) == certificate
    assert plain.with_peak(None) == plain
    violated = plain.with_peak(entry, [0.5], "peak_witness.npz")
    assert violated.status == "VIOLATED" and "one step" in violated.claim
    for wrong in ({"units": [1.0]}, {**entry, "gamma": [float("nan")]}, {**entry, "found": []}, []):
        with pytest.raises(InvalidValueError, match="peak"):
            replace(plain, peak=wrong)
    witness = peak_witness(cell, np.array([0.1, 1.0]), steps=10)
    again = PeakWitness.load(witness.save(tmp_path / "witness.npz"))
    np.testing.assert_array_equal(peak_secants(cell, again.inputs, again.units), witness.found)
    (tmp_path / "witness.npz").write_bytes(b"none")
    with pytest.raises(CorruptFileError):
        PeakWitness.load(tmp_path / "witness.npz")
