"""Pictures of the plants, drawn with pygame: a pendulum, or traces of a linear plant's outputs, states and actions."""

from __future__ import annotations

import math
import os
from collections import deque
from typing import Any

import numpy as np

from robust_policies.envs.plant import Plant
from robust_policies.errors import InvalidValueError

_SIZE = 480
_SMOOTH = 2
_PAPER, _INK, _FAINT = (250, 250, 248), (52, 58, 64), (222, 226, 230)
_ROD, _PUSH = (201, 79, 79), (64, 121, 191)
_LINES = ((64, 121, 191), (201, 79, 79), (66, 150, 96), (150, 98, 176), (214, 140, 50), (90, 90, 90))
_TRACE = 200


class Renderer:
    """Draws one environment; remembers the last points of an episode for the traces."""

    def __init__(self, plant: Plant, mode: str, rate: int) -> None:
        self.plant, self.mode, self.rate = plant, mode, rate
        self._trace: deque[tuple[np.ndarray, ...]] = deque(maxlen=_TRACE)
        self._window: Any = None
        self._clock: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Windows cannot be copied; a copy opens its own."""
        return {**self.__dict__, "_window": None, "_clock": None}

    def draw(self, state: np.ndarray, action: np.ndarray, observation: np.ndarray, steps: int) -> np.ndarray | None:
        """Return the picture as (height, width, 3) uint8, or show it and return None in mode "human"."""
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")
        try:
            import pygame
        except ImportError as error:
            raise InvalidValueError("Rendering needs pygame; install it with: pip install pygame-ce.") from error
        if steps == 0:
            self._trace.clear()
        # Copies: the arrays may be views of the environment's buffers.
        self._trace.append((observation.copy(), state.copy(), action.copy()))
        if self.plant.kind == "pendulum":
            picture = _pendulum(pygame, float(state[0]), float(action[0] / self.plant.action_limit[0]))
        else:
            picture = _traces(pygame, self.plant, list(self._trace))
        if self.mode == "rgb_array":
            return np.ascontiguousarray(pygame.surfarray.array3d(picture).swapaxes(0, 1))
        if self._window is None:
            pygame.display.init()
            self._window = pygame.display.set_mode((_SIZE, _SIZE))
            pygame.display.set_caption(f"robust-policies: {self.plant.kind}")
            self._clock = pygame.time.Clock()
        self._window.blit(picture, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.rate)
        return None

    def close(self) -> None:
        """Close the window, if one is open."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None


def _pendulum(pygame: Any, angle: float, push: float) -> Any:
    """Return a surface with the rod at `angle` (0 upright, positive to the left) and an arc for the motor's torque."""
    size = _SIZE * _SMOOTH
    canvas = pygame.Surface((size, size))
    canvas.fill(_PAPER)
    middle, length, width = size / 2, 0.36 * size, 0.052 * size

    def point(radius: float, turn: float) -> tuple[float, float]:
        return middle - radius * math.sin(turn), middle - radius * math.cos(turn)

    pygame.draw.circle(canvas, _FAINT, (middle, middle), length, width=2 * _SMOOTH)
    across = (math.cos(angle) * width / 2, -math.sin(angle) * width / 2)
    tip = point(length, angle)
    corners = [(x + s * across[0], y + s * across[1]) for x, y, s in
               ((middle, middle, 1), (*tip, 1), (*tip, -1), (middle, middle, -1))]  # fmt: skip
    pygame.draw.polygon(canvas, _ROD, corners)
    for x, y in ((middle, middle), tip):
        pygame.draw.circle(canvas, _ROD, (x, y), width / 2)
    pygame.draw.circle(canvas, _INK, (middle, middle), width / 5)
    push = max(-1.0, min(1.0, push))
    if abs(push) > 0.02:
        radius, sweep = 0.13 * size, 0.75 * math.pi * push
        arc = [point(radius, sweep * k / 40) for k in range(41)]
        for x, y in arc:
            pygame.draw.circle(canvas, _PUSH, (x, y), 3.5 * _SMOOTH)
        head, side = 11 * _SMOOTH, math.copysign(1.0, push)
        x, y = arc[-1]
        ahead = (-math.cos(sweep) * side, math.sin(sweep) * side)
        outward = (-math.sin(sweep), -math.cos(sweep))
        pygame.draw.polygon(canvas, _PUSH, [
            (x + 1.6 * head * ahead[0], y + 1.6 * head * ahead[1]),
            (x + head * outward[0], y + head * outward[1]),
            (x - head * outward[0], y - head * outward[1]),
        ])  # fmt: skip
    return pygame.transform.smoothscale(canvas, (_SIZE, _SIZE))


def _traces(pygame: Any, plant: Plant, trace: list[tuple[np.ndarray, ...]]) -> Any:
    """Return a surface with three panels over the last steps: outputs, states, actions."""
    pygame.font.init()
    font = pygame.font.Font(None, 19)
    canvas = pygame.Surface((_SIZE, _SIZE))
    canvas.fill(_PAPER)
    actions = tuple(f"action {i + 1}" for i in range(plant.action_size)) if plant.action_size > 1 else ("action",)
    names = (plant.output_names, plant.state_names, actions)
    margin, height = 12, _SIZE // 3
    for panel, labels in enumerate(names):
        values = np.array([point[panel] for point in trace])
        limit = float(plant.action_limit.max()) if panel == 2 else _round_up(float(np.abs(values).max()))
        top = panel * height
        area = pygame.Rect(margin, top + 26, _SIZE - 2 * margin, height - 34)
        pygame.draw.rect(canvas, (255, 255, 255), area)
        pygame.draw.line(canvas, _FAINT, (area.left, area.centery), (area.right, area.centery), 2)
        pygame.draw.rect(canvas, _FAINT, area, width=1)
        left = margin
        for column, label in enumerate(labels[:6]):
            colour = _LINES[column % len(_LINES)]
            text = font.render(label, True, colour)
            canvas.blit(text, (left, top + 9))
            left += text.get_width() + 14
            heights = area.centery - np.clip(values[:, column] / limit, -1, 1) * (area.height / 2 - 3)
            points = [(area.left + 2 + (area.width - 4) * k / (_TRACE - 1), float(y)) for k, y in enumerate(heights)]
            if len(points) > 1:
                pygame.draw.lines(canvas, colour, False, points, 2)
            pygame.draw.circle(canvas, colour, points[-1], 4)
        scale = font.render(f"±{limit:g}", True, _INK)
        canvas.blit(scale, (_SIZE - margin - scale.get_width(), top + 9))
    return canvas


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten, so that a panel's scale jumps rarely."""
    if not math.isfinite(value) or value <= 1e-3:
        return 1e-3 if value <= 1e-3 else 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-12))
