"""From a task's MJCF to the compiled model: found, its options and sensors set, its pictures left out."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import mujoco

from robust_policies.envs.mujoco.task import Options
from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, UnknownNameError

GYMNASIUM = "gymnasium:"
_CONES = {"pyramidal": mujoco.mjtCone.mjCONE_PYRAMIDAL, "elliptic": mujoco.mjtCone.mjCONE_ELLIPTIC}
_INTEGRATORS = {
    "Euler": mujoco.mjtIntegrator.mjINT_EULER,
    "RK4": mujoco.mjtIntegrator.mjINT_RK4,
    "implicit": mujoco.mjtIntegrator.mjINT_IMPLICIT,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
}
_SOLVERS = {
    "PGS": mujoco.mjtSolver.mjSOL_PGS,
    "CG": mujoco.mjtSolver.mjSOL_CG,
    "Newton": mujoco.mjtSolver.mjSOL_NEWTON,
}
_OBJECTS = {
    "body": mujoco.mjtObj.mjOBJ_XBODY,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "joint": mujoco.mjtObj.mjOBJ_JOINT,
}
_SENSORS = {
    "framepos": mujoco.mjtSensor.mjSENS_FRAMEPOS,
    "jointpos": mujoco.mjtSensor.mjSENS_JOINTPOS,
    "jointlimitfrc": mujoco.mjtSensor.mjSENS_JOINTLIMITFRC,
}


class Reading(NamedTuple):
    """Something that MuJoCo computes beside the state: a sensor of the model (kind "sensor"), or one added to it."""

    kind: str
    thing: str
    name: str

    @property
    def sensor(self) -> str:
        """The name of its sensor in the compiled model."""
        return self.name if self.kind == "sensor" else f"robust_policies {self.kind} {self.thing} {self.name}"


def model_path(model: str, folder: Path | None) -> Path:
    """Return the MJCF that `model:` names: a file beside the task file, or `gymnasium:FILE` of the installed Gymnasium.

    Raises `MissingFileError` with the files that are there.
    """
    if model.startswith(GYMNASIUM):
        place = Path(str(resources.files("gymnasium"))) / "envs" / "mujoco" / "assets"
        path = place / model.removeprefix(GYMNASIUM)
    else:
        place = folder or Path()
        path = place / model
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in place.glob("*.xml"))) or "no .xml file"
        raise MissingFileError(f"model names {model!r}, and {path} does not exist; in {place} there is {there}.")
    return path


def read(path: Path) -> mujoco.MjSpec:
    """Return the model's description; raise `CorruptFileError` with MuJoCo's words where it cannot be read."""
    with warnings.catch_warnings():
        if "gymnasium" in path.parts:
            # Gymnasium's own files use attributes that MuJoCo calls deprecated; nobody here can change them.
            warnings.simplefilter("ignore")
        try:
            return mujoco.MjSpec.from_file(str(path))
        except ValueError as error:
            raise CorruptFileError(f"{path} is not a model that MuJoCo reads: {_line(error)}.") from error


def compiled(spec: mujoco.MjSpec, path: Path) -> mujoco.MjModel:
    """Return the model of a description read from `path`; raise `CorruptFileError` with MuJoCo's words."""
    with warnings.catch_warnings():
        if "gymnasium" in path.parts:
            warnings.simplefilter("ignore")
        try:
            return spec.compile()
        except ValueError as error:
            raise CorruptFileError(f"{path} does not compile: {_line(error)}.") from error


def compile_model(spec: mujoco.MjSpec, path: Path, options: Options, readings: Sequence[Reading]) -> mujoco.MjModel:
    """Return the model for the physics: with a sensor for each reading, and with its textures at one texel.

    Textures weigh half a megabyte in Gymnasium's models and do nothing for the physics; with a model per environment
    that would be gigabytes.
    """
    for reading in readings:
        _check(spec, reading)
        if reading.kind != "sensor":
            spec.add_sensor(
                name=reading.sensor, type=_SENSORS[reading.kind], objtype=_OBJECTS[reading.thing], objname=reading.name
            )
    for texture in spec.textures:
        if texture.builtin != mujoco.mjtBuiltin.mjBUILTIN_NONE:
            texture.width = 1
            texture.height = 1 if texture.type == mujoco.mjtTexture.mjTEXTURE_2D else 6
    for name, table in (("cone", _CONES), ("integrator", _INTEGRATORS), ("solver", _SOLVERS)):
        value = getattr(options, name)
        if value is not None:
            setattr(spec.option, name, table[value])
    for name in ("iterations", "ls_iterations", "tolerance"):
        if getattr(options, name) is not None:
            setattr(spec.option, name, getattr(options, name))
    model = compiled(spec, path)
    # The reset of an unstable simulation, with its clock, is how the backend in C knows of it: see `c_backend`.
    model.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    state = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
    if state != 1 + model.nq + model.nv + model.na:
        raise InvalidValueError(
            f"{path} keeps {state - 1 - model.nq - model.nv - model.na} numbers of state beyond positions, velocities "
            "and activations (a plugin, a delay or a history); expected a model without them."
        )
    return model


def place_mocap(model: mujoco.MjModel, key: int) -> None:
    """Put a model's mocap bodies where a keyframe has them: there they stand in every simulation of the model.

    A step begins from positions and velocities alone, and MuJoCo then puts a mocap body where the model has it.
    """
    for body, mocap in enumerate(model.body_mocapid):
        if mocap >= 0:
            model.body_pos[body] = model.key_mpos[key].reshape(-1, 3)[mocap]
            model.body_quat[body] = model.key_mquat[key].reshape(-1, 4)[mocap]


def joint_named(model: mujoco.MjModel, name: str) -> int:
    """Return the joint's number; raise `UnknownNameError` with the model's joints."""
    return _number(model, "joint", name, mujoco.mjtObj.mjOBJ_JOINT, model.njnt)


def body_named(model: mujoco.MjModel, name: str) -> int:
    """Return the body's number; raise `UnknownNameError` with the model's bodies."""
    return _number(model, "body", name, mujoco.mjtObj.mjOBJ_BODY, model.nbody)


def key_named(model: mujoco.MjModel, name: str) -> int:
    """Return the keyframe's number; raise `UnknownNameError` with the model's keyframes."""
    return _number(model, "keyframe", name, mujoco.mjtObj.mjOBJ_KEY, model.nkey)


def name_of(model: mujoco.MjModel, kind: mujoco.mjtObj, number: int) -> str:
    """Return an object's name, or its number where it has none."""
    return mujoco.mj_id2name(model, kind, number) or str(number)


def _number(model: mujoco.MjModel, what: str, name: str, kind: mujoco.mjtObj, count: int) -> int:
    number = mujoco.mj_name2id(model, kind, name)
    if number < 0:
        names = [mujoco.mj_id2name(model, kind, i) for i in range(count)]
        raise UnknownNameError.among(what, name, [known for known in names if known])
    return number


def _check(spec: mujoco.MjSpec, reading: Reading) -> None:
    things = {
        "sensor": spec.sensors, "body": spec.bodies, "site": spec.sites, "geom": spec.geoms, "joint": spec.joints
    }[reading.thing]  # fmt: skip
    names = [thing.name for thing in things if thing.name]
    if reading.name not in names:
        raise UnknownNameError.among(reading.thing, reading.name, names)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
