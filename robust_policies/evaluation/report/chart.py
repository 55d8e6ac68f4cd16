"""What a picture shows, apart from how it is drawn: with plotly in the page, with matplotlib in the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Okabe and Ito's colours, distinguishable with any colour vision. Markers and dashes tell lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star", "pentagon", "hexagon")
# Values nearer to each other are one, on a logarithmic axis.
_ALONE = 1.001
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Look:
    """How the lines of one method look in every picture."""

    colour: str
    marker: str
    dash: str

    @classmethod
    def of(cls, index: int) -> Look:
        """Return the look of the method number `index`; the first seven have colours of their own."""
        return cls(
            COLOURS[index % len(COLOURS)],
            MARKERS[index % len(MARKERS)],
            DASHES[index // len(COLOURS) % len(DASHES)],
        )


@dataclass(frozen=True)
class Series:
    """One line, or one set of points, of a panel.

    Attributes:
        name: what the legend calls it; a click on it there hides or shows it in every picture.
        look: colour, marker and dash.
        x, y: the values, (points,).
        low, high: ends of an interval in y, (points,); drawn as a band behind a line and as bars at points.
        x_low, x_high: ends of an interval in x, (points,); drawn as bars.
        line, points: whether the values are joined, and whether they are marked.
        faint: a series in the background, such as the single training seeds behind their method.
        text: what the pointer shows of each point, (points,); empty: x, y and the interval.
        step: joined by steps rather than slopes: each value holds "after" or "before" its x.
        kind: which of a method's lines this is, where it has several; written at the end of the first such line,
            below it, or above it where there are no points.
    """

    name: str
    look: Look
    x: Sequence[float] | NDArray[np.float64]
    y: Sequence[float] | NDArray[np.float64]
    low: Sequence[float] | NDArray[np.float64] | None = None
    high: Sequence[float] | NDArray[np.float64] | None = None
    x_low: Sequence[float] | NDArray[np.float64] | None = None
    x_high: Sequence[float] | NDArray[np.float64] | None = None
    line: bool = True
    points: bool = True
    faint: bool = False
    text: Sequence[str] = ()
    step: Literal["", "after", "before"] = ""
    kind: str = ""


@dataclass(frozen=True)
class Heat:
    """A map of colours: `values` (len(y), len(x)), NaN where nothing was measured, over the labels of its sides.

    `notes` (len(y), len(x)) is what the pointer and the table say of each field; empty: the value.
    """

    x: Sequence[str]
    y: Sequence[str]
    values: NDArray[np.float64]
    low: float
    high: float
    digits: int = 3
    notes: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    `y_names` writes words at y = 0, 1, 2, ... from the top down; what is right of `grey_from` is in grey.
    With `square` both axes have one scale, and go from minus to plus it.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series] = ()
    heat: Heat | None = None
    log_x: bool = False
    log_y: bool = False
    y_names: Sequence[str] = ()
    grey_from: float | None = None
    square: float | None = None

    @property
    def right(self) -> float:
        """The largest x that is drawn."""
        values = np.concatenate([np.asarray(s.x, float) for s in self.series] or [np.zeros(1)])
        return float(values.max(initial=0.0))

    @property
    def labelled(self) -> list[Series]:
        """The first series of each kind, at whose ends the kind is written."""
        first = {one.kind: one for one in reversed(self.series) if one.kind and len(one.x)}
        return [one for one in self.series if first.get(one.kind) is one]

    @property
    def range_x(self) -> tuple[float, float] | None:
        """The range of a logarithmic x axis with one value alone, around which it would show decades; else None."""
        return _around([v for s in self.series for v in (s.x, s.x_low, s.x_high) if v is not None])

    @property
    def range_y(self) -> tuple[float, float] | None:
        """The same of a y axis."""
        return _around([v for s in self.series for v in (s.y, s.low, s.high) if v is not None])

    @property
    def ticks_x(self) -> list[float]:
        """Where a logarithmic x axis has its numbers."""
        return _log_ticks([v for s in self.series for v in (s.x, s.x_low, s.x_high) if v is not None])

    @property
    def ticks_y(self) -> list[float]:
        """Where a logarithmic y axis has its numbers."""
        return _log_ticks([v for s in self.series for v in (s.y, s.low, s.high) if v is not None])


@dataclass(frozen=True)
class Chart:
    """A picture of one or several panels with one legend.

    Attributes:
        key: its file name without suffix, and its anchor in the page.
        title: one line about it.
        caption: what is drawn and how to read it, plain text.
        share_y: whether all panels have the same range of y.
        columns: panels in a row, at most.
    """

    key: str
    title: str
    caption: str
    panels: Sequence[Panel]
    share_y: bool = False
    columns: int = 2
    legend: bool = True

    def legend_entries(self) -> list[Series]:
        """Return one series for each name in the picture, in order, the clear ones before the faint."""
        series = [one for panel in self.panels for one in panel.series]
        first = {one.name: one for one in [*(s for s in series if not s.faint), *series][::-1]}
        order = dict.fromkeys(one.name for one in series)
        return [first[name] for name in order] if self.legend else []


def _around(parts: Sequence[Sequence[float] | NDArray[np.float64]]) -> tuple[float, float] | None:
    values = np.concatenate([np.asarray(part, float) for part in parts]) if parts else np.zeros(0)
    values = values[np.isfinite(values) & (values > 0)]
    alone = values.size and values.max() <= _ALONE * values.min()
    return (float(0.98 * values.min()), float(1.02 * values.max())) if alone else None


def _log_ticks(parts: Sequence[Sequence[float] | NDArray[np.float64]]) -> list[float]:
    """Return 1, 2 and 5 of each decade (1 alone over three), or round numbers where there is not even one decade."""
    values = np.concatenate([np.asarray(part, float) for part in parts]) if parts else np.ones(1)
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)
    decades = np.log10(high / low)
    if decades < 0.7:
        low, high = (low, high) if high > _ALONE * low else (0.98 * low, 1.02 * high)
        return [float(f"{tick:.12g}") for tick in MaxNLocator(4).tick_values(low, high) if tick > 0]
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    return [float(f"{m * p:.12g}") for p in powers for m in ((1, 2, 5) if decades < 3 else (1,))]


def y_range(chart: Chart) -> tuple[float, float] | None:
    """Return the range of y that all panels of a chart share, with a margin; None: each has its own."""
    if not chart.share_y:
        return None
    series = [one for panel in chart.panels for one in panel.series]
    parts = [np.asarray(v, float) for s in series for v in (s.y, s.low, s.high) if v is not None]
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or max(1e-9, 0.05 * abs(high)) or 1.0
    return low - margin, high + margin
