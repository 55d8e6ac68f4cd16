"""The pictures in the page, as plotly's data and layout; the page's script draws them."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from robust_policies.evaluation.report.chart import Chart, Heat, Panel, Series, y_range
from robust_policies.files import numbers

INK, RULE = "#1b1b1b", "#d9dce0"
FONT = 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
CIVIDIS = ((0.0, "#00224e"), (0.25, "#434e6c"), (0.5, "#7d7c78"), (0.75, "#bcae6c"), (1.0, "#fee838"))
ENDS = "[%{customdata[0]:.4g}, %{customdata[1]:.4g}]"


def panels(chart: Chart) -> list[dict[str, Any]]:
    """Return {"data", "layout"} of each panel of a chart, JSON without NaN."""
    shared = y_range(chart)
    return [{"data": list(_data(panel)), "layout": _layout(panel, shared)} for panel in chart.panels]


def embed(content: Any) -> str:
    """Return JSON that is safe inside a script element, whatever its strings hold."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(value: str) -> str:
    """Return words that plotly shows as they are: it reads some HTML."""
    return html.escape(value, quote=False)


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Return numbers with six digits, None for those that are none."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in map(float, values)]


def _data(panel: Panel) -> Iterable[dict[str, Any]]:
    if panel.heat is not None:
        yield _heat(panel.heat)
        return
    bands = [one for one in panel.series if one.line and one.low is not None]
    yield from (_band(one) for one in bands)
    for one in panel.series:
        yield _trace(panel, one)
    yield from map(_kind, panel.labelled)


def _kind(series: Series) -> dict[str, Any]:
    """Return the words at the end of a line, which go when it does."""
    return {
        "type": "scatter",
        # The markers are not seen, and keep the words off the line.
        "mode": "markers+text",
        "marker": {"size": 9, "opacity": 0},
        "x": _numbers(series.x[-1:]),
        "y": _numbers(series.y[-1:]),
        "text": [_text(series.kind)],
        "textposition": "bottom left" if series.points else "top left",
        "textfont": {"size": 11, "color": series.look.colour},
        "hoverinfo": "skip",
        "name": series.name,
        "showlegend": False,
    }


def _band(series: Series) -> dict[str, Any]:
    """Return the area between the ends of a line's intervals."""
    assert series.low is not None and series.high is not None
    x = np.asarray(series.x, float)
    edge = np.concatenate([np.asarray(series.high, float), np.asarray(series.low, float)[::-1]])
    return {
        "type": "scatter",
        "mode": "lines",
        "x": _numbers(np.concatenate([x, x[::-1]])),
        "y": _numbers(edge),
        "fill": "toself",
        "fillcolor": _rgba(series.look.colour, 0.15),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "name": series.name,
        "showlegend": False,
    }


def _rgba(colour: str, alpha: float) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},{alpha})"


def _trace(panel: Panel, series: Series) -> dict[str, Any]:
    look, bar = series.look, series.look.marker == "bar"
    joined = bool(series.line or series.step)
    shape = {"": {}, "after": {"shape": "hv"}, "before": {"shape": "vh"}}[series.step]
    mode = "+".join(word for word, on in (("lines", joined), ("markers", series.points)) if on)
    size = (18 if bar else 7) * (0.65 if series.faint else 1.0) * (1.3 if not series.line and not series.faint else 1.0)
    edge = {"width": 3 if bar else 1, "color": look.colour if bar else "#fff"}
    if series.faint:
        edge["width"] = 1.5 if bar else 0
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": mode,
        "x": _numbers(series.x),
        "y": _numbers(series.y),
        "name": series.name,
        "showlegend": False,
        "opacity": 0.4 if series.faint else 1.0,
        "line": {"color": look.colour, "width": 2, "dash": look.dash, **shape},
        "marker": {"symbol": "line-ns" if bar else look.marker, "size": size, "color": look.colour, "line": edge},
        # A name may hold anything: plotly fills in `meta` without reading it as a template.
        "meta": _text(f"{series.name}, {series.kind}" if series.kind else series.name),
    }
    trace["hovertemplate"], custom = _hover(panel, series)
    if custom is not None:
        trace["customdata"] = custom
    if not series.line and series.low is not None and series.high is not None:
        trace["error_y"] = _bars(series.y, series.low, series.high, look.colour)
    if series.x_low is not None and series.x_high is not None:
        trace["error_x"] = _bars(series.x, series.x_low, series.x_high, look.colour)
        if series.low is None:
            trace["error_x"] |= {"thickness": 6, "width": 0, "color": _rgba(look.colour, 0.35)}
    return trace


def _hover(panel: Panel, series: Series) -> tuple[str, list[Any] | None]:
    """Return plotly's template of what the pointer shows, and the data it fills in."""
    head = "<b>%{meta}</b><br>"
    if series.text:
        return f"{head}%{{customdata}}<extra></extra>", [_text(text) for text in series.text]
    # Labels are this package's words, apart from those of a task's factors, which only maps have.
    x, y = (_text(label.removesuffix(" (log)")).replace("%", "") for label in (panel.x_label, panel.y_label))
    body = f"{x}: %{{x:.4g}}<br>{y}: %{{y:.4g}}"
    if series.low is None or series.high is None:
        return f"{head}{body}<extra></extra>", None
    ends = zip(_numbers(series.low), _numbers(series.high), strict=True)
    return f"{head}{body} {ENDS}<extra></extra>", [list(pair) for pair in ends]


def _bars(values: Any, low: Any, high: Any, colour: str) -> dict[str, Any]:
    middle = np.asarray(values, float)
    up, down = np.asarray(high, float) - middle, middle - np.asarray(low, float)
    bars = {"type": "data", "symmetric": False, "array": _numbers(np.maximum(up, 0.0))}
    return {**bars, "arrayminus": _numbers(np.maximum(down, 0.0)), "color": colour, "thickness": 1.3, "width": 3}


def _heat(heat: Heat) -> dict[str, Any]:
    text = [[numbers.shown(v, heat.digits) if math.isfinite(v) else "" for v in row] for row in heat.values]
    notes = [[_text(note) for note in row] for row in heat.notes] if heat.notes else text
    return {
        "type": "heatmap",
        "z": [_numbers(row) for row in heat.values],
        "x": list(range(len(heat.x))),
        "y": list(range(len(heat.y))),
        "zmin": heat.low,
        "zmax": heat.high,
        "colorscale": [list(c) for c in CIVIDIS],
        "showscale": heat.values.size > 120,
        "text": text,
        "texttemplate": "%{text}" if heat.values.size <= 120 else "",
        "customdata": notes,
        "hovertemplate": "%{customdata}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
        "textfont": {"size": 11},
        "colorbar": {"thickness": 12},
    }


def _layout(panel: Panel, shared: tuple[float, float] | None) -> dict[str, Any]:
    axis = {
        "gridcolor": RULE,
        "zerolinecolor": RULE,
        "linecolor": "#8a9099",
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#8a9099",
    }
    x = {**axis, "title": {"text": _text(panel.x_label), "standoff": 8}}
    y = {**axis, "title": {"text": _text(panel.y_label), "standoff": 6}}
    sides = (x, panel.log_x, panel.ticks_x, panel.range_x), (y, panel.log_y, panel.ticks_y, panel.range_y)
    for side, log, ticks, around in sides:
        if log:
            side |= {} if around is None else {"range": [math.log10(end) for end in around]}
            side |= {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    if shared is not None:
        y["range"] = list(shared)
    height = 310
    if panel.y_names:
        names = {"tickmode": "array", "tickvals": list(range(len(panel.y_names)))}
        y |= {
            **names,
            "ticktext": [_short(name, 26) for name in panel.y_names],
            "range": [len(panel.y_names) - 0.5, -0.5],
        }
        height = 108 + 40 * len(panel.y_names)
    if panel.square is not None:
        x["range"] = y["range"] = [-panel.square, panel.square]
        y |= {"scaleanchor": "x", "constrain": "domain"}
        x["constrain"], height = "domain", 400
    if panel.heat is not None:
        for side, labels in ((x, panel.heat.x), (y, panel.heat.y)):
            ticks = {"tickmode": "array", "tickvals": list(range(len(labels))), "showgrid": False, "zeroline": False}
            side |= {**ticks, "ticktext": [_short(name, 16) for name in labels], "ticklen": 0}
        y["autorange"] = "reversed"
        if max(map(len, panel.heat.x)) > 5:
            x["tickangle"] = -45
        height = max(240, 130 + 30 * len(panel.heat.y)) + 5 * min(16, max(map(len, panel.heat.x)))
    grey: dict[str, Any] = {}
    if panel.grey_from is not None:
        area = {"x0": panel.grey_from, "x1": max(panel.right, panel.grey_from), "y0": 0, "y1": 1, "yref": "paper"}
        grey = {"shapes": [{"type": "rect", **area, "fillcolor": "#e4e4e4", "line": {"width": 0}, "layer": "below"}]}
    return {
        **grey,
        "height": height,
        "margin": {"l": 52, "r": 12, "t": 26, "b": 44},
        "xaxis": x,
        "yaxis": y,
        "showlegend": False,
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "font": {"family": FONT, "size": 12, "color": INK},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#fff", "bordercolor": "#8a9099", "font": {"color": INK}},
    }


def _short(name: str, length: int) -> str:
    return _text(name if len(name) <= length else name[: length - 1] + "…")


def sample(series: Series) -> str:
    """Return a small inline picture of a line and its marker, for a legend."""
    look = series.look
    dashes = {"solid": "", "dash": "6 3", "dot": "2 3", "dashdot": "6 3 2 3"}[look.dash]
    stroke = f" stroke-dasharray='{dashes}'" if dashes else ""
    line = f"<path d='M1 7H29' stroke='{look.colour}' stroke-width='2.2'{stroke}/>"
    shape = f"<path d='{_MARKS[look.marker]}' fill='{look.colour}' stroke='#fff' stroke-width='.8'/>"
    drawn = line + (shape if series.points else "")
    return f"<svg class='sample' viewBox='0 0 30 14' width='30' height='14' aria-hidden='true'>{drawn}</svg>"


def _polygon(sides: int, radius: float = 5.0, inner: float | None = None, turn: float = 0.0) -> str:
    """Return the path of a regular polygon around (15, 7), a star where there is an inner radius."""
    corners = sides if inner is None else 2 * sides
    points: Sequence[str] = [
        f"{15 + r * math.sin(a):.2f} {7 - r * math.cos(a):.2f}"
        for k in range(corners)
        for r, a in [(radius if inner is None or k % 2 == 0 else inner, turn + 2 * math.pi * k / corners)]
    ]
    return f"M{'L'.join(points)}Z"


_MARKS = {
    "circle": _polygon(20, 4.3),
    "square": _polygon(4, 5.4, turn=math.pi / 4),
    "triangle-up": _polygon(3, 5.4),
    "triangle-down": _polygon(3, 5.4, turn=math.pi),
    "diamond": _polygon(4, 5.2),
    "cross": _polygon(4, 5.4, 2.4),
    "x": _polygon(4, 5.6, 2.4, math.pi / 4),
    "star": _polygon(5, 5.8, 2.4),
    "pentagon": _polygon(5, 5.0),
    "hexagon": _polygon(6, 5.0),
    "bar": _polygon(4, 5.0),
}
