"""The quadrotor in perspective: arms, rotors and thrusts above a ground grid, its shadow, its waypoints."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch

from robust_policies.envs.drawing.canvas import (
    BODY,
    FAINT,
    INK,
    LINES,
    METAL,
    PAPER,
    PUSH,
    SIZE,
    TARGET,
    Camera,
    Canvas,
    blend,
    bounded,
)
from robust_policies.envs.drawing.scene import Scene

_ROTORS = np.array([(1.0, -1.0, 0.0), (-1.0, -1.0, 0.0), (-1.0, 1.0, 0.0), (1.0, 1.0, 0.0)]) / math.sqrt(2.0)
"""Where the rotors are in the body, in the order of the actions, in arm lengths."""

_SIDE = LINES[3]

_FLAT = np.array([1.0, 1.0, 0.0])

_LARGER = 4.0
"""How many times larger than to scale the body is drawn, or its attitude could hardly be seen."""


def draw(pygame: Any, scene: Scene) -> Any:
    """Return a view from the right rear and above, from as far as the waypoints and the quadrotor need."""
    canvas, plant = Canvas(pygame), cast(Any, scene.plant)
    state = np.clip(scene.moments[-1].state, -1e6, 1e6)
    position, rotation = state[:3], _rotation(state[3:7])
    points = np.array(plant.positions, dtype=float)
    low, high = points.min(axis=0) * _FLAT, points.max(axis=0)
    middle = 0.5 * (low + high)
    near = float(np.linalg.norm(high - middle))
    reach = max(1.05 * near, float(np.linalg.norm(position - middle)) + 0.3 * near)
    camera = Camera(
        eye=middle + reach * np.array([-2.4, -3.6, 2.1]),
        target=middle,
        zoom=0.40 * SIZE * 4.8,
        middle=(SIZE / 2, 0.53 * SIZE),
    )
    _ground(canvas, camera, middle, reach)
    clock = torch.tensor(bounded(float(state[13]), 0.0, 1e9), dtype=torch.float64)
    _waypoints(canvas, camera, points, plant.reference(clock).numpy())
    trail = [camera(np.clip(moment.state[:3], -1e6, 1e6)) for moment in scene.moments]
    for k, (start, end) in enumerate(pairwise(trail)):
        canvas.line(start, end, blend(BODY, 0.1 + 0.5 * (k + 1) / len(trail)), 2.2, round_ends=True)
    # Far away the body would shrink to a dot.
    arm = max(_LARGER * scene.numbers["arm"], 0.16 * reach)
    motors = position + arm * _ROTORS @ rotation.T
    _shadow(canvas, camera, position, motors, arm)
    _vehicle(canvas, camera, scene.push, position, motors, rotation, arm)
    return canvas.finish()


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation matrix, body to world, of a quaternion (w, x, y, z) of any length."""
    w, x, y, z = quaternion / max(float(np.linalg.norm(quaternion)), 1e-9)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _waypoints(canvas: Canvas, camera: Camera, points: np.ndarray, wanted: np.ndarray) -> None:
    """Draw the points to visit as rings above the ground, joined in their order, and the one wanted now as a disc."""
    for start, end in pairwise(points):
        canvas.line(camera(start), camera(end), blend(TARGET, 0.35), 1.5)
    for point in points:
        canvas.dashes(camera(point * _FLAT), camera(point), blend(TARGET, 0.35), 1.2, dash=4)
    for point in points:
        canvas.circle(camera(point), 6, PAPER)
        canvas.circle(camera(point), 6, TARGET, width=2)
    canvas.circle(camera(wanted), 7, TARGET)


def _ground(canvas: Canvas, camera: Camera, middle: np.ndarray, reach: float) -> None:
    """Draw a square grid on the ground at round distances, and say what the distance is."""
    step = 10.0 ** math.ceil(math.log10(reach / 3))
    step = next(step / part for part in (5, 2, 1) if step / part >= reach / 3)
    across = math.floor(1.3 * reach / step)
    origin = step * np.round(middle[:2] / step)
    half = across * step
    for k in range(-across, across + 1):
        for ends in (((k * step, -half), (k * step, half)), ((-half, k * step), (half, k * step))):
            start, end = (camera((*(origin + end), 0.0)) for end in ends)
            canvas.line(start, end, FAINT, 1.3)
    canvas.label(f"grid {step:g} m", (SIZE - 14, SIZE - 12), across=1.0, down=1.0)


def _disc(middle: np.ndarray, radius: float, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    turns = np.linspace(0, 2 * math.pi, 25)[:-1]
    return [middle + radius * (math.cos(a) * first + math.sin(a) * second) for a in turns]


def _shadow(canvas: Canvas, camera: Camera, position: np.ndarray, motors: np.ndarray, arm: float) -> None:
    """Draw the body straight below itself on the ground."""
    dark = blend(METAL, 0.6)
    foot = position * _FLAT
    for motor in motors * _FLAT:
        canvas.line(camera(foot), camera(motor), dark, 3, round_ends=True)
        disc = _disc(motor, 0.45 * arm, np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))
        canvas.polygon([camera(point) for point in disc], dark)
    canvas.dashes(camera(foot), camera(position), METAL, 1.2, dash=4)


def _vehicle(
    canvas: Canvas,
    camera: Camera,
    push: list[float],
    position: np.ndarray,
    motors: np.ndarray,
    rotation: np.ndarray,
    arm: float,
) -> None:
    """Draw the arms, the body's forward and left axes, the rotors and the thrusts, what is nearer over the rest."""
    forward, left, upward = rotation.T
    order = sorted(range(len(motors)), key=lambda k: -camera.depth(motors[k]))
    hubs = motors + 0.16 * arm * upward

    def frame() -> None:
        for k in order:
            canvas.line(camera(position), camera(motors[k]), INK, 4.5, round_ends=True)
            canvas.line(camera(motors[k]), camera(hubs[k]), INK, 3)
        for axis, colour, length in ((left, _SIDE, 0.7), (forward, BODY, 1.0)):
            start, end = np.array(camera(position)), np.array(camera(position + length * arm * axis))
            canvas.arrow(start, end - start, colour, 3.5)
        canvas.circle(camera(position), 6, BODY)

    def rotors() -> None:
        for k in order:
            canvas.polygon([camera(point) for point in _disc(hubs[k], 0.45 * arm, forward, left)], blend(METAL, 0.8))
            start, end = np.array(camera(hubs[k])), np.array(camera(hubs[k] + 1.8 * push[k] * arm * upward))
            canvas.arrow(start, end - start, PUSH, 4.5)

    # Seen from below, the frame hides the rotors.
    from_above = camera.depth(position + 1e-3 * arm * upward) <= camera.depth(position)
    for part in (frame, rotors) if from_above else (rotors, frame):
        part()
