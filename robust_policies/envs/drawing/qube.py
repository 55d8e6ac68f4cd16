"""The rotary pendulum in perspective: a motor box, the arm that turns on it, the pendulum at the arm's end."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from robust_policies.envs.drawing.canvas import (
    BODY,
    FAINT,
    INK,
    METAL,
    PUSH,
    QUIET,
    SIZE,
    TARGET,
    Camera,
    Canvas,
    blend,
    bounded,
)
from robust_policies.envs.drawing.scene import Scene


def draw(pygame: Any, scene: Scene) -> Any:
    """Return the view from above the arm's zero direction, in which an upright pendulum swings left and right."""
    canvas = Canvas(pygame)
    turn, swing = scene.state[0], scene.state[1]
    arm, rod = scene.numbers["arm_length"], scene.numbers["pendulum_length"]
    level, reach = 1.15 * rod, math.hypot(arm, rod)
    camera = Camera(
        eye=(3.4 * reach, -0.9 * reach, level + 1.9 * reach),
        target=(0.0, 0.0, level - 0.12 * rod),
        zoom=0.42 * SIZE * 4.0,
        middle=(SIZE / 2, 0.51 * SIZE),
    )

    outward = np.array([math.cos(turn), math.sin(turn), 0.0])
    sideways = np.array([-math.sin(turn), math.cos(turn), 0.0])
    hub = np.array([0.0, 0.0, level])
    end = hub + arm * outward
    upward = np.array([0.0, 0.0, 1.0])
    tip = end + rod * (math.sin(swing) * sideways + math.cos(swing) * upward)

    half, top = 0.42 * arm, 0.80 * level
    _floor(canvas, camera, arm, half)
    # What is nearer to the eye hides what is farther: the box is between the two halves of the arm's turn.
    behind = camera.depth(end) > camera.depth(hub)
    _circle(canvas, camera, arm, level, behind=True)
    if not behind:
        _box(canvas, camera, half, top, level)
        _circle(canvas, camera, arm, level, behind=False)
    canvas.dashes(camera(end), camera(end + rod * upward), TARGET, 2)
    thick = camera.scale(end)
    canvas.line(camera(hub), camera(end), QUIET, bounded(0.085 * arm * thick, 3, 20), round_ends=True)
    canvas.line(camera(end), camera(tip), BODY, bounded(0.085 * rod * thick, 3, 20), round_ends=True)
    canvas.circle(camera(end), bounded(0.03 * rod * thick, 1.5, 8), INK)
    if behind:
        _box(canvas, camera, half, top, level)
        _circle(canvas, camera, arm, level, behind=False)
    canvas.circle(camera(hub), 0.075 * arm * camera.scale(hub), INK)

    push = scene.push[0]
    if abs(push) > 0.02:
        sweep = 0.75 * math.pi * push
        points = [(0.5 * arm * math.cos(a), 0.5 * arm * math.sin(a), level) for a in np.linspace(0, sweep, 31)]
        canvas.turned_path([camera(point) for point in points], PUSH, 6)
    return canvas.finish()


def _floor(canvas: Canvas, camera: Camera, arm: float, half: float) -> None:
    """Draw the table as a faint disc and the box's shadow on it."""
    disc = [(1.15 * arm * math.cos(a), 1.15 * arm * math.sin(a), 0.0) for a in np.linspace(0, 2 * math.pi, 61)]
    canvas.polygon([camera(point) for point in disc], blend(FAINT, 0.55))
    shadow = 1.12 * half
    canvas.polygon([camera((x * shadow, y * shadow, 0.0)) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], FAINT)


def _circle(canvas: Canvas, camera: Camera, arm: float, level: float, behind: bool) -> None:
    """Draw the half of the arm end's circle that is behind the shaft, or the one before it with a mark at its zero."""
    ring = [(arm * math.cos(a), arm * math.sin(a), level) for a in np.linspace(0, 2 * math.pi, 97)]
    middle = camera.depth((0.0, 0.0, level))
    for start, end in pairwise(ring):
        if (camera.depth(start) > middle) == behind:
            canvas.line(camera(start), camera(end), FAINT, 1.8)
    if not behind:
        canvas.line(camera((0.94 * arm, 0.0, level)), camera((1.10 * arm, 0.0, level)), TARGET, 3)


def _box(canvas: Canvas, camera: Camera, half: float, top: float, level: float) -> None:
    """Draw the motor's box, its three visible faces, and the shaft."""

    def face(corners: list[tuple[float, float, float]], shade: float) -> None:
        canvas.polygon([camera(corner) for corner in corners], blend(METAL, shade))

    face([(half, -half, 0), (half, half, 0), (half, half, top), (half, -half, top)], 0.75)
    face([(-half, -half, 0), (half, -half, 0), (half, -half, top), (-half, -half, top)], 1.0)
    face([(-half, -half, top), (half, -half, top), (half, half, top), (-half, half, top)], 0.5)
    shaft = 0.14 * half * camera.scale((0.0, 0.0, level))
    canvas.line(camera((0.0, 0.0, top)), camera((0.0, 0.0, level)), INK, 2 * shaft)
