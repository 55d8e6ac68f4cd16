"""The planar quadrotor: body, two thrusts, the path it should follow and the one it took."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from robust_policies.envs.drawing.canvas import BODY, FAINT, INK, METAL, PUSH, SIZE, TARGET, Canvas, blend, bounded
from robust_policies.envs.drawing.scene import Scene

_LARGER = 4.5
"""How many times larger than to scale the body is drawn, or its attitude could hardly be seen."""

_ROOM, _THRUST = 98.0, 75.0


def draw(pygame: Any, scene: Scene) -> Any:
    """Return the view along y, from as far away as the circle and the quadrotor need; grey: the limits."""
    canvas = Canvas(pygame)
    x, z, pitch = (bounded(value, -1e6, 1e6) for value in scene.state[:3])
    plant: Any = scene.plant
    centre, radius, limits = plant.centre, plant.radius, plant.limits
    low, high = np.array(limits.position_low), np.array(limits.position_high)
    near = max(radius, 0.25 * float(np.max(high - low)) / 2)
    away = max(abs(x - centre[0]), abs(z - centre[1]), 1e-9)
    # The body and its thrusts need some room beside its position; on the circle the scale must not change.
    metre = min(0.5 * SIZE / (1.75 * near), (0.5 * SIZE - _ROOM) / away)
    arm = bounded(_LARGER * math.sqrt(0.5) * scene.numbers["arm"] * metre, 16.0, 90.0)

    def at(point: Any) -> np.ndarray:
        return np.array([SIZE / 2 + metre * (point[0] - centre[0]), SIZE / 2 - metre * (point[1] - centre[1])])

    _grid(canvas, metre, centre)
    corners = [at(corner) for corner in (low, (low[0], high[1]), high, (high[0], low[1]))]
    canvas.path(corners, METAL, 2, closed=True)
    canvas.circle(at(centre), radius * metre, blend(TARGET, 0.55), width=2)
    trail = [at(moment.state[:2]) for moment in scene.moments]
    for k, (start, end) in enumerate(pairwise(trail)):
        canvas.line(start, end, blend(BODY, 0.1 + 0.5 * (k + 1) / len(trail)), 2.5, round_ends=True)
    clock = torch.tensor(bounded(scene.state[6], 0.0, 1e9), dtype=torch.float64)
    canvas.circle(at([float(value) for value in plant.reference(clock)[:2]]), 6, TARGET)

    along = np.array([math.cos(pitch), math.sin(pitch)])
    upward = np.array([math.sin(pitch), -math.cos(pitch)])
    middle = at((x, z))
    for side, push in zip((1.0, -1.0), scene.push, strict=False):
        motor = middle + side * arm * along
        canvas.line(motor, motor + 10 * upward, INK, 4)
        rotor = motor + 12 * upward
        canvas.line(rotor - 17 * along, rotor + 17 * along, METAL, 4, round_ends=True)
        canvas.arrow(rotor + 4 * upward, _THRUST * push * upward, PUSH, 5)
    canvas.line(middle - arm * along, middle + arm * along, INK, 7, round_ends=True)
    canvas.line(middle - 9 * along, middle + 9 * along, BODY, 14, round_ends=True)
    return canvas.finish()


def _grid(canvas: Canvas, metre: float, centre: tuple[float, float]) -> None:
    """Draw faint lines at round distances, and say what the distance is."""
    step = 10.0 ** math.ceil(math.log10(40.0 / metre))
    step = next(step / part for part in (5, 2, 1) if step / part * metre >= 40.0)
    for axis in (0, 1):
        first = math.ceil((centre[axis] - 0.5 * SIZE / metre) / step)
        for k in range(first, first + int(SIZE / (metre * step)) + 1):
            offset = metre * (k * step - centre[axis])
            at = SIZE / 2 + (offset if axis == 0 else -offset)
            ends = ((at, 0), (at, SIZE)) if axis == 0 else ((0, at), (SIZE, at))
            canvas.line(*ends, blend(FAINT, 0.6), 1)
    left = SIZE - 16 - step * metre
    canvas.line((left, SIZE - 16), (SIZE - 16, SIZE - 16), METAL, 3)
    canvas.label(f"{step:g} m", (SIZE - 16 - step * metre / 2, SIZE - 28))
