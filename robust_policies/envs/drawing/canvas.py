"""What all pictures share: the size, the colours, and smooth lines, arrows and labels on a pygame surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

SIZE = 480
_SMOOTH = 3
Colour = tuple[int, int, int]
Point = Sequence[float] | np.ndarray

PAPER: Colour = (250, 250, 248)
WHITE: Colour = (255, 255, 255)
INK: Colour = (52, 58, 64)
QUIET: Colour = (134, 142, 150)
FAINT: Colour = (222, 226, 230)
BODY: Colour = (201, 79, 79)
PUSH: Colour = (64, 121, 191)
TARGET: Colour = (66, 150, 96)
METAL: Colour = (173, 181, 189)
LINES: tuple[Colour, ...] = (PUSH, BODY, TARGET, (150, 98, 176), (214, 140, 50), (90, 90, 90))


def blend(colour: Colour, amount: float, ground: Colour = PAPER) -> Colour:
    """Return `colour` painted thinly on `ground`: 1 is the colour itself, 0 the ground."""
    amount = min(max(amount, 0.0), 1.0)
    red, green, blue = (round(g + amount * (c - g)) for c, g in zip(colour, ground, strict=True))
    return red, green, blue


def bounded(value: float, low: float, high: float) -> float:
    """Return the value within [low, high], and the middle for one that is not a number."""
    return (low + high) / 2 if math.isnan(value) else min(max(value, low), high)


def share(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[float]:
    """Return each value (n,) as a share of the larger limit on its side, in [-1, 1]; 0 where nothing limits it."""
    shares = []
    for value, least, most in zip(values, low, high, strict=True):
        limit = max(abs(float(least)), abs(float(most)))
        shares.append(bounded(float(value) / limit, -1.0, 1.0) if math.isfinite(limit) and limit > 0 else 0.0)
    return shares


class Canvas:
    """A square picture of `SIZE` points; coordinates are in those points, x to the right and y down.

    It is drawn larger and scaled down at the end, which smooths the edges.
    """

    def __init__(self, pygame: Any) -> None:
        self._pygame = pygame
        self._surface = pygame.Surface((SIZE * _SMOOTH, SIZE * _SMOOTH))
        self._surface.fill(PAPER)

    def _at(self, point: Point) -> tuple[float, float]:
        # Far beyond the edge pygame's integers overflow; nothing out there can be seen anyway.
        x, y = (bounded(float(value), -8.0 * SIZE, 9.0 * SIZE) for value in point)
        return x * _SMOOTH, y * _SMOOTH

    def polygon(self, corners: Sequence[Point], colour: Colour) -> None:
        """Fill the polygon."""
        self._pygame.draw.polygon(self._surface, colour, [self._at(corner) for corner in corners])

    def circle(self, middle: Point, radius: float, colour: Colour, width: float = 0.0) -> None:
        """Fill the disc, or draw its rim inwards if a width is given."""
        thick = max(1, round(width * _SMOOTH)) if width else 0
        reach = bounded(radius, 0.5, 8.0 * SIZE)
        self._pygame.draw.circle(self._surface, colour, self._at(middle), reach * _SMOOTH, width=thick)

    def line(self, start: Point, end: Point, colour: Colour, width: float = 1.0, round_ends: bool = False) -> None:
        """Draw a straight line of any width."""
        first, last = self._at(start), self._at(end)
        self._stroke(first, last, colour, width * _SMOOTH)
        if round_ends:
            for x, y in (first, last):
                self._pygame.draw.circle(self._surface, colour, (x, y), width * _SMOOTH / 2)

    def path(self, points: Sequence[Point], colour: Colour, width: float = 1.0, closed: bool = False) -> None:
        """Draw a line through the points with round joints."""
        corners = [self._at(point) for point in ([*points, points[0]] if closed else points)]
        thick = width * _SMOOTH
        for start, end in pairwise(corners):
            self._stroke(start, end, colour, thick)
        for corner in corners:
            self._pygame.draw.circle(self._surface, colour, corner, thick / 2)

    def _stroke(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, thick: float) -> None:
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        if length > 0:
            across, down = -(y1 - y0) / length * thick / 2, (x1 - x0) / length * thick / 2
            self._pygame.draw.polygon(
                self._surface,
                colour,
                [
                    (x0 + across, y0 + down),
                    (x1 + across, y1 + down),
                    (x1 - across, y1 - down),
                    (x0 - across, y0 - down),
                ],
            )

    def dashes(self, start: Point, end: Point, colour: Colour, width: float = 1.0, dash: float = 6.0) -> None:
        """Draw a dashed straight line."""
        first, last = np.asarray(start, float), np.asarray(end, float)
        length = float(np.hypot(*(last - first)))
        count = int(bounded(length // (2 * dash), 1, 200))
        for k in range(count):
            begin = first + (last - first) * (k / count)
            self.line(begin, begin + (last - first) * (0.5 / count), colour, width)

    def box(self, left: float, top: float, width: float, height: float, colour: Colour, corner: float = 0.0) -> None:
        """Fill an upright rectangle, its corners rounded."""
        x, y = self._at((left, top))
        area = self._pygame.Rect(round(x), round(y), round(width * _SMOOTH), round(height * _SMOOTH))
        self._pygame.draw.rect(self._surface, colour, area, border_radius=round(corner * _SMOOTH))

    def arrow(self, start: Point, vector: Point, colour: Colour = PUSH, width: float = 5.0) -> None:
        """Draw an arrow from `start` along `vector`, with a smaller head where it is short and none below 5 points."""
        length = math.hypot(float(vector[0]), float(vector[1]))
        if not math.isfinite(length) or length < 5.0:
            return
        along = np.array([vector[0], vector[1]], float) / length
        across = np.array([-along[1], along[0]])
        head = min(2.6 * width, length)
        tip = np.asarray(start, float) + along * length
        neck = tip - along * head
        self.line(start, neck + along * 0.2 * head, colour, width)
        self.polygon([tip, neck + across * head * 0.6, neck - across * head * 0.6], colour)

    def turn_arrow(self, middle: Point, radius: float, sweep: float, colour: Colour = PUSH, width: float = 7.0) -> None:
        """Draw an arc with an arrowhead: from straight up, counterclockwise for a positive `sweep` [rad]."""
        x0, y0 = float(middle[0]), float(middle[1])
        self.turned_path(
            [(x0 - radius * math.sin(sweep * k / 40), y0 - radius * math.cos(sweep * k / 40)) for k in range(41)],
            colour,
            width,
        )

    def turned_path(self, points: Sequence[Point], colour: Colour = PUSH, width: float = 7.0) -> None:
        """Draw a bent line with an arrowhead at its end, in the direction of its last piece."""
        self.path(points, colour, width)
        tip, before = np.asarray(points[-1], float), np.asarray(points[-2], float)
        length = float(np.hypot(*(tip - before)))
        if length < 1e-9:
            return
        along = (tip - before) / length
        across = np.array([-along[1], along[0]])
        head = 1.57 * width
        self.polygon([tip + 1.6 * head * along, tip + head * across, tip - head * across], colour)

    def label(
        self, text: str, at: Point, size: int = 18, colour: Colour = QUIET, across: float = 0.5, down: float = 0.5
    ) -> None:
        """Write `text` so that the share `across`, `down` of its box is at the point; (0, 0) is its upper left."""
        self._pygame.font.init()
        written = self._pygame.font.Font(None, size * _SMOOTH).render(text, True, colour)
        x, y = self._at(at)
        self._surface.blit(written, (round(x - across * written.get_width()), round(y - down * written.get_height())))

    def label_width(self, text: str, size: int) -> float:
        """Return how wide `text` will be."""
        self._pygame.font.init()
        return self._pygame.font.Font(None, size * _SMOOTH).size(text)[0] / _SMOOTH

    def finish(self) -> Any:
        """Return the picture as a pygame surface of `SIZE` by `SIZE`."""
        return self._pygame.transform.smoothscale(self._surface, (SIZE, SIZE))


class Camera:
    """A pinhole view of 3-D points (x, y, z up): where they lie on the canvas, and how large a metre is there."""

    def __init__(self, eye: Point, target: Point, zoom: float, middle: Point = (SIZE / 2, SIZE / 2)) -> None:
        """Look from `eye` at `target`; `zoom` times a length over its distance is its length in points."""
        self._eye, self._zoom, self._middle = np.asarray(eye, float), zoom, middle
        ahead = np.asarray(target, float) - self._eye
        self._distance = float(np.linalg.norm(ahead))
        self._ahead = ahead / self._distance
        right = np.cross(self._ahead, (0.0, 0.0, 1.0))
        self._right = right / np.linalg.norm(right)
        self._up = np.cross(self._right, self._ahead)

    def depth(self, point: Point) -> float:
        """Return how far ahead of the eye the point is; what is behind the eye counts as just before it."""
        return max(float((np.asarray(point, float) - self._eye) @ self._ahead), 0.05 * self._distance)

    def scale(self, point: Point) -> float:
        """Return how many points a metre across the view takes at the point's distance."""
        return self._zoom / self.depth(point)

    def __call__(self, point: Point) -> tuple[float, float]:
        """Return where the point (x, y, z) lies on the canvas."""
        offset, scale = np.asarray(point, float) - self._eye, self.scale(point)
        return (
            float(self._middle[0]) + scale * float(offset @ self._right),
            float(self._middle[1]) - scale * float(offset @ self._up),
        )
