"""Margins of linear loops against poles, against python-control, and against what they promise."""

import math

import control
import numpy as np
import pytest

from robust_policies.control import DiskMargin, LinearLoop, StateSpace, linearize_plant, lqg, to_control
from robust_policies.control.augment import with_input_delay
from robust_policies.control.feedback import compensator
from robust_policies.control.gain_bounds import linear_loop
from robust_policies.control.linear_model import from_control
from robust_policies.control.margins import delay_loop, disk_loop, proven_delay, proven_disk, proven_margins
from robust_policies.envs import load_plant
from robust_policies.errors import InvalidValueError, ShapeError

TASKS = ("dc_motor", "mass_spring_damper", "doyle_lqg", "cartpole_continuous", "qube_servo", "quadrotor_planar")


def loop_of(name, delay=0):
    model = linearize_plant(load_plant(name))
    design = lqg.design(model)
    late = with_input_delay(model, delay) if delay else model
    return LinearLoop(StateSpace(late.A, late.B, late.C, late.D), compensator(model, design)), model


@pytest.fixture(scope="module", params=TASKS)
def case(request):
    return request.param, *loop_of(request.param)


def radius_with(loop, factors):
    """Return the spectral radius with every input multiplied by a factor, complex ones too."""
    around = loop.around
    m = around.B.shape[1]
    return np.abs(np.linalg.eigvals(around.A + around.B @ (np.diag(factors) - np.eye(m)) @ around.C)).max()


def test_gain_margins_are_where_a_pole_crosses_the_circle(case):
    _, loop, _ = case
    m = loop.plant.B.shape[1]
    for channel in range(m):
        found = loop.measured(channel)
        ends = [gain for gain in (found.gain_low, found.gain_high) if 0.0 < gain < math.inf]
        for end in ends:
            factors = np.ones(m)
            factors[channel] = end
            assert radius_with(loop, factors) == pytest.approx(1.0, abs=1e-6)
        for gain in np.linspace(found.gain_low, min(found.gain_high, 1e3), 60)[1:-1]:
            factors = np.ones(m)
            factors[channel] = gain
            assert radius_with(loop, factors) < 1.0


def test_phase_and_delay_margins_are_where_a_pole_crosses_the_circle(case):
    _, loop, _ = case
    m = loop.plant.B.shape[1]
    for channel in range(m):
        found = loop.measured(channel)
        radii = []
        for share in (0.0, 0.5, 0.999, 1.001):
            factors = np.ones(m, dtype=complex)
            factors[channel] = np.exp(-1j * math.radians(share * found.phase))
            radii.append(radius_with(loop, factors))
        assert max(radii[:3]) < 1.0 < radii[3]
        whole = loop_steps(loop, channel, math.ceil(found.delay) - 1)
        assert whole.stable and not loop_steps(loop, channel, math.floor(found.delay) + 1).stable


def loop_steps(loop, channel, steps):
    """Return the loop with one input late by whole steps."""
    (A, B, C, _), n = loop.plant, len(loop.plant.A)
    if not steps:
        return loop
    held = np.zeros((n + steps, n + steps))
    held[:n, :n], held[:n, n], held[n : n + steps - 1, n + 1 :] = A, B[:, channel], np.eye(steps - 1)
    enters = np.zeros((n + steps, B.shape[1]))
    enters[:n], enters[:n, channel], enters[-1, channel] = B, 0.0, 1.0
    shown = np.hstack((C, np.zeros((len(C), steps))))
    return LinearLoop(StateSpace(held, enters, shown, loop.plant.D), loop.controller)


def test_margins_are_those_of_python_control():
    # On loops with poles nearer to 1 its own are off in the fifth digit, or at crossings that do not exist.
    for name in ("mass_spring_damper", "double_integrator"):
        loop, model = loop_of(name)
        found = loop.measured(0)
        opened = to_control(loop.opened(0), model.time_step)
        gains, phases, _, _, turning, _ = control.stability_margins(opened, returnall=True)
        assert found.gain_high == pytest.approx(min(gain for gain in gains if gain > 1), rel=1e-6)
        assert found.phase == pytest.approx(min(map(abs, phases)), rel=1e-6)
        delays = [math.radians(p % 360) / (w * model.time_step) for p, w in zip(phases, turning, strict=True)]
        assert found.delay == pytest.approx(min(delays), rel=1e-6)
        poles = control.feedback(opened).poles()
        assert np.abs(poles).max() == pytest.approx(np.abs(loop.poles).max(), rel=1e-7)
        alpha, _, turn = control.disk_margins(opened, loop.angles(loop.around) / model.time_step, skew=0.0)
        # It looks on a grid, so its smallest distance is not the least.
        assert loop.disk().alpha <= alpha * (1 + 1e-9) and alpha == pytest.approx(loop.disk().alpha, rel=1e-5)
        assert loop.disk().phase == pytest.approx(turn, rel=1e-5)


def test_sensitivity_is_the_distance_to_minus_one(case):
    _, loop, _ = case
    angles = loop.angles(loop.around)
    for channel in range(loop.plant.B.shape[1]):
        near = 1.0 / np.abs(1.0 + loop.opened(channel).response(angles)[:, 0, 0]).min()
        peak = loop.measured(channel).sensitivity
        assert near <= peak * (1 + 1e-9) and near == pytest.approx(peak, rel=0.02)


def test_factors_within_the_disk_leave_the_loop_stable_and_one_at_its_edge_does_not(case):
    _, loop, _ = case
    disk, m = loop.disk(), loop.plant.B.shape[1]
    random = np.random.default_rng(0)
    for _ in range(100):
        delta = disk.alpha * random.uniform(0.9, 0.999) * np.exp(2j * np.pi * random.random(m))
        assert radius_with(loop, (1 + delta / 2) / (1 - delta / 2)) < 1.0
    for factor in (disk.gain_low, min(disk.gain_high, 1e6)):
        assert radius_with(loop, np.full(m, 1.0 + 0.999 * (factor - 1.0))) < 1.0
    turn = np.exp(0.999j * math.radians(disk.phase))
    assert radius_with(loop, np.where(np.arange(m) % 2, turn, np.conj(turn))) < 1.0
    if m == 1:
        angles = loop.angles(loop.around)
        half = loop.around.response(angles)[:, 0, 0] + 0.5
        delta = 1.0 / half[np.abs(half).argmax()]
        assert radius_with(loop, [(1 + delta / 2) / (1 - delta / 2)]) == pytest.approx(1.0, abs=1e-5)


def test_what_is_proven_is_at_most_what_is_measured(case):
    name, loop, _ = case
    proven = proven_margins(linear_loop(loop.around))
    assert proven.disk.alpha <= loop.disk().alpha
    assert proven.disk.alpha == pytest.approx(loop.disk().alpha, rel=1e-4)
    if name != "doyle_lqg":
        assert 0 <= proven.delay <= loop.whole_delay()


def test_a_proven_delay_holds_for_delays_that_change():
    loop, _ = loop_of("double_integrator")
    steps = proven_margins(linear_loop(loop.around)).delay
    assert steps >= 2
    random = np.random.default_rng(0)
    A, B, C, _ = loop.plant
    controller = loop.controller
    x, s, sent = np.ones(len(A)), np.zeros(len(controller.A)), [np.zeros(B.shape[1])] * (steps + 1)
    for _ in range(3000):
        y = C @ x
        sent = [controller.C @ s + controller.D @ y, *sent[:-1]]
        s = controller.A @ s + controller.B @ y
        x = A @ x + B @ sent[random.integers(steps + 1)]
    assert np.abs(x).max() < 1e-6


def test_whole_delays_are_those_of_the_model_with_late_inputs():
    loop, _ = loop_of("mass_spring_damper")
    steps = loop.whole_delay()
    assert loop_of("mass_spring_damper", steps)[0].stable and not loop_of("mass_spring_damper", steps + 1)[0].stable
    assert loop.whole_delay(2) == 2


def test_the_loops_whose_gain_is_proven_have_the_norms_of_the_formulas():
    loop, _ = loop_of("quadrotor_planar")
    angles = np.geomspace(1e-3, math.pi, 50)
    answer = loop.around.response(angles)
    for made, expected in (
        (disk_loop(linear_loop(loop.around)), answer + 0.5 * np.eye(2)),
        (delay_loop(linear_loop(loop.around)), (1 - np.exp(-1j * angles))[:, None, None] * answer),
    ):
        found = StateSpace(made.A, made.B2, made.C2, made.D22).response(angles)
        assert np.abs(np.linalg.norm(found, 2, axis=(1, 2)) - np.linalg.norm(expected, 2, axis=(1, 2))).max() < 1e-9


def test_a_disk_margin_in_numbers():
    found = DiskMargin(1.0)
    assert (found.gain_low, found.gain_high) == (1 / 3, 3.0)
    assert found.phase == pytest.approx(53.13010235415598)
    assert DiskMargin(2.5).gain_high == math.inf and DiskMargin(2.5).gain_low == 0.0
    assert proven_disk(None) is None and proven_disk(math.inf) is None and proven_delay(None) is None
    assert [proven_delay(norm) for norm in (0.0, 0.2, 0.25, 0.9, 1.0, 7.0)] == [100, 4, 3, 1, 0, 0]


def test_an_unstable_loop_has_no_margins_and_wrong_parts_are_refused():
    plant = StateSpace(np.array([[1.1]]), np.eye(1), np.eye(1), np.zeros((1, 1)))
    none = StateSpace(np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), np.zeros((1, 1)))
    loop = LinearLoop(plant, none)
    assert not loop.stable
    for call in (loop.disk, loop.whole_delay, lambda: loop.measured(0)):
        with pytest.raises(InvalidValueError, match="unstable"):
            call()
    with pytest.raises(ShapeError):
        LinearLoop(plant, none._replace(D=np.zeros((2, 1))))
    with pytest.raises(InvalidValueError, match="D = 0"):
        LinearLoop(plant._replace(D=np.eye(1)), none)


def test_systems_go_to_python_control_and_back():
    model = linearize_plant(load_plant("qube_servo"))
    system = to_control(model)
    assert system.dt == model.time_step and system.input_labels == list(model.input_names)
    back = from_control(system)
    assert all(np.array_equal(getattr(back, name), getattr(model, name)) for name in "ABCD")
    base = compensator(model, lqg.design(model))
    made = to_control(base, 0.02, inputs=["a", "b"], outputs=["u"], name="base")
    assert made.name == "base" and made.input_labels == ["a", "b"]
    answer = made(np.exp(1j * np.array([0.1, 1.0])))
    assert np.abs(np.moveaxis(answer, -1, 0) - base.response(np.array([0.1, 1.0]))).max() < 1e-9 * np.abs(answer).max()
    with pytest.raises(InvalidValueError, match="time_step"):
        to_control(base)
    with pytest.raises(InvalidValueError, match="time_step"):
        to_control(model, 0.5)
