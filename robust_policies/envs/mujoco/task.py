"""The task.yaml of a MuJoCo task, and how one item of its lists is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, PositiveInt, ValidationError

from robust_policies.envs.plant import NonNegativeNumber, Number, PositiveNumber, Section, TaskFile
from robust_policies.errors import InvalidValueError
from robust_policies.files.settings import fields, one_line

S = TypeVar("S", bound=Section)


class Options(Section):
    """Replaces what the model's own <option> says; left out: the model's."""

    cone: Literal["pyramidal", "elliptic"] | None = None
    integrator: Literal["Euler", "RK4", "implicit", "implicitfast"] | None = None
    solver: Literal["PGS", "CG", "Newton"] | None = None
    iterations: PositiveInt | None = None
    ls_iterations: PositiveInt | None = None
    tolerance: NonNegativeNumber | None = None


class Scatter(Section):
    """How far positions or velocities start from the start pose: uniform half width or standard deviation."""

    distribution: Literal["uniform", "normal"] = "uniform"
    spread: NonNegativeNumber = Field(
        default=0.0, json_schema_extra={"unit": "of each joint: m or rad, and per second"}
    )


class Reset(Section):
    """The start: a pose (the model's own, or a keyframe's, with joints set by `pose`), scattered; then exceptions.

    A keyframe also says where mocap bodies stand, in all episodes; its controls are not used, the policy gives them.
    `still` names joints that start without velocity; each item of `discs` puts two joints uniformly in a disc.
    """

    keyframe: str | None = None
    pose: dict[str, Number] = Field(default={}, json_schema_extra={"unit": "m or rad"})
    positions: Scatter = Scatter()
    velocities: Scatter = Scatter()
    discs: list[dict[str, Any]] = Field(default=[])
    still: list[str] = Field(default=[])


class Disturbance(Section):
    """The body that the disturbance pushes; left out: the first one that can move."""

    body: str | None = None


class WarpSizes(Section):
    """Room on the Warp backend; left out: MuJoCo-Warp's guess.

    Contacts of all worlds share one pool of `pooled_contacts_per_world` times their number, so one world may have more
    and leave less to the others; `constraints` is the room of each world.
    """

    pooled_contacts_per_world: PositiveInt | None = None
    constraints: PositiveInt | None = None


class View(Section):
    """A camera for pictures: one of the model's by `name`, or one that looks at a point, which may follow a body."""

    name: str | None = None
    follow: str | None = None
    lookat: tuple[Number, Number, Number] = Field(default=(0.0, 0.0, 0.0), json_schema_extra={"unit": "m"})
    distance: PositiveNumber | None = Field(default=None, json_schema_extra={"unit": "m"})
    azimuth: Number = Field(default=90.0, json_schema_extra={"unit": "degrees"})
    elevation: Number = Field(default=-15.0, json_schema_extra={"unit": "degrees"})


class MujocoTask(TaskFile):
    """The task.yaml of a MuJoCo task."""

    model: str
    frame_skip: PositiveInt = Field(json_schema_extra={"unit": "model time steps a step"})
    readings: Literal["after", "last_stage"] = "after"
    options: Options = Options()
    observation: list[dict[str, Any]]
    reward: list[dict[str, Any]]
    termination: list[dict[str, Any]] = Field(default=[])
    reset: Reset = Reset()
    disturbance: Disturbance = Disturbance()
    warp: WarpSizes = WarpSizes()
    camera: View | None = None


def parse(section: type[S], given: Any, place: str) -> S:
    """Return an item of a list in task.yaml as `section`, or raise an error that says where and what is known."""
    if not isinstance(given, Mapping):
        raise InvalidValueError(f"{place} is {given!r}; expected a mapping with some of {', '.join(fields(section))}.")
    try:
        return section.model_validate(given)
    except ValidationError as error:
        raise one_line(error, section, place) from error
