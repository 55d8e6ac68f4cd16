"""Products and sums of matrices stay within their error bounds, judged in exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from robust_policies.certificates.lmi import matrices
from robust_policies.control.bounded import Bounded, assembled, block, parts


def exact(matrix):
    return [[Fraction(float(value)) for value in row] for row in matrix]


def times(left, right):
    return [[sum((a * b for a, b in zip(row, column, strict=True)), Fraction(0)) for column in zip(*right, strict=True)]
            for row in left]  # fmt: skip


def plus(left, right):
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)]


@pytest.mark.parametrize("scale", [1.0, 1e8])
def test_a_chain_of_operations_encloses_the_exact_result(scale):
    rng = np.random.default_rng(0)
    A, B, C = (scale * rng.standard_normal((6, 6)) for _ in range(3))
    found = (Bounded.exact(A) - B @ Bounded.exact(C)) @ Bounded.exact(B) + A
    product = times(exact(B), exact(C))
    inner = plus(exact(A), [[-value for value in row] for row in product])
    truth = plus(times(inner, exact(B)), exact(A))
    for i, j in np.ndindex(6, 6):
        assert abs(truth[i][j] - Fraction(float(found.value[i, j]))) <= Fraction(float(found.error[i, j]))
    assert found.error.max() < 1e-13 * np.abs(found.value).max()


def test_blocks_keep_the_bounds_of_their_parts():
    left = Bounded(np.ones((2, 1)), np.full((2, 1), 0.5))
    whole = block([[left, np.zeros((2, 2))], [np.ones((1, 3))]])
    assert np.array_equal(whole.error, [[0.5, 0, 0], [0.5, 0, 0], [0, 0, 0]])
    assert np.array_equal((-whole).value, -whole.value)


def test_quotients_lie_within_their_bound_of_the_exact_ones():
    values = np.concatenate((np.random.default_rng(0).uniform(1e-3, 1e3, 50), [-3.0, 1e-12, 7e11]))
    found = Bounded.inverse(values).diagonal()
    for i, value in enumerate(values):
        away = abs(1 / Fraction(float(value)) - Fraction(float(found.value[i, i])))
        assert away <= Fraction(float(found.error[i, i])) <= Fraction(3, 10**16) / abs(Fraction(float(value)))
    assert not (found.error - np.diag(np.diag(found.error))).any()


def test_a_systems_parts_make_the_system_again():
    rng = np.random.default_rng(1)
    model = matrices(
        *(rng.standard_normal(shape) for shape in ((2, 2), (2, 3), (2, 1), (3, 2), (3, 1), (2, 2), (2, 3), (2, 1)))
    )
    whole = assembled(parts(model))
    for name in ("A", "B1", "B2", "C1", "D11", "D12", "C2", "D21", "D22"):
        assert np.array_equal(getattr(whole, name), getattr(model, name))
        assert whole.error is not None and not getattr(whole.error, name).any()
