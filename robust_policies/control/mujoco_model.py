"""The linear model of a MuJoCo model, by its own finite differences."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from robust_policies import checks
from robust_policies.control.equilibrium import stand_still
from robust_policies.control.linear_model import Array, LinearModel
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.mujoco_names import control_names

if TYPE_CHECKING:
    import mujoco

STEP = 1e-6


def skip_frames(A: Array, B: Array, count: int) -> tuple[Array, Array]:
    """Return A^count (n, n) and (1 + A + ... + A^(count-1)) B (n, m): `count` steps with the same input, as one."""
    power, total = np.eye(len(A)), np.zeros_like(A)
    for _ in range(count):
        total = total + power
        power = A @ power
    return power, total @ B


def linearize_mujoco(
    model: mujoco.MjModel, data: mujoco.MjData | None = None, key: str | int | None = None, frame_skip: int = 1
) -> LinearModel:
    """Return the linear model of `frame_skip` time steps of a MuJoCo model (mjd_transitionFD, centred).

    The equilibrium is sought from `data`, from the keyframe `key`, or from the model's initial position; `data` is left
    as it is, and what it holds beside the state holds here too: equality constraints switched on or off, applied
    forces, mocap bodies, user data. States are 2 nv + na deviations in tangent coordinates (a ball joint has three, not
    four), inputs the controls, outputs the model's sensors, or these deviations where it has none. `equilibrium` is the
    exact (qpos, qvel, act), and so is x0 for a model of hinges and slides; with a ball or free joint x0 is zero. A
    sensor that shows the control at once (an accelerometer) makes D != 0; see `with_input_delay`. A model whose bodies
    may sleep is linearized awake.

    Raises:
        InvalidValueError: the integrator is RK4, which has no such derivative; the model keeps state that the
        derivative leaves out (a delay, a plugin); no equilibrium is near; the simulation is unstable where it begins;
        `data` and `key` are both given. UnknownNameError: no such keyframe.
    """
    import mujoco

    _check(model)
    frame_skip = checks.positive_int("frame_skip", frame_skip)
    model = copy.copy(model)
    # A sleeping body would not move, whatever the control; an unstable simulation is found by the warning it leaves.
    model.opt.enableflags &= ~int(getattr(mujoco.mjtEnableBit, "mjENBL_SLEEP", 0))
    start = _start(model, data, key)
    nv, na, nq = model.nv, model.na, model.nq
    n = 2 * nv + na
    every = mujoco.mjtState.mjSTATE_INTEGRATION.value
    held = np.zeros(mujoco.mj_stateSize(model, every))
    mujoco.mj_getState(model, start, held, every)
    work = mujoco.MjData(model)

    def put(x: Array, u: Array) -> None:
        mujoco.mj_resetData(model, work)
        mujoco.mj_setState(model, work, held, every)
        # No result depends on what was computed before.
        work.qacc_warmstart[:] = 0.0
        work.qpos[:], work.qvel[:], work.act[:], work.ctrl[:] = x[:nq], x[nq : nq + nv], x[nq + nv :], u
        mujoco.mj_forward(model, work)

    def drift(x: Array, u: Array) -> Array:
        put(x, u)
        for _ in range(frame_skip):
            mujoco.mj_step(model, work)
        if any(work.warning[kind].number for kind in _unstable()):
            return np.full(n, np.inf)
        turned = np.zeros(nv)
        mujoco.mj_differentiatePos(model, turned, 1.0, x[:nq], work.qpos)
        return np.concatenate((turned, work.qvel - x[nq : nq + nv], work.act - x[nq + nv :]))

    def matrices(x: Array, u: Array) -> tuple[Array, Array, Array, Array]:
        put(x, u)
        A, B = np.zeros((n, n)), np.zeros((n, model.nu))
        C, D = np.zeros((model.nsensordata, n)), np.zeros((model.nsensordata, model.nu))
        sensors = (C, D) if model.nsensordata else (None, None)
        try:
            mujoco.mjd_transitionFD(model, work, STEP, True, A, B, *sensors)
        except mujoco.FatalError as error:
            raise InvalidValueError(
                f"MuJoCo cannot differentiate the model's step: {' '.join(str(error).split())}. Expected a model "
                "without that feature, or a task of the model (linearize_plant)."
            ) from error
        return *skip_frames(A, B, frame_skip), C, D

    def jacobian(x: Array, u: Array) -> tuple[Array, Array]:
        A, B = matrices(x, u)[:2]
        return A - np.eye(n), B

    def move(x: Array, change: Array) -> Array:
        position = x[:nq].copy()
        mujoco.mj_integratePos(model, position, change[:nv], 1.0)
        return np.concatenate((position, x[nq:] + change[nv:]))

    limited = model.actuator_ctrllimited.astype(bool)
    low, high = (np.where(limited, model.actuator_ctrlrange[:, i], bound) for i, bound in ((0, -np.inf), (1, np.inf)))
    guess, action = np.concatenate((start.qpos, start.qvel, start.act)), start.ctrl.copy()
    if not np.isfinite(drift(guess, np.clip(action, low, high))).all():
        raise InvalidValueError(
            f"The simulation is unstable within {frame_skip} time step(s) of where it begins, by MuJoCo's own limit; "
            "expected a state near an equilibrium, or a shorter time step."
        )
    x, u, residual = stand_still(drift, jacobian, move, guess, action, low, high)
    A, B, C, D = matrices(x, u)
    put(x, u)
    y0 = work.sensordata.copy()
    if not model.nsensordata:
        C, D, y0 = np.eye(n), np.zeros((n, model.nu)), np.zeros(n)
    touching = f", {work.ncon} contact(s) active: only while none opens or closes" if work.ncon else ""
    names = _names(model)
    return LinearModel(
        A=A,
        B=B,
        C=C,
        D=D,
        time_step=frame_skip * model.opt.timestep,
        x0=x if nq == nv else np.zeros(n),
        u0=u,
        y0=y0,
        equilibrium=x,
        residual=residual,
        state_names=names,
        input_names=control_names(model, "control"),
        output_names=_sensor_names(model) if model.nsensordata else names,
        action_low=low,
        action_high=high,
        origin=f"MuJoCo model, finite differences in tangent coordinates about qpos = {np.round(x[:nq], 6).tolist()}"
        + touching,
    )


def _check(model: mujoco.MjModel) -> None:
    """Raise `InvalidValueError` for what mjd_transitionFD refuses, or leaves out without a word."""
    import mujoco

    if model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        raise InvalidValueError("The model's integrator is RK4, which MuJoCo cannot differentiate; expected Euler, "
                                'implicit or implicitfast: set <option integrator="implicitfast"/>.')  # fmt: skip
    late = [
        f"{kind} {getattr(model, kind)(i).name or i!r}"
        for kind in ("actuator", "sensor")
        for i, samples in enumerate(getattr(model, f"{kind}_history", np.zeros((0, 2)))[:, 0])
        if samples
    ]
    if late:
        raise InvalidValueError(
            f"The model remembers past values (delay or nsample of {', '.join(late)}), which MuJoCo cannot "
            "differentiate; expected a model without: leave delay and nsample out, and put whole steps of delay after "
            "it with with_input_delay(linearize_mujoco(model), steps)."
        )
    for field, what in (("npluginstate", "a plugin"), ("nplastic", "plastic deformation")):
        if getattr(model, field, 0):
            raise InvalidValueError(f"The model keeps state of {what}, of which MuJoCo has no derivative; expected a "
                                    "model without.")  # fmt: skip


def _unstable() -> tuple[int, ...]:
    """Return the numbers of MuJoCo's warnings of an unstable simulation: |qpos|, |qvel| or |qacc| above 1e10, NaN."""
    import mujoco

    warning = mujoco.mjtWarning
    return tuple(int(kind.value) for kind in (warning.mjWARN_BADQPOS, warning.mjWARN_BADQVEL, warning.mjWARN_BADQACC))


def _start(model: mujoco.MjModel, data: mujoco.MjData | None, key: str | int | None) -> mujoco.MjData:
    import mujoco

    if data is not None and key is not None:
        raise InvalidValueError("data and key are both given; expected one of them, as each is where to begin.")
    if data is not None:
        return data
    work = mujoco.MjData(model)
    if key is not None:
        number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_KEY, key) if isinstance(key, str) else key
        if not 0 <= number < model.nkey:
            keys = [_name(model, mujoco.mjtObj.mjOBJ_KEY, i, "") for i in range(model.nkey)]
            raise UnknownNameError.among("keyframe", str(key), keys)
        mujoco.mj_resetDataKeyframe(model, work, number)
    return work


def _name(model: mujoco.MjModel, kind: object, number: int, default: str) -> str:
    import mujoco

    return mujoco.mj_id2name(model, kind, number) or f"{default}{number}"


def _names(model: mujoco.MjModel) -> tuple[str, ...]:
    import mujoco

    joints = [_name(model, mujoco.mjtObj.mjOBJ_JOINT, int(model.dof_jntid[i]), "joint ") for i in range(model.nv)]
    return (
        *(f"position of {name}" for name in joints),
        *(f"velocity of {name}" for name in joints),
        *(f"activation {i}" for i in range(model.na)),
    )


def _sensor_names(model: mujoco.MjModel) -> tuple[str, ...]:
    import mujoco

    names: list[str] = []
    for sensor in range(model.nsensor):
        name, size = _name(model, mujoco.mjtObj.mjOBJ_SENSOR, sensor, "sensor "), int(model.sensor_dim[sensor])
        names += [name] if size == 1 else [f"{name} {i}" for i in range(size)]
    return tuple(names)
