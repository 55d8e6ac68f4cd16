"""Faults of sensors and actuators, disturbances of the plant, and grids of its physical parameters."""

from __future__ import annotations

import itertools
from typing import Any

from gymnasium import spaces

from robust_policies.envs.batch import ours, plant_of
from robust_policies.envs.perturb import Spec
from robust_policies.envs.perturb.blocks import Blocks, in_blocks
from robust_policies.envs.perturb.specs import DynamicsShift
from robust_policies.evaluation.attacks.names import OBSERVATION
from robust_policies.evaluation.bench import Bench, Part, measurement
from robust_policies.evaluation.suite import FaultEntry, GridEntry
from robust_policies.policies.spaces import short

RELATIVE = "relative change"
# The unperturbed observation: a noise of size 0.
_STILL = "uniform"


def measure_nominal(bench: Bench) -> tuple[Part, Part]:
    """Return the reported and the tuning episodes without any perturbation but the wrappers around the task."""
    return bench.play(_STILL, [0.0], tuning=True, record=bench.suite.record)


def measure_noise(bench: Bench, name: str) -> dict[str, Any]:
    """Return the measurements under a random perturbation of the observations, at all sizes."""
    part, first = bench.noise(name)
    labels = {
        "group": "noise",
        "perturbation": name,
        "attack": "",
        "norm": "",
        "unit": OBSERVATION,
        "point": {},
    }
    rows = [measurement(part, first + index, **labels, size=size) for index, size in enumerate(bench.suite.sizes)]
    return {"rows": rows}


def measure_fault(bench: Bench, entry: FaultEntry, group: str) -> dict[str, Any]:
    """Return the measurements inside a wrapper, one for each value of its parameter, side by side where that may be.

    It sits nearest to the plant: a fault of the sensor itself, before whatever else is around the task.
    """
    labels = {"group": group, "perturbation": entry.shown, "attack": "", "norm": "", "unit": entry.unit, "point": {}}
    specs = [entry.spec(value) for value in entry.values]
    if in_blocks(specs, bench.around) and bench.fits(len(specs) * bench.suite.episodes):
        part, _ = bench.play(_STILL, [0.0] * len(specs), inside=[Blocks(parts=tuple(specs))])
        parts = [(part, index) for index in range(len(specs))]
    else:
        parts = [(bench.play(_STILL, [0.0], inside=[spec])[0], 0) for spec in specs]
    rows = [
        measurement(part, index, **labels, size=float(value))
        for value, (part, index) in zip(entry.values, parts, strict=True)
    ]
    return {"rows": rows}


def unsuited(bench: Bench, entry: FaultEntry) -> str | None:
    """Return why a task cannot have a fault, None if it can."""
    sensors, actuators = bench.policy.observation_space, bench.policy.action_space
    if entry.perturbation.startswith("Observation") and not isinstance(sensors, spaces.Box):
        return f"{entry.perturbation} needs observations in one Box; those of {bench.task} are a {short(sensors)}"
    if entry.perturbation == "ActionNoise" and not isinstance(actuators, spaces.Box):
        return f"nothing can be added to the choices {actuators} of {bench.task}"
    if entry.perturbation != "ForceDisturbance":
        return None
    plant = plant_of(bench.task, bench.env_kwargs)
    if plant is None:
        named = "body" in (entry.model_extra or {})
        return None if named else f"{bench.task} is not of this package; name the body of its model that is pushed"
    if not plant.disturbance_names:
        return f"the plant of {bench.task} has no disturbance input"
    return None


def grid_names(bench: Bench, entry: GridEntry) -> tuple[str, str] | None:
    """Return the two parameters of a grid, those named or the task's first two that vary; None if it has no such."""
    if entry.x is not None and entry.y is not None:
        return entry.x, entry.y
    plant = plant_of(bench.task, bench.env_kwargs)
    names = [] if plant is None else list(plant.task.randomize)
    return (names[0], names[1]) if len(names) > 1 else None


def measure_grid(bench: Bench, entry: GridEntry, names: tuple[str, str]) -> dict[str, Any]:
    """Return the measurements at all pairs of factors of two physical parameters.

    In this package's environments all points run side by side, each environment with its own parameters; in others one
    after the other inside wrappers. A measurement's size is the largest of the two |factor - 1|.
    """
    points = [dict(zip(names, pair, strict=True)) for pair in itertools.product(entry.factors, repeat=2)]
    labels = {
        "group": "parameter",
        "perturbation": ", ".join(names),
        "attack": "",
        "norm": "",
        "unit": RELATIVE,
    }
    if ours(bench.task):
        factors = {name: [point[name] for point in points] for name in names}
        part, _ = bench.play(_STILL, [0.0] * len(points), factors=factors)
        parts = [(part, index) for index in range(len(points))]
    else:
        parts = [(bench.play(_STILL, [0.0], inside=_shifts(point))[0], 0) for point in points]
    rows = [
        measurement(part, index, **labels, point=point, size=round(max(abs(v - 1.0) for v in point.values()), 12))
        for point, (part, index) in zip(points, parts, strict=True)
    ]
    return {"rows": rows}


def _shifts(point: dict[str, float]) -> list[Spec]:
    return [DynamicsShift(parameter=name, factor=factor) for name, factor in point.items()]
