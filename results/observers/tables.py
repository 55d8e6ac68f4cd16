"""The page results/observers: tables and a figure of the stored curves around the words of page.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from results.youla.tables import shown, table
from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.static import draw
from robust_policies.files.atomic import write_atomic

NAMES = {
    "r2dn": "R2DN, published training",
    "ren": "REN, published training",
    "r2dn_cosine": "R2DN, cosine",
    "ren_cosine": "REN, cosine",
    "r2dn_random": "R2DN, cosine, random order",
    "ren_random": "REN, cosine, random order",
    "r2dn_rate": "R2DN of rate 0.98, cosine",
}
# Training losses of the paper, means of ten seeds, read off the vector paths of its figure.
PUBLISHED: dict[str, dict[int, float]] = {
    "r2dn": {5: 1.80e-2, 10: 1.12e-2, 20: 1.04e-2, 40: 2.1e-3, 60: 1.05e-4, 100: 1.97e-5, 150: 8.6e-6, 200: 6.3e-6},
    "ren": {5: 1.98e-2, 10: 2.79e-2, 20: 4.75e-3, 40: 1.33e-3, 60: 2.45e-3, 100: 6.29e-5, 150: 1.39e-5, 200: 8.3e-6},
}
Runs = Sequence[Mapping[str, Any]]


def write_page(content: Mapping[str, Any], results: Path) -> None:
    """Write README.md and its figure."""
    picture(content["runs"]).savefig(results / "observers.png", dpi=110)
    write_atomic(results / "README.md", lambda file: file.write(page(content, results).encode()))


def page(content: Mapping[str, Any], results: Path) -> str:
    """Return README.md."""
    runs = content["runs"]
    parts = {"CURVES": _curves(runs), "MODELS": _models(runs), "AIM": _aim(runs)}
    text = (results / "page.md").read_text()
    for name, part in parts.items():
        text = text.replace(f"[[{name}]]", part)
    return text


def of(runs: Runs, method: str) -> list[Mapping[str, Any]]:
    """Return the runs of a method."""
    return [run for run in runs if run["method"] == method]


def loss_at(run: Mapping[str, Any], epoch: int) -> float | None:
    """Return the mean training loss of an epoch, None where the run did not come to it."""
    return next((row["loss"] for row in run["rows"] if row["epoch"] == epoch), None)


def _curves(runs: Runs) -> str:
    epochs = sorted({epoch for curve in PUBLISHED.values() for epoch in curve})
    body = []
    for method, name in NAMES.items():
        if not (own := of(runs, method)):
            continue
        cells = []
        for epoch in epochs:
            found = [loss for run in own if (loss := loss_at(run, epoch)) is not None]
            cells.append(shown(found) if found else "-")
        body.append([name, *cells])
        if method in PUBLISHED:
            body.append([f"{name.split(',')[0]}, the paper's curve", *(f"{PUBLISHED[method][e]:.3g}" for e in epochs)])
    return table(["training loss at epoch", *map(str, epochs)], body)


def _aim(runs: Runs) -> str:
    """Return which runs come to the paper's last loss in half its epochs."""
    body = []
    for method, name in NAMES.items():
        curve = PUBLISHED[method.split("_")[0]]
        last = max(curve)
        for run in of(runs, method):
            rows = run["rows"][: last // 2]
            best = min(rows, key=lambda row: row["loss"])
            met = "reached" if best["loss"] <= curve[last] else "not reached"
            body.append(
                [name, str(run["seed"]), str(len(rows)), f"{best['loss']:.3g}", f"{curve[last]:.3g}", met],
            )
    return table(["observer", "seed", f"epochs, of {last // 2}", "least loss", f"paper's at {last}", "aim"], body)


def _models(runs: Runs) -> str:
    body = []
    for method, name in NAMES.items():
        if not (own := of(runs, method)):
            continue
        last = [[row for row in run["rows"] if "nrmse" in row][-1] for run in own]
        body.append(
            [
                name,
                ", ".join(str(run["seed"]) for run in own),
                str(own[0]["parameters"]),
                ", ".join(str(run["epochs"]) for run in own),
                shown([run["rows"][-1]["loss"] for run in own]),
                shown([row["nrmse"] for row in last]),
                shown([row["nrmse_settled"] for row in last]),
                shown([run["rows"][-1]["cpu_seconds"] / run["epochs"] for run in own]),
            ]
        )
    head = ["observer", "seeds", "parameters", "epochs", "last loss", "free run: NRMSE", "after sample 500"]
    return table([*head, "CPU seconds an epoch"], body)


def picture(runs: Runs) -> Any:
    """Return the figure: training loss and free-run error by epoch, beside the paper's curves."""
    losses, errors = [], []
    for k, (method, name) in enumerate(NAMES.items()):
        if own := of(runs, method):
            losses.append(_over_seeds(name, Look.of(k), own, "loss"))
            errors.append(_over_seeds(name, Look.of(k), own, "nrmse"))
        if method in PUBLISHED and own:
            curve = PUBLISHED[method]
            paper = f"{name.split(',')[0]}, the paper's"
            losses.append(Series(paper, Look.of(k), list(curve), list(curve.values()), line=False))
    panels = [
        Panel("one step", "epoch", "training loss (log)", losses, log_y=True),
        Panel("free run from zero", "epoch", "NRMSE (log)", errors, log_y=True),
    ]
    return draw(Chart("observers", "Reaction-diffusion observers", "", panels, columns=2))


def _over_seeds(name: str, look: Look, runs: Runs, key: str) -> Series:
    """Return the median over runs by epoch, of those epochs in which all have it, with the least and the largest."""
    values = [{row["epoch"]: row[key] for row in run["rows"] if "nrmse" in row} for run in runs]
    epochs = sorted(set.intersection(*(set(one) for one in values)))
    sorts = [sorted(one[epoch] for one in values) for epoch in epochs]
    ends = ([one[0] for one in sorts], [one[-1] for one in sorts]) if len(runs) > 1 else (None, None)
    return Series(name, look, epochs, [median(one) for one in sorts], *ends)
