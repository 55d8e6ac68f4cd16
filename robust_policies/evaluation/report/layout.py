"""Where the panels of a picture lie: beside the widths of their own words, each measured once.

matplotlib's constrained layout asks every artist of every panel several times, and so do titles and labels that are
placed anew whenever a file is drawn; together that takes longer than drawing. Here ticks and places are found once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedFormatter, FixedLocator
from matplotlib.transforms import Affine2D

# In points. A tick with the space to its number, a line of words over the size of its letters, and the edge of a panel.
TICK, LINE, EDGE, LABEL = 7.0, 1.25, 5.0, 4.0
# Before anything is measured: left, right, bottom and top of a panel, from which the number of ticks follows.
_GUESS = (48.0, 8.0, 40.0, 22.0)
BAR = 46.0
"""What a bar of colours beside a panel takes."""


class Margins(NamedTuple):
    """What a panel needs around its axes, in points; `x` and `y` of it are ticks with their numbers."""

    left: float
    right: float
    bottom: float
    top: float
    x: float
    y: float


class Word(NamedTuple):
    """A word and where its first letter stands on the line, in points from the lower left corner of the figure."""

    x: float
    y: float
    text: str
    size: float
    angle: float = 0.0


class Words(Artist):
    """The words around the axes of a figure, at known places: a Text of its own for each looks for its place anew."""

    def __init__(self, words: Sequence[Word]) -> None:
        super().__init__()
        self.words = words

    def draw(self, renderer: Any) -> None:
        """Draw all words with one of matplotlib's renderers: as pixels their outlines at once, elsewhere as text."""
        scale, height = renderer.points_to_pixels(1.0), renderer.get_canvas_width_height()[1]
        context = renderer.new_gc()
        context.set_foreground("black")
        if isinstance(renderer, RendererAgg):
            context.set_linewidth(0.0)
            renderer.draw_path(context, _outlines(self.words), Affine2D().scale(scale), (0.0, 0.0, 0.0))
        for x, y, text, size, angle in () if isinstance(renderer, RendererAgg) else self.words:
            up = height - y * scale if renderer.flipy() else y * scale
            renderer.draw_text(context, x * scale, up, text, _font(size), angle)
        context.restore()
        self.stale = False


def _outlines(words: Sequence[Word]) -> Path:
    """Return the outlines of all letters, in points from the lower left corner of the figure."""
    corners, codes = [np.zeros((0, 2))], [np.zeros(0, np.uint8)]
    for x, y, text, size, angle in words:
        own, kinds = _outline(text)
        turn = complex(math.cos(math.radians(angle)), math.sin(math.radians(angle)))
        turned = [(turn.real, turn.imag), (-turn.imag, turn.real)]
        corners.append(own * (size / text_to_path.FONT_SCALE) @ turned + (x, y))
        codes.append(kinds)
    return Path(np.concatenate(corners), np.concatenate(codes))


def settle(figure: Figure, axes: Sequence[Axes], columns: int, above: float) -> None:
    """Place the axes of a figure row by row, `columns` in each, below `above` inches for a legend; fix their ticks.

    What is drawn into them afterwards does not change ticks and places, but is drawn.
    """
    width, height = figure.get_size_inches() * 72
    height -= 72 * above
    rows = math.ceil(len(axes) / columns)
    left, right, bottom, top = _GUESS
    for one in axes:
        size = (width / columns - left - right) / width, (height / rows - bottom - top) / height
        one.set_position((0.0, 0.0, max(size[0], 0.05), max(size[1], 0.05)))
    needed = [_margins(one) for one in axes]
    across = [[part for place, part in enumerate(needed) if place % columns == c] for c in range(columns)]
    down = [needed[row * columns : (row + 1) * columns] for row in range(rows)]
    lefts, rights = ([max(getattr(m, side) for m in group) for group in across] for side in ("left", "right"))
    tops, bottoms = ([max(getattr(m, side) for m in group) for group in down] for side in ("top", "bottom"))
    wide = max((width - sum(lefts) - sum(rights)) / columns, 20.0)
    high = max((height - sum(tops) - sum(bottoms)) / rows, 20.0)
    words: list[Word] = []
    for place, (one, margins) in enumerate(zip(axes, needed, strict=True)):
        row, column = divmod(place, columns)
        x = sum(lefts[: column + 1]) + sum(rights[:column]) + column * wide
        y = height - sum(tops[: row + 1]) - sum(bottoms[:row]) - (row + 1) * high
        w, h = (min(wide, high), min(wide, high)) if one.get_aspect() == 1.0 else (wide, high)
        x, y = x + (wide - w) / 2, y + (high - h) / 2
        one.set_position((x / width, y / (height + 72 * above), w / width, h / (height + 72 * above)))
        one.xaxis.set_label_coords(0.5, -(margins.x + LABEL) / h)
        one.yaxis.set_label_coords(-(margins.y + LABEL) / w, 0.5)
        if not one.images:
            _grid(one)
            words += _words(one, margins)
    figure.add_artist(Words(words))


def _grid(axes: Axes) -> None:
    """Draw the lines through the numbers of each axis as one artist: those of ticks are drawn one by one."""
    style: dict[str, Any] = {"colors": "#b0b0b0", "alpha": 0.25, "linewidths": 0.8, "zorder": 0.5}
    up = [((place, 0.0), (place, 1.0)) for place in axes.xaxis.get_majorticklocs()]
    across = [((0.0, place), (1.0, place)) for place in axes.yaxis.get_majorticklocs()]
    for lines, transform in ((up, axes.get_xaxis_transform()), (across, axes.get_yaxis_transform())):
        axes.add_collection(LineCollection(lines, transform=transform, **style), autolim=False)


def _margins(axes: Axes) -> Margins:
    """Return what one panel needs, after fixing its ticks; its title is placed above what stands over the y axis."""
    offset = _fixed(axes.yaxis)
    _fixed(axes.xaxis)
    # Only the names at the sides of a map may slant, or be of a size of their own.
    slanted = False
    if axes.images:
        slanted = any(text.get_rotation() for text in axes.get_xticklabels())
        x, y = _extent(axes.get_xticklabels()), _extent(axes.get_yticklabels())
    else:
        _thinned(axes)
        x, y = _largest(axes.xaxis), _largest(axes.yaxis)
    x, y = (x[0], TICK + x[1]), (TICK + y[0], y[1])
    title, raised = axes.get_title(), 13.0 if offset else 0.0
    axes.set_title(title, y=1.0, pad=6.0 + raised)
    # The outermost number stands half beyond the axes; a slanting one begins far to the left of its own.
    return Margins(
        left=max(EDGE + y[0] + _line(axes.yaxis.label), x[0] * 0.6 if slanted else x[0] / 2),
        right=BAR if axes.child_axes else max(EDGE, 0.0 if slanted else x[0] / 2),
        bottom=EDGE + x[1] + _line(axes.xaxis.label),
        top=raised + (6.0 + LINE * float(axes.title.get_fontsize()) if title else y[1] / 2) + 2.0,
        x=x[1],
        y=y[0],
    )


def _words(axes: Axes, margins: Margins) -> list[Word]:
    """Return the numbers and names of both axes, which are no longer drawn by themselves."""
    scale = 72 / axes.figure.dpi
    (left, bottom), (right, top) = axes.transAxes.transform([(0.0, 0.0), (1.0, 1.0)]) * scale
    words = []
    for across, axis in ((True, axes.xaxis), (False, axes.yaxis)):
        places, texts, size = *_numbers(axis), _size(axis)
        at = axes.transData.transform(np.column_stack([places, places]))[:, 0 if across else 1] * scale
        ascent = _ascent(size)[0]
        for place, text in zip(at, texts, strict=True):
            x, y = (place - _width(text, size) / 2, bottom - TICK - ascent) if across else (
                left - TICK - _width(text, size), place - ascent / 2,
            )  # fmt: skip
            words.append(Word(x, y, text, size))
        if offset := axis.get_major_formatter().get_offset():
            under = right - _width(offset, size), bottom - margins.x - 3.0 - ascent
            words.append(Word(*(under if across else (left, top + 3.0)), offset, size))
        if label := axis.label.get_text():
            size = float(axis.label.get_fontsize())
            ascent, descent = _ascent(size)
            half = _width(label, size) / 2
            words.append(
                Word((left + right) / 2 - half, bottom - margins.x - LABEL - ascent, label, size)
                if across
                else Word(left - margins.y - LABEL - descent, (bottom + top) / 2 - half, label, size, 90.0)
            )
        axis.set_visible(False)
    return [word._replace(text=" ".join(word.text.split("\n"))) for word in words if word.text]


def _line(label: Text) -> float:
    return LABEL + LINE * float(label.get_fontsize()) if label.get_text() else 0.0


def _fixed(axis: Axis) -> str:
    """Return what stands at the end of an axis, such as 1e6, after fixing its ticks and their numbers."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    places = [float(place) for place in np.atleast_1d(axis.get_majorticklocs()) if low - slack <= place <= high + slack]
    plain = axis.get_major_formatter()
    formatter = FixedFormatter(plain.format_ticks(places))
    formatter.set_offset_string(plain.get_offset())
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(formatter)
    return plain.get_offset()


def _thinned(axes: Axes) -> None:
    """Leave out every other number of the x axis while two of them touch."""
    places, texts = _numbers(axes.xaxis)
    if not places:
        return
    size, scale = _size(axes.xaxis), 72 / axes.figure.dpi
    at = axes.transData.transform(np.column_stack([places, np.ones(len(places))]))[:, 0] * scale
    half = np.array([_width(text, size) / 2 for text in texts]) + 3.0
    step = 1
    while (np.diff(at[::step]) < half[::step][1:] + half[::step][:-1]).any():
        step *= 2
    if step > 1:
        axes.xaxis.set_major_locator(FixedLocator(places[::step]))
        axes.xaxis.set_major_formatter(FixedFormatter(texts[::step]))


def _numbers(axis: Axis) -> tuple[list[float], list[str]]:
    """Return the places of the ticks of an axis that are fixed, and what is written at each."""
    places = [float(place) for place in axis.get_majorticklocs()]
    return places, axis.get_major_formatter().format_ticks(places)


def _size(axis: Axis) -> float:
    """Return the size of the numbers of an axis, in points."""
    size = matplotlib.rcParams["xtick.labelsize" if isinstance(axis, XAxis) else "ytick.labelsize"]
    return float(FontProperties(size=size).get_size_in_points())


def _largest(axis: Axis) -> tuple[float, float]:
    """Return the largest width and height of the numbers of an axis, in points."""
    texts, size = _numbers(axis)[1], _size(axis)
    return max((_width(text, size) for text in texts), default=0.0), LINE * size * 0.8 if any(texts) else 0.0


def _extent(words: Sequence[Text]) -> tuple[float, float]:
    """Return the largest width and height of some words, in points."""
    found = [(0.0, 0.0)]
    for text in words:
        size = float(text.get_fontsize())
        width, height = _width(text.get_text(), size), LINE * size * 0.8 if text.get_text() else 0.0
        angle = math.radians(text.get_rotation())
        found.append((
            width * math.cos(angle) + height * math.sin(angle), width * math.sin(angle) + height * math.cos(angle),
        ))  # fmt: skip
    return max(width for width, _ in found), max(height for _, height in found)


@lru_cache(maxsize=4096)
def _width(text: str, size: float) -> float:
    """Return how wide a text is in letters of this size, in points."""
    return float(text_to_path.get_text_width_height_descent(text, _font(size), False)[0]) if text else 0.0


@lru_cache(maxsize=64)
def _ascent(size: float) -> tuple[float, float]:
    """Return how far letters of this size reach above and below the line they stand on, in points."""
    _, height, descent = text_to_path.get_text_width_height_descent("lp", _font(size), False)
    return float(height - descent), float(descent)


@lru_cache(maxsize=64)
def _font(size: float) -> FontProperties:
    return FontProperties(size=size)


@lru_cache(maxsize=4096)
def _outline(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return corners (n, 2) and matplotlib's codes (n,) of the outline of a text, in letters of FONT_SCALE points."""
    corners, codes = text_to_path.get_text_path(_font(text_to_path.FONT_SCALE), text)
    return np.reshape(corners, (-1, 2)), np.asarray(codes, np.uint8)
