"""The linear part of a policy at the equilibrium of its loop, and what is proven of the loop with the policy itself."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robust_policies.control import from_matrices, linearize_plant, with_input_delay
from robust_policies.control.feedback import compensator
from robust_policies.control.lqg import design
from robust_policies.envs import load_plant
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.networks import make_cell
from robust_policies.policies import DeployedPolicy, YoulaOptions, YoulaPolicy, policy_loop
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling

CELLS = {
    "r2dn": {"state_size": 2, "features": 3, "hidden_sizes": (3,), "activation": "tanh"},
    "ren": {"state_size": 2, "features": 3, "activation": "tanh"},
    "lstm": {"state_size": 4},
    "mlp": {"hidden_sizes": (4,), "activation": "tanh"},
}


def actor_of(cell, inputs, gamma=0.5, bias=0.3, seed=0, **options):
    torch.manual_seed(seed)
    given = {**CELLS[cell], **options} | ({"gamma": gamma} if cell in ("r2dn", "ren") else {})
    head = MeanHead(2, 1, True, 0.7)
    torch.nn.init.normal_(head.linear.weight, std=0.5)
    torch.nn.init.constant_(head.linear.bias, bias)
    return Actor(ScaledCell(make_cell(cell, inputs, 2, **given), Scaling(inputs, 2.0, 0.1)), head)


def youla(cell="r2dn", delay=0, **given):
    """Return a Youla policy for an unstable plant of two states and one output."""
    model = from_matrices([[1.05, 0.1], [0.0, 0.9]], [[0.0], [0.1]], [[1.0, 0.2]], time_step=0.1)
    gains = design(model, Q=np.eye(2), R=0.1 * np.eye(1), W=0.01 * np.eye(2), V=0.04 * np.eye(1))
    actor = actor_of(cell, 1, **given)
    box = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    inner = DeployedPolicy(actor, box, spaces.Box(-1e3, 1e3, (1,), np.float64))
    wide = spaces.Box(-1e6, 1e6, (1,), np.float64)
    options = YoulaOptions(limit=1e3, delay=delay)
    return YoulaPolicy(gains, model, inner, observation_space=box, action_space=wide, options=options)


def direct(cell="lstm", **given):
    low = np.full(1, 2.0)
    return DeployedPolicy(
        actor_of(cell, 1, **given), spaces.Box(-9.0, 9.0, (1,)), spaces.Box(-low, low, dtype=np.float64)
    )


def loops(kind):
    if kind.startswith("youla"):
        return policy_loop(youla(kind.split()[1], delay=2 if "late" in kind else 0))
    return policy_loop(direct(kind), linearize_plant(load_plant("mass_spring_damper")))


@pytest.mark.parametrize("kind", ["youla r2dn", "youla ren", "youla r2dn late", "lstm", "mlp", "ren"])
def test_the_linear_part_is_the_derivative_of_what_runs(kind):
    found = loops(kind)
    model, part, zero = found.model, found.loop.controller, torch.zeros(1, found.model.p, dtype=torch.float64)
    at = torch.as_tensor(model.C @ found.state)[None]
    with torch.no_grad():
        u, state = found.step(at, found.hidden)
        # It stands still there, and so does the plant.
        np.testing.assert_allclose(state, found.hidden, atol=1e-8)
        np.testing.assert_allclose(model.A @ found.state + model.B @ found.input, found.state, atol=1e-8)
        np.testing.assert_allclose(u[0], found.input, atol=1e-8)
        random = np.random.default_rng(0)
        size = 1e-5
        changes = size * random.standard_normal((20, model.p))
        s, hidden = np.zeros(len(part.A)), found.hidden
        for change in changes:
            u, hidden = found.step(at + zero + torch.as_tensor(change), hidden)
            expected = part.C @ s + part.D @ change
            # A second derivative is left of it.
            np.testing.assert_allclose(u[0].numpy() - found.input, expected, atol=1e3 * size**2)
            s = part.A @ s + part.B @ change
    assert found.smooth and found.within
    assert np.abs(found.input).max() > 1e-3


def test_a_youla_parameter_that_gives_nothing_leaves_the_base_controller():
    policy = youla(bias=0.0)
    torch.nn.init.zeros_(policy.policy.actor.head.linear.weight)
    found = policy_loop(policy)
    angles = np.linspace(0.01, 3.1, 30)
    np.testing.assert_allclose(found.loop.opened(0).response(angles), found.base.opened(0).response(angles), rtol=1e-9)
    np.testing.assert_allclose(
        found.base.controller.response(angles), compensator(policy.model, policy.design).response(angles), rtol=1e-9
    )


def test_the_base_controllers_poles_are_among_a_youla_loops():
    found = loops("youla r2dn")
    own = found.loop.poles
    assert all(np.abs(own - pole).min() < 1e-6 for pole in found.base.poles)


def test_what_is_proven_is_at_most_what_the_linear_part_has():
    found = loops("youla r2dn")
    linear, policy = found.linear_proven(), found.policy_proven()
    assert 0.0 < policy.disk.alpha <= linear.disk.alpha <= found.loop.disk().alpha
    assert 0 <= policy.delay <= linear.delay <= found.loop.whole_delay()


def test_a_youla_loop_with_late_inputs_is_that_of_the_late_model():
    policy = youla(delay=2)
    found = policy_loop(policy)
    assert found.model.n == 4 and found.loop.stable
    np.testing.assert_allclose(found.model.A, with_input_delay(policy.model, 2).A)


@pytest.mark.parametrize("share", [-0.9, 0.9])
def test_any_two_trajectories_converge_under_a_factor_that_is_proven(share):
    found = policy_loop(youla(gamma=2.0))
    disk = found.policy_proven().disk
    factor = 1.0 + abs(share) * ((disk.gain_low if share < 0 else disk.gain_high) - 1.0)
    model = found.model
    x = np.array([[3.0, -2.0], [-1.0, 1.0]])
    state = found.running.begin(2)
    with torch.no_grad():
        for _ in range(1800):
            u, state = found.step(torch.as_tensor(x @ model.C.T), state)
            x = x @ model.A.T + factor * u.numpy() @ model.B.T
    assert abs(factor - 1.0) > 0.05
    # Slowly: the proof is nearly tight here.
    assert np.abs(x[0] - x[1]).max() < 1e-6


def test_a_kink_at_the_equilibrium_is_said():
    policy = youla(activation="relu", bias=0.0)
    with torch.no_grad():
        for name, parameter in policy.policy.actor.named_parameters():
            if "b" in name.split(".")[-1] and parameter.ndim == 1:
                parameter.zero_()
        policy.policy.actor.body.scaling.offset.zero_()
    assert not policy_loop(policy).smooth


def test_nothing_is_proven_of_an_lstm_itself():
    found = loops("lstm")
    proven = found.policy_proven()
    assert proven.disk is None and proven.delay is None
    assert found.linear_proven().disk is not None


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidValueError, match="model is missing"):
        policy_loop(direct())
    with pytest.raises(ShapeError, match="model has 2"):
        policy_loop(direct(), linearize_plant(load_plant("qube_servo")))
