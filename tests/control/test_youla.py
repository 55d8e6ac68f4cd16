"""The Youla parametrization of a linear plant: its maps, its normalisation and bounds of the closed loop's gain."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from robust_policies.certificates import empirical_gain, verify_arrays
from robust_policies.certificates.lmi import matrices
from robust_policies.certificates.multipliers import LipschitzMultiplier
from robust_policies.control import youla
from robust_policies.control.closed_loop import ClosedLoop
from robust_policies.control.gain_bounds import gain_bound, known_gain, linear_loop
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import design
from robust_policies.control.norms import StateSpace, hinf_norm
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.networks.baselines import LSTMCell
from robust_policies.networks.r2dn import R2DN

ANGLES = np.linspace(-math.pi, math.pi, 41)


def random_loop(seed, estimator="current"):
    """Return a plant, mostly unstable, and its LQG design for random weights."""
    rng = np.random.default_rng(seed)
    n, m, p = rng.integers(1, 5), rng.integers(1, 4), rng.integers(1, 4)
    A, B, C = rng.normal(size=(n, n)), rng.normal(size=(n, m)), rng.normal(size=(p, n))
    A *= rng.uniform(0.5, 1.2) / np.abs(np.linalg.eigvals(A)).max()
    roots = (rng.normal(size=(size, size)) for size in (n, m, n, p))
    Q, R, W, V = (root @ root.T + 0.3 * np.eye(len(root)) for root in roots)
    model = LinearModel(A, B, C)
    return model, design(model, Q, R, W, V, estimator)


def parameter(model, gamma, seed, states=3):
    """Return an R2DN of gain gamma from innovation to input, in float64, with its matrices and phi's bound."""
    torch.manual_seed(seed)
    guarantee = {"type": "lipschitz", "gamma": gamma}
    cell = R2DN(model.p, states, model.m, 4, (8,), guarantee=guarantee, rate=0.95).double()
    return cell, *youla.parameter_matrices(cell)


def simulated(model, design, cell, scales, performance, disturbance):
    """Return z (time, n, nz) of plant, observer and cell step by step, as a program runs them."""
    A, B, C, K, L, M = model.A, model.B, model.C, design.K, design.L, design.M
    inward, outward = scales
    count, explicit, outputs = disturbance.shape[1], cell.explicit(), []
    x, xh, state = np.zeros((count, model.n)), np.zeros((count, model.n)), cell.initial_state(count)
    for d in disturbance:
        w, v = np.split(d, [performance.Bw.shape[1]], axis=-1)
        innovation = x @ C.T + v @ performance.Dv.T - xh @ C.T
        with torch.no_grad():
            ut, state = cell.step(explicit, torch.as_tensor(innovation @ inward.T), state)
        estimate = xh + innovation @ M.T if design.estimator == "current" else xh
        u = -estimate @ K.T + ut.numpy() @ outward.T
        outputs.append(x @ performance.Cz.T + u @ performance.Dz.T)
        x, xh = x @ A.T + u @ B.T + w @ performance.Bw.T, xh @ A.T + u @ B.T + innovation @ L.T
    return np.array(outputs)


def test_the_norm_finds_a_peak_that_a_grid_misses():
    pole = (1 - 1e-7) * np.exp(1.2345j)
    A = np.array([[pole.real, pole.imag], [-pole.imag, pole.real]])
    system = StateSpace(A, np.array([[0.0], [1.0]]), np.array([[1.0, 0.0]]), np.zeros((1, 1)))
    on_a_grid = np.linalg.norm(system.response(np.linspace(0, math.pi, 2000)), 2, axis=(1, 2)).max()
    at_the_peak = np.linalg.norm(system.response(np.array([1.2345]))[0], 2)
    assert on_a_grid < 1e-2 * at_the_peak
    assert hinf_norm(system) == pytest.approx(at_the_peak, rel=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_proven_norm_lies_just_above_the_largest_response(seed):
    model, gains = random_loop(seed)
    for system in youla.maps(model, gains):
        dense = np.linalg.norm(system.response(np.linspace(0, math.pi, 4000)), 2, axis=(1, 2)).max()
        norm, bound = hinf_norm(system), gain_bound(linear_loop(system))
        assert dense <= norm * (1 + 1e-8)
        assert bound.proven
        assert norm <= bound.gain <= norm * (1 + 1e-4)


@pytest.mark.parametrize("estimator", ["current", "predictor"])
@pytest.mark.parametrize("seed", range(8))
def test_normalised_maps_have_singular_values_of_one_at_all_frequencies(seed, estimator):
    model, gains = random_loop(seed, estimator)
    inward, outward = youla.normalisation(gains, model)
    _, T1, T2 = youla.maps(model, gains)
    inner, coinner = T1.response(ANGLES) @ outward, inward @ T2.response(ANGLES)
    np.testing.assert_allclose(np.linalg.svd(inner, compute_uv=False), 1.0, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.svd(coinner, compute_uv=False), 1.0, rtol=1e-9)
    bounds = youla.bounds(model, gains, 3.0, scales=(inward, outward))
    assert bounds.triangle.gain == pytest.approx(bounds.T0.gain + 3.0, rel=1e-5)


@pytest.mark.parametrize("estimator", ["current", "predictor"])
@pytest.mark.parametrize("seed", range(4))
def test_the_matrices_are_those_of_the_loop_that_runs(seed, estimator):
    model, gains = random_loop(seed, estimator)
    performance, scales = youla.Performance.lqg(gains), youla.normalisation(gains, model)
    cell, _, _ = parameter(model, 2.0, seed)
    for bias in (cell.bx, cell.bv, cell.by):
        torch.nn.init.normal_(bias)
    loop = ClosedLoop(model, gains, cell, scales)
    disturbance = np.random.default_rng(seed).normal(size=(60, 3, loop.input_size))
    wanted = simulated(model, gains, cell, scales, performance, disturbance)
    with torch.no_grad():
        outputs, _ = loop(torch.as_tensor(disturbance))
    np.testing.assert_allclose(outputs.numpy(), wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())


@pytest.mark.parametrize("estimator", ["current", "predictor"])
def test_the_maps_are_those_of_the_loop_with_a_linear_youla_parameter(estimator):
    model, gains = random_loop(5, estimator)
    T0, T1, T2 = youla.maps(model, gains)
    rng = np.random.default_rng(0)
    n, nu, ny = 2, model.p, model.m
    A = 0.4 * rng.normal(size=(n, n))
    q = StateSpace(A, rng.normal(size=(n, nu)), rng.normal(size=(ny, n)), rng.normal(size=(ny, nu)))
    none = np.zeros((0, 0))
    given = matrices(A, np.zeros((n, 0)), q.B, np.zeros((0, n)), np.zeros((0, nu)), q.C, np.zeros((ny, 0)), q.D, none)
    loop = youla.closed_loop_matrices(model, gains, given)
    whole = StateSpace(loop.A, loop.B2, loop.C2, loop.D22).response(ANGLES)
    cascade = T0.response(ANGLES) + T1.response(ANGLES) @ q.response(ANGLES) @ T2.response(ANGLES)
    np.testing.assert_allclose(whole, cascade, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "gain", [2.0, pytest.param(0.5, marks=pytest.mark.soak), pytest.param(5.0, marks=pytest.mark.soak)]
)
def test_the_measured_gain_is_never_above_the_bounds_and_they_are_ordered(gain):
    for seed in range(3):
        model, gains = random_loop(seed)
        scales = youla.normalisation(gains, model)
        cell, q, ell = parameter(model, gain, seed)
        bounds = youla.bounds(model, gains, gain, q=q, ell=ell, scales=scales)
        assert bounds.closed_loop is not None
        assert bounds.triangle.proven and bounds.scaled.proven and bounds.closed_loop.proven
        assert bounds.scaled.gain <= bounds.triangle.gain * (1 + 1e-5)
        assert bounds.closed_loop.gain <= bounds.scaled.gain * (1 + 1e-5)
        loop = ClosedLoop(model, gains, cell, scales)
        found = empirical_gain(loop, steps=25, batch=4, power_iterations=8, adam_iterations=10)
        assert 0 < found.gain <= bounds.closed_loop.gain * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_general_verifier_proves_what_the_bound_says(seed):
    model, gains = random_loop(seed)
    cell, q, ell = parameter(model, 2.0, seed)
    scales = youla.normalisation(gains, model)
    bound = youla.bounds(model, gains, 2.0, q=q, ell=ell, scales=scales).closed_loop
    loop = ClosedLoop(model, gains, cell, scales)
    assert bound is not None
    phi = LipschitzMultiplier(loop.matrices.sizes[1], loop.ell)
    verdict = verify_arrays(loop.matrices, rate=1.0, gamma=1.02 * bound.gain, family=phi)
    assert verdict.status == "PASS"
    assert verify_arrays(loop.matrices, rate=1.0, gamma=0.5 * bound.gain, family=phi).status == "NOT_CERTIFIED"


@pytest.mark.parametrize("seed", range(3))
def test_a_semidefinite_program_finds_the_same_bounds(seed):
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    from robust_policies.control.semidefinite import least_gain

    model, gains = random_loop(seed)
    _, q, ell = parameter(model, 2.0, seed)
    bounds = youla.bounds(model, gains, 2.0, q=q, ell=ell)
    assert bounds.closed_loop is not None
    loop = youla.closed_loop_matrices(model, gains, q)
    any_parameter = youla.closed_loop_matrices(model, gains, known_gain(model.p, model.m))
    assert least_gain(any_parameter, 2.0) == pytest.approx(bounds.scaled.gain, rel=1e-4)
    assert least_gain(loop, ell) == pytest.approx(bounds.closed_loop.gain, rel=1e-4)


@pytest.mark.parametrize("unit", [1e-9, 1e-5, 1e5, 1e9])
def test_the_semidefinite_program_is_as_accurate_in_any_unit(unit):
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    from robust_policies.control.semidefinite import least_gain

    one, none = np.eye(1), np.zeros((1, 1))
    for pole in (0.0, 0.9, 0.99):
        for inward, outward in ((1.0, unit), (unit, 1.0), (unit, 1 / unit)):
            loop = matrices(pole * one, none, inward * one, none, none, outward * one, none, none)
            assert least_gain(loop, 0.0) == pytest.approx(inward * outward / (1 - pole), rel=1e-6)


def test_a_static_youla_parameter_reaches_the_scaled_bound():
    """With scalar signals the worst Q of a given gain is linear: some phase at one frequency."""
    model = LinearModel(np.array([[1.05]]), np.array([[1.0]]), np.array([[1.0]]))
    gains = design(model, np.eye(1), np.eye(1), np.eye(1), np.eye(1))
    T0, T1, T2 = youla.maps(model, gains)
    bound = youla.bounds(model, gains, 2.0).scaled.gain
    angles = np.linspace(0, math.pi, 721)
    G0, G1, G2 = (system.response(angles) for system in (T0, T1, T2))
    phases = np.exp(1j * np.linspace(0, 2 * math.pi, 721))
    loops = G0[:, None] + 2.0 * phases[:, None, None] * (G1 @ G2)[:, None]
    worst = np.linalg.norm(loops, 2, axis=(2, 3)).max()
    assert worst <= bound * (1 + 1e-6)
    assert worst == pytest.approx(bound, rel=1e-4)


def test_without_a_youla_parameter_all_bounds_are_the_base_loops_norm():
    model, gains = random_loop(2)
    bounds = youla.bounds(model, gains, 0.0)
    assert bounds.closed_loop is None
    assert bounds.triangle.gain == pytest.approx(bounds.T0.gain, rel=1e-6)
    assert bounds.scaled.gain == pytest.approx(bounds.T0.gain, rel=1e-4)


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.soak)])
def test_any_contracting_youla_parameter_keeps_two_copies_converging(count):
    """Random ones of any size, unstable plants: the loop forgets how it started, whatever the Youla parameter."""
    worst = 0.0
    for seed in range(count):
        model, gains = random_loop(seed % 50, ("current", "predictor")[seed % 2])
        torch.manual_seed(seed)
        cell = R2DN(model.p, 3, model.m, 4, (6,), rate=0.9).double()
        with torch.no_grad():
            for value in cell.parameters():
                value.mul_(math.exp(seed % 5 - 1))
        loop = ClosedLoop(model, gains, cell)
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(600, 1, loop.input_size, generator=generator, dtype=torch.float64)
        starts = 10.0 * torch.randn(4, loop.state_size, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            _, final = loop(inputs.expand(-1, 4, -1), starts)
        apart = float((final - final[:1]).norm(dim=1).max() / (starts - starts[:1]).norm(dim=1).max())
        worst = max(worst, apart / max(1.0, float(final.norm(dim=1).max())))
    assert worst < 1e-6


def test_unstable_gains_are_refused_with_the_number():
    model, gains = random_loop(0)
    unstable = model.A / np.abs(np.linalg.eigvals(model.A)).max() * 1.5
    moved = LinearModel(unstable, model.B, model.C)
    with pytest.raises(InvalidValueError, match=r"A - B K has spectral radius 1\.5.*Give a feedback gain K"):
        youla.maps(moved, replace(gains, K=0 * gains.K))
    with pytest.raises(InvalidValueError, match=r"A - L C has spectral radius"):
        youla.maps(moved, replace(design(moved, gains.Q, gains.R, gains.W, gains.V), L=0 * gains.L))


def test_bad_input_is_refused():
    model, gains = random_loop(0)
    with pytest.raises(InvalidValueError, match="gain is -1"):
        youla.bounds(model, gains, -1.0)
    with pytest.raises(InvalidValueError, match="estimator is 'other'"):
        youla.maps(model, replace(gains, estimator="other"))
    performance = replace(youla.Performance.lqg(gains), Cz=np.ones((1, model.n + 1)))
    with pytest.raises(ShapeError, match="Cz has shape"):
        youla.maps(model, gains, performance)
    with pytest.raises(NotCertifiableError, match="LSTMCell has no matrices"):
        youla.parameter_matrices(LSTMCell(1, 2, 1))
    singular = replace(gains, S=0 * gains.S, V=0 * gains.V)
    with pytest.raises(InvalidValueError, match=r"C S C' \+ V is singular"):
        youla.normalisation(singular, model)
    with pytest.raises(InvalidValueError, match=r"spectral radius 2"):
        hinf_norm(StateSpace(2 * np.eye(1), np.eye(1), np.eye(1), np.eye(1)))
    with pytest.raises(ShapeError, match="1 gain"):
        gain_bound(linear_loop(youla.maps(model, gains)[0]), (1.0,))
