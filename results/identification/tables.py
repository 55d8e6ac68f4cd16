"""The page results/identification: tables and figures of the stored rows around the words of page.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results.identification.benchmarks import BENCHMARKS
from results.youla.tables import shown, table
from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.static import draw
from robust_policies.files import numbers
from robust_policies.files.atomic import read_json, write_atomic

NAMES = {
    "linear": "linear (nfoursid)",
    "r2dn": "R2DN, contracting",
    "r2dn_long": "R2DN, contracting, longer",
    "r2dn_gain30": "R2DN, gain at most 30",
    "r2dn_gain3": "R2DN, gain at most 3",
    "ren": "REN, contracting",
    "l2ru": "L2RU, contracting",
    "lstm": "LSTM",
    "gru_ensemble": "3 GRUs",
    "gru_five": "5 GRUs",
    "gru_again": "3 GRUs, recorded again",
}
WANTED = 95
"""Percent of the return of a policy that was trained on the true plant."""
Rows = Sequence[dict[str, Any]]


def write_page(results: Path) -> None:
    """Write README.md and a figure of each benchmark whose rows are there."""
    stored = rows_of(results)
    for name, rows in stored.items():
        picture(name, rows).savefig(results / f"{name}.png", dpi=110)
    write_atomic(results / "README.md", lambda file: file.write(page(stored, results).encode()))


def rows_of(results: Path) -> dict[str, Rows]:
    """Return the stored rows by benchmark."""
    paths = {name: results / f"{name}.json" for name in BENCHMARKS}
    return {name: read_json(path, "results", 1)["rows"] for name, path in paths.items() if path.is_file()}


def page(stored: Mapping[str, Rows], results: Path) -> str:
    """Return README.md."""
    text = (results / "page.md").read_text()
    for name in BENCHMARKS:
        rows = stored.get(name, [])
        without = "There is no linear model." if rows else ""
        note = next((row["note"] for row in rows if row["method"] == "linear"), without)
        for key, part in {
            "ERRORS": _errors(name, rows),
            "MODELS": _models(rows),
            "AIMS": _aims(name, rows),
            "NOTE": note,
        }.items():
            text = text.replace(f"[[{name}.{key}]]", part)
    path = results / "transfer.json"
    rows = read_json(path, "results", 1)["rows"] if path.is_file() else []
    return text.replace("[[TRANSFER]]", _transfer(rows))


def _transfer(rows: Rows) -> str:
    """Return the table of policies by what they were trained on."""
    if not rows:
        return "Nothing has been measured yet."
    true = {(row["task"], row["seed"]): row["return"] for row in rows if row["trained_on"] == "plant"}
    body = []
    for task, kind in sorted(
        {(row["task"], row["trained_on"]) for row in rows}, key=lambda k: (k[0], k[1] != "plant", k)
    ):
        own = [row for row in rows if (row["task"], row["trained_on"]) == (task, kind)]
        returns = [row["return"] for row in own]
        proven = [row["gain"] for row in own if row["gain"] is not None]
        policy = [numbers.upper(max(proven)) if proven else "none", _counted("PASS", own, "status")]
        if kind == "plant":
            body.append([task, "true plant", str(len(own)), "-", "-", shown(returns), "-", "-", *policy])
            continue
        pairs = [(true[task, row["seed"]], row["return"]) for row in own if (task, row["seed"]) in true]
        shares = [100 * best / found for best, found in pairs if found < 0]
        reached = sum(share >= WANTED for share in shares)
        body.append(
            [
                task,
                f"model, {NAMES.get(kind, kind.upper())}",
                str(len(own)),
                f"{shown([row['fit'] for row in own])}%",
                _counted("PASS", own, "model_status"),
                shown(returns),
                f"{shown(shares)}%" if shares else "-",
                f"{reached} of {len(shares)}",
                *policy,
            ]
        )
    head = [
        "plant",
        "trained on",
        "seeds",
        "model's fit",
        "models proven",
        "return on the plant",
        "of the true plant's",
    ]
    return table([*head, f"at least {WANTED}%", "policy's gain, proven (largest)", "policies proven"], body)


def _counted(status: str, rows: Rows, key: str) -> str:
    return f"{sum(row[key] == status for row in rows)} of {len(rows)}"


def of(rows: Rows, method: str) -> list[dict[str, Any]]:
    """Return the rows of a method."""
    return [row for row in rows if row["method"] == method]


def _each(rows: Rows, record: int, kind: str = "nrmse_std") -> list[float]:
    return [row["errors"][record]["all"][kind] for row in rows]


def _methods(rows: Rows) -> list[str]:
    return [method for method in NAMES if of(rows, method)]


def _errors(name: str, rows: Rows) -> str:
    if not rows:
        return "Nothing has been measured yet."
    benchmark, body = BENCHMARKS[name], []
    count = len(benchmark.records)
    for method in _methods(rows):
        own = of(rows, method)
        cells = [shown(_each(own, record)) for record in range(count)]
        rmse = [shown([benchmark.factor * row["errors"][record]["rmse"][0] for row in own]) for record in range(count)]
        both = [f"{a}; {b} {benchmark.unit}".rstrip() for a, b in zip(cells, rmse, strict=True)]
        body.append([NAMES[method], str(len(own)), *both])
    return table(["model", "seeds", *(f"{record}: NRMSE; RMSE" for record in benchmark.records)], body)


def _models(rows: Rows) -> str:
    if not rows:
        return ""
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


def _aims(name: str, rows: Rows) -> str:
    aims, records, body = BENCHMARKS[name].aims, BENCHMARKS[name].records, []
    for method in _methods(rows):
        own = of(rows, method)
        values = [_each(own, record) for record in range(len(aims))]
        met = [f"{sum(v < aim for v in each)} of {len(each)}" for each, aim in zip(values, aims, strict=True)]
        body.append([NAMES[method], *met])
    return table(["seeds that reach it", *(f"{r}: below {aim:g}" for r, aim in zip(records, aims, strict=False))], body)


def picture(name: str, rows: Rows) -> Any:
    """Return the figure: the error on each test record, a point a seed."""
    methods, benchmark = _methods(rows), BENCHMARKS[name]
    panels = []
    for record, title in enumerate(benchmark.records[:2]):
        series = [
            Series(NAMES[method], Look.of(k), _each(of(rows, method), record), [k] * len(of(rows, method)), line=False)
            for k, method in enumerate(methods)
        ]
        panels.append(
            Panel(title, "NRMSE / deviation (log)", "", series, log_x=True, y_names=[NAMES[m] for m in methods])
        )
    return draw(Chart(name, benchmark.title, "", panels, columns=2, legend=False))
