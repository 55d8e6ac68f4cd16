"""The page results/digits: a table and a figure of the rows of digits.json around the words of page.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from results.digits.study import EPOCHS, MARGIN, METHODS, RADII, TEST, seeds_of
from results.youla.tables import shown, table
from robust_policies.evaluation.report.chart import Look
from robust_policies.evaluation.report.static import MARKERS
from robust_policies.files.atomic import write_atomic

Rows = Sequence[Mapping[str, Any]]


def write_page(rows: Rows, results: Path) -> None:
    """Write README.md and its figure."""
    picture(rows).savefig(results / "digits.png", dpi=110)
    write_atomic(results / "README.md", lambda file: file.write(page(rows, results).encode()))


def page(rows: Rows, results: Path) -> str:
    """Return README.md."""
    counts = {method: len(seeds_of(rows, method)) for method in METHODS}
    parts = {
        "ACCURACY": _accuracy(rows),
        "MODELS": _models(rows),
        "SEEDS": ", ".join(f"{METHODS[method].title} {count}" for method, count in counts.items()),
        "TEST": str(TEST),
        "EPOCHS": str(EPOCHS),
        "MARGIN": f"{MARGIN:g}",
        "GRAY": f"{16 * MARGIN:g}",
    }
    text = (results / "page.md").read_text()
    for name, part in parts.items():
        text = text.replace(f"[[{name}]]", part)
    return text


def _methods(rows: Rows) -> list[str]:
    return [method for method in METHODS if seeds_of(rows, method)]


def _percent(values: Sequence[float]) -> str:
    return shown([100 * value for value in values], ".1f")


def _accuracy(rows: Rows) -> str:
    body = []
    for method in _methods(rows):
        own = seeds_of(rows, method)
        body.append([f"{METHODS[method].title}: attacked", _percent([row["accuracy"] for row in own])])
        body[-1] += [_percent([row["attacked"][k] for row in own]) for k in range(len(RADII))]
        body.append([f"{METHODS[method].title}: certified", ""])
        body[-1] += [_percent([row["certified"][k] for row in own]) for k in range(len(RADII))]
    return table(["right, % of the digits that were not learnt from", "0", *(f"{radius:g}" for radius in RADII)], body)


def _models(rows: Rows) -> str:
    body = []
    for method in _methods(rows):
        own = seeds_of(rows, method)
        body.append(
            [
                METHODS[method].title,
                str(own[0]["parameters"]),
                shown([row["median_radius"] for row in own], ".3f"),
                shown([row["train_seconds"] for row in own]),
                str(sum(row["certified_but_misled"] for row in own)),
            ]
        )
    head = ["", "parameters", "radius proven of half of the digits", "CPU s of training", "certified but misled"]
    return table(head, body)


def picture(rows: Rows) -> Figure:
    """Return the accuracy against the radius: attacked, and dashed certified; bands from the least to the largest."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    radii = [0.0, *RADII]
    for place, method in enumerate(METHODS):
        own = seeds_of(rows, method)
        if not own:
            continue
        look = Look.of(place)
        found = 100 * np.array([[row["accuracy"], *row["attacked"]] for row in own])
        proven = 100 * np.array([row["certified"] for row in own])
        axis.plot(
            radii, found.mean(0), color=look.colour, marker=MARKERS[look.marker], ms=4, label=METHODS[method].title
        )
        axis.fill_between(radii, found.min(0), found.max(0), color=look.colour, alpha=0.12, lw=0)
        axis.plot(RADII, proven.mean(0), color=look.colour, linestyle="--", lw=1.4)
        axis.fill_between(RADII, proven.min(0), proven.max(0), color=look.colour, alpha=0.12, lw=0)
    axis.set_xlabel("change of every pixel, at most (pixels in 0 to 1)")
    axis.set_ylabel("right [%] (solid: attacked, dashed: certified)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
