"""Magnetic levitation: the coil above, the ball below, a millimetre scale and the setpoint."""

from __future__ import annotations

from typing import Any

from robust_policies.envs.drawing.canvas import (
    BODY,
    FAINT,
    INK,
    METAL,
    PUSH,
    QUIET,
    TARGET,
    Canvas,
    blend,
    bounded,
)
from robust_policies.envs.drawing.scene import Scene

_X, _FACE, _FLOOR, _BALL = 232.0, 150.0, 420.0, 27.0


def draw(pygame: Any, scene: Scene) -> Any:
    """Return the ball below the magnet, whose field is the darker the more current flows; a bar for the voltage."""
    canvas = Canvas(pygame)
    position, _, current = scene.state
    plant: Any = scene.plant
    lowest = float(plant.limits.position)
    metre = (_FLOOR - _FACE) / lowest

    def height(z: float) -> float:
        return _FACE + metre * bounded(z, -0.1 * lowest, 1.1 * lowest)

    carrying, _ = plant.equilibrium(plant.nominal())
    strength = bounded(abs(current) / (2.0 * float(carrying)), 0.0, 1.0)
    _field(canvas, strength)
    _magnet(canvas, strength)
    canvas.line((_X - 90, _FLOOR + _BALL + 2), (_X + 90, _FLOOR + _BALL + 2), METAL, 4, round_ends=True)

    axis = 380.0
    canvas.line((axis, _FACE), (axis, _FLOOR), METAL, 2)
    for mark in range(11):
        y = height(lowest * mark / 10)
        canvas.line((axis, y), (axis + (10 if mark % 5 == 0 else 6), y), METAL, 2)
        if mark % 5 == 0:
            unit = " mm" if mark == 0 else ""
            canvas.label(f"{1000 * lowest * mark / 10:g}{unit}", (axis + 16, y), across=0.0)
    canvas.dashes((_X - 80, height(plant.setpoint)), (axis, height(plant.setpoint)), TARGET, 2)

    y = height(position)
    canvas.line((_X + _BALL, y), (axis, y), blend(BODY, 0.35), 1.5)
    canvas.polygon([(axis - 2, y), (axis - 13, y - 6), (axis - 13, y + 6)], BODY)
    canvas.circle((_X, y), _BALL, BODY)
    canvas.circle((_X - 8, y - 9), 6.5, blend((255, 255, 255), 0.45, BODY))
    _voltage(canvas, scene)
    return canvas.finish()


def _field(canvas: Canvas, strength: float) -> None:
    """Draw field lines from the pole face that spread below it and grow darker with the current."""
    colour = blend(PUSH, 0.08 + 0.55 * strength)
    for spread in (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0):
        points = [
            (_X + spread * (26 + 62 * (k / 16) ** 1.6), _FACE - _BALL + 4 + 116 * (k / 16) * (1 - 0.28 * abs(spread)))
            for k in range(17)
        ]
        canvas.path(points, colour, 1.0 + 1.5 * strength)


def _magnet(canvas: Canvas, strength: float) -> None:
    """Draw the iron core and its windings, whose colour shows the current."""
    top, bottom = 26.0, _FACE - _BALL
    canvas.box(_X - 82, 14, 164, 18, METAL, corner=3)
    canvas.box(_X - 26, top, 52, bottom - top, INK, corner=3)
    copper = blend((214, 140, 50), 0.35 + 0.65 * strength)
    turns = 6
    pitch = (bottom - top - 22) / turns
    for turn in range(turns):
        y = top + 12 + pitch * turn
        canvas.box(_X - 62, y + 1, 124, pitch - 2.5, copper, corner=pitch / 2)


def _voltage(canvas: Canvas, scene: Scene) -> None:
    """Draw a bar on the left, filled as far as the voltage goes."""
    left, top, bottom, width = 62.0, _FACE, _FLOOR, 18.0
    low, high = float(scene.plant.action_low[0]), float(scene.plant.action_high[0])
    filled = bounded((float(scene.action[0]) - low) / (high - low), 0.0, 1.0)
    canvas.box(left, top, width, bottom - top, FAINT, corner=4)
    if filled > 0.0:
        canvas.box(left, bottom - filled * (bottom - top), width, filled * (bottom - top), PUSH, corner=4)
    for value, y in ((high, top), (low, bottom)):
        canvas.label(f"{value:g} V", (left - 6, y), across=1.0, colour=QUIET)
