"""What is claimed of the plant itself: the bounds of its Jacobian, their kind, and the sentences made of them."""

import numpy as np
import pytest
import torch

from robust_policies.control import youla
from robust_policies.control.linearize import linearize_plant
from robust_policies.control.lqg import design
from robust_policies.control.scope import scope_of
from robust_policies.control.small_gain import allowed_gain
from robust_policies.envs import load_plant
from robust_policies.errors import InvalidValueError

REGIONS = {"cartpole_continuous": (2.4, 1.0, 0.1, 1.0), "qube_servo": (3.0, 0.1, 1.0, 1.0)}


@pytest.fixture(scope="module", params=sorted(REGIONS))
def known(request):
    plant = load_plant(request.param)
    model = linearize_plant(plant)
    return plant, model, REGIONS[request.param]


def test_interval_bounds_hold_at_points_of_the_region(known):
    plant, model, region = known
    scope = scope_of(plant, model, region)
    assert scope.kind == "interval"
    rng = np.random.default_rng(1)
    half = np.concatenate((region, plant.action_high - 1e-9))
    for point in torch.as_tensor(rng.uniform(-half, half, (20, len(half)))):
        function = lambda z: plant.advance(z[None, : model.n], z[None, model.n :], plant.nominal())[0]  # noqa: E731
        J = torch.autograd.functional.jacobian(function, point).numpy()
        assert (scope.lower <= J + 1e-12).all() and (scope.upper >= J - 1e-12).all()
    assert (scope.upper - scope.lower).max() < 20 * np.abs(np.hstack((model.A, model.B))).max()


def test_each_entry_that_varies_is_a_channel(known):
    plant, model, region = known
    residual = scope_of(plant, model, region).residual(model, region)
    channels = np.hstack((residual.Fx, residual.Fu)) != 0
    assert (channels.sum(1) == 1).all() and (residual.Ep.sum(0) == 1).all()
    assert residual.certified and model.state_names[0] in residual.region


def test_a_smaller_region_allows_a_larger_gain_and_the_sentence_says_where():
    plant = load_plant("cartpole_continuous")
    model = linearize_plant(plant)
    gains = design(model, V=0.01 * np.eye(4))
    scales = youla.normalisation(gains, model)
    region = REGIONS["cartpole_continuous"]
    found = allowed_gain(model, gains, scope_of(plant, model, region).residual(model, region), scales)
    assert found.proven and 0.4 < found.scaled < 0.7
    with pytest.raises(InvalidValueError, match=r"gamma is 0\.7; .* Train with a smaller gamma"):
        found.check(0.7)
    region = tuple(0.5 * np.array(region))
    said = scope_of(plant, model, region).claim(model, gains, region, 0.7, scales)
    assert said.startswith(
        "For the nonlinear plant without saturation, for trajectories that stay in the region |posit"
    )
    assert "bounded by interval arithmetic" in said and "angle [rad]| <= 0.05" in said


@pytest.mark.parametrize(
    ("name", "region", "words"),
    [
        ("doyle_lqg", (), "The plant is this linear model"),
        ("qube_servo", (), "no region is stated"),
        ("pendulum", (0.1, 0.5), "outputs are not linear"),
        ("inverted_pendulum", (), "contacts and friction switch"),
    ],
)
def test_what_is_not_known_is_said(name, region, words):
    plant = load_plant(name)
    model = linearize_plant(plant)
    gains = design(model)
    said = scope_of(plant, model, region).claim(model, gains, region, 1.0, youla.normalisation(gains, model))
    assert words in said
    assert name == "doyle_lqg" or "nothing is proven" in said


def test_where_interval_arithmetic_cannot_follow_the_bounds_are_called_sampled():
    class Clipped(type(load_plant("cartpole_continuous"))):
        def advance(self, state, action, params, noise=None, disturbance=None):
            return super().advance(state.tanh() * 1.0, action, params, noise, disturbance)

    original = load_plant("cartpole_continuous")
    plant = Clipped(original.task)
    model = linearize_plant(original)
    region = REGIONS["cartpole_continuous"]
    scope = scope_of(plant, model, region)
    assert scope.kind == "sampled"
    said = scope.residual(model, region).claim("it contracts")
    assert said.startswith("Indication only, not proven")
