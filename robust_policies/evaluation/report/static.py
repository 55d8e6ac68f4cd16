"""The report's pictures, drawn with matplotlib without a display."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robust_policies.certificates import Certificate
from robust_policies.certificates.files import write_atomic
from robust_policies.evaluation.perturbations import DESCRIPTIONS
from robust_policies.evaluation.run import pooled

# Okabe and Ito's colours, distinguishable with any colour vision; markers tell the policies apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "svg.fonttype": "path", "svg.hashsalt": "robust-policies", "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass
class Run:
    """What a report shows of one run folder; parts that are missing are None and named in `notes`."""

    folder: Path
    label: str
    index: int
    evaluation: dict[str, Any] | None
    certificate: Certificate | None
    provenance: dict[str, Any] | None
    training: tuple[np.ndarray, np.ndarray] | None
    notes: list[str]

    @property
    def look(self) -> dict[str, Any]:
        """The line style of this policy in every picture."""
        return {"color": COLOURS[self.index % len(COLOURS)], "marker": MARKERS[self.index % len(MARKERS)]}

    def pairs(self) -> list[tuple[str, str]]:
        """Return the (task, perturbation) pairs evaluated, in order."""
        rows = [] if self.evaluation is None else self.evaluation["rows"]
        return list(dict.fromkeys((row["task"], row["perturbation"]) for row in rows))


def curve(axes: Axes, runs: Sequence[Run], task: str, kind: str) -> None:
    """Draw return against size with 95% bands for every run that has it."""
    for run in runs:
        if run.evaluation is None or (task, kind) not in run.pairs():
            continue
        found = pooled(run.evaluation["rows"], task, kind)
        look = run.look
        axes.fill_between(found["size"], found["low"], found["high"], color=look["color"], alpha=0.18, linewidth=0)
        axes.plot(found["size"], found["mean"], label=run.label, markersize=4.5, linewidth=1.8, **look)
    axes.set_xlabel("perturbation size (observation units)")
    axes.set_ylabel("return")
    axes.set_title(f"{task}: {kind}", fontsize=10)


def gains(axes: Axes, runs: Sequence[Run]) -> None:
    """Draw the proven and the found gain of each policy, logarithmic."""
    shown = [run for run in runs if run.certificate is not None and run.certificate.empirical_lower is not None]
    values = []
    for row, run in enumerate(shown):
        certificate = run.certificate
        assert certificate is not None and certificate.empirical_lower is not None
        found, proven = max(certificate.empirical_lower, 1e-12), certificate.gamma_raw
        look = run.look
        values += [found] + ([] if proven is None else [proven])
        if proven is not None and certificate.status == "PASS":
            axes.plot([found, proven], [row, row], color=look["color"], linewidth=6, alpha=0.3, solid_capstyle="round")
            axes.plot(proven, row, marker="|", markersize=22, markeredgewidth=3, color=look["color"])
            axes.annotate(
                f"proven {proven:.3g}", (proven, row), (0, 14), textcoords="offset points", ha="center", size=9
            )
        axes.plot(found, row, marker="o", markersize=8, color=look["color"])
        text = f"found {found:.3g}" + ("" if certificate.status == "PASS" and proven else ", nothing proven")
        axes.annotate(text, (found, row), (0, -19), textcoords="offset points", ha="center", size=9)
    axes.set_yticks(range(len(shown)), [run.label for run in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale("log")
    if values:
        axes.set_xlim(min(values) / 2.5, max(values) * 2.5)
    axes.set_xlabel("incremental l2 gain, observation to mean action")
    axes.set_title("Gain: proven (bar) and found (dot)", fontsize=10)
    axes.grid(axis="y", visible=False)


def curves_figure(runs: Sequence[Run], task: str, kinds: Sequence[str]) -> Figure:
    """Return one row of return curves, one picture for each perturbation, with one legend."""
    with matplotlib.rc_context(STYLE):
        columns = min(2, len(kinds))
        rows = math.ceil(len(kinds) / columns)
        figure = Figure(figsize=(8.4, 3.1 * rows + 0.3))
        grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True, squeeze=False)).ravel()
        for axes, kind in zip(grid, kinds, strict=False):
            curve(axes, runs, task, kind)
            axes.set_title(f"{kind}: {DESCRIPTIONS.get(kind, '')}", fontsize=8.5)
        for axes in grid[len(kinds) :]:
            axes.set_visible(False)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, max(1, len(labels))), frameon=False)
        return figure


def gains_figure(runs: Sequence[Run]) -> Figure:
    """Return the picture of proven and found gains."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 1.3 + 0.75 * len(runs)))
        gains(figure.subplots(), runs)
        return figure


def training_figure(runs: Sequence[Run]) -> Figure:
    """Return the training curves of the runs that have one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.2))
        axes = figure.subplots()
        for run in runs:
            if run.training is not None:
                axes.plot(*run.training, label=run.label, color=run.look["color"], linewidth=1.6)
        axes.set_xlabel("environment steps")
        axes.set_ylabel("mean training return")
        axes.legend(frameon=False)
        return figure


def overview_figure(runs: Sequence[Run]) -> Figure:
    """Return the picture for a README: return against attack size, and proven against found gain."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.9))
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        pairs = [pair for run in runs for pair in run.pairs()]
        chosen = next((pair for pair in pairs if pair[1] == "pgd"), pairs[0] if pairs else None)
        if chosen is None:
            left.text(0.5, 0.5, "no evaluation yet", ha="center", transform=left.transAxes)
        else:
            curve(left, runs, *chosen)
            left.set_title(f"Return in {chosen[0]} under {'attack' if chosen[1] == 'pgd' else chosen[1]}", fontsize=10)
            left.legend(frameon=False)
        gains(right, runs)
        return figure


def svg(figure: Figure, title: str) -> str:
    """Return the figure as an inline SVG element with a title for screen readers."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|height="[^"]*pt" (?=viewBox)', r"\1", text, count=1)
    # Ids are local to a picture, and several pictures share one page.
    unique = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{unique}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def save_png(figure: Figure, path: Path) -> Path:
    """Return `path` after writing the figure there, whole or not at all."""
    return write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=130))
