"""Traces: what a plant that has no picture did in the last steps, its outputs, states and actions one above another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from robust_policies.envs.drawing.canvas import FAINT, LINES, QUIET, SIZE, WHITE, Canvas
from robust_policies.envs.drawing.scene import Scene

LENGTH = 200
"""How many steps the panels are wide."""

_MARGIN, _ROW, _TEXT = 12.0, 17.0, 19


def draw(pygame: Any, scene: Scene) -> Any:
    """Return three panels; signals of the same unit share a scale, which stands behind their names."""
    canvas, plant = Canvas(pygame), scene.plant
    limits = np.maximum(np.abs(plant.action_low), np.abs(plant.action_high))
    panels = (
        ("outputs", plant.output_names, [moment.observation for moment in scene.moments], None),
        ("states", plant.state_names, [moment.state for moment in scene.moments], None),
        ("actions", plant.action_names, [moment.action for moment in scene.moments], limits),
    )
    for index, (title, names, values, limit) in enumerate(panels):
        top, bottom = index * SIZE / 3, (index + 1) * SIZE / 3
        _panel(canvas, (top, bottom), title, names, np.array(values), limit)
    return canvas.finish()


def _panel(
    canvas: Canvas,
    rows: tuple[float, float],
    title: str,
    names: tuple[str, ...],
    values: np.ndarray,
    limits: np.ndarray | None,
) -> None:
    """Draw one panel between two heights: the names on as many rows as they need, the lines below."""
    # A clock only says how long the episode is.
    shown = [k for k, name in enumerate(names) if not name.startswith("clock") and k < values.shape[1]]
    drawn, left_out = shown[: len(LINES)], len(shown) - len(LINES)
    scales = _scales(names, drawn, values, limits)
    words = [(f"{names[k]} ±{scales[k]:g}", LINES[column]) for column, k in enumerate(drawn)]
    if left_out > 0:
        words.append((f"and {left_out} more {title}", QUIET))
    x, y = _MARGIN, rows[0] + 8
    for text, colour in words:
        width = canvas.label_width(text, _TEXT)
        if x > _MARGIN and x + width > SIZE - _MARGIN:
            x, y = _MARGIN, y + _ROW
        canvas.label(text, (x, y), _TEXT, colour, across=0.0, down=0.0)
        x += width + 16
    left, top, width, height = _MARGIN, y + _ROW, SIZE - 2 * _MARGIN, rows[1] - y - _ROW - 6
    canvas.box(left, top, width, height, FAINT)
    canvas.box(left + 1, top + 1, width - 2, height - 2, WHITE)
    zero = top + height / 2
    canvas.line((left, zero), (left + width, zero), FAINT, 1.5)
    for column, k in reversed(list(enumerate(drawn))):
        heights = zero - np.clip(values[:, k] / scales[k], -1, 1) * (height / 2 - 5)
        across = left + 6 + (width - 12) * np.arange(len(values)) / (LENGTH - 1)
        points = np.stack((across, heights), axis=-1)
        canvas.path(list(points), LINES[column], 1.8)
        canvas.circle(points[-1], 4, LINES[column])


def _scales(
    names: tuple[str, ...], drawn: list[int], values: np.ndarray, limits: np.ndarray | None
) -> dict[int, float]:
    """Return for each signal drawn the value at the panel's edge, the same for all of one unit."""
    sizes: dict[str, float] = {}
    for k in drawn:
        limited = limits is not None and math.isfinite(float(limits[k])) and limits[k] > 0
        size = float(limits[k]) if limited and limits is not None else round_up(float(np.abs(values[:, k]).max()))
        sizes[_unit(names[k])] = max(size, sizes.get(_unit(names[k]), 0.0))
    return {k: sizes[_unit(names[k])] for k in drawn}


def _unit(name: str) -> str:
    """Return what stands in brackets at the end of a name."""
    return name[name.rindex("[") + 1 : -1] if name.endswith("]") and "[" in name else ""


def round_up(value: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten, at least 0.001, so that a panel's scale jumps rarely."""
    if value <= 1e-3:
        return 1e-3
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-12))
