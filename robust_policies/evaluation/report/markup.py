"""Pieces of the page: escaped text, numbers, tables, and a picture with its caption and its table."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from robust_policies.evaluation.report.chart import Chart, Heat, Panel, Series
from robust_policies.evaluation.report.interactive import sample
from robust_policies.evaluation.report.methods import Method
from robust_policies.evaluation.report.static import data_uri
from robust_policies.files import numbers

COLUMNS = 9
STATUS_WORDS = {
    "DISAGREES": "does not agree",
    "VIOLATED": "refuted",
    "MISSING": "no certificate",
    "NOT_CERTIFIED": "not certified",
    "NOT_PROVEN": "not proven",
    "PASS": "proven",
}


def escape(value: Any) -> str:
    """Return text that is only text in HTML, inside quoted attributes too."""
    return html.escape(str(value), quote=True)


def number(value: float | None, digits: int = numbers.DIGITS) -> str:
    """Return a number as a reader writes it, a dash for none."""
    return "-" if value is None or not math.isfinite(value) else numbers.shown(value, digits)


def proven(value: float | None) -> str:
    """Return an upper bound, rounded up; a dash for none."""
    return "-" if value is None or not math.isfinite(value) else numbers.upper(value)


def found(value: float | None) -> str:
    """Return what was found at least, rounded down; a dash for none."""
    return "-" if value is None or not math.isfinite(value) else numbers.lower(value)


def interval(ends: Sequence[float]) -> str:
    """Return value [low, high], a dash for none."""
    value, low, high = ends
    return number(value) if not math.isfinite(value) else f"{number(value)} {_range(number(low), number(high))}"


def spread(values: Sequence[float], write: Callable[[float | None], str]) -> str:
    """Return the median of the values and, where there are several, their range; `write` prints one."""
    if not values:
        return "-"
    middle, low, high = (write(float(value)) for value in (np.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} {_range(low, high)}"


def _range(low: str, high: str) -> str:
    return f"<span class='i'>[{low}, {high}]</span>"


def name_of(method: Method) -> str:
    """Return a method's name with its line and marker."""
    line = Series(method.name, method.look, [], [])
    return f"<span class='name'>{sample(line)}{escape(method.name)}</span>"


def badges(states: Sequence[str]) -> str:
    """Return what is proven of some runs: one word, and how many of how many where they differ."""
    parts = []
    for state, words in STATUS_WORDS.items():
        count = states.count(state)
        if count:
            several = f"{count} of {len(states)} " if count < len(states) else ""
            parts.append(f"<span class='badge {state}'>{several}{words}</span>")
    return " ".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", numeric: Sequence[int] = ()) -> str:
    """Return a table of cells and a caption that are HTML already; the columns `numeric` are set to the right."""

    def cells(row: Sequence[str], tag: str) -> str:
        scope = " scope='col'" if tag == "th" else ""
        return "".join(f"<{tag}{scope}{' class=n' if i in numeric else ''}>{c}</{tag}>" for i, c in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    # Outside what scrolls, so that all of it is seen on a narrow screen.
    title = f"<p class='caption'>{caption}</p>" if caption else ""
    head_row = f"<thead><tr>{cells(head, 'th')}</tr></thead>"
    label = caption or "table"
    return (
        f"{title}<div class='wide'><p class='hint' hidden>Scroll the table sideways to see all {len(head)} columns.</p>"
        f"<div class='scroll' tabindex='0' role='region' aria-label='{label}'>"
        f"<table>{head_row}<tbody>{body}</tbody></table></div></div>"
    )


def details(summary: str, content: str, opened: bool = False) -> str:
    """Return content that unfolds."""
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{content}</details>"


def figure(chart: Chart, picture: str, heading: bool = True) -> str:
    """Return a picture of the page: drawn by the script on a screen, `picture` (SVG) in print and without scripts."""
    key, title = escape(chart.key), escape(chart.title)
    legend = "".join(
        f"<button type='button' aria-pressed='true' data-name='{escape(entry.name)}'>"
        f"{sample(entry)}{escape(entry.name)}</button>"
        for entry in chart.legend_entries()
    )
    legend = f"<div class='legend' role='group' aria-label='Show or hide'>{legend}</div>" if legend else ""
    above = f"<h3>{title}</h3>{legend}" if heading else legend
    panels = "".join(
        f"<div class='panel'>{f'<h4>{escape(panel.title)}</h4>' if panel.title else ''}"
        f"<div class='plot' data-chart='{key}' data-panel='{number}' role='img' "
        f"aria-label='{title}{f': {escape(panel.title)}' if panel.title else ''}'></div></div>"
        for number, panel in enumerate(chart.panels)
    )
    columns = min(chart.columns, len(chart.panels))
    return (
        f"<figure id='{key}'>{above}<div class='panels c{columns}'>{panels}</div>"
        f"<img class='still' alt='{title}' src='{data_uri(picture)}'>"
        f"<figcaption>{escape(chart.caption)}</figcaption>{details('The numbers', chart_table(chart))}</figure>"
    )


def chart_table(chart: Chart) -> str:
    """Return the numbers of a chart, a table for each panel; long lines by some of their points."""
    return "".join(_heat_table(p.title, p.heat) if p.heat is not None else _panel_table(p) for p in chart.panels)


def _heat_table(title: str, heat: Heat) -> str:
    rows = [
        [escape(name), *(number(float(value), heat.digits) for value in row)]
        for name, row in zip(heat.y, heat.values, strict=True)
    ]
    return table(["", *map(escape, heat.x)], rows, escape(title), range(1, len(heat.x) + 1))


def _panel_table(panel: Panel) -> str:
    if all(series.line or series.step for series in panel.series):
        return _line_table(panel)
    rows = []
    for series in panel.series:
        if series.step or series.faint:
            continue
        for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
            said = escape(series.text[i]) if series.text else f"{number(float(y))}{_ends(series, i)}"
            rows.append([escape(series.name), number(float(x)), said])
    head = ["", escape(panel.x_label), escape(panel.y_label)]
    return table(head, rows, escape(panel.title), (1, 2)) if rows else ""


def _line_table(panel: Panel) -> str:
    places = sorted({float(x) for series in panel.series for x in series.x})
    if len(places) > COLUMNS:
        places = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, COLUMNS).astype(int))]
    rows = []
    for series in panel.series:
        at = {float(x): i for i, x in enumerate(series.x)}
        row = [f"{number(float(series.y[at[x]]))}{_ends(series, at[x])}" if x in at else "-" for x in places]
        rows.append([escape(f"{series.name}, {series.kind}" if series.kind else series.name), *row])
    head = [escape(panel.x_label), *(number(place) for place in places)]
    return table(head, rows, escape(panel.title), range(1, len(head)))


def _ends(series: Series, index: int) -> str:
    if series.low is None or series.high is None:
        return ""
    return f" {_range(number(float(series.low[index])), number(float(series.high[index])))}"
