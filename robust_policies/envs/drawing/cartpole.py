"""The cart-pole: a cart on a ruled track, its pole, the force as an arrow."""

from __future__ import annotations

import math
from typing import Any

from robust_policies.envs.drawing.canvas import BODY, FAINT, INK, METAL, PUSH, QUIET, SIZE, TARGET, Canvas, bounded
from robust_policies.envs.drawing.scene import Scene

_ARROW = 90.0


def draw(pygame: Any, scene: Scene) -> Any:
    """Return the cart between the ends of its track, all lengths to scale; dashes show where the pole should be."""
    canvas = Canvas(pygame)
    position, _, angle, _ = scene.state
    # The cart-poles' own; this drawing is of no other plant.
    limits: Any = scene.plant.limits  # type: ignore[attr-defined]
    track, lean, half = float(limits.position), limits.angle, scene.numbers["length"]
    metre = min(0.43 * SIZE / track, 0.24 * SIZE / half)
    cart_width, cart_height, pole = 54.0, 30.0, 2 * half * metre
    ground = 0.62 * SIZE if lean is None else 0.70 * SIZE
    axle = ground - 9.0 - cart_height
    x = SIZE / 2 + metre * bounded(position, -1.12 * track, 1.12 * track)

    for end in (-1, 1):
        post = SIZE / 2 + end * metre * track
        canvas.line((post, ground - 20), (post, ground + 3), QUIET, 3)
    canvas.line((10, ground), (SIZE - 10, ground), METAL, 4, round_ends=True)
    # Below a pole that may hang.
    _ruler(canvas, metre, track, ground + 7.0 if lean is not None else axle + pole + 16.0)
    if lean is not None:
        for side in (-lean, lean):
            end = (x + 1.15 * pole * math.sin(side), axle - 1.15 * pole * math.cos(side))
            canvas.line((x, axle), end, FAINT, 2)
    canvas.dashes((x, axle), (x, axle - 1.1 * pole), TARGET, 2)
    for wheel in (-0.28, 0.28):
        canvas.circle((x + wheel * cart_width, ground - 9), 7.5, INK)
        canvas.circle((x + wheel * cart_width, ground - 9), 2.5, FAINT)
    canvas.box(x - cart_width / 2, axle, cart_width, cart_height - 4, INK, corner=5)
    _force(canvas, scene.push[0], x, axle + cart_height / 2 - 2, cart_width / 2 + 5)
    tip = (x + pole * math.sin(angle), axle - pole * math.cos(angle))
    canvas.line((x, axle), tip, BODY, 11, round_ends=True)
    canvas.circle((x, axle), 3.5, FAINT)
    return canvas.finish()


def _ruler(canvas: Canvas, metre: float, track: float, top: float) -> None:
    """Draw a scale in whole metres."""
    whole = math.floor(track + 1e-9)
    for mark in range(-whole, whole + 1, max(1, math.ceil(whole / 5))):
        at = SIZE / 2 + metre * mark
        canvas.line((at, top), (at, top + 7), METAL, 1.5)
        canvas.label(f"{mark} m" if mark == 0 else f"{mark}", (at, top + 17))


def _force(canvas: Canvas, push: float, x: float, y: float, gap: float) -> None:
    """Draw the force away from the cart, or towards it from behind where the picture ends ahead of it."""
    ahead = x + math.copysign(gap, push) + _ARROW * push
    start = x + math.copysign(gap, push) if 0 < ahead < SIZE else x - math.copysign(gap, push) - _ARROW * push
    canvas.arrow((start, y), (_ARROW * push, 0.0), PUSH, 7)
