"""Start states as task.yaml describes them."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import torch
from pydantic import Field

from robust_policies.envs.mujoco.model import joint_named, key_named
from robust_policies.envs.mujoco.signals import Layout
from robust_policies.envs.mujoco.task import Reset, Scatter, parse
from robust_policies.envs.plant import Number, PositiveNumber, Section
from robust_policies.envs.streams import normals, uniforms_for_normals
from robust_policies.errors import InvalidValueError

_QUATERNION = {int(mujoco.mjtJoint.mjJNT_FREE): 3, int(mujoco.mjtJoint.mjJNT_BALL): 0}


class DiscItem(Section):
    """Two joints whose positions start uniformly in a disc."""

    joints: tuple[str, str]
    radius: PositiveNumber = Field(json_schema_extra={"unit": "m or rad"})
    center: tuple[Number, Number] = Field(default=(0.0, 0.0), json_schema_extra={"unit": "m or rad"})


class Start:
    """Draws positions, velocities and activations (n, nq + nv + na) from uniform numbers (n, size).

    The numbers are used in this order: positions, velocities (as many as MuJoCo has; a normal scatter takes one more if
    that is odd), two a disc. So a seed starts a uniform task where Gymnasium's environment of that seed starts.
    """

    def __init__(self, reset: Reset, layout: Layout) -> None:
        model = layout.model
        self.nq, self.nv, self.na = model.nq, model.nv, model.na
        self.positions, self.velocities = reset.positions, reset.velocities
        self.mean = np.zeros(layout.physics)
        self.mean[: self.nq] = model.qpos0
        if reset.keyframe is not None:
            key = key_named(model, reset.keyframe)
            self.mean[:] = np.concatenate((model.key_qpos[key], model.key_qvel[key], model.key_act[key]))
        for name, value in reset.pose.items():
            self.mean[layout.single(joint_named(model, name))] = value
        self.still = [column for name in reset.still for column in layout.velocities(joint_named(model, name))]
        self.discs = [self._disc(given, i, layout) for i, given in enumerate(reset.discs)]
        self.quaternions = [
            list(layout.positions(joint))[_QUATERNION[kind] :]
            for joint, kind in enumerate(model.jnt_type.tolist())
            if kind in _QUATERNION
        ]
        self._first = _numbers(self.positions, self.nq)
        self._second = _numbers(self.velocities, self.nv)
        self.size = self._first + self._second + 2 * len(self.discs)

    def _disc(self, given: Any, number: int, layout: Layout) -> tuple[list[int], DiscItem]:
        place = f"reset.discs, item {number + 1}"
        item = parse(DiscItem, given, place)
        columns = [layout.single(joint_named(layout.model, name)) for name in item.joints]
        if columns[0] == columns[1]:
            raise InvalidValueError(f"{place} names the joint {item.joints[0]!r} twice; expected two joints.")
        return columns, item

    def __call__(self, uniform: torch.Tensor) -> torch.Tensor:
        """Return start states (n, nq + nv + na) in the dtype and on the device of `uniform` (n, size)."""
        first, second = self._first, self._first + self._second
        state = torch.as_tensor(self.mean, dtype=uniform.dtype, device=uniform.device).repeat(len(uniform), 1)
        state[:, : self.nq] += _scatter(self.positions, uniform[:, :first], self.nq)
        state[:, self.nq : self.nq + self.nv] += _scatter(self.velocities, uniform[:, first:second], self.nv)
        for i, (columns, item) in enumerate(self.discs):
            radius = item.radius * uniform[:, second + 2 * i].sqrt()
            angle = 2.0 * math.pi * uniform[:, second + 2 * i + 1]
            state[:, columns[0]] = item.center[0] + radius * angle.cos()
            state[:, columns[1]] = item.center[1] + radius * angle.sin()
        state[:, self.still] = 0.0
        for columns in self.quaternions:
            state[:, columns] = torch.nn.functional.normalize(state[:, columns], dim=-1)
        return state


def _numbers(scatter: Scatter, size: int) -> int:
    return uniforms_for_normals(size) if scatter.distribution == "normal" else size


def _scatter(scatter: Scatter, uniform: torch.Tensor, size: int) -> torch.Tensor:
    if scatter.distribution == "normal":
        return scatter.spread * normals(uniform, size)
    return -scatter.spread + 2.0 * scatter.spread * uniform
