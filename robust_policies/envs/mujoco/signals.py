"""Signals: what task.yaml can name of a state, for observations, rewards and ends of episodes alike.

{positions: all, without: [rootx]}            positions of joints, in the model's order, m or rad
{velocities: [hinge], clip: 10}               velocities of joints, here clipped to +-10
{sin: [hinge]}, {cos: [hinge]}                of a joint's angle
{sensor: name}                                a sensor of the model
{point: {site: tip}, axes: [x, z]}            where a body, site or geom is, world frame, m
{difference: [{body: hand}, {body: cup}]}     the first point minus the second
{limit_force: slider}                         the force of a joint's limit along the joint, N or N m
"""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import mujoco
import numpy as np
import torch
from pydantic import Field

from robust_policies.envs.mujoco.model import Reading, joint_named, name_of
from robust_policies.envs.mujoco.task import parse
from robust_policies.envs.plant import PositiveNumber, Section
from robust_policies.errors import InvalidValueError, UnknownNameError

_KINDS = ("positions", "velocities", "sin", "cos", "sensor", "point", "difference", "limit_force")
_JOINT = mujoco.mjtObj.mjOBJ_JOINT
_SLIDE, _HINGE = int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)
_POSITIONS = {int(mujoco.mjtJoint.mjJNT_FREE): 7, int(mujoco.mjtJoint.mjJNT_BALL): 4, _SLIDE: 1, _HINGE: 1}
_VELOCITIES = {int(mujoco.mjtJoint.mjJNT_FREE): 6, int(mujoco.mjtJoint.mjJNT_BALL): 3, _SLIDE: 1, _HINGE: 1}


class SignalItem(Section):
    """One signal: exactly one of the quantities, and what goes with it."""

    positions: Literal["all"] | list[str] | None = None
    velocities: Literal["all"] | list[str] | None = None
    sin: Literal["all"] | list[str] | None = None
    cos: Literal["all"] | list[str] | None = None
    sensor: str | None = None
    point: dict[str, str] | None = None
    difference: list[dict[str, str]] | None = None
    limit_force: str | None = None
    without: list[str] = Field(default=[])
    axes: list[Literal["x", "y", "z"]] = Field(default=["x", "y", "z"])
    clip: PositiveNumber | None = None

    @property
    def kind(self) -> str:
        """The quantity it names."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)


def signal_item(given: Any, place: str) -> SignalItem:
    """Return a signal of task.yaml, checked as far as that goes without the model."""
    item = parse(SignalItem, given, place)
    named = [kind for kind in _KINDS if getattr(item, kind) is not None]
    if len(named) != 1:
        raise InvalidValueError(
            f"{place} names {' and '.join(named) or 'no quantity'}; expected one of {', '.join(_KINDS)}."
        )
    if item.difference is not None and len(item.difference) != 2:
        raise InvalidValueError(f"{place}: difference has {len(item.difference)} points; expected two.")
    return item


def readings(item: SignalItem, place: str) -> list[Reading]:
    """Return what MuJoCo must compute for a signal beside the state."""
    if item.sensor is not None:
        return [Reading("sensor", "sensor", item.sensor)]
    if item.limit_force is not None:
        return [Reading(kind, "joint", item.limit_force) for kind in ("jointlimitfrc", "jointpos")]
    points = [item.point] if item.point is not None else item.difference or []
    return [_point(point, place) for point in points]


def _point(point: Mapping[str, str], place: str) -> Reading:
    thing, name = next(iter(point.items()), ("nothing", ""))
    if len(point) != 1:
        raise InvalidValueError(f"{place}: a point names {len(point)} things; expected one, such as {{site: tip}}.")
    if thing not in {"body", "site", "geom"}:
        raise UnknownNameError(f"{place}: {UnknownNameError.among('point', thing, ['body', 'geom', 'site'])}")
    return Reading("framepos", thing, name)


class Layout:
    """Which column of the state holds what: positions, velocities, activations, readings, and the failure mark."""

    def __init__(self, model: mujoco.MjModel, wanted: list[Reading]) -> None:
        self.model = model
        self.physics = model.nq + model.nv + model.na
        self.sensor_columns: list[int] = []
        self.columns: dict[Reading, list[int]] = {}
        for reading in wanted:
            sensor = model.sensor(reading.sensor)
            start, size = int(sensor.adr[0]), int(sensor.dim[0])
            first = self.physics + len(self.sensor_columns)
            self.columns[reading] = list(range(first, first + size))
            self.sensor_columns.extend(range(start, start + size))
        self.failed = self.physics + len(self.sensor_columns)
        self.size = self.failed + 1

    def joints(self, given: str | list[str], without: list[str]) -> list[int]:
        """Return the numbers of the joints that a signal names, "all" in the model's order."""
        left_out = {joint_named(self.model, name) for name in without}
        if given == "all":
            numbers = list(range(self.model.njnt))
        else:
            numbers = [joint_named(self.model, name) for name in given]
        return [number for number in numbers if number not in left_out]

    def positions(self, joint: int) -> range:
        """Return the columns of a joint's positions."""
        start = int(self.model.jnt_qposadr[joint])
        return range(start, start + _POSITIONS[int(self.model.jnt_type[joint])])

    def velocities(self, joint: int) -> range:
        """Return the columns of a joint's velocities."""
        start = self.model.nq + int(self.model.jnt_dofadr[joint])
        return range(start, start + _VELOCITIES[int(self.model.jnt_type[joint])])

    def single(self, joint: int) -> int:
        """Return the position's column of a joint that has one, or raise `InvalidValueError`."""
        columns = self.positions(joint)
        if len(columns) != 1:
            raise InvalidValueError(
                f"joint {name_of(self.model, _JOINT, joint)!r} is a ball or free joint; expected a hinge or a slide."
            )
        return columns[0]

    def unit(self, joint: int) -> str:
        """Return the unit of a joint's position."""
        kind = int(self.model.jnt_type[joint])
        return {_SLIDE: "m", _HINGE: "rad"}.get(kind, "")

    def names(self) -> tuple[str, ...]:
        """Return the name of every column, with its unit."""
        names = [""] * self.size
        for joint in range(self.model.njnt):
            label, unit = name_of(self.model, _JOINT, joint), self.unit(joint)
            for columns, what, suffix in (
                (self.positions(joint), "position", ""),
                (self.velocities(joint), "velocity", "/s"),
            ):
                for i, column in enumerate(columns):
                    part = f" {i}" if len(columns) > 1 else ""
                    names[column] = f"{what} of {label}{part}" + (f" [{unit}{suffix}]" if unit else "")
        for i in range(self.model.na):
            names[self.model.nq + self.model.nv + i] = f"activation {i}"
        for reading, columns in self.columns.items():
            what = "" if reading.kind == "sensor" else f"{reading.kind} of "
            for i, column in enumerate(columns):
                names[column] = f"{what}{reading.thing} {reading.name}" + (
                    f" {'xyz'[i]}" if len(columns) == 3 else f" {i}"
                )
        names[self.failed] = "simulation failed [0 or 1]"
        return tuple(names)


class Signal:
    """A signal of one model: (..., state_size) -> (..., size)."""

    def __init__(self, item: SignalItem, layout: Layout, place: str) -> None:
        self.kind, self.clip = item.kind, item.clip
        self.columns: list[int] = []
        self.minus: list[int] = []
        self.names: list[str] = []
        self.middle = 0.0
        if self.kind in {"positions", "velocities", "sin", "cos"}:
            self._of_joints(item, layout)
        elif self.kind == "limit_force":
            self._of_limit(item.limit_force or "", layout)
        else:
            self._of_readings(item, layout, place)
        self.size = len(self.columns)
        bound = 1.0 if self.kind in {"sin", "cos"} else np.inf
        self.high = np.full(self.size, min(bound, self.clip if self.clip is not None else np.inf))
        self._index: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def _of_joints(self, item: SignalItem, layout: Layout) -> None:
        for joint in layout.joints(getattr(item, self.kind), item.without):
            label, unit = name_of(layout.model, _JOINT, joint), layout.unit(joint)
            if self.kind == "velocities":
                columns, text = (
                    list(layout.velocities(joint)),
                    f"velocity of {label}" + (f" [{unit}/s]" if unit else ""),
                )
            elif self.kind == "positions":
                columns, text = list(layout.positions(joint)), f"position of {label}" + (f" [{unit}]" if unit else "")
            else:
                columns, text = [layout.single(joint)], f"{self.kind} of {label}"
            self.columns += columns
            self.names += [text] * len(columns)

    def _of_limit(self, name: str, layout: Layout) -> None:
        joint = joint_named(layout.model, name)
        layout.single(joint)
        self.columns = layout.columns[Reading("jointlimitfrc", "joint", name)]
        self.minus = layout.columns[Reading("jointpos", "joint", name)]
        self.middle = float(layout.model.jnt_range[joint].mean())
        self.names = [f"force of the limit of {name} [{'N m' if layout.unit(joint) == 'rad' else 'N'}]"]

    def _of_readings(self, item: SignalItem, layout: Layout, place: str) -> None:
        wanted = readings(item, place)
        columns = [layout.columns[reading] for reading in wanted]
        if self.kind == "sensor":
            self.columns = columns[0]
            self.names = [f"sensor {item.sensor} {i}" for i in range(len(self.columns))]
            return
        chosen = ["xyz".index(axis) for axis in item.axes]
        label = " - ".join(f"{reading.thing} {reading.name}" for reading in wanted)
        self.columns = [columns[0][axis] for axis in chosen]
        self.minus = [columns[1][axis] for axis in chosen] if len(columns) == 2 else []
        self.names = [f"{label} {axis} [m]" for axis in item.axes]

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        """Return the signal (..., size) of states (..., state_size)."""
        if state.device not in self._index:
            # A tensor first made in inference mode could never be part of a gradient later.
            with torch.inference_mode(False):
                columns, minus = (torch.tensor(numbers, device=state.device) for numbers in (self.columns, self.minus))
            self._index[state.device] = columns, minus
        columns, minus = self._index[state.device]
        value = state.index_select(-1, columns)
        if self.kind in {"sin", "cos"}:
            value = value.sin() if self.kind == "sin" else value.cos()
        elif self.kind == "limit_force":
            # MuJoCo's sensor is the force's size; at the lower limit it pushes up, at the upper one down.
            value = torch.where(state.index_select(-1, minus) < self.middle, value, -value)
        elif self.minus:
            value = value - state.index_select(-1, minus)
        return value if self.clip is None else value.clamp(-self.clip, self.clip)
