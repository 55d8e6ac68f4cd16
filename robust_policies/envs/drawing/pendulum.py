"""The pendulum: a rod on a motor, an arc for the motor's torque."""

from __future__ import annotations

import math
from typing import Any

from robust_policies.envs.drawing.canvas import BODY, FAINT, INK, SIZE, Canvas, bounded
from robust_policies.envs.drawing.scene import Scene

_METRE = 0.36 * SIZE


def draw(pygame: Any, scene: Scene) -> Any:
    """Return the rod at its angle (0 upright, positive to the left), one metre a little over a third of the picture."""
    canvas = Canvas(pygame)
    angle = scene.state[0]
    middle, width = (SIZE / 2, SIZE / 2), 0.052 * SIZE
    length = bounded(_METRE * scene.numbers.get("length", 1.0), 0.1 * SIZE, 0.46 * SIZE)
    tip = (middle[0] - length * math.sin(angle), middle[1] - length * math.cos(angle))
    canvas.circle(middle, length, FAINT, width=2)
    canvas.line(middle, tip, BODY, width, round_ends=True)
    canvas.circle(middle, width / 5, INK)
    push = scene.push[0]
    if abs(push) > 0.02:
        canvas.turn_arrow(middle, 0.13 * SIZE, 0.75 * math.pi * push)
    return canvas.finish()
