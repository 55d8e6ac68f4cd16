"""MuJoCo models: its finite differences against central differences of its own steps, and what it cannot do."""

import mujoco
import numpy as np
import pytest

from robust_policies.control import lqg
from robust_policies.control.linearize import linearize_mujoco, with_input_delay
from robust_policies.errors import InvalidValueError, UnknownNameError

CARTPOLE = """
<mujoco>
  <option timestep="0.01" integrator="{integrator}"/>
  <worldbody>
    <body>
      <joint name="slider" type="slide" axis="1 0 0" damping="0.1"/>
      <geom type="box" size="0.1 0.1 0.1" mass="1" contype="0"/>
      <body>
        <joint name="hinge" type="hinge" axis="0 1 0" damping="0.01"/>
        <geom type="capsule" fromto="0 0 0 0 0 0.6" size="0.04" mass="0.2" contype="0"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="slider" gear="10" ctrllimited="true" ctrlrange="-1 1"/></actuator>
  <sensor><jointpos joint="slider"/><jointpos joint="hinge"/>{sensor}</sensor>
  <keyframe><key name="away" qpos="0.3 0"/><key name="leaning" qpos="0 0.05"/></keyframe>
</mujoco>
"""
HOVER = """
<mujoco>
  <option timestep="0.01" integrator="implicitfast"/>
  <worldbody>
    <body name="drone" pos="0 0 1"><freejoint/><geom type="box" size="0.1 0.2 0.05" mass="0.5"/>
      <site name="a" pos="0.1 0.1 0"/><site name="b" pos="-0.1 0.1 0"/>
      <site name="c" pos="-0.1 -0.1 0"/><site name="d" pos="0.1 -0.1 0"/></body>
  </worldbody>
  <actuator>
    <motor site="a" gear="0 0 1 0 0 0.1" ctrllimited="true" ctrlrange="0 5"/>
    <motor site="b" gear="0 0 1 0 0 -0.1" ctrllimited="true" ctrlrange="0 5"/>
    <motor site="c" gear="0 0 1 0 0 0.1" ctrllimited="true" ctrlrange="0 5"/>
    <motor site="d" gear="0 0 1 0 0 -0.1" ctrllimited="true" ctrlrange="0 5"/>
  </actuator>
</mujoco>
"""


def cartpole(integrator="Euler", sensor=""):
    return mujoco.MjModel.from_xml_string(CARTPOLE.format(integrator=integrator, sensor=sensor))


def differences(model, qpos, ctrl, count, size=1e-4):
    """Return A and B of `count` steps from rest by differences of fourth order, in tangent coordinates."""
    data, nv = mujoco.MjData(model), model.nv

    def after(x, u):
        mujoco.mj_resetData(model, data)
        data.qpos[:] = qpos
        mujoco.mj_integratePos(model, data.qpos, x[:nv], 1.0)
        data.qvel[:], data.ctrl[:] = x[nv:], ctrl + u
        for _ in range(count):
            mujoco.mj_step(model, data)
        moved = np.zeros(nv)
        mujoco.mj_differentiatePos(model, moved, 1.0, qpos, data.qpos)
        return np.concatenate((moved, data.qvel))

    columns = []
    for unit in np.eye(2 * nv + model.nu):
        near, far = (
            after(*np.split(scale * size * unit, [2 * nv])) - after(*np.split(-scale * size * unit, [2 * nv]))
            for scale in (1.0, 2.0)
        )
        columns.append((8.0 * near - far) / (12.0 * size))
    return np.split(np.stack(columns, axis=1), [2 * nv], axis=1)


@pytest.mark.parametrize("integrator", ["Euler", "implicit", "implicitfast"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_derivatives_are_those_of_the_steps(integrator, count):
    model = cartpole(integrator)
    found = linearize_mujoco(model, frame_skip=count)
    A, B = differences(model, np.zeros(2), np.zeros(1), count)
    np.testing.assert_allclose(found.A, A, atol=1e-10)
    np.testing.assert_allclose(found.B, B, atol=1e-10)
    np.testing.assert_allclose(found.C, np.eye(2, 4), atol=1e-12)
    assert found.time_step == pytest.approx(0.01 * count) and found.residual <= 1e-9


def test_a_floating_body_is_linearized_in_twelve_coordinates_and_hovers():
    model = mujoco.MjModel.from_xml_string(HOVER)
    found = linearize_mujoco(model, frame_skip=2)
    np.testing.assert_allclose(found.u0, 0.5 * 9.81 / 4, rtol=1e-9)
    A, B = differences(model, np.array([0, 0, 1, 1, 0, 0, 0.0]), found.u0, 2)
    assert found.n == 12 and model.nq == 7
    np.testing.assert_allclose(found.A, A, atol=1e-10)
    np.testing.assert_allclose(found.B, B, atol=1e-10)
    assert lqg.design(found).rho_control < 1.0


def test_the_design_balances_the_pole():
    model = cartpole("implicitfast")
    found = linearize_mujoco(model, frame_skip=2)
    design = lqg.design(found)
    data, estimate = mujoco.MjData(model), np.zeros(4)
    data.qpos[1] = 0.1
    mujoco.mj_forward(model, data)
    for _ in range(1000):
        innovation = data.sensordata - found.y0 - found.C @ estimate
        data.ctrl[:] = np.clip(found.u0 - design.K @ (estimate + design.M @ innovation), -1.0, 1.0)
        mujoco.mj_step(model, data, 2)
        mujoco.mj_forward(model, data)
        estimate = found.A @ estimate + found.B @ (data.ctrl - found.u0) + design.L @ innovation
    np.testing.assert_allclose(np.concatenate((data.qpos, data.qvel)), 0.0, atol=1e-3)


def test_it_begins_where_it_is_told_and_leaves_the_data_alone():
    model = cartpole()
    data = mujoco.MjData(model)
    data.qpos[0], data.time = -0.2, 3.0
    np.testing.assert_allclose(linearize_mujoco(model, data).y0, [-0.2, 0.0], atol=1e-9)
    assert (data.qpos[0], data.time) == (-0.2, 3.0)
    np.testing.assert_allclose(linearize_mujoco(model, key="away").y0, [0.3, 0.0], atol=1e-9)
    np.testing.assert_allclose(linearize_mujoco(model, key=0).y0, [0.3, 0.0], atol=1e-9)
    assert abs(linearize_mujoco(model, key="leaning").y0[1]) < 1e-9


def test_an_accelerometer_shows_the_control_at_once_and_needs_a_delay():
    model = cartpole(sensor='<jointactuatorfrc joint="slider"/>')
    found = linearize_mujoco(model)
    assert np.abs(found.D).max() > 1.0
    with pytest.raises(InvalidValueError, match="expected D = 0"):
        lqg.design(found)
    assert lqg.design(with_input_delay(found, 1)).rho_estimator < 1.0


def test_runge_kutta_is_refused_with_what_to_set():
    with pytest.raises(InvalidValueError, match=r"integrator is RK4.*implicitfast"):
        linearize_mujoco(cartpole("RK4"))


def test_a_contact_is_said_to_hold_only_while_it_does():
    falls = """<mujoco><option integrator="implicitfast"/><worldbody><geom type="plane" size="1 1 1"/>
      <body pos="0 0 {height}"><joint type="slide" axis="0 0 1" name="up"/><geom type="box" size="0.1 0.1 0.1"/></body>
      </worldbody><actuator><motor joint="up" ctrllimited="true" ctrlrange="-1 1"/></actuator></mujoco>"""
    resting = mujoco.MjModel.from_xml_string(falls.format(height=0.0999))
    data = mujoco.MjData(resting)
    mujoco.mj_step(resting, data, 2000)
    assert "contact(s) active" in linearize_mujoco(resting, data).origin
    with pytest.raises(InvalidValueError, match="No equilibrium was found"):
        linearize_mujoco(mujoco.MjModel.from_xml_string(falls.format(height=2.0)))


PAIR = """
<mujoco>
  <option timestep="0.01" integrator="implicitfast" gravity="0 0 0">{flag}</option>
  <worldbody>
    <body name="hand" mocap="true"><geom size="0.05" contype="0" conaffinity="0"/></body>
    <body name="first" {first}><joint name="s" type="slide" axis="1 0 0" damping="1"/>
      <geom size="0.1" mass="1" contype="0" conaffinity="0"/></body>
    <body name="second" pos="0 1 0"><joint name="r" type="slide" axis="1 0 0" damping="1"/>
      <geom size="0.1" mass="1" contype="0" conaffinity="0"/></body>
  </worldbody>
  <equality>{equality}</equality>
  <actuator>{actuators}</actuator>
  <sensor>{sensors}</sensor>
  <keyframe><key name="aside" mpos="0.3 0 0"/></keyframe>
</mujoco>
"""
MOTORS = '<motor joint="s"/><motor joint="r"/>'


def pair(flag="", first="", equality="", actuators=MOTORS, sensors=""):
    return mujoco.MjModel.from_xml_string(
        PAIR.format(flag=flag, first=first, equality=equality, actuators=actuators, sensors=sensors)
    )


@pytest.mark.parametrize(("in_file", "now"), [("true", 0), ("false", 1)])
def test_an_equality_constraint_switched_in_the_data_is_seen(in_file, now):
    model = pair(equality=f'<joint joint1="s" joint2="r" active="{in_file}"/>')
    data = mujoco.MjData(model)
    data.eq_active[0] = now
    found = linearize_mujoco(model, data)
    A, B = np.zeros((4, 4)), np.zeros((4, 2))
    mujoco.mjd_transitionFD(model, data, 1e-6, True, A, B, None, None)
    np.testing.assert_allclose(found.A, A, atol=1e-6)
    np.testing.assert_allclose(found.B, B, atol=1e-6)
    # Pushed together, each moves half as much.
    assert found.B[2, 0] == pytest.approx(0.01 / (2.0 if now else 1.0), rel=0.15)
    assert (abs(found.B[3, 0]) > 1e-3) == bool(now) and data.eq_active[0] == now


def test_applied_forces_and_mocap_bodies_of_the_data_are_seen():
    model = pair(equality='<weld body1="hand" body2="first"/>',
                 actuators='<motor joint="s" ctrlrange="-1 1"/><motor joint="r" ctrlrange="-9 9"/>')  # fmt: skip
    data = mujoco.MjData(model)
    data.mocap_pos[0, 0] = 0.2
    data.qfrc_applied[1] = 4.0
    data.xfrc_applied[3, 0] = 1.5
    found = linearize_mujoco(model, data)
    assert found.u0[1] == pytest.approx(-5.5, abs=1e-6)
    assert found.x0[0] == pytest.approx(0.2, abs=1e-3)
    assert linearize_mujoco(model, key="aside").x0[0] == pytest.approx(0.3, abs=1e-3)
    assert linearize_mujoco(model).x0[0] == pytest.approx(0.0, abs=1e-3)


def test_the_equilibrium_is_given_exactly():
    model = cartpole()
    data = mujoco.MjData(model)
    data.qpos[0] = 1.0 / 3.0
    found = linearize_mujoco(model, data)
    assert found.equilibrium is not None and found.equilibrium[0] == found.x0[0] == 1.0 / 3.0
    again = mujoco.MjData(model)
    again.qpos[:], again.qvel[:], again.ctrl[:] = found.equilibrium[:2], found.equilibrium[2:4], found.u0
    mujoco.mj_step(model, again)
    moved = np.concatenate((again.qpos, again.qvel)) - found.equilibrium
    assert np.linalg.norm(moved) == pytest.approx(found.residual, abs=1e-15)
    # A free joint has seven positions and six deviations.
    hovering = linearize_mujoco(mujoco.MjModel.from_xml_string(HOVER))
    assert hovering.n == 12 and not hovering.x0.any()
    assert hovering.equilibrium is not None
    np.testing.assert_array_equal(hovering.equilibrium[:7], [0, 0, 1, 1, 0, 0, 0])


def test_controls_are_named_by_their_actuators():
    plain = linearize_mujoco(cartpole())
    assert plain.input_names == ("push",)
    assert linearize_mujoco(pair()).input_names == ("control0", "control1")
    pytest.importorskip("mujoco", minversion="4.0")
    several = pair(actuators='<motor name="a" joint="s"/><pid name="servo" joint="r" kp="5" kv="1"/>'
                   '<motor name="z" joint="s"/>')  # fmt: skip
    found = linearize_mujoco(several)
    assert found.input_names == ("a", "servo position", "servo velocity", "z")
    # A target of the servo's position pulls with kp, one of its velocity with kv.
    np.testing.assert_allclose(found.B[3], [0.0, 5.0 * found.B[3, 2], found.B[3, 2], 0.0], atol=1e-9)
    assert found.B[3, 2] > 0 and found.B[2, 0] > 0 and found.B[2, 3] > 0


@pytest.mark.parametrize(
    ("late", "named"),
    [({"actuators": '<motor name="far" joint="s" delay="0.05" nsample="8"/>'}, "actuator 'far'"),
     ({"sensors": '<jointpos joint="s" delay="0.03" nsample="5"/>'}, "sensor 0")],
)  # fmt: skip
def test_delays_are_refused_with_what_to_use_instead(late, named):
    pytest.importorskip("mujoco", minversion="4.0")
    with pytest.raises(InvalidValueError, match=rf"delay or nsample of {named}.*with_input_delay"):
        linearize_mujoco(pair(**late))


def test_a_model_whose_bodies_sleep_is_linearized_awake():
    pytest.importorskip("mujoco", minversion="4.0")
    model = pair(flag='<flag sleep="enable"/>', first='sleep="init"')
    np.testing.assert_allclose(linearize_mujoco(model).B, linearize_mujoco(pair()).B, atol=1e-12)
    assert model.opt.enableflags & int(mujoco.mjtEnableBit.mjENBL_SLEEP)


def test_an_unstable_place_to_begin_is_called_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings into a file there.
    model = pair()
    data = mujoco.MjData(model)
    data.qpos[0] = 1e11
    with pytest.raises(InvalidValueError, match="unstable within 1 time step"):
        linearize_mujoco(model, data)


def test_bad_places_to_begin_are_named():
    model = cartpole()
    with pytest.raises(InvalidValueError, match="data and key are both given"):
        linearize_mujoco(model, mujoco.MjData(model), "away")
    with pytest.raises(UnknownNameError, match=r"'awey'.*Did you mean 'away'"):
        linearize_mujoco(model, key="awey")
    with pytest.raises(InvalidValueError, match="frame_skip is 0"):
        linearize_mujoco(model, frame_skip=0)
