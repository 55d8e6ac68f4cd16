"""A picture of a MuJoCo task by MuJoCo's own renderer, without a window."""

# MuJoCo's compiled binding has no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.rendering.classic import gl_context

from robust_policies.envs.mujoco.model import body_named, compiled, key_named, name_of, place_mocap, read
from robust_policies.envs.mujoco.plant import MujocoPlant
from robust_policies.envs.mujoco.task import View
from robust_policies.errors import UnknownNameError

_SKY, _HORIZON, _AMBIENT = (0.8, 0.87, 0.95), (1.0, 1.0, 1.0), (0.4, 0.4, 0.4)


def picture(
    plant: MujocoPlant,
    state: torch.Tensor,
    action: torch.Tensor | None = None,
    params: Mapping[str, Any] | None = None,
    height: int = 480,
    width: int = 480,
) -> np.ndarray:
    """Return the picture (height, width, 3), uint8, of a state (nx,).

    The camera is what `camera` of task.yaml says, else the model's camera "track", else one that shows the whole model
    and follows the body that the disturbance pushes. The renderer is kept with the plant; `close` of it ends it.
    """
    _headless()
    held = plant.renderer
    if held is None or (held.height, held.width) != (height, width):
        close(plant)
        held = plant.renderer = Picture(plant, height, width)
    return held.draw(state)


def _headless() -> None:
    """Let MuJoCo draw by EGL on a Linux machine without a display, unless MUJOCO_GL says otherwise."""
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    wanted = os.environ.setdefault("MUJOCO_GL", "egl")
    # The variable is read when mujoco is imported, which may have been before it was set, here or by somebody else.
    if gl_context.GLContext is None or gl_context.GLContext.__module__ != f"mujoco.{wanted}":
        importlib.reload(gl_context)


def close(plant: MujocoPlant) -> None:
    """End the renderer kept with the plant, if there is one."""
    if plant.renderer is not None:
        plant.renderer.close()
        plant.renderer = None


def _brighten(spec: mujoco.MjSpec) -> None:
    """Give a model without a sky a light one, and more light on what faces away from the camera."""
    spec.add_texture(
        name="robust_policies sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=_SKY,
        rgb2=_HORIZON,
        width=64,
        height=64 * 6,
    )
    spec.visual.headlight.ambient = _AMBIENT


class Picture:
    """A renderer of one plant's model, with the textures that the physics does without."""

    def __init__(self, plant: MujocoPlant, height: int, width: int) -> None:
        self.height, self.width = height, width
        spec = read(plant.model_file)
        if not any(texture.type == mujoco.mjtTexture.mjTEXTURE_SKYBOX for texture in spec.textures):
            _brighten(spec)
        self.model = compiled(spec, plant.model_file)
        keyframe = plant.task.reset.keyframe  # type: ignore[attr-defined]
        if keyframe is not None:
            place_mocap(self.model, key_named(self.model, keyframe))
        self.model.vis.global_.offwidth = max(self.model.vis.global_.offwidth, width)
        self.model.vis.global_.offheight = max(self.model.vis.global_.offheight, height)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, height, width)
        self.camera = self._camera(plant)

    def _camera(self, plant: MujocoPlant) -> str | mujoco.MjvCamera:
        names = [name_of(self.model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(self.model.ncam)]
        view = plant.task.camera  # type: ignore[attr-defined]
        name = view.name if view is not None else None
        if name is not None and name not in names:
            raise UnknownNameError.among("camera", name, names)
        if name is not None or (view is None and "track" in names):
            return name or "track"
        view = view or View()
        camera = mujoco.MjvCamera()
        mujoco.mj_forward(self.model, self.data)
        camera.lookat[:] = view.lookat
        if view.follow is not None or view.distance is None:
            camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            camera.trackbodyid = plant.body if view.follow is None else body_named(self.model, view.follow)
        camera.distance = view.distance or 2.5 * self._size()
        camera.azimuth, camera.elevation = view.azimuth, view.elevation
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
        """Return the picture (height, width, 3) uint8 of a state (nx,)."""
        numbers = state.detach().to("cpu", torch.float64).numpy()
        model = self.model
        self.data.qpos[:] = numbers[: model.nq]
        self.data.qvel[:] = numbers[model.nq : model.nq + model.nv]
        mujoco.mj_forward(model, self.data)
        self.renderer.update_scene(self.data, self.camera)
        return self.renderer.render().copy()

    def close(self) -> None:
        """Release the GL context."""
        self.renderer.close()
