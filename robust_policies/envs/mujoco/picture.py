"""A picture of a MuJoCo task by MuJoCo's own renderer, without a window."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch

from robust_policies.envs.mujoco.model import name_of, read
from robust_policies.envs.mujoco.plant import MujocoPlant
from robust_policies.errors import UnknownNameError


def picture(
    plant: MujocoPlant,
    state: torch.Tensor,
    action: torch.Tensor | None = None,
    params: Mapping[str, Any] | None = None,
    height: int = 480,
    width: int = 480,
) -> np.ndarray:
    """Return the picture (height, width, 3), uint8, of a state (state_size,).

    The camera is `camera` of task.yaml, else the model's camera "track", else one that shows the whole model and
    follows the body that the disturbance pushes. The renderer is kept with the plant; `close` of it ends it.
    """
    # Read by mujoco when it first opens a GL context; a machine without a display has EGL or nothing.
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    held = plant.renderer
    if held is None or (held.height, held.width) != (height, width):
        close(plant)
        held = plant.renderer = Picture(plant, height, width)
    return held.draw(state)


def close(plant: MujocoPlant) -> None:
    """End the renderer kept with the plant, if there is one."""
    if plant.renderer is not None:
        plant.renderer.renderer.close()
        plant.renderer = None


class Picture:
    """A renderer of one plant's model, with the textures that the physics does without."""

    def __init__(self, plant: MujocoPlant, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.model = read(plant.model_file).compile()
        self.model.vis.global_.offwidth = max(self.model.vis.global_.offwidth, width)
        self.model.vis.global_.offheight = max(self.model.vis.global_.offheight, height)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width)
        self.camera = self._camera(plant)

    def _camera(self, plant: MujocoPlant) -> str | mujoco.MjvCamera:
        names = [name_of(self.model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(self.model.ncam)]
        wanted = plant.task.camera  # type: ignore[attr-defined]
        if wanted is not None and wanted not in names:
            raise UnknownNameError.among("camera", wanted, names)
        if wanted is not None or "track" in names:
            return wanted or "track"
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self.model, camera)
        mujoco.mj_forward(self.model, self.data)
        camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        camera.trackbodyid = plant.body
        camera.distance = 2.5 * self._size()
        camera.azimuth, camera.elevation = 90.0, -15.0
        return camera

    def _size(self) -> float:
        """Return the radius [m] of what moves, without floors and other large still things."""
        moving = self.model.body_weldid[self.model.geom_bodyid] != 0
        if not moving.any():
            return float(self.model.stat.extent)
        centres, radii = self.data.geom_xpos[moving], self.model.geom_rbound[moving]
        middle = centres.mean(axis=0)
        return float((np.linalg.norm(centres - middle, axis=-1) + radii).max())

    def draw(self, state: torch.Tensor) -> np.ndarray:
        """Return the picture of a state."""
        numbers = state.detach().to("cpu", torch.float64).numpy()
        model = self.model
        self.data.qpos[:] = numbers[: model.nq]
        self.data.qvel[:] = numbers[model.nq : model.nq + model.nv]
        mujoco.mj_forward(model, self.data)
        self.renderer.update_scene(self.data, self.camera)
        return self.renderer.render().copy()
