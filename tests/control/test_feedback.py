"""A linear plant in feedback with a policy: the matrices against a simulation, the bounds against what is measured."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from robust_policies.certificates.verify import running_model, running_neurons, verify
from robust_policies.control.bounded import Bounded, between
from robust_policies.control.feedback import (
    compensator,
    default_performance,
    feedback_bound,
    feedback_matrices,
)
from robust_policies.control.linear_model import from_matrices
from robust_policies.control.lqg import design
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.networks import R2DN, REN, Lipschitz
from robust_policies.policies.folded import Folded


def plant(slow=0.8, **fields):
    return from_matrices([[slow, 0.2], [-0.1, 0.6]], [[0.0], [0.5]], [[1.0, 0.0], [0.3, 1.0]], **fields)


def student(seed, gamma=0.4, activation="relu"):
    torch.manual_seed(seed)
    guarantee = Lipschitz(gamma)
    return R2DN(2, 3, 1, features=4, hidden_sizes=(5,), activation=activation, guarantee=guarantee, rate=0.95).double()


def simulate(model, cell, performance, d, x, state):
    """Return z (time, nz) and the last states of plant and cell, equation by equation."""
    explicit, nw, outputs = cell.explicit(), performance.Bw.shape[1], []
    for now in d:
        y = model.C @ x + performance.Dv @ now[nw:]
        u, state = cell.step(explicit, torch.as_tensor(y)[None], state)
        u = u[0].numpy()
        outputs.append(performance.Cz @ x + performance.Dz @ u)
        x = model.A @ x + model.B @ u + performance.Bw @ now[:nw]
    return np.array(outputs), x, state


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_the_closed_loops_matrices_are_those_of_the_simulation(seed):
    model, cell = plant(), student(seed)
    performance = default_performance(model)
    matrices, _, _ = running_model(cell)
    loop = feedback_matrices(model, matrices, performance)
    generator = np.random.default_rng(seed)
    d = generator.normal(size=(20, loop.sizes[2]))
    z, x, state = simulate(model, cell, performance, d, np.zeros(2), torch.zeros(1, 3, dtype=torch.float64))
    e, s, found = cell.explicit(), np.zeros(5), []
    bx = np.concatenate((model.B @ e.by.numpy(), e.bx.numpy()))
    for now in d:
        v = torch.as_tensor(loop.C1 @ s + loop.D12 @ now) + e.bv
        w = phi(cell, e, v)
        found.append(loop.C2 @ s + loop.D21 @ w + loop.D22 @ now + performance.Dz @ e.by.numpy())
        s = loop.A @ s + loop.B1 @ w + loop.B2 @ now + bx
    np.testing.assert_allclose(found, z, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(s, np.concatenate((x, state[0].numpy())), rtol=1e-10, atol=1e-12)


def phi(cell, explicit, v):
    """Return the cell's nonlinearity at v (nv,)."""
    h = v[None]
    for layer in explicit.layers:
        h = layer.apply(h, cell.activation)
    return h[0].numpy()


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_a_product_lies_within_its_bound_of_the_exact_one(scale):
    generator = np.random.default_rng(0)
    a, b, c = (scale * generator.normal(size=(3, 3)) for _ in range(3))
    found = Bounded.exact(a) @ b @ c + Bounded.exact(c)
    exact = [[Fraction(x) for x in row] for row in a]
    for other in (b, c):
        exact = [[sum(row[k] * Fraction(other[k, j]) for k in range(3)) for j in range(3)] for row in exact]
    for i in range(3):
        for j in range(3):
            away = abs(Fraction(found.value[i, j]) - exact[i][j] - Fraction(c[i, j]))
            assert away <= Fraction(found.error[i, j])
    assert (found.error <= 1e-12 * (np.abs(a) @ np.abs(b) @ np.abs(c) + np.abs(c))).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["r2dn", "ren"])
def test_what_is_proven_of_a_loop_is_never_less_than_what_is_measured(kind):
    model, cell = plant(), student(1)
    if kind == "ren":
        torch.manual_seed(1)
        cell = REN(2, 3, 1, features=4, guarantee=Lipschitz(0.4), rate=0.95).double()
    performance = default_performance(model)
    neurons = running_neurons(cell) if kind == "r2dn" else None
    bound = feedback_bound(model, *running_model(cell), neurons=neurons, gain=verify(cell).gamma)
    assert bound.rate is not None and bound.rate < 1 and bound.gain is not None
    assert bound.small_gain is not None and bound.gain <= bound.small_gain * (1 + 1e-6)
    generator = np.random.default_rng(3)
    for _ in range(5):
        one, other = generator.normal(size=(2, 60, 4)) * generator.choice([0.1, 1.0, 10.0])
        begin = np.zeros(2), torch.zeros(1, 3, dtype=torch.float64)
        difference = simulate(model, cell, performance, one, *begin)[0] - simulate(
            model, cell, performance, other, *begin
        )[0]  # fmt: skip
        assert np.linalg.norm(difference) <= bound.gain * np.linalg.norm(one - other) * (1 + 1e-9)
    # Two copies under the same disturbances come together at least as fast as proven.
    d = generator.normal(size=(200, 4))
    near, far = (
        simulate(model, cell, performance, d, start, torch.zeros(1, 3, dtype=torch.float64))
        for start in (np.zeros(2), np.array([5.0, -5.0]))
    )
    assert np.linalg.norm(near[1] - far[1]) <= 1e6 * bound.rate**200 + 1e-12


def test_a_policy_of_too_large_a_gain_on_a_slow_plant_gets_the_numbers_and_no_bound():
    model = plant(slow=0.99)
    bound = feedback_bound(model, None, gain=50.0, reason="it has no matrices")
    claim = bound.claim(model)
    assert not bound.proven and bound.small_gain is None
    assert bound.plant_gain > 1 and f"{50.0 * bound.plant_gain:.4g}" in claim
    assert (
        "no bound follows" in claim and "it has no matrices" in claim and "does not mean that it is unstable" in claim
    )


def test_an_unstable_plant_that_the_linear_part_leaves_alone_is_named():
    model = from_matrices([[1.1, 0.2], [0.0, 0.6]], [[0.0], [0.5]], np.eye(2))
    cell = student(0, gamma=0.01)
    bound = feedback_bound(model, *running_model(cell), gain=0.01)
    assert bound.rate is None and bound.loop_radius is not None and bound.loop_radius > 1
    claim = bound.claim(model)
    assert f"spectral radius {bound.loop_radius:.6g}, not below 1" in claim and "spectral radius is 1.1" in claim


def test_neurons_that_answer_too_strongly_are_named_with_their_gain():
    model, cell = plant(), student(0)
    matrices, family, theta = running_model(cell)
    strong = between(matrices, np.eye(2), np.eye(1))
    strong = type(strong)(**{**vars(strong), "B1": 50.0 * strong.B1})
    bound = feedback_bound(model, strong, family, theta)
    assert bound.neurons is not None and bound.neurons > 1 and bound.rate is None
    assert f"gain around the policy's nonlinearity is {bound.neurons:.4g}" in bound.claim(model)


def test_only_a_plant_that_is_its_model_is_covered_whole():
    exact, approximate = plant(), plant(exact=False, origin="a pendulum about its rest")
    bound = feedback_bound(exact, *running_model(student(1)), gain=0.4)
    assert "not covered" not in bound.claim(exact)
    said = bound.claim(approximate)
    assert "a pendulum about its rest" in said and "The nonlinear plant itself is not covered." in said


def test_scales_and_head_are_folded_in_exactly_as_they_act():
    cell = student(2)
    matrices, _, _ = running_model(cell)
    inputs, head, outputs = np.array([0.5, 3.0]), np.array([[2.0], [-1.0]]), np.array([0.1, -4.0])
    maps = Folded(inputs, np.zeros(2), head, outputs)
    folded = between(matrices, maps.inward, maps.outward)
    np.testing.assert_allclose(folded.D22, np.diag(outputs) @ head @ matrices.D22 / inputs, rtol=1e-14)
    np.testing.assert_allclose(folded.B2, matrices.B2 / inputs, rtol=1e-14)
    np.testing.assert_allclose(folded.C2, np.diag(outputs) @ head @ matrices.C2, rtol=1e-14)
    assert folded.error is not None and not folded.error.A.any() and folded.error.D22.max() < 1e-13


@pytest.mark.parametrize("estimator", ["current", "predictor"])
def test_a_compensator_closes_the_loop_that_its_design_promises(estimator):
    model = from_matrices([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]], [[1.0, 0.0]])
    found = design(model, estimator=estimator)
    c = compensator(model, found)
    loop = np.block([[model.A + model.B @ c.D @ model.C, model.B @ c.C], [c.B @ model.C, c.A]])
    apart = np.concatenate(
        [np.linalg.eigvals(model.A - model.B @ found.K), np.linalg.eigvals(model.A - found.L @ model.C)]
    )
    np.testing.assert_allclose(np.poly(loop), np.poly(apart), atol=1e-9)


def test_what_does_not_fit_is_refused():
    matrices, _, _ = running_model(student(0))
    with pytest.raises(ShapeError, match="D22"):
        feedback_bound(from_matrices(0.5 * np.eye(3), np.ones((3, 1)), np.eye(3)), matrices)
    with pytest.raises(InvalidValueError, match="with_input_delay"):
        feedback_bound(plant(D=[[1.0], [0.0]]), matrices)


def test_a_plant_whose_outputs_show_the_input_at_once_is_refused_where_only_a_gain_is_known():
    model = from_matrices([[0.5]], [[1.0]], [[1.0]], [[2.0]])
    with pytest.raises(InvalidValueError, match="expected D = 0"):
        feedback_bound(model, None, gain=0.1)
