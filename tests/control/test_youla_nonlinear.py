"""What survives on a nonlinear plant: the gain its residual allows, an invariant region, and the words for it."""

import itertools
import math

import numpy as np
import pytest
import torch

from robust_policies.control import small_gain, youla
from robust_policies.control.interval import cos, jacobian_bounds, sin, square
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import design
from robust_policies.control.norms import StateSpace, hinf_norm
from robust_policies.control.residual import (
    Residual,
    ResidualGain,
    covering_gain,
    full_block,
    interval_gain,
    sampled_gain,
    sector_centred,
)
from robust_policies.errors import InvalidValueError, ShapeError
from robust_policies.networks.r2dn import R2DN

STEP = 0.05
OUT = np.array([[1.0, 0.0]])
INTO = 15.0 * np.array([[STEP**2], [STEP]])
A0, B = np.array([[1.0, STEP], [0.0, 1.0]]), 3.0 * np.array([[STEP**2], [STEP]])


def pendulum_step(angle, speed, torque):
    """Gymnasium's Pendulum-v1 without its clips: speed first, then the angle with the new speed."""
    speed = speed + STEP * (15.0 * sin(angle) + 3.0 * torque)
    return angle + STEP * speed, speed


def pendulum(angle, centred=True, estimator="predictor"):
    """Return the model of the pendulum for |angle| up to `angle`, its design, and its residual in sin(angle)."""
    region = f"|angle| <= {angle} rad"
    slope, gain = sector_centred(math.cos(angle), 1.0, region)
    if not centred:
        slope, gain = 1.0, ResidualGain(1.0 - math.cos(angle), "analytic", region)
    model = LinearModel(A0 + slope * INTO @ OUT, B, OUT, time_step=STEP)
    gains = design(model, np.diag([10.0, 1.0]), 1e-3 * np.eye(1), np.diag([1e-6, 1e-3]), 1e-3 * np.eye(1), estimator)
    return model, gains, Residual(INTO, OUT, np.zeros((1, 1)), (gain,))


def parameter(gamma, seed):
    """Return an R2DN of gain gamma without biases, so that zero is an equilibrium, its matrices and phi's bound."""
    torch.manual_seed(seed)
    cell = R2DN(1, 3, 1, 4, (8,), guarantee={"type": "lipschitz", "gamma": gamma}, rate=0.95).double()
    with torch.no_grad():
        for name, value in cell.named_parameters():
            if name.split(".")[-1] in ("bx", "bv", "by", "b"):
                value.zero_()
    return cell, *youla.parameter_matrices(cell)


@pytest.mark.parametrize("angle", [0.3, 0.6, 1.0])
def test_the_scaled_gain_is_that_at_which_a_frozen_slope_destabilises(angle):
    model, gains, residual = pendulum(angle)
    allowed = small_gain.allowed_gain(model, gains, residual)
    loop = small_gain.residual_loop(model, gains, residual)
    frozen = StateSpace(loop.A + residual.gains[0].value * loop.B1 @ loop.C1, loop.B2, loop.C2, loop.D22)
    assert allowed.proven
    assert allowed.scaled <= 1.0 / hinf_norm(frozen)
    assert allowed.scaled == pytest.approx(1.0 / hinf_norm(frozen), rel=1e-4)
    assert 0 < allowed.triangle <= allowed.scaled * (1 + 1e-5)


def test_centring_the_sector_allows_more_and_a_large_region_allows_nothing():
    gains = {}
    for centred in (False, True):
        for angle in (0.3, 0.6, 1.0, 1.3):
            gains[centred, angle] = small_gain.allowed_gain(*pendulum(angle, centred)).scaled
    assert gains[True, 0.3] > 2 * gains[False, 0.3] > 0
    assert gains[True, 0.6] > 2.5 * gains[False, 0.6] > 0
    assert gains[True, 1.0] > 0 and gains[False, 1.0] == 0
    assert gains[True, 1.3] == 0 and gains[False, 1.3] == 0
    # The table of docs/youla_theory.md.
    assert list(gains.values()) == pytest.approx([480.6, 65.7, 0, 0, 1031.1, 202.7, 28.9, 0], rel=1e-3)


@pytest.mark.parametrize("estimator", ["predictor", "current"])
def test_the_hull_of_the_jacobians_allows_almost_as_much(estimator):
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    from robust_policies.control.semidefinite import hull_gain

    for angle in (0.6, 1.0, 1.3):
        model, gains, residual = pendulum(angle, estimator=estimator)
        corners = [(A0 + math.cos(angle) * INTO @ OUT, B), (A0 + INTO @ OUT, B)]
        hull = hull_gain(model, gains, corners, residual.gains[0])
        scaled = small_gain.allowed_gain(model, gains, residual).scaled
        assert hull.scaled <= scaled * (1 + 1e-6)
        assert hull.scaled == pytest.approx(scaled, rel=1e-2)
        assert hull.proven or hull.scaled == 0
        if estimator == "predictor":  # the table of docs/youla_theory.md
            assert hull.scaled == pytest.approx({0.6: 202.6, 1.0: 28.9, 1.3: 0}[angle], rel=1e-3)
    with pytest.raises(ShapeError, match="No Jacobians"):
        hull_gain(model, gains, [], residual.gains[0])
    with pytest.raises(InvalidValueError, match="rate is 2"):
        hull_gain(model, gains, corners, residual.gains[0], rate=2.0)


def test_a_scaling_for_each_channel_does_not_depend_on_units_and_one_block_allows_less():
    """Two pendulums, of which the first one's residual also pushes the second: none of the second comes back."""
    model, gains, residual = pendulum(0.6)
    A, Bu, C = (np.kron(np.eye(2), part) for part in (model.A, model.B, model.C))
    both = LinearModel(A, Bu, C)
    Q, R, W, V = (np.kron(np.eye(2), part) for part in (gains.Q, gains.R, gains.W, gains.V))
    double = design(both, Q, R, W, V, "predictor")
    Ep, Fx, Fu = (np.kron(np.eye(2), part) for part in (residual.Ep, residual.Fx, residual.Fu))
    Ep = Ep @ np.array([[1.0, 0.0], [0.3, 1.0]])
    units, gain = np.diag([10.0, 0.1]), residual.gains[0]
    plain = small_gain.allowed_gain(both, double, Residual(Ep, Fx, Fu, (gain, gain)))
    changed = small_gain.allowed_gain(both, double, Residual(Ep @ units, np.linalg.inv(units) @ Fx, Fu, (gain, gain)))
    block = small_gain.allowed_gain(both, double, Residual(Ep @ units, np.linalg.inv(units) @ Fx, Fu, (gain,)))
    assert plain.scaled > 0
    assert changed.scaled == pytest.approx(plain.scaled, rel=1e-2)
    assert block.scaled < 0.5 * changed.scaled
    whole = full_block(model.A, model.B, ResidualGain(0.1, "interval", "the same"))
    assert small_gain.allowed_gain(model, gains, whole).scaled == 0


def test_interval_jacobians_hold_every_sampled_one():
    def step(a, b, c):
        return a * sin(b * c) - 2.0 / (3.0 + cos(a)), square(b - 1.0) * c + 0.5, (a + b) / (c + 4.0)

    rng = np.random.default_rng(0)
    low = rng.uniform(-3, 2, (200, 3))
    high = low + rng.uniform(0, 1.5, (200, 3))
    lower, upper = jacobian_bounds(step, low, high)

    def plain(point):
        a, b, c = point
        return torch.stack((a * torch.sin(b * c) - 2 / (3 + torch.cos(a)), (b - 1) ** 2 * c + 0.5, (a + b) / (c + 4)))

    points = rng.uniform(low, high, (5, 200, 3))
    J = torch.vmap(torch.func.jacrev(plain))(torch.as_tensor(points.reshape(-1, 3))).numpy().reshape(5, 200, 3, 3)
    assert (lower - 1e-12 <= J).all() and (J <= upper + 1e-12).all()
    assert (upper - lower).max() < 60
    with pytest.raises(InvalidValueError, match="divisor's interval holds zero"):
        jacobian_bounds(lambda a: (1.0 / a,), np.array([-1.0]), np.array([1.0]))


def test_each_way_to_know_the_residual_and_what_may_be_said_of_it():
    """The pendulum's slope is cos(angle); for |angle| <= 1 it leaves the tangent's by 1 - cos 1 = 0.4597."""
    true, low, high = 1.0 - math.cos(1.0), np.array([-1.0]), np.array([1.0])

    def slope(points):
        return np.cos(points)[:, :, None]

    center = np.ones((1, 1))
    sampled = sampled_gain(slope, center, 0.9 * low, 0.9 * high, 50, 0, "|angle| <= 1 rad")
    covering = covering_gain(slope, center, low, high, [20], math.sin(1.0), "|angle| <= 1 rad")
    interval = interval_gain(lambda angle: (sin(angle),), center, low, high, [50], "|angle| <= 1 rad")
    assert sampled.value < true <= covering.value < 0.461
    assert true <= interval.value < true + 0.05
    assert [each.certified for each in (sampled, covering, interval)] == [False, True, True]

    model, gains, residual = pendulum(0.6)
    known = {}
    for kind in ("analytic", "covering", "interval", "sampled"):
        gain = ResidualGain(residual.gains[0].value, kind, "|angle| <= 0.6 rad")
        known[kind] = small_gain.allowed_gain(model, gains, Residual(INTO, OUT, np.zeros((1, 1)), (gain,))).claim(5.0)
    assert known["sampled"].startswith("Indication only, not proven")
    assert "only sampled, a lower estimate" in known["sampled"]
    assert "bounded analytically" in known["analytic"]
    assert "bounded by a grid and a Lipschitz bound" in known["covering"]
    assert "bounded by interval arithmetic" in known["interval"]
    for kind in ("analytic", "covering", "interval"):
        assert known[kind].startswith("For the nonlinear plant without saturation, for trajectories that stay in")


def test_interval_arithmetic_bounds_the_pendulums_whole_jacobian():
    slope = (1.0 + math.cos(0.6)) / 2
    center = np.hstack((A0 + slope * INTO @ OUT, B))
    low, high = np.array([-0.6, -8.0, -2.0]), np.array([0.6, 8.0, 2.0])
    found = interval_gain(pendulum_step, center, low, high, [60, 1, 1], "|angle| <= 0.6 rad")
    true = (1.0 - math.cos(0.6)) / 2 * float(np.linalg.norm(INTO))
    assert true <= found.value <= 1.3 * true


def test_a_gamma_above_what_the_region_allows_is_refused_with_both_numbers():
    allowed = small_gain.allowed_gain(*pendulum(1.0))
    with pytest.raises(
        InvalidValueError, match=r"gamma is 40; the region \|angle\| <= 1.0 rad allows less than 28\.\d+"
    ):
        allowed.check(40.0)
    with pytest.raises(InvalidValueError, match="nothing, not even the base controller"):
        small_gain.allowed_gain(*pendulum(1.3)).claim(0.1)


def test_without_a_residual_every_gain_is_allowed():
    model, gains, residual = pendulum(0.6)
    none = Residual(residual.Ep, residual.Fx, residual.Fu, (ResidualGain(0.0, "analytic", "everywhere"),))
    assert small_gain.allowed_gain(model, gains, none).scaled == math.inf


class PendulumLoop:
    """The true pendulum with observer and Youla parameter, for many copies at once: states (x, e, xi) as rows."""

    def __init__(self, model, gains, cell, performance):
        self.model, self.gains, self.cell, self.performance = model, gains, cell, performance
        self.explicit = cell.explicit()

    def step(self, zeta, d):
        K, L, M = self.gains.K, self.gains.L, self.gains.M
        x, e, xi = zeta[:, :2], zeta[:, 2:4], torch.as_tensor(zeta[:, 4:])
        w, v = np.split(d, [self.performance.Bw.shape[1]], axis=1)
        innovation = e @ OUT.T + v @ self.performance.Dv.T
        with torch.no_grad():
            ut, xi = self.cell.step(self.explicit, torch.as_tensor(innovation), xi)
        xh = x - e
        u = -(xh + innovation @ M.T if self.gains.estimator == "current" else xh) @ K.T + ut.numpy()
        following = x @ A0.T + np.sin(x[:, :1]) @ INTO.T + u @ B.T + w @ self.performance.Bw.T
        estimate = xh @ self.model.A.T + u @ B.T + innovation @ L.T
        return np.hstack((following, following - estimate, xi.numpy()))


@pytest.mark.parametrize("estimator", ["predictor", "current"])
def test_the_certified_region_is_not_left_in_10000_worst_case_runs_and_copies_converge(estimator):
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    from robust_policies.control.region import region

    model, gains, residual = pendulum(0.8, estimator=estimator)
    cell, q, ell = parameter(8.0, 0)
    performance = youla.Performance(np.zeros((1, 2)), np.zeros((1, 1)), B, 0.01 * np.eye(1))
    found = region(model, gains, q, ell, residual, [0.8], performance, rates=[0.985, 0.99])
    assert "stay in it and in the region |angle| <= 0.8 rad" in found.claim()
    assert "bounded analytically" in found.claim()

    loop, rng, count = PendulumLoop(model, gains, cell, performance), np.random.default_rng(0), 10_000
    direction = rng.normal(size=(count, len(found.P)))
    size = np.sqrt(np.einsum("ij,jk,ik->i", direction, found.P, direction))
    zeta = direction / size[:, None] * np.where(np.arange(count) % 2, 1.0, rng.uniform(size=count))[:, None]
    G = youla.closed_loop_matrices(model, gains, q, performance).B2
    largest, angle = 0.0, 0.0
    for t in range(120):
        free = loop.step(zeta, np.zeros((count, 2)))
        d = rng.normal(size=(count, 2))
        for _ in range(3):
            # Towards the point of the ball in which V of the next state is largest.
            push = (free + d @ G.T) @ found.P @ G if t % 10 else rng.normal(size=(count, 2))
            d = found.disturbance * push / np.maximum(np.linalg.norm(push, axis=1, keepdims=True), 1e-300)
        zeta = loop.step(zeta, d)
        assert found.holds(zeta / (1 + 1e-9)).all()
        largest = max(largest, float(np.einsum("ij,jk,ik->i", zeta, found.P, zeta).max()))
        angle = max(angle, float(np.abs(zeta[:, 0]).max()))
    assert 0.3 < largest <= 1 + 1e-9
    assert angle <= 0.8

    other = zeta[rng.permutation(count)]
    apart = [other - zeta]
    for _ in range(60):
        d = found.disturbance / math.sqrt(2) * rng.uniform(-1, 1, size=(count, 2))
        zeta, other = loop.step(zeta, d), loop.step(other, d)
        apart.append(other - zeta)
    norms = [np.sqrt(np.einsum("ij,jk,ik->i", each, found.P, each)) for each in apart]
    for before, after in itertools.pairwise(norms):
        assert (after <= found.rate * before + 1e-9).all()


def test_a_region_that_cannot_be_shown_is_refused():
    pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    from robust_policies.control.region import region

    _, q, ell = parameter(2.0, 0)
    performance = youla.Performance(np.zeros((1, 2)), np.zeros((1, 1)), B, 0.01 * np.eye(1))
    model, gains, residual = pendulum(1.3)
    with pytest.raises(InvalidValueError, match=r"No invariant region was found.*smaller gamma"):
        region(model, gains, q, ell, residual, [1.3], performance, rates=[0.99])
    model, gains, residual = pendulum(0.8)
    with pytest.raises(ShapeError, match="limits is"):
        region(model, gains, q, ell, residual, [0.8, 0.8], performance)
    with pytest.raises(InvalidValueError, match="rates are"):
        region(model, gains, q, ell, residual, [0.8], performance, rates=[1.5])
    driven = Residual(residual.Ep, residual.Fx, np.ones((1, 1)), residual.gains)
    with pytest.raises(InvalidValueError, match="Fu is not zero"):
        region(model, gains, q, ell, driven, [0.8], performance)


def test_bad_residuals_are_refused():
    with pytest.raises(InvalidValueError, match="kind is 'guessed'"):
        ResidualGain(0.1, "guessed", "everywhere")
    with pytest.raises(InvalidValueError, match="residual's gain is -1"):
        ResidualGain(-1.0, "analytic", "everywhere")
    with pytest.raises(InvalidValueError, match="lowest first"):
        sector_centred(1.0, 0.5, "everywhere")
    with pytest.raises(ShapeError, match="3 residual gain"):
        Residual(INTO, OUT, np.zeros((1, 1)), (ResidualGain(0.1, "analytic", "everywhere"),) * 3)
    with pytest.raises(ShapeError, match="lower corner first"):
        sampled_gain(lambda points: points[:, :, None], np.zeros((1, 1)), np.ones(1), np.zeros(1), 3, 0, "everywhere")
    with pytest.raises(ShapeError, match="cells has 2"):
        covering_gain(lambda points: points[:, :, None], np.zeros((1, 1)), np.zeros(1), np.ones(1), [2, 2], 1.0, "all")
