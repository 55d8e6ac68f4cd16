"""Bounds in a box: the chain is what runs, no two observations in the box move an action further, splitting helps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium import spaces

from robust_policies.certificates.chains import chain_of
from robust_policies.certificates.local import Box, jacobian, local_peaks
from robust_policies.certificates.slopes import SHAPES, clipped
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.networks import REN, make_cell
from robust_policies.networks.activations import ACTIVATIONS
from robust_policies.networks.baselines import MLPCell
from robust_policies.policies import DeployedPolicy, local_bounds
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.local import _chains
from robust_policies.policies.window import WindowCell

LOW, HIGH, UNITS = np.array([-0.5, 0.2]), np.array([0.3, 0.9]), np.array([0.1, 0.3])
WINDOWED = {"r2dn": {"hidden_sizes": (4,), "activation": "tanh"}, "ren": {"activation": "relu"}}


def made(cell, normalizer=None, squash=False, actions=None):
    torch.manual_seed(1)
    head = MeanHead(cell.output_size, 2, True, [2.0, 0.5], [0.3, 0.0], squash=squash)
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    actor = Actor(ScaledCell(cell, Scaling(2, [0.5, 4.0], [0.1, -0.2])), head, normalizer).double()
    return DeployedPolicy(actor, spaces.Box(-10.0, 10.0, (2,)), actions or spaces.Box(-1.0, 1.0, (2,)))


def memoryless(kind="mlp", activation="tanh", hidden=(6, 4), **options):
    torch.manual_seed(4)
    extra = {"gamma": 3.0} if kind == "lbdn" else {}
    cell = make_cell(kind, 2, 3, hidden_sizes=list(hidden), activation=activation, **extra)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    return made(cell, **options)


def windowed(kind, masked, window=3):
    torch.manual_seed(0)
    inner = make_cell("mlp", 2, 3, hidden_sizes=[4]) if kind == "mlp" else None
    inner = inner or make_cell(kind, 2, 3, state_size=2, features=3, rate=0.9, **WINDOWED[kind])
    cell = WindowCell(inner, MLPCell(3, (5,), 3), window, masked)
    cell.blank.copy_(torch.tensor([0.4, -0.7]))
    return made(cell)


def normalizer():
    return FrozenNormalizer(torch.tensor([0.1, 0.2]), torch.tensor([0.5, 2.0]), 0.8)


POLICIES = {
    **{f"mlp {name}": (memoryless, "mlp", name) for name in (*SHAPES, "maxmin", "householder")},
    "lbdn": (memoryless, "lbdn", "relu"),
    "lbdn householder": (memoryless, "lbdn", "householder"),
    "squash": (lambda: memoryless(squash=True),),
    "normalizer": (lambda: memoryless(normalizer=normalizer()),),
    **{f"{kind} in a window, {masked}": (windowed, kind, masked) for kind in ("mlp", "r2dn", "ren")
       for masked in (True, False)},
}  # fmt: skip


@pytest.fixture(params=POLICIES, scope="module")
def policy(request):
    build, *arguments = POLICIES[request.param]
    return build(*arguments)


def drawn(rng, count, steps, low=LOW, high=HIGH):
    """Return observations (steps, count, 2) in the box, half of them at its corners."""
    inside = rng.uniform(low, high, (steps, count, 2))
    corners = np.where(rng.random(inside.shape) < 0.5, low, high)
    return np.where(rng.random((1, count, 1)) < 0.5, inside, corners)


def actions(policy, observations):
    """Return the mean actions (steps, count, 2) of episodes from their start."""
    with torch.no_grad():
        return policy.actor(torch.as_tensor(observations))[0].numpy()


def of_chain(chain, inputs):
    values = inputs
    for layer in chain:
        values = values @ layer.weight.T + layer.bias
        low, high = (np.stack(ends) for ends in zip(*(layer.values(row, row) for row in values), strict=True))
        assert (low <= high).all() and np.allclose(low, high, rtol=1e-4, atol=1e-12)
        values = 0.5 * (low + high)
    return values


def test_the_chains_are_the_policy_that_runs(policy):
    observations = drawn(np.random.default_rng(0), 20, 3)
    expected = actions(policy, observations)
    # torch's leak is 0.01 in some number type.
    close = 1e-6 if getattr(policy.cell, "activation", None) is ACTIVATIONS["leaky_relu"] else 1e-12
    for chain, count in _chains(policy.actor):
        inputs = np.moveaxis(observations[:count], 0, 1).reshape(20, -1)
        np.testing.assert_allclose(of_chain(chain, inputs), expected[count - 1], atol=close)


def test_no_search_exceeds_the_bound(policy):
    found = local_bounds(policy, LOW, HIGH, UNITS, splits=20)
    rng = np.random.default_rng(0)
    steps = found.window
    one = drawn(rng, 5000, steps)
    sign = np.where(rng.random(one.shape) < 0.5, -1.0, 1.0)
    other = np.clip(one + UNITS * sign, LOW, HIGH)
    moved = np.abs(actions(policy, one) - actions(policy, other))
    assert (moved <= found.gamma).all()
    # Intervals of a REN over a window, whose neurons follow one another, are loose.
    loose = isinstance(policy.cell, WindowCell) and isinstance(policy.cell.inner, REN)
    assert (moved.max((0, 1)) > (0.03 if loose else 0.2) * np.array(found.gamma)).all()
    assert "differ by at most" in found.claim


def test_at_a_point_the_intervals_hold_the_gradient_and_little_else(policy):
    chain, count = _chains(policy.actor)[-1]
    point = np.tile([0.11, 0.42], count)
    low, high = jacobian(chain, Box.between(point, point))
    inputs = torch.tensor(point).reshape(count, 1, 2).requires_grad_()
    exact = torch.stack([torch.autograd.grad(out, inputs, retain_graph=True)[0].flatten()
                         for out in policy.actor(inputs)[0][-1, 0]]).numpy()  # fmt: skip
    assert (low <= exact + 1e-12).all() and (exact <= high + 1e-12).all()
    np.testing.assert_allclose(high, low, atol=1e-5)


def test_more_boxes_never_give_more_and_come_close_to_what_is_found():
    made = memoryless()
    bounds = [local_bounds(made, LOW, HIGH, HIGH - LOW, splits=splits) for splits in (1, 3, 30, 300)]
    for fewer, more in pairwise(bounds):
        assert (np.array(more.gamma) <= np.array(fewer.gamma)).all()
    assert max(bounds[-1].gamma) < 0.9 * max(bounds[0].gamma)
    assert [found.boxes for found in bounds[:3]] == [1, 3, 29]
    chain = chain_of(made.cell)
    slopes = [jacobian(chain, Box.between(point, point)) for point in drawn(np.random.default_rng(0), 500, 1)[0]]
    found = np.max([np.abs(low) @ (HIGH - LOW) for low, _ in slopes], axis=0)
    exact, _ = local_peaks(chain, LOW, HIGH, HIGH - LOW, 300)
    assert (found <= exact).all()
    assert (found > 0.75 * exact).all()


@pytest.mark.parametrize(("bias", "share"), [(-5.0, 0.0), (5.0, 1.0), (0.1, 1.0), (-0.9, 1.0), (-0.9 - 1e-9, 0.0)])
def test_one_neuron_reaches_the_exact_value(bias, share):
    cell = MLPCell(1, (1,), 1, "relu").double()
    with torch.no_grad():
        for parameter, value in zip(cell.parameters(), (3.0, bias, -2.0, 0.7), strict=True):
            parameter.fill_(value)
    # The kink is at -bias / 3: in the box [-0.3, 0.3], outside, or at its edge, where it counts as inside.
    found, _ = local_peaks(chain_of(cell), np.array([-0.3]), np.array([0.3]), np.array([0.1]), 9)
    assert found[0] >= 0.6 * share
    assert found[0] == pytest.approx(0.6 * share, abs=1e-12)


@pytest.mark.parametrize("name", [*SHAPES, "clip"])
def test_values_and_slopes_are_within_their_intervals(name):
    shape = clipped(0.8) if name == "clip" else SHAPES[name]
    function = (lambda x: x.clamp(-0.8, 0.8)) if name == "clip" else ACTIVATIONS[name].function
    rng = np.random.default_rng(0)
    centre, width = rng.normal(0.0, 3.0, 400), np.abs(rng.normal(0.0, 1.0, 400)) ** 3
    low, high = centre - width, centre + width
    points = torch.tensor(rng.uniform(low, high, (50, 400)), requires_grad=True)
    values = function(points)
    slopes = torch.autograd.grad(values.sum(), points)[0].numpy()
    for found, (least, most) in ((values.detach().numpy(), shape.values(low, high)), (slopes, shape.slopes(low, high))):
        assert (least <= found + 1e-15).all() and (found <= most + 1e-15).all()
    assert all((0.0 <= each).all() and (each <= 1.0 + 1e-12).all() for each in shape.slopes(low, high))


def test_no_bound_is_larger_than_one_that_holds_everywhere():
    made = memoryless("lbdn", "relu")
    peak = made.peak(UNITS)["gamma"]
    alone, both = (local_bounds(made, -9 * HIGH, 9 * HIGH, UNITS, 3, known=known).gamma for known in (None, peak))
    assert max(alone) > max(peak)
    assert both == tuple(np.minimum(alone, peak))
    with pytest.raises(ShapeError, match="known"):
        local_bounds(made, LOW, HIGH, known=[1.0])


def test_what_has_no_bound_in_a_box_is_refused():
    with pytest.raises(NotCertifiableError, match="memory"):
        local_bounds(made(make_cell("lstm", 2, 3, state_size=4)), LOW, HIGH)
    with pytest.raises(NotCertifiableError, match="slopes"):
        local_bounds(memoryless(activation="softplus"), LOW, HIGH)
    with pytest.raises(NotCertifiableError, match="choices"):
        local_bounds(memoryless(actions=spaces.Discrete(2)), LOW, HIGH)
    with pytest.raises(ShapeError):
        local_bounds(memoryless(), [0.0], [1.0])
    for wrong in ((HIGH, LOW), ([np.nan, 0.0], HIGH), (LOW, [np.inf, 1.0])):
        with pytest.raises(InvalidValueError, match="box"):
            local_bounds(memoryless(), *wrong)
    with pytest.raises(InvalidValueError, match="weights"):
        local_bounds(memoryless(), LOW, HIGH, [0.0, 1.0])
    with pytest.raises(InvalidValueError, match="splits"):
        local_bounds(memoryless(), LOW, HIGH, splits=0)
