"""Bounds that were made false on purpose are never passed, and what the proof rests on is true."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch

from robust_policies.certificates import secant_gain, verify, verify_arrays, verify_layers
from robust_policies.certificates.layers import chain_model, norm_product
from robust_policies.certificates.lmi import assemble, gain_supply, matrices, product, prove_positive
from robust_policies.certificates.multipliers import LipschitzMultiplier, SlopeMultiplier, admissible
from robust_policies.networks import R2DN, REN, Contracting, Dissipative, LBDNCell, Lipschitz, make_cell

NAMES = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")


def make(kind, guarantee, seed=0):
    torch.manual_seed(seed)
    options = {"hidden_sizes": (5,)} if kind is R2DN else {}
    return kind(2, 3, 2, features=4, guarantee=guarantee, **options).double()


@pytest.mark.parametrize("kind", [R2DN, REN])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))])
def test_a_gain_made_false_by_an_edit_is_not_passed(kind, seed):
    cell = make(kind, Lipschitz(2.0), seed)
    explicit = cell.explicit64()
    one_weight = explicit.D22.clone()
    one_weight[0, 1] += 5.0
    grown = explicit.A / torch.linalg.eigvals(explicit.A).abs().max() * 1.05
    for edited in (
        explicit._replace(D22=one_weight),
        explicit._replace(A=grown),
        explicit._replace(B2=explicit.B2 * 1e3, D12=explicit.D12 * 1e3, D22=explicit.D22 * 1e3),
    ):
        found = verify(cell, edited)
        assert found.status == "NOT_CERTIFIED" and found.gamma is None and found.reason


def test_a_gain_that_two_sequences_refute_is_not_passed():
    cell = LBDNCell(2, (6,), 2, gamma=2.0).double()
    a, b = np.zeros((1, 2)), np.full((1, 2), 1e-3)
    shown = secant_gain(cell, a, b)
    explicit = cell.explicit64()
    last = explicit.layers[-1]._replace(B=explicit.layers[-1].B * 4.0 / shown)
    edited = explicit._replace(layers=(*explicit.layers[:-1], last))
    assert verify(cell, edited).status == "NOT_CERTIFIED"
    assert verify(cell).gamma >= shown


@pytest.mark.parametrize("kind", [R2DN, REN])
def test_false_contraction_and_false_dissipation_are_not_passed(kind):
    for seed in range(2):
        cell = make(kind, Contracting(), seed)
        explicit = cell.explicit64()
        grown = explicit.A / torch.linalg.eigvals(explicit.A).abs().max() * 1.01
        assert verify(cell, explicit._replace(A=grown)).status == "NOT_CERTIFIED"
        cell = make(kind, Dissipative(-torch.eye(2), torch.zeros(2, 2), 4 * torch.eye(2)), seed)
        explicit = cell.explicit64()
        assert verify(cell).status == "PASS"
        for edited in (explicit._replace(D22=explicit.D22 + 3 * torch.eye(2)), explicit._replace(A=grown)):
            assert verify(cell, edited).status == "NOT_CERTIFIED"


def test_broken_weights_and_unknown_activations_are_named():
    weights = [np.ones((3, 2)), np.ones((1, 3))]
    assert verify_layers(weights).gamma == pytest.approx(np.sqrt(6) * np.sqrt(3), rel=1e-3)
    assert "gelu" in verify_layers(weights, "gelu").reason
    weights[0][1, 1] = np.nan
    assert verify_layers(weights).status == "NOT_CERTIFIED" and "NaN" in verify_layers(weights).reason
    mlp = make_cell("mlp", 2, 1, hidden_sizes=(3,))
    with torch.no_grad():
        mlp.layers[0].weight[0, 0] = float("inf")
    assert verify(mlp).status == "NOT_CERTIFIED"
    assert verify(make_cell("mlp", 2, 1, hidden_sizes=(4,)).zero_output_()).gamma == 0.0
    model = chain_model([np.ones((3, 2)), np.ones((1, 3))])
    for theta in (-np.ones(3), np.ones(2), np.full(3, np.nan)):
        assert not admissible(SlopeMultiplier(3), theta)
    refused = verify_arrays(model, rate=1.0, gamma=5.0, family=SlopeMultiplier(3), theta=np.ones(2))
    assert refused.status == "NOT_CERTIFIED" and "multiplier" in refused.reason
    D11 = np.tril(np.ones((2, 2)), -1)
    zero = np.zeros((2, 2))
    model = matrices(zero, zero, zero, zero, zero, zero, zero, zero, D11)
    assert "D11 is not zero" in verify_arrays(model, rate=1.0, gamma=1.0).reason


@pytest.mark.parametrize("activation", ["relu", "tanh", "maxmin", "householder"])
def test_perceptrons_never_exceed_their_proven_gain(activation):
    for seed in range(4):
        torch.manual_seed(seed)
        cell = make_cell("mlp", 3, 2, hidden_sizes=(6, 4), activation=activation).double()
        for parameter in cell.parameters():
            parameter.data.mul_(3.0)
        if activation == "householder":
            for angle in cell.angles:
                torch.nn.init.normal_(angle)
        gamma = verify(cell).gamma
        assert gamma <= norm_product([w.detach().numpy() for w in cell.explicit().weights])
        points = torch.randn(500, 3, dtype=torch.float64)
        jacobians = torch.func.vmap(torch.func.jacrev(lambda u, net=cell: net(u.reshape(1, 1, 3))[0].flatten()))(points)
        assert float(torch.linalg.matrix_norm(jacobians.detach(), 2).max()) <= gamma * (1 + 1e-9)


@pytest.mark.parametrize(
    ("family", "function"),
    [
        (LipschitzMultiplier(4), torch.sin),
        (SlopeMultiplier(4), torch.relu),
        (SlopeMultiplier(4), torch.tanh),
    ],
)
def test_forms_are_nonnegative_on_increments_and_equal_their_pairs(family, function):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    increments = torch.cat((a - b, function(a) - function(b)), dim=1).numpy()
    rng = np.random.default_rng(0)
    for _ in range(5):
        theta = rng.random(family.size)
        assert admissible(family, theta)
        N = family.matrix(theta)
        assert np.einsum("ni,ij,nj->n", increments, N, increments).min() >= -1e-12
        left, right, c, variable = family.pairs(*np.split(np.eye(8), 2))
        half = (left * (c * theta[variable])[:, None]).T @ right
        np.testing.assert_allclose(half + half.T, N, atol=1e-15)


def test_the_bound_of_a_product_holds_in_rational_arithmetic():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((3, 4)), rng.standard_normal((4, 2)) * 1e3
    off = 1e-9 * rng.random((4, 2))
    value, bound = product(left, right, right_error=off)
    for i in range(3):
        for j in range(2):
            worst = sum(
                Fraction(left[i, k]) * (Fraction(right[k, j]) + (1 if left[i, k] > 0 else -1) * Fraction(off[k, j]))
                for k in range(4)
            )
            assert abs(Fraction(value[i, j]) - worst) <= Fraction(bound[i, j])


def test_an_entry_known_only_to_an_error_needs_that_much_more_margin():
    eye, zero = np.eye(1), np.zeros((1, 1))
    # y = u exactly has gain 1; if D22 may be off by 1e-3, only gains above 1.001 are proven.
    model = matrices(zero, zero, zero, zero, zero, zero, zero, eye)
    off = matrices(zero, zero, zero, zero, zero, zero, zero, 1e-3 * eye)
    uncertain = copy.copy(model)
    object.__setattr__(uncertain, "error", off)
    for gamma, exact, doubtful in ((1.0005, True, False), (1.01, True, True), (0.999, False, False)):
        supply = gain_supply(gamma, np.ones(1), np.ones(1))
        multiplier = LipschitzMultiplier(1).matrix(np.ones(1))
        assert prove_positive(*assemble(model, eye, 0.9, multiplier, supply)).holds is exact
        assert prove_positive(*assemble(uncertain, eye, 0.9, multiplier, supply)).holds is doubtful
