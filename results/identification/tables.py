"""The page results/identification: a table and a figure of the rows of silverbox.json around the words of page.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results.youla.tables import shown, table
from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.static import draw
from robust_policies.files import numbers
from robust_policies.files.atomic import write_atomic

RECORDS = ("multisine", "arrow, without extrapolation", "whole arrow")
NAMES = {
    "linear": "linear (nfoursid)",
    "r2dn": "R2DN, contracting",
    "r2dn_long": "R2DN, contracting, longer",
    "r2dn_gain30": "R2DN, gain at most 30",
    "ren": "REN, contracting",
    "lstm": "LSTM",
}
AIMS = (0.03, 0.04)


def write_page(content: dict[str, Any], results: Path) -> None:
    """Write README.md and its figure."""
    picture(content["rows"]).savefig(results / "silverbox.png", dpi=110)
    write_atomic(results / "README.md", lambda file: file.write(page(content, results).encode()))


def page(content: dict[str, Any], results: Path) -> str:
    """Return README.md."""
    rows = content["rows"]
    parts = {
        "ERRORS": _errors(rows),
        "MODELS": _models(rows),
        "AIMS": _aims(rows),
        "NOTE": next((row["note"] for row in rows if row["method"] == "linear"), "There is no linear model."),
    }
    text = (results / "page.md").read_text()
    for name, part in parts.items():
        text = text.replace(f"[[{name}]]", part)
    return text


def of(rows: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return the rows of a method."""
    return [row for row in rows if row["method"] == method]


def _each(rows: Sequence[dict[str, Any]], record: int) -> list[float]:
    return [row["errors"][record]["all"]["nrmse_std"] for row in rows]


def _methods(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [method for method in NAMES if of(rows, method)]


def _errors(rows: Sequence[dict[str, Any]]) -> str:
    body = []
    for method in _methods(rows):
        own = of(rows, method)
        cells = [shown(_each(own, record)) for record in range(len(RECORDS))]
        rmse = [shown([1000 * row["errors"][record]["rmse"][0] for row in own]) for record in range(len(RECORDS))]
        body.append([NAMES[method], str(len(own)), *(f"{a}; {b} mV" for a, b in zip(cells, rmse, strict=True))])
    return table(["model", "seeds", *(f"{name}: NRMSE; RMSE" for name in RECORDS)], body)


def _models(rows: Sequence[dict[str, Any]]) -> str:
    body = []
    for method in _methods(rows):
        own = of(rows, method)
        if method == "linear":
            continue
        proven = [row["gain"] for row in own if row["gain"] is not None]
        rates = [row["rate"] for row in own if row["rate"] is not None]
        body.append(
            [
                NAMES[method],
                str(own[0]["parameters"]),
                str(own[0]["updates"]),
                shown([row["cpu_seconds"] for row in own]),
                numbers.rate(max(rates)) if rates else "none",
                numbers.upper(max(proven)) if proven else "none",
            ]
        )
    head = [
        "model",
        "parameters",
        "updates",
        "CPU seconds",
        "contraction rate, proven (largest)",
        "gain, proven, raw (largest)",
    ]
    return table(head, body)


def _aims(rows: Sequence[dict[str, Any]]) -> str:
    body = []
    for method in _methods(rows):
        own = of(rows, method)
        values = [_each(own, record) for record in range(len(AIMS))]
        met = [f"{sum(v < aim for v in each)} of {len(each)}" for each, aim in zip(values, AIMS, strict=True)]
        body.append([NAMES[method], *met])
    return table(["seeds that reach it", *(f"{r}: below {aim:g}" for r, aim in zip(RECORDS, AIMS, strict=False))], body)


def picture(rows: Sequence[dict[str, Any]]) -> Any:
    """Return the figure: the error on each test record, a point a seed."""
    methods = _methods(rows)
    panels = []
    for record, title in enumerate(RECORDS[:2]):
        series = [
            Series(NAMES[method], Look.of(k), _each(of(rows, method), record), [k] * len(of(rows, method)), line=False)
            for k, method in enumerate(methods)
        ]
        panels.append(
            Panel(title, "NRMSE / deviation (log)", "", series, log_x=True, y_names=[NAMES[m] for m in methods])
        )
    return draw(Chart("silverbox", "Silverbox", "", panels, columns=2, legend=False))
