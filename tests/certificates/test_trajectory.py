"""Bounds of a cost along known trajectories: no attack exceeds one, later ones are smaller, simple ones are exact."""

import numpy as np
import pytest
import torch

from robust_policies.certificates.ball import NORMS
from robust_policies.certificates.lmi import Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.trajectory import Along, Gain, Perturbation, gain_of
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

STEPS, EPISODES = 8, 2


def loop(seed, nx=2, nv=3, nd=2, nz=2):
    """Return a random loop, neurons that feed one another in it, and biases of them."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((nx, nx))
    parts = {
        "A": A * 0.7 / np.abs(np.linalg.eigvals(A)).max(),
        "B1": 0.15 * rng.standard_normal((nx, nv)),
        "B2": rng.standard_normal((nx, nd)),
        "C1": 0.5 * rng.standard_normal((nv, nx)),
        "D11": np.tril(0.3 * rng.standard_normal((nv, nv)), -1),
        "D12": 0.3 * rng.standard_normal((nv, nd)),
        "C2": rng.standard_normal((nz, nx)),
        "D21": 0.3 * rng.standard_normal((nz, nv)),
        "D22": 0.3 * rng.standard_normal((nz, nd)),
    }
    return Neurons(Matrices(**parts), np.ones(nv)), rng.standard_normal(nv), rng.standard_normal((EPISODES, nx))


def played(neurons, bias, start, d):
    """Return z (time, episodes, nz) of ReLU neurons with biases, differentiable in d (time, episodes, nd)."""
    names = ("A", "B1", "B2", "C1", "D11", "D12", "C2", "D21", "D22")
    A, B1, B2, C1, D11, D12, C2, D21, D22 = (torch.as_tensor(getattr(neurons.model, name)) for name in names)
    x, found = torch.as_tensor(start), []
    for now in d:
        v = x @ C1.T + now @ D12.T + torch.as_tensor(bias)
        w = torch.zeros_like(v)
        for _ in range(len(bias)):
            w = torch.relu(v + w @ D11.T)
        found.append(x @ C2.T + w @ D21.T + now @ D22.T)
        x = x @ A.T + w @ B1.T + now @ B2.T
    return torch.stack(found)


def surface(d, norm, size):
    """Return d moved to the surface (linf: corners) of the perturbations of a size."""
    if norm == "per_step_linf":
        return size * torch.sign(d)
    length = d.square().sum((0, 2), keepdim=True) if norm == "total_l2" else d.square().sum(2, keepdim=True)
    return size * d / length.sqrt().clamp_min(1e-300)


def attacks(neurons, bias, start, norm, size, worst):
    """Yield noise, a square wave, what attains the dual bound, and a climb along the gradient from each."""
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, EPISODES, neurons.model.sizes[2])
    wave = torch.sign(torch.sin(0.7 * torch.arange(STEPS) + 0.1)).double()[:, None, None].expand(shape)
    begin = [torch.randn(shape, generator=generator, dtype=torch.float64), wave]
    for d in [*begin, *([] if worst is None else [torch.as_tensor(worst)])]:
        for _ in range(3):
            d = surface(d, norm, size).detach().requires_grad_()
            yield d.detach()
            (d,) = torch.autograd.grad(played(neurons, bias, start, d).square().sum(), d)


def ordered(seed, iterations):
    """Return how near attacks come to the bounds of a random loop, after the comparison of all of them."""
    neurons, bias, start = loop(seed)
    gain = gain_of(neurons)
    if gain is None:
        return 0
    zero = torch.zeros(STEPS, EPISODES, 2, dtype=torch.float64)
    nominal = played(neurons, bias, start, zero).numpy()
    along = Along(neurons.model, neurons.family, nominal)
    for norm in NORMS:
        bounds = along.bounds(gain, Perturbation(norm, 0.3), iterations)
        assert (bounds.varying <= bounds.constant).all() and (bounds.constant <= bounds.triangle).all()
        assert bounds.constant.mean() < bounds.triangle.mean()
        for d in attacks(neurons, bias, start, norm, 0.3, bounds.worst):
            cost = played(neurons, bias, start, d).square().sum((0, 2)).numpy()
            assert (cost <= bounds.varying).all()
    return 1


def test_no_attack_on_a_random_loop_costs_more_than_any_bound():
    assert sum(ordered(seed, (3, 4)) for seed in range(8)) >= 5


@pytest.mark.soak
def test_no_attack_on_a_hundred_random_loops_costs_more_than_any_bound():
    proven = sum(ordered(seed, (12, 60)) for seed in range(160))
    assert proven >= 100


def test_from_rest_a_total_budget_costs_the_gain_squared_and_a_witness_shows_it():
    A, B, C = np.array([[0.8, 0.3], [-0.2, 0.7]]), np.array([[1.0], [0.5]]), np.array([[1.0, 1.0]])
    none = np.zeros
    model = Matrices(A=A, B1=none((2, 0)), B2=B, C1=none((0, 2)), D11=none((0, 0)), D12=none((0, 1)), C2=C,
                     D21=none((1, 0)), D22=none((1, 1)))  # fmt: skip
    neurons, size, steps = Neurons(model, np.zeros(0)), 2.0, 150
    gain = gain_of(neurons)
    along = Along(model, neurons.family, np.zeros((steps, 1, 1)))
    bounds = along.bounds(gain, Perturbation("total_l2", size), (12, 0))
    assert bounds.triangle[0] == pytest.approx(gain.gain**2 * size**2, rel=1e-9)
    assert 0.99 * bounds.triangle[0] <= bounds.least[0] <= bounds.triangle[0]
    response = [(C @ np.linalg.matrix_power(A, k) @ B).item() for k in range(steps)]
    maps = np.array([[response[i - j - 1] if i > j else 0.0 for j in range(steps)] for i in range(steps)])
    witness = size * np.linalg.svd(maps)[2][0]
    cost = float(np.square(maps @ witness).sum())
    assert 0.99 * bounds.triangle[0] <= cost <= bounds.least[0]


def test_without_a_perturbation_the_bound_is_what_was_measured():
    neurons, bias, start = loop(0)
    zero = torch.zeros(STEPS, EPISODES, 2, dtype=torch.float64)
    along = Along(neurons.model, neurons.family, played(neurons, bias, start, zero).numpy())
    gain = gain_of(neurons)
    np.testing.assert_allclose(along.bounds(gain, Perturbation("per_step_l2", 0.0)).least, along.cost, rtol=1e-9)
    near = along.bounds(gain, Perturbation("per_step_l2", 1e-6)).least
    assert (near >= along.cost).all()
    np.testing.assert_allclose(near, along.cost, rtol=1e-3)


def test_what_is_no_bound_is_refused():
    neurons, _, _ = loop(0)
    along = Along(neurons.model, neurons.family, np.ones((3, 1, 2)))
    with pytest.raises(InvalidValueError, match="size is -1"):
        along.bounds(Gain(1.0, np.ones(3)), Perturbation("per_step_l2", -1.0))
    with pytest.raises(InvalidValueError, match="negative"):
        along.bounds(Gain(1.0, np.array([1.0, -1e-9, 1.0])), Perturbation("per_step_l2", 1.0))
    with pytest.raises(UnknownNameError, match="l7"):
        along.bounds(Gain(1.0, np.ones(3)), Perturbation("l7", 1.0))
    with pytest.raises(ShapeError, match="nominal"):
        Along(neurons.model, neurons.family, np.ones((3, 1, 5)))
    # A multiplier that the gain's proof does not allow has no supremum.
    assert along.at(np.full((1, 1), 1e-6), np.ones((1, 3)), np.ones((1, 2))) is None
