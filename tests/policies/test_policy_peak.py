"""What errors at every step can do to each action: chains, windows, and what has no such bound."""

import numpy as np
import torch
from gymnasium import spaces

from robust_policies.certificates.peak_search import peak_witness
from robust_policies.networks import make_cell
from robust_policies.networks.baselines import MLPCell
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.window import WindowCell

BOX = spaces.Box(-10.0, 10.0, (2,))


def policy(cell, normalizer=None, **head):
    torch.manual_seed(1)
    options = {"linear": False, "scale": np.array([2.0, 0.5]), "offset": None} | head
    actor = Actor(ScaledCell(cell, Scaling(2, [0.5, 4.0], None)),
                  MeanHead(cell.output_size, 2, options.pop("linear"), options.pop("scale"), options.pop("offset"),
                           **options), normalizer)  # fmt: skip
    return DeployedPolicy(actor, BOX, spaces.Box(-1.0, 1.0, (2,)))


def cell(kind, **options):
    torch.manual_seed(0)
    return make_cell(kind, 2, 2, state_size=2, features=3, rate=0.8, **options)


def test_scales_and_units_count_channel_by_channel():
    squash = True
    made = policy(cell("r2dn", hidden_sizes=(4,)), squash=squash)
    entry = made.peak([0.1, 1.0])
    assert entry["units"] == [0.1, 1.0] and "ellipsoid" in entry["method"]
    found = peak_witness(made, np.array([0.1, 1.0]), steps=20).found
    assert (found <= entry["gamma"]).all() and (found >= 0.3 * np.array(entry["gamma"])).all()
    normalizer = FrozenNormalizer(torch.zeros(2), torch.tensor([2.0, 2.0]), 10.0)
    halved = policy(cell("r2dn", hidden_sizes=(4,)), normalizer).peak([0.1, 1.0])["gamma"]
    np.testing.assert_allclose(halved, 0.5 * np.array(entry["gamma"]), rtol=1e-2)


def test_an_observation_in_a_window_counts_once():
    bounds = []
    for window in (2, 5):
        torch.manual_seed(2)
        perceptron = MLPCell(2, (5,), 2)
        made = policy(WindowCell(cell("ren"), perceptron, window, masked=True))
        entry = made.peak()
        assert "counts once" in entry["method"]
        found = peak_witness(made, np.ones(2), steps=5).found
        assert (found <= entry["gamma"]).all() and (found > 0).all()
        bounds.append(entry["gamma"])
    np.testing.assert_allclose(*bounds, rtol=1e-9)


def test_policies_without_such_a_bound_have_none():
    assert policy(make_cell("lstm", 2, 2, state_size=4)).peak() is None
    torch.manual_seed(0)
    memoryless = policy(make_cell("lbdn", 2, 2, hidden_sizes=(4,), gamma=2.0)).peak()
    assert "LipSDP" in memoryless["method"] and min(memoryless["gamma"]) > 0
