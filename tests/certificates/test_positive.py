"""Bounds from a positive system, against exact rationals, searches, other proofs and arrays that were tampered with."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from robust_policies.certificates import empirical_gain, implicit_gain, matrices, verify
from robust_policies.certificates import positive as rows
from robust_policies.certificates.peak_search import peak_witness
from robust_policies.certificates.verify import running_neurons, running_rows
from robust_policies.control.norms import StateSpace, hinf_norm
from robust_policies.errors import NotCertifiableError
from robust_policies.networks import NemonCell, NemonLayer, PeakLipschitz

UNIT = (1.0, 0.5, 2.0)


def cell(seed=0, gamma=2.0, **options):
    torch.manual_seed(seed)
    made = NemonCell(3, 4, 2, 6, guarantee=PeakLipschitz(gamma, UNIT), rate=0.9, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2.0)
    return made


FORMS = [{"block_size": 1}, {"block_size": 2}, {"block_size": 2, "implicit": True}]


@pytest.mark.parametrize("options", FORMS)
def test_float32_arrays_are_proven_within_a_thousandth(options):
    made = cell(**options)
    for model in (made, made.double()):
        found = verify(model)
        assert found.status == "PASS" and found.peak["units"] == list(UNIT)
        assert max(found.peak["gamma"]) == pytest.approx(2.0, rel=1e-3)
        assert found.rate <= 0.9 * (1 + 1e-6) and found.forgets is not None
        assert found.gamma >= empirical_gain(model, 5, batch=4, adam_iterations=0).gain
        witness = peak_witness(model, np.array(UNIT), 10)
        assert (witness.found <= np.array(found.peak["gamma"])).all()


def exact(matrix):
    return [[Fraction(float(value)) for value in row] for row in matrix]


def times(matrix, vector):
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_above_that_of_exact_rationals_and_by_little(seed):
    made = cell(seed, block_size=1)
    model = running_rows(made).model
    found = rows.peaks(rows.positive_system(model), np.array(UNIT))
    M = np.block([[np.abs(model.A), np.abs(model.B1)], [np.abs(model.C1), np.abs(model.D11)]])
    reach = times(exact(np.abs(np.vstack((model.B2, model.D12)))), [Fraction(u) for u in UNIT])
    level = solved(exact(np.eye(len(M)) * 1.0), exact(M), reach)
    outer = times(exact(np.abs(np.hstack((model.C2, model.D21)))), level)
    direct = times(exact(np.abs(model.D22)), [Fraction(u) for u in UNIT])
    for bound, one, other in zip(found, outer, direct, strict=True):
        assert one + other <= Fraction(float(bound)) <= (one + other) * (1 + Fraction(1, 10**6))


def solved(eye, M, right):
    """Return (eye - M)^-1 right by Gauss's elimination on rationals."""
    n = len(M)
    A = [[eye[i][j] - M[i][j] for j in range(n)] + [right[i]] for i in range(n)]
    for k in range(n):
        pivot = next(i for i in range(k, n) if A[i][k])
        A[k], A[pivot] = A[pivot], A[k]
        A[k] = [value / A[k][k] for value in A[k]]
        for i in range(n):
            if i != k and A[i][k]:
                A[i] = [a - A[i][k] * b for a, b in zip(A[i], A[k], strict=True)]
    return [row[-1] for row in A]


@pytest.mark.parametrize("options", FORMS[:2])
def test_inputs_of_one_sign_into_positive_arrays_reach_the_bound(options):
    # ReLU in its linear part, and all arrays nonnegative but for turning blocks: what is left out shows.
    made = cell(**{**options, "block_size": 1}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.abs_()
    explicit = made.explicit()
    bound = rows.peaks(running_rows(made).system, np.array(UNIT))
    units = torch.tensor(UNIT, dtype=torch.float64).expand(400, 1, 3)
    with torch.no_grad():
        state = made.initial_state(1)
        outputs = [made.run(explicit, size * units, state, None)[0][-1, 0] for size in (5, 6)]
    np.testing.assert_allclose((outputs[1] - outputs[0]).numpy(), bound, rtol=1e-6)
    assert ((outputs[1] - outputs[0]).numpy() <= bound).all()


def test_the_gain_of_a_positive_linear_cell_is_its_norm():
    random = np.random.default_rng(0)
    A, B, C, D = (random.random(shape) for shape in ((4, 4), (4, 3), (2, 4), (2, 3)))
    A *= 0.8 / np.abs(np.linalg.eigvals(A)).max()
    none = np.zeros
    model = matrices(A, none((4, 0)), B, none((0, 4)), none((0, 3)), C, none((2, 0)), D)
    norm = hinf_norm(StateSpace(A, B, C, D))
    found = rows.gain(rows.positive_system(model))
    assert norm * (1 - 1e-9) <= found <= norm * (1 + 1e-6)
    inputs, outputs = np.array([1.0, 0.5, 2.0]), np.array([3.0, 1.0])
    weighted = hinf_norm(StateSpace(A, B * inputs, outputs[:, None] * C, outputs[:, None] * D * inputs))
    assert rows.gain(rows.positive_system(model), inputs, outputs) == pytest.approx(weighted, rel=1e-6)
    decay = rows.decay(rows.positive_system(model))
    assert 0.8 <= decay.rate <= 0.8 * (1 + 1e-5)
    x = random.standard_normal((4, 50))
    first = np.linalg.norm(x, axis=0)
    for t in range(1, 30):
        x = A @ x
        assert (np.linalg.norm(x, axis=0) <= decay.overshoot * decay.rate**t * first).all()


def test_turning_blocks_count_by_their_spectral_norm():
    turn = np.array([[0.0, -0.9], [0.9, 0.0]])
    none = np.zeros
    model = matrices(turn, none((2, 0)), np.eye(2), none((0, 2)), none((0, 2)), np.eye(2), none((2, 0)), none((2, 2)))
    assert rows.decay(rows.positive_system(model, 2)).rate == pytest.approx(0.9, rel=1e-6)
    random = np.random.default_rng(0).standard_normal((400, 4))
    for a, b, c, d in random:
        block = np.array([[a, b], [c, d]])
        bound = rows._spectral(block, none((2, 2)))[0, 0]
        norm = np.linalg.norm(block, 2)
        assert norm * (1 - 1e-15) <= bound <= norm * (1 + 1e-13)


@pytest.mark.parametrize("name", ["A", "D11", "C2", "nan"])
def test_arrays_that_were_changed_are_refused(name):
    made = cell(block_size=1).double()
    explicit = made.explicit()
    changed = getattr(explicit, "B1" if name == "nan" else name).detach().clone()
    if name == "nan":
        changed[0, 0] = float("nan")
    elif name == "D11":
        changed[0, 0] = 1.5
    else:
        changed[0, 0] = 1.2 if name == "A" else changed[0, 0] + 1.0
    found = verify(made, explicit._replace(**{"B1" if name == "nan" else name: changed}))
    assert found.status == "NOT_CERTIFIED" and found.reason


def test_an_implicit_cell_has_no_neurons_one_by_one_but_bounds():
    made = cell(implicit=True)
    assert running_neurons(made) is None and running_rows(made) is not None
    assert "LMI" not in verify(made).method


def test_an_implicit_layers_gain_holds_and_is_refused_where_its_measure_is_one():
    torch.manual_seed(0)
    layer = NemonLayer(3, 6, m=0.2).double()
    head = torch.randn(2, 6, dtype=torch.float64)
    bound = implicit_gain(layer.explicit(), head, UNIT)
    with torch.no_grad():
        inputs = torch.randn(4000, 3, dtype=torch.float64)
        signs = torch.randint(0, 2, inputs.shape) * 2.0 - 1.0
        change = (layer(inputs + signs * torch.tensor(UNIT)) - layer(inputs)) @ head.T
    assert (change.abs().amax(0).numpy() <= bound).all()
    with pytest.raises(NotCertifiableError, match="matrix measure"):
        implicit_gain(layer.explicit()._replace(W=torch.eye(6, dtype=torch.float64)))
