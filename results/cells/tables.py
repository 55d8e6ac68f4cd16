"""The page results/cells: tables and a figure of the rows of cells.json around the words of page.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from results.cells.policies import EPISODES, STEPS
from results.cells.study import BATCH, CELLS, RATE, TEST, TIME, UPDATES
from results.youla.tables import table
from robust_policies.evaluation.report.chart import Look
from robust_policies.evaluation.report.static import MARKERS
from robust_policies.evaluation.statistics import FEW
from robust_policies.files.atomic import write_atomic
from robust_policies.sweep.table import interval, interval_text

Rows = Sequence[Mapping[str, Any]]
GOOD_FOR = {
    "r2dn": "the first choice: finds the speed, contracting whatever is learnt, the cheapest step",
    "r2dn_gain": "the same with a gain that is set beforehand, for noise and attacks in the l2 norm",
    "ren": "about as the R2DN with fewer parameters; its neurons one after another make the step dear",
    "nemon": "a bound of every step that is set beforehand: actuators, errors that last; it costs some fit",
    "l2ru": "slow and oscillating memories, long sequences; its bound of each step is loose",
    "convex": "a model for plans, convex in all inputs; what oscillates is not convex and is not fitted",
    "lipschitz_rnn": "a published baseline: nothing by construction, proofs are looked for afterwards",
    "lbdn": "no memory, a gain that is set beforehand: full state, critics, heads",
    "lstm": "a baseline: nothing is proven, and the gains that are found are far above the others'",
    "gru": "the same; with LSTM and l2ru it fits the modes best",
    "mlp": "no memory, no bound by design; LipSDP bounds it afterwards",
}


def write_page(rows: Rows, results: Path) -> None:
    """Write README.md and its figure."""
    picture(rows).savefig(results / "cells.png", dpi=110)
    write_atomic(results / "README.md", lambda file: file.write(page(rows, results).encode()))


def page(rows: Rows, results: Path) -> str:
    """Return README.md."""
    settings = (
        f"{UPDATES} updates of Adam ({RATE:g}, falling to 0 as a cosine) on {BATCH} new sequences of {TIME} steps"
    )
    parts = {
        "FITS": _fits(rows),
        "PROOFS": _proofs(rows),
        "POLICIES": _policies(rows),
        "STEPS": f"{STEPS:,}",
        "EPISODES": str(EPISODES),
        "UNTRAINED": _untrained(rows),
        "CHOICE": table(["cell", "good for"], [[CELLS[name].title, GOOD_FOR[name]] for name in _cells(rows)]),
        "SEEDS": _seeds(rows),
        "SETTINGS": settings,
        "TEST": str(TEST),
    }
    text = (results / "page.md").read_text()
    for name, part in parts.items():
        text = text.replace(f"[[{name}]]", part)
    return text


def of(rows: Rows, name: str, target: str) -> list[Mapping[str, Any]]:
    """Return what the fits of a cell to a target gave, its seeds in order."""
    own = sorted((row for row in rows if row["cell"] == name and target in row), key=lambda row: row["seed"])
    return [row[target] for row in own]


def shown(values: Sequence[float | None], digits: str = ".3g") -> str:
    """Return the mean over seeds with its 95% interval (of fewer than five least and largest), "none" of none."""
    finite = [value for value in values if value is not None]
    if not finite:
        return "none"
    text = interval_text(interval(finite), lambda value: format(value, digits))
    return text if len(finite) == len(values) else f"{text} in {len(finite)} of {len(values)}"


def _cells(rows: Rows) -> list[str]:
    return [name for name in CELLS if of(rows, name, "modes") or of(rows, name, "speed")]


def _seeds(rows: Rows) -> str:
    counts = {name: (len(of(rows, name, "modes")), len(of(rows, name, "speed"))) for name in _cells(rows)}
    same = set(counts.values())
    if len(same) == 1 and len(set(next(iter(same)))) == 1:
        return f"{next(iter(same))[0]} each"
    return ", ".join(f"{CELLS[name].title} {a} and {b}" for name, (a, b) in counts.items())


def _fits(rows: Rows) -> str:
    body = []
    for name in _cells(rows):
        modes, speed = of(rows, name, "modes"), of(rows, name, "speed")
        body.append(
            [
                CELLS[name].title,
                str((modes or speed)[0]["parameters"]),
                shown([row["error"] for row in modes]),
                shown([row["error"] for row in speed]),
                shown([row["train_seconds"] for row in (*modes, *speed)], ".2g"),
                shown([row["step_microseconds"] for row in modes], ".2g"),
            ]
        )
    head = ["cell", "parameters", "modes: error", "speed: error", "CPU s of a fit", "CPU us of a step"]
    return table(head, body)


def _policies(rows: Rows) -> str:
    body = []
    for name in CELLS:
        if not (own := of(rows, name, "policy")):
            continue
        half = [row["evaluations"][len(row["evaluations"]) // 2 - 1][1] for row in own]
        kinds = {"return": ".4g", "train_seconds": ".2g", "gain": ".3g", "found_gain": ".3g"}
        columns = [(half, ".4g"), *(([row[key] for row in own], digits) for key, digits in kinds.items())]
        body.append([CELLS[name].title, str(len(own)), *(shown(values, digits) for values, digits in columns)])
    return table(["cell", "seeds", "return after half", "return", "CPU s", "gain, proven", "found"], body)


def _untrained(rows: Rows) -> str:
    """Return what is missing of five seeds of every cell, empty where nothing is."""
    counts = {name: len(of(rows, name, "policy")) for name in CELLS}
    none = [CELLS[name].title for name, count in counts.items() if not count]
    text = f"Not trained yet: {'; '.join(none)}. " if none else ""
    if min(counts.values()) < FEW:
        text += f"Planned are {FEW} seeds of every cell; `--only policy` goes on. With fewer a row is an example."
    return text.strip()


def _proofs(rows: Rows) -> str:
    body = []
    for name in _cells(rows):
        if not (own := of(rows, name, "modes")):
            continue
        columns = [[row[key] for row in own] for key in ("rate", "gain", "found_gain", "peak", "found_peak")]
        body.append([CELLS[name].title, *(shown(column) for column in columns)])
    return table(["cell", "rate, proven", "gain, proven", "found", "every step, proven", "found"], body)


def picture(rows: Rows) -> Figure:
    """Return the error of the fits to the modes beside their proven gains, a point a seed."""
    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(_cells(rows)):
        own, look = of(rows, name, "modes"), Look.of(place)
        if not own:
            continue
        style = {"color": look.colour, "marker": MARKERS[look.marker], "linestyle": "none", "ms": 5}
        proven = [row for row in own if row["gain"] is not None]
        axis.plot([row["gain"] for row in proven], [row["error"] for row in proven], label=CELLS[name].title, **style)
        free = [row for row in own if row["gain"] is None]
        axis.plot([row["found_gain"] for row in free], [row["error"] for row in free], fillstyle="none", **style)
        if not proven:
            axis.plot([], [], label=f"{CELLS[name].title}: found only", fillstyle="none", **style)
    axis.set_xlabel("gain, proven (hollow: the largest found, where none is proven)")
    axis.set_ylabel("error of the fit to the modes")
    axis.set_xscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
