"""The closed-loop certificate of Youla policies: the loop that is judged is the one that runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from youla_cases import batch

from robust_policies.certificates import empirical_gain
from robust_policies.control.linear_model import from_matrices
from robust_policies.control.lqg import design
from robust_policies.control.youla import Performance
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.networks import make_cell
from robust_policies.policies import DeployedPolicy, YoulaPolicy, YoulaVectorWrapper, load_policy, save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.youla.base import YoulaOptions

CELLS = {
    "r2dn": {"state_size": 3, "features": 4, "hidden_sizes": (5,), "gamma": 1.5, "rate": 0.95},
    "ren": {"state_size": 3, "features": 4, "gamma": 1.5, "rate": 0.95},
    "mlp": {"hidden_sizes": (6,)},
    "lstm": {"state_size": 6},
}


def policy_of(cell="r2dn", delay=0, seed=0, **plant):
    """Return a Youla policy for an unstable plant of two states, its cell behind scales and a linear head."""
    torch.manual_seed(seed)
    A = np.array([[1.05, 0.1], [0.0, 0.9]])
    model = from_matrices(A, [[0.0], [0.1]], [[1.0, 0.0], [0.0, 1.0]], time_step=0.1, **plant)
    gains = design(model, Q=np.eye(2), R=0.1 * np.eye(1), W=0.01 * np.eye(2), V=0.04 * np.eye(2))
    options = YoulaOptions(limit=1e3, delay=delay)
    net = make_cell(cell, 2, 2, **CELLS[cell])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    head = MeanHead(2, 1, True, [0.7])
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    actor = Actor(ScaledCell(net, Scaling(2, [2.0, 0.5], [0.3, -0.2])), head)
    box, inputs = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1e3, 1e3, (1,), np.float32)
    wide = spaces.Box(-1e6, 1e6, (1,), np.float64)
    measured = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    return YoulaPolicy(
        gains, model, DeployedPolicy(actor, box, inputs), observation_space=measured, action_space=wide, options=options
    )


def simulated(policy, d):
    """Return z (time, 3) of the linear plant with the policy, for disturbances d (time, 4) from rest."""
    model, performance, late = policy.model, Performance.lqg(policy.design), policy.controller.options.delay
    x, state, z = np.zeros(2), None, []
    line = [np.zeros(1)] * late
    for w, v in zip(d[:, :2], d[:, 2:], strict=True):
        u, state = policy.predict(model.C @ x + performance.Dv @ v, state)
        line.append(u)
        z.append(performance.Cz @ x + performance.Dz @ u)
        x = model.A @ x + model.B @ line.pop(0) + performance.Bw @ w
    return np.array(z)


@pytest.mark.parametrize("delay", [0, 2])
def test_the_loop_that_is_searched_and_proven_is_the_one_that_runs(delay):
    policy = policy_of(delay=delay)
    loop = policy.searched()
    pair = np.random.default_rng(0).standard_normal((30, 2, 4))
    with torch.no_grad():
        z = loop(torch.as_tensor(pair), loop.initial_state(2))[0].numpy()
    # The constant that the head adds is in no difference. The policy's own cell computes in float32.
    runs = [simulated(policy, pair[:, i]) for i in range(2)]
    np.testing.assert_allclose(z[:, 0] - z[:, 1], runs[0] - runs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_search_finds_more_than_is_proven(seed):
    policy = policy_of(seed=seed)
    certificate = policy.certificate()
    assert certificate.status == "PASS" and certificate.rate < 1 and certificate.closed_loop["converges"]
    found = empirical_gain(policy.searched(), 20, batch=8, power_iterations=10, adam_iterations=10).gain
    assert 0.3 * certificate.gamma_raw < found <= certificate.gamma_raw
    loop = certificate.closed_loop
    least = min(loop["closed_loop"], loop["neurons"])
    assert least <= loop["scaled"] * (1 + 1e-6) and loop["scaled"] <= loop["triangle"] * (1 + 1e-6)
    assert certificate.gamma_raw == min(least, loop["scaled"])


def test_two_copies_converge_at_the_proven_rate():
    policy = policy_of()
    certificate = policy.certificate()
    loop = policy.searched()
    torch.manual_seed(0)
    states = torch.randn(2, loop.state_size, dtype=torch.float64)
    start = float((states[0] - states[1]).norm())
    d = torch.randn(60, 1, 4, dtype=torch.float64).expand(-1, 2, -1)
    with torch.no_grad():
        final = loop(d, states)[1]
    distance = float((final[0] - final[1]).norm())
    assert distance <= certificate.overshoot * certificate.rate**60 * start
    assert distance < start


def test_the_linear_model_of_an_exact_plant_holds_everywhere():
    assert "The plant is this linear model" in policy_of().certificate().claim
    unknown = policy_of(exact=False).certificate()
    assert unknown.status == "PASS" and "Of the plant itself nothing is proven" in unknown.claim


@pytest.mark.parametrize("cell", ["ren", "mlp"])
def test_other_cells_of_finite_gain_are_certified_by_it(cell):
    certificate = policy_of(cell).certificate()
    assert certificate.status == "PASS" and certificate.closed_loop["closed_loop"] is None
    assert certificate.gamma_raw == certificate.closed_loop["scaled"]
    assert certificate.closed_loop["converges"]
    # The gain of a cell with a memory says nothing of single steps.
    assert (certificate.rate is None) == (cell == "ren")


def test_what_is_not_certified_says_why():
    lstm = policy_of("lstm")
    with pytest.raises(NotCertifiableError, match="gates"):
        lstm.certificate()
    assert {"base.K", "head.linear.weight"} <= set(lstm.running_arrays()) and lstm.searched() is None
    with pytest.raises(NotCertifiableError, match=r"base loop of the linear model.*spectral radius"):
        policy_of(delay=40).certificate()
    with pytest.raises(InvalidValueError, match="weights were given"):
        policy_of().certificate(weights=[1.0, 1.0])


def test_rounding_of_inputs_is_said():
    policy = policy_of()
    options = replace(policy.controller.options, quantum=0.5)
    rounded = YoulaPolicy(
        policy.design, policy.model, policy.policy, observation_space=policy.observation_space,
        action_space=policy.action_space, options=options,
    )  # fmt: skip
    assert "rounding of inputs to multiples of 0.5" in rounded.certificate().claim


def test_scope_and_region_are_stored(tmp_path):
    wrapped = batch("CartPoleContinuous", region=(2.4, 1.0, 0.1, 1.0), weights={"V": 0.01 * np.eye(4)})
    assert isinstance(wrapped, YoulaVectorWrapper) and wrapped.controller.scope.kind == "interval"
    net = make_cell("r2dn", 4, 1, **{**CELLS["r2dn"], "gamma": 0.2})
    box, inputs = wrapped.single_observation_space, wrapped.single_action_space
    inner = DeployedPolicy(Actor(ScaledCell(net, Scaling(4)), MeanHead(1, 1, False)), box, inputs)
    policy = YoulaPolicy.of(wrapped, inner)
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    assert isinstance(loaded, YoulaPolicy) and loaded.scope.kind == "interval"
    assert np.array_equal(loaded.scope.upper, policy.scope.upper)
    assert loaded.controller.options == policy.controller.options
    assert "For the nonlinear plant without saturation, for trajectories that stay" in loaded.certificate().claim
