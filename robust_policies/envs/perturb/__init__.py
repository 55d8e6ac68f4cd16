"""Perturbations of observations, actions and plants, as wrappers of single environments and, in `vector`, of batches.

    env = ObservationDelay(ObservationNoise(env, size=0.05), 2)
    env = perturb(env, "[{ObservationNoise: {size: 0.05}}, {ObservationDelay: 2}]")    # the same, single or vector

The first one listed sits nearest to the plant: observations pass the list forwards, actions backwards.
"""

from robust_policies.envs.perturb.applying import perturb
from robust_policies.envs.perturb.listing import NAMES, Row, describe, parse, table
from robust_policies.envs.perturb.single import (
    ActionDelay,
    ActionDropout,
    ActionNoise,
    DynamicsShift,
    ForceDisturbance,
    ObservationBias,
    ObservationDelay,
    ObservationDropout,
    ObservationNoise,
    ObservationQuantize,
    StickyAction,
)
from robust_policies.envs.perturb.specs import SPECS, Spec

__all__ = [
    "NAMES",
    "SPECS",
    "ActionDelay",
    "ActionDropout",
    "ActionNoise",
    "DynamicsShift",
    "ForceDisturbance",
    "ObservationBias",
    "ObservationDelay",
    "ObservationDropout",
    "ObservationNoise",
    "ObservationQuantize",
    "Row",
    "Spec",
    "StickyAction",
    "describe",
    "parse",
    "perturb",
    "table",
]
