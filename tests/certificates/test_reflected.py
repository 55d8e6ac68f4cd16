"""Perceptrons that sort pairs or reflect groups, judged through the one ReLU that each group is."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from robust_policies.certificates import verify_layers
from robust_policies.certificates.neurons import least_by_neurons
from robust_policies.certificates.reflected import householder_chain, maxmin_chain
from robust_policies.errors import InvalidValueError, ShapeError

ROOT = np.sqrt(0.5)


def weights_of(widths, rng):
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in pairwise(widths)]
    for width in widths[1:-1]:
        rng.standard_normal(width)
    return weights


def reflect(v, normals):
    groups = v.reshape(len(normals), -1)
    below = np.minimum((groups * normals).sum(axis=1, keepdims=True), 0)
    return (groups - 2 * below * normals).reshape(-1)


def slopes(weights, normals, rng, count=100):
    """Return the largest sampled norm of the net's Jacobian."""
    largest = 0.0
    for _ in range(count):
        u, J = rng.standard_normal(weights[0].shape[1]) * 3, np.eye(weights[0].shape[1])
        for weight, n in zip(weights, normals, strict=False):
            v, J = weight @ u, weight @ J
            size = n.shape[1]
            for g, normal in enumerate(n):
                rows = slice(g * size, (g + 1) * size)
                if normal @ v[rows] < 0:
                    J[rows] -= 2 * np.outer(normal, normal @ J[rows])
            u = reflect(v, n)
        largest = max(largest, np.linalg.norm(weights[-1] @ J, 2))
    return largest


def pairs_of(weights):
    return [np.tile([ROOT, -ROOT], (len(weight) // 2, 1)) for weight in weights[:-1]]


def test_the_gain_of_maxmin_nets_is_what_their_increments_allow():
    rng = np.random.default_rng(0)
    # Before, with the sums of the pairs alone: 0.693, 2.783, 4.193, 4.445 and 9.070.
    expected = {(3, 8, 1): 0.4926, (4, 8, 8, 1): 2.3173, (4, 16, 16, 2): 2.5109, (4, 32, 32, 2): 2.8051,
                (6, 64, 64, 3): 4.3186}  # fmt: skip
    for widths, gain in expected.items():
        weights = weights_of(widths, rng)
        found = verify_layers(weights, "maxmin")
        assert found.status == "PASS" and found.gamma == pytest.approx(gain, rel=1e-3)
        assert slopes(weights, pairs_of(weights), np.random.default_rng(1), 10) <= found.gamma * (1 + 1e-9)
        if widths[1] < 16:
            same = verify_layers(weights, "householder", pairs_of(weights))
            assert same.gamma == pytest.approx(found.gamma, rel=1e-6)


def test_the_form_is_the_net_and_a_lost_path_is_noticed():
    rng = np.random.default_rng(3)
    weights = weights_of((3, 6, 4, 2), rng)
    chain = maxmin_chain(weights)
    u = rng.standard_normal(3)
    p = np.zeros(5)
    for _ in range(2):
        p = np.maximum(chain.model.D12 @ u + chain.model.D11 @ p, 0)
    h = u
    for weight in weights[:-1]:
        h = np.sort((weight @ h).reshape(-1, 2), axis=1)[:, ::-1].reshape(-1)
    np.testing.assert_allclose(chain.model.D22 @ u + chain.model.D21 @ p, weights[-1] @ h, atol=1e-13)
    weights = [np.eye(2), np.array([[1.0, 0.9]])]
    chain, sampled = maxmin_chain(weights), slopes(weights, pairs_of(weights), rng, 20)
    lost = chain._replace(model=replace(chain.model, D22=np.zeros((1, 2)), error=None))
    assert least_by_neurons(lost, None) < 0.2 < sampled <= least_by_neurons(chain, None) * (1 + 1e-9)


def test_householder_groups_of_any_size():
    rng = np.random.default_rng(0)
    weights = weights_of((4, 8, 8, 1), rng)
    normals = []
    for _ in range(2):
        n = rng.standard_normal((2, 4))
        normals.append(n / np.linalg.norm(n, axis=1, keepdims=True))
    found = verify_layers(weights, "householder", normals)
    assert found.status == "PASS" and "LipSDP" in found.method
    assert slopes(weights, normals, np.random.default_rng(1)) <= found.gamma * (1 + 1e-9)
    alone = verify_layers([np.eye(4), np.eye(4)], "householder", [normals[0][:1]])
    assert alone.gamma == pytest.approx(1.0, rel=1e-6)
    with pytest.raises(InvalidValueError, match="norm 1"):
        householder_chain(weights, [2 * n for n in normals])
    with pytest.raises(ShapeError, match="normals"):
        householder_chain(weights, normals[:1])
    with pytest.raises(InvalidValueError, match="householder"):
        verify_layers(weights, "householder")
    with pytest.raises(ShapeError, match="even"):
        maxmin_chain([np.ones((3, 2)), np.ones((1, 3))])
