"""The pictures as files, drawn with matplotlib without a display."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from robust_policies.errors import UserError
from robust_policies.evaluation.report.chart import Chart, Heat, Panel, Series, y_range
from robust_policies.evaluation.report.layout import settle
from robust_policies.files import numbers
from robust_policies.files.atomic import read_json, write_atomic, write_json

INDEX_SCHEMA = 1
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.bottom": False,
    "ytick.left": False,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "robust-policies",
    "text.parse_math": False,
}
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle-up": "^",
    "diamond": "D",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
    "star": "*",
    "pentagon": "p",
    "hexagon": "h",
    "bar": "|",
}
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
WIDTH = 8.2
# What ends an attribute or an address, or is read as something else there.
_QUOTED = {ord(character): quote(character) for character in "%#&<>\"'\n\t"}


def draw(chart: Chart) -> Figure:
    """Return the picture of a chart, as wide as a printed page, with one legend above."""
    with matplotlib.rc_context(STYLE):
        columns = min(chart.columns, len(chart.panels))
        rows = math.ceil(len(chart.panels) / columns)
        heights = [_height(panel, WIDTH / columns) for panel in chart.panels]
        entries = chart.legend_entries()
        legend_rows = math.ceil(len(entries) / _legend_columns(entries)) if entries else 0
        above = 0.22 * legend_rows + 0.1 * bool(entries)
        figure = Figure(figsize=(WIDTH, max(heights) * rows + above))
        shared, drawn = y_range(chart), []
        for panel in chart.panels:
            axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), label=str(len(drawn)))
            draw_panel(axes, panel)
            if shared is not None:
                axes.set_ylim(*shared)
            drawn.append(axes)
        settle(figure, drawn, columns, above)
        if entries:
            add_legend(figure, entries)
        return figure


def _legend_columns(entries: Sequence[Series]) -> int:
    widest = max(len(entry.name) for entry in entries)
    return max(1, min(len(entries), 5, 105 // (widest + 9)))


def add_legend(figure: Figure, entries: Sequence[Series]) -> None:
    """Write the legend above all panels."""
    axes = figure.axes[0]
    handles = [axes.plot([], [], label=entry.name, **_style(entry))[0] for entry in entries]
    figure.legend(handles=handles, loc="upper center", ncols=_legend_columns(entries), frameon=False)


def _height(panel: Panel, width: float) -> float:
    if panel.y_names:
        return 0.8 + 0.34 * len(panel.y_names)
    if panel.heat is not None:
        names = 0.09 * min(16, max(map(len, panel.heat.x))) if max(map(len, panel.heat.x)) > 5 else 0.0
        return min(0.95 + 0.36 * len(panel.heat.y), width) + names
    return 2.75 if panel.square is None else min(width, 4.0)


def _style(series: Series) -> dict[str, Any]:
    look = series.look
    size = {"bar": 15.0, "star": 8.0}.get(look.marker, 5.0) * (0.62 if series.faint else 1.0)
    return {
        "color": look.colour,
        "alpha": 0.4 if series.faint else 1.0,
        "markersize": size,
        "linewidth": 1.6,
        "linestyle": DASHES[look.dash] if series.line or series.step else "none",
        "marker": MARKERS[look.marker] if series.points else "",
        "markeredgewidth": 2.2 if look.marker == "bar" else 0.5,
        "markeredgecolor": look.colour if look.marker == "bar" else "white",
    }


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw one panel into its axes."""
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.heat is not None:
        _heat(axes, panel.heat)
        return
    for series in panel.series:
        _series(axes, series)
    if panel.labelled:
        axes.margins(y=0.09)
    for series in panel.labelled:
        _write_kind(axes, series)
    if panel.grey_from is not None:
        axes.axvspan(panel.grey_from, max(panel.right, panel.grey_from), color="#e4e4e4", linewidth=0, zorder=0)
    if panel.log_x:
        axes.set_xscale("log")
        if panel.range_x is not None:
            axes.set_xlim(*panel.range_x)
        _plain_ticks(axes.xaxis, panel.ticks_x)
    if panel.log_y:
        axes.set_yscale("log")
        if panel.range_y is not None:
            axes.set_ylim(*panel.range_y)
        _plain_ticks(axes.yaxis, panel.ticks_y)
    if panel.square is not None:
        axes.set(xlim=(-panel.square, panel.square), ylim=(-panel.square, panel.square), aspect="equal")
    if panel.y_names:
        axes.yaxis.set_major_locator(FixedLocator(range(len(panel.y_names))))
        axes.yaxis.set_major_formatter(FixedFormatter([_short(name) for name in panel.y_names]))
        axes.set_ylim(len(panel.y_names) - 0.5, -0.5)


def _plain_ticks(axis: Axis, ticks: Sequence[float]) -> None:
    """Write 1, 2, 5, 10 rather than powers of ten."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _short(name: str, length: int = 34) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _series(axes: Axes, series: Series) -> None:
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    colour = series.look.colour
    if series.low is not None and series.high is not None:
        if series.line:
            axes.fill_between(x, np.asarray(series.low), np.asarray(series.high), color=colour, alpha=0.15, linewidth=0)
        else:
            axes.vlines(x, np.asarray(series.low), np.asarray(series.high), color=colour, linewidth=1.2)
    if series.x_low is not None and series.x_high is not None:
        thick = series.low is None
        ends = np.asarray(series.x_low), np.asarray(series.x_high)
        axes.hlines(y, *ends, color=colour, linewidth=5 if thick else 1.2, alpha=0.3 if thick else 1.0)
    style = {"": "default", "after": "steps-post", "before": "steps-pre"}[series.step]
    axes.plot(x, y, drawstyle=style, **_style(series))


def _write_kind(axes: Axes, series: Series) -> None:
    end = float(series.x[-1]), float(series.y[-1])
    place: dict[str, Any] = {"xytext": (-3, -5), "textcoords": "offset points", "ha": "right", "va": "top"}
    if not series.points:
        place |= {"xytext": (-3, 3), "va": "bottom"}
    axes.annotate(series.kind, end, color=series.look.colour, fontsize=8, **place)


def _heat(axes: Axes, heat: Heat) -> None:
    image = axes.imshow(heat.values, cmap="cividis", vmin=heat.low, vmax=heat.high, aspect="auto")
    axes.set_xticks(range(len(heat.x)), [_short(name, 16) for name in heat.x], size=7)
    axes.set_yticks(range(len(heat.y)), [_short(name, 16) for name in heat.y], size=7)
    if max(map(len, heat.x)) > 5:
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    if heat.values.size <= 120:
        middle = (heat.low + heat.high) / 2
        for (row, column), value in np.ndenumerate(heat.values):
            if np.isfinite(value):
                colour = "black" if value > middle else "white"
                text = numbers.shown(float(value), heat.digits)
                axes.text(column, row, text, ha="center", va="center", size=6.5, color=colour)
    else:
        axes.figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.03, 1.0)))


def save(chart: Chart, folder: Path) -> str:
    """Return the picture as SVG, after writing it into `folder` as PNG and PDF."""
    figure = draw(chart)
    with matplotlib.rc_context(STYLE):
        write_atomic(folder / f"{chart.key}.png", lambda file: _png(figure, file, 150))
        metadata = {"CreationDate": None, "Title": chart.title}
        write_atomic(folder / f"{chart.key}.pdf", lambda file: figure.savefig(file, format="pdf", metadata=metadata))
        return _svg(figure)


def _png(figure: Figure, file: Any, dpi: int) -> None:
    """Write a picture without transparency, compressed as well as with it in half the time."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    image.convert("RGB").save(file, "png", dpi=(dpi, dpi), compress_level=3)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A tenth of a point is not seen, and the digits behind it are half of the file; numbers below 1 may be scales.
    text = re.sub(r"([1-9]\d+\.\d)\d+", r"\1", text)
    text = re.sub(r"(\b[1-9]\.\d{2})\d+", r"\1", text)
    return re.sub(r"\s*\n\s*", " ", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))


def data_uri(svg: str) -> str:
    """Return an SVG picture as the address of an image that is its own file, for an attribute in single quotes."""
    return f"data:image/svg+xml,{svg.translate(_QUOTED)}"


def save_all(charts: Sequence[Chart], folder: Path, report: str) -> dict[str, str]:
    """Return {key: SVG} after writing each chart as PNG and PDF, and index.json with their titles and captions.

    Pictures that an earlier report of the same name left there, and this one has not, are removed.
    """
    index = folder / "index.json"
    try:
        before = read_json(index, "list of figures", INDEX_SCHEMA)
        earlier = {str(item["key"]) for item in before["figures"]} if before.get("report") == report else set()
    except (UserError, KeyError, TypeError):
        earlier = set()
    for key in earlier - {chart.key for chart in charts}:
        if re.fullmatch(r"[a-z0-9-]+", key):
            (folder / f"{key}.png").unlink(missing_ok=True)
            (folder / f"{key}.pdf").unlink(missing_ok=True)
    pictures = {chart.key: save(chart, folder) for chart in charts}
    listed = [{"key": chart.key, "title": chart.title, "caption": chart.caption} for chart in charts]
    write_json(index, {"schema": INDEX_SCHEMA, "report": report, "figures": listed})
    return pictures


def save_overview(panels: Sequence[Panel], entries: Sequence[Series], path: Path) -> Path:
    """Return `path` after drawing a few panels side by side there, for a README."""
    with matplotlib.rc_context(STYLE):
        above = 0.3 + 0.2 * (len(entries) > 5) if entries else 0.0
        figure = Figure(figsize=(11, 3.9 + above))
        drawn = [figure.add_axes((0.0, 0.0, 1.0, 1.0), label=str(place)) for place in range(len(panels))]
        for axes, panel in zip(drawn, panels, strict=True):
            draw_panel(axes, panel)
        settle(figure, drawn, len(panels), above)
        if entries:
            add_legend(figure, entries)
        return write_atomic(path, lambda file: _png(figure, file, 130))
