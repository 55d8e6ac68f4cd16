"""The figures of results/youla: curves while training, shares of episodes held under attacks and with model errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from results.youla.measure import FACTORS, Case, undecided, unstable
from robust_policies.evaluation.report.chart import Look
from robust_policies.evaluation.report.static import DASHES, MARKERS
from robust_policies.sweep.table import interval

TASKS = {"qube": "QubeServo", "cartpole": "CartPole"}
NAMES = {
    "youla_r2dn": "Youla-R2DN",
    "r2dn": "direct R2DN",
    "lstm": "LSTM",
    "base": "base controller",
    "base_default": "base, default weights",
}
Rows = Sequence[dict[str, Any]]

# Of the spectral radii that are drawn.
CUT = 1.35


def of_method(rows: Rows, method: str) -> list[dict[str, Any]]:
    """Return the rows of a method, its training seeds in order."""
    return sorted((row for row in rows if row["method"] == method), key=lambda row: row["seed"])


def style(method: str) -> dict[str, Any]:
    """Return how the lines of a method look."""
    look = Look.of(list(NAMES).index(method))
    # Dashes let a line below shine through.
    dash = DASHES["dash" if method.startswith("base") else look.dash]
    return {"color": look.colour, "marker": MARKERS[look.marker], "linestyle": dash, "ms": 4, "lw": 1.5}


def band(axis: Axes, x: Sequence[float], values: np.ndarray, method: str, bounds: tuple[float, float]) -> None:
    """Draw the mean over seeds, values (seeds, points), and its interval within `bounds`.

    It is the 95% interval by Student's t, or of few seeds their range.
    """
    found = [interval(column) for column in values.T]
    line = style(method)
    axis.plot(x, values.mean(axis=0), label=NAMES[method], **line)
    if len(values) > 1:
        low, high = (np.clip(np.array([one[end] for one in found], dtype=float), *bounds) for end in ("low", "high"))
        axis.fill_between(x, low, high, color=line["color"], alpha=0.15, lw=0)


def training(tasks: dict[str, Rows]) -> Figure:
    """Return cost and stability on the linear model while training, a column a task."""
    figure = Figure(figsize=(11.5, 8.0), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    for column, (task, rows) in enumerate(tasks.items()):
        upper, lower = axes[:, column]
        for method in NAMES:
            found = [row["curve"] for row in of_method(rows, method) if row["curve"]]
            if found:
                _costs(upper, found, method)
                _radii(lower, found, method)
        for row in of_method(rows, "base"):
            upper.axhline(row["nominal"]["mean"], color=style("base")["color"], ls="--", lw=1.2, label=NAMES["base"])
        upper.set(title=TASKS[task], yscale="log", ylabel="mean cost of 64 episodes")
        lower.axhline(1.0, color="k", lw=1.0)
        lower.set(ylabel=f"spectral radius on the linear model (cut at {CUT})", xlabel="environment steps")
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=9)
    figure.suptitle(
        "Above: median and range over training seeds. Below: every seed; crosses: unstable on the linear model, "
        "circles: no equilibrium found"
    )
    return figure


def _costs(axis: Axes, curves: Sequence[Rows], method: str) -> None:
    steps = [entry["steps"] for entry in curves[0]]
    costs = np.array([[np.nan if entry["cost"] is None else entry["cost"] for entry in curve] for curve in curves])
    line = style(method)
    axis.plot(steps, np.median(costs, axis=0), label=NAMES[method], **line)
    axis.fill_between(steps, costs.min(axis=0), costs.max(axis=0), color=line["color"], alpha=0.15, lw=0)


def _radii(axis: Axes, curves: Sequence[Rows], method: str) -> None:
    colour = style(method)["color"]
    for curve in curves:
        steps = np.array([entry["steps"] for entry in curve])
        radii = np.array([np.nan if entry["radius"] is None else min(CUT, entry["radius"]) for entry in curve])
        bad = np.array([unstable(entry) for entry in curve])
        axis.plot(steps, radii, color=colour, lw=1.2, alpha=0.8)
        axis.plot(steps[~bad], radii[~bad], ".", color=colour, ms=5)
        # Without an equilibrium there is no radius: such a policy is a mark alone, at the cut.
        axis.plot(steps[bad], np.nan_to_num(radii[bad], nan=CUT), "x", color=colour, ms=6)
        unknown = np.array([undecided(entry) for entry in curve])
        axis.plot(steps[unknown], np.full(unknown.sum(), CUT), "o", color=colour, mfc="none", ms=6)


def attacks(cases: dict[str, Case], tasks: dict[str, Rows]) -> Figure:
    """Return the shares of episodes held against the attack's size, a panel a task."""
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, (task, rows) in zip(panels, tasks.items(), strict=True):
        _shares(axis, [0.0, *cases[task].sizes], rows, lambda row: row["attack"]["shares"])
        unit = "rad" if task == "qube" else "m, m/s, rad, rad/s"
        axis.set(title=TASKS[task], xlabel=f"l2 norm of the perturbation of each observation [{unit}]")
    panels[0].set_ylabel("share of episodes held")
    panels[-1].legend(fontsize=9)
    return figure


def model_errors(cases: dict[str, Case], tasks: dict[str, Rows]) -> Figure:
    """Return the shares of episodes held against factors of the plant's parameters, a row a task."""
    width = max(len(case.parameters) for case in cases.values())
    figure = Figure(figsize=(11.5, 3.3 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), width, squeeze=False, sharey=True)
    for row_of_panels, (task, rows) in zip(panels, tasks.items(), strict=True):
        for axis, parameter in zip(row_of_panels, cases[task].parameters, strict=True):
            _shares(axis, FACTORS, rows, lambda row, name=parameter: row["factors"][name]["shares"])
            axis.set(title=f"{TASKS[task]}: {parameter}", xlabel="factor of the nominal value", xscale="log")
            axis.set_xticks([0.5, 0.71, 1.0, 1.41, 2.0], ["0.5", "0.71", "1", "1.41", "2"])
            axis.minorticks_off()
        row_of_panels[0].set_ylabel("share of episodes held")
    panels[0, 0].legend(fontsize=8)
    return figure


def _shares(axis: Axes, x: Sequence[float], rows: Rows, read: Callable[[dict[str, Any]], Sequence[float]]) -> None:
    for method in NAMES:
        found = of_method(rows, method)
        if found:
            band(axis, x, np.array([read(row) for row in found]), method, (0.0, 1.0))
    axis.axhline(0.9, color="k", lw=0.8, ls=":")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(alpha=0.3)
