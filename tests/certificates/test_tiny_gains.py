"""Gain bounds far below 1: the metric then spans ten decades, and is proven in coordinates in which it does not."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from robust_policies.certificates.gain import secant_gain
from robust_policies.certificates.lmi import matrices
from robust_policies.certificates.verify import verify, verify_chain
from robust_policies.networks import REN, Lipschitz


def cell(gamma, seed):
    torch.manual_seed(seed)
    return REN(3, 8, 2, 16, guarantee=Lipschitz(gamma))


@pytest.mark.parametrize(("gamma", "seed"), [(1e-3, 1), (1e-3, 2), (1e-4, 3), (1e-6, 0)])
def test_an_untrained_ren_with_a_tiny_gain_is_proven_in_single_precision(gamma, seed):
    tiny = cell(gamma, seed)
    assert tiny.X.dtype == torch.float32
    found = verify(tiny)
    assert found.status == "PASS" and found.margin > found.shift > 0
    assert gamma <= found.gamma <= gamma * (1 + 1e-3)
    inputs = np.random.default_rng(0).normal(size=(2, 20, 3))
    assert secant_gain(tiny, *inputs) <= found.gamma
    # The overshoot is that of the cell's own state, not of the coordinates of the proof.
    assert found.overshoot > 1e4


def test_the_gain_in_other_units_is_proven_too():
    gain = verify_chain(cell(1e-3, 1), inputs=np.full(3, 0.5), outputs=np.full(2, 4.0))
    assert gain is not None and gain <= 1e-3 * 0.5 * 4.0 * (1 + 1e-3)


def test_the_bounds_of_other_coordinates_hold_in_rational_arithmetic():
    generator = np.random.default_rng(1)
    n = 4
    S = np.triu(generator.normal(size=(n, n))) + np.diag([3e4, 1.0, 1e-2, 1e-4])
    draw = generator.normal
    model = matrices(draw(size=(n, n)), draw(size=(n, 3)), draw(size=(n, 2)), draw(size=(3, n)), draw(size=(3, 2)),
                     draw(size=(2, n)), draw(size=(2, 3)), draw(size=(2, 2)))  # fmt: skip
    turned = model.in_coordinates(S)
    assert turned is not None and turned.error is not None
    inverse = _inverse(S)
    exact = {"A": _times(_times(_exact(S), _exact(model.A)), inverse), "B1": _times(_exact(S), _exact(model.B1)),
             "B2": _times(_exact(S), _exact(model.B2)), "C1": _times(_exact(model.C1), inverse),
             "C2": _times(_exact(model.C2), inverse)}  # fmt: skip
    for name, rows in exact.items():
        value, bound = getattr(turned, name), getattr(turned.error, name)
        off = np.array([[float(abs(x - Fraction(y))) for x, y in zip(*pair, strict=True)]
                        for pair in zip(rows, value, strict=True)])  # fmt: skip
        assert (off <= bound).all(), name
        assert bound.max() <= 1e-9 * max(1.0, np.abs(value).max()), name
    assert np.array_equal(turned.D12, model.D12) and not turned.error.D12.any()


def test_coordinates_too_near_singular_ones_are_refused():
    model = matrices(np.eye(2), *(np.eye(2) for _ in range(7)))
    assert model.in_coordinates(np.array([[1.0, 1e20], [0.0, 1e-20]])) is None
    assert model.in_coordinates(np.array([[1.0, 0.0], [0.0, 0.0]])) is None


def _exact(array):
    return [[Fraction(float(x)) for x in row] for row in array]


def _times(left, right):
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)]
            for row in left]  # fmt: skip


def _inverse(S):
    """Return the exact inverse of an upper triangular matrix."""
    S, n = _exact(S), len(S)
    inverse = [[Fraction(0)] * n for _ in range(n)]
    for j in range(n):
        for i in range(j, -1, -1):
            rest = sum(S[i][k] * inverse[k][j] for k in range(i + 1, n))
            inverse[i][j] = (Fraction(int(i == j)) - rest) / S[i][i]
    return inverse
