"""The closed-loop bound of a whole policy: what stands around its cell counts, and what has no bound is said."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robust_policies.control.linear_model import from_matrices
from robust_policies.errors import ShapeError
from robust_policies.networks import make_cell
from robust_policies.policies import DeployedPolicy
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.feedback import closed_loop_bound

MODEL = from_matrices([[0.8, 0.2], [-0.1, 0.6]], [[0.0], [0.5]], [[1.0, 0.0], [0.3, 1.0]])
SIZES = {
    "r2dn": {"state_size": 3, "features": 4, "hidden_sizes": [5], "gamma": 0.4},
    "ren": {"state_size": 3, "features": 4, "gamma": 0.4},
    "lbdn": {"hidden_sizes": [5], "gamma": 0.4},
    "mlp": {"hidden_sizes": [5]},
    "lstm": {"state_size": 4},
}


def policy(kind, scale=None, action_scale=None, linear=False, squash=False, normalizer=None):
    torch.manual_seed(0)
    outputs = 2 if linear else 1
    cell = make_cell(kind, 2, outputs, **SIZES[kind])
    head = MeanHead(outputs, 1, linear, action_scale, squash=squash)
    actor = Actor(ScaledCell(cell, Scaling(2, scale)), head, normalizer)
    box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    return DeployedPolicy(actor, box, spaces.Box(-5.0, 5.0, (1,), np.float32))


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
def test_a_policy_of_small_gain_is_proven_in_both_ways(kind):
    bound = closed_loop_bound(policy(kind), MODEL)
    assert bound.rate is not None and bound.rate < 1
    assert bound.gain is not None and bound.small_gain is not None
    assert bound.policy_gain is not None and bound.policy_gain <= 0.4 * (1 + 1e-3)


def test_scales_and_a_linear_head_enter_the_loop():
    plain, scaled = closed_loop_bound(policy("r2dn"), MODEL), closed_loop_bound(policy("r2dn", scale=0.05), MODEL)
    assert plain.policy_gain is not None and scaled.policy_gain is not None
    assert scaled.policy_gain == pytest.approx(20 * plain.policy_gain, rel=1e-3)
    assert scaled.loop_radius != pytest.approx(plain.loop_radius, rel=1e-6)
    undone = closed_loop_bound(policy("r2dn", scale=0.05, action_scale=0.05), MODEL)
    assert undone.gain == pytest.approx(plain.gain, rel=0.2)
    headed = closed_loop_bound(policy("r2dn", linear=True, action_scale=2.0), MODEL)
    assert headed.proven and headed.loop_radius is not None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "lstm"}, "gates"),
        ({"kind": "lbdn"}, "no linear part"),
        ({"kind": "r2dn", "squash": True}, "tanh"),
        ({"kind": "r2dn", "normalizer": FrozenNormalizer([0.0, 0.0], [1.0, 1.0], 10.0)}, "normalizer"),
    ],
)  # fmt: skip
def test_a_policy_without_matrices_says_why(given, words):
    bound = closed_loop_bound(policy(**given), MODEL)
    assert bound.rate is None and bound.gain is None and words in bound.reason
    # Its gain alone may still do, and does but for the cell that has none.
    assert bound.proven is (given["kind"] != "lstm")


def test_a_perceptron_is_proven_neuron_by_neuron():
    bound = closed_loop_bound(policy("mlp", action_scale=0.2), MODEL)
    assert bound.rate is not None and bound.neurons is None


def test_a_policy_for_another_plant_is_refused():
    with pytest.raises(ShapeError, match="3 output"):
        closed_loop_bound(policy("r2dn"), from_matrices(0.5 * np.eye(3), np.ones((3, 1)), np.eye(3)))
