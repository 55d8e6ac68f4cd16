"""The pictures of single episodes: attacked against nominal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.facts import names_of
from robust_policies.evaluation.report.load import Array, Recording
from robust_policies.evaluation.report.methods import Method
from robust_policies.evaluation.report.returns import slug

LOOKS = (
    Look("#000000", "circle", "solid"),
    Look("#D55E00", "square", "solid"),
    Look("#0072B2", "triangle-up", "dash"),
    Look("#009E73", "diamond", "dot"),
    Look("#CC79A7", "cross", "dashdot"),
)
COMPONENTS = 4
POINTS = 400


def trajectory_charts(methods: Sequence[Method], task: str) -> list[Chart]:
    """Return a picture for each method that has recordings: the first episode of its first training seed."""
    charts = []
    for method in methods:
        run = next((run for run in method.runs if any(r.task == task for r in run.recordings)), None)
        if run is None:
            continue
        recordings = sorted((r for r in run.recordings if r.task == task), key=lambda r: (r.size > 0, r.norm, r.size))
        norms = {recording.norm for recording in recordings if recording.size > 0}
        named = [(_name(recording, len(norms) > 1), recording) for recording in recordings[: len(LOOKS)]]
        panels = [
            *_components(named, "observations", "observation", names_of(methods, task, "observations")),
            *_components(named, "actions", "action", names_of(methods, task, "actions")),
            *_return_panel(named),
        ]
        if panels:
            caption = (
                f"The same episode (the first of {run.name}) from the same start: without perturbation, and under the "
                "attack found worst on other episodes. The observations are the plant's own, before the perturbation."
            )
            title = f"Trajectories of {method.name}"
            charts.append(Chart(slug(task, "trajectories", method.name), title, caption, panels))
    return charts


def _name(recording: Recording, with_norm: bool) -> str:
    if recording.size == 0:
        return "unperturbed"
    norm = f" ({recording.norm.replace('_', ' ')})" if with_norm else ""
    return f"{recording.perturbation.replace('_', ' ') or 'attack'}, size {recording.size:g}{norm}"


def _components(named: Sequence[tuple[str, Recording]], signal: str, word: str, names: Sequence[str]) -> list[Panel]:
    """Return a panel for each of the first components of a signal, under its name in the task where it has one."""
    arrays = [(i, name, r.signals[signal][:, 0]) for i, (name, r) in enumerate(named) if signal in r.signals]
    width = min((values.shape[1] for _, _, values in arrays), default=0)
    panels = []
    for k in range(min(width, COMPONENTS)):
        lines = [_line(i, name, v[:, k]) for i, name, v in arrays]
        own = names[k] if len(names) == width else word
        title = f"{word} {k + 1}" if width > 1 and own == word else own if own == word else f"{word}: {own}"
        drawn = np.concatenate([line.y for line in lines])
        if word == "action" and drawn.size and np.ptp(drawn) <= 1e-6 * max(1.0, float(np.abs(drawn).max())):
            title += " (constant)"
        panels.append(Panel(title, "step", own, lines))
    return panels


def _return_panel(named: Sequence[tuple[str, Recording]]) -> list[Panel]:
    lines = [
        _line(i, name, np.nancumsum(r.signals["rewards"][:, 0]))
        for i, (name, r) in enumerate(named)
        if "rewards" in r.signals
    ]
    return [Panel("return so far", "step", "sum of rewards", lines)] if lines else []


def _line(index: int, name: str, values: Array) -> Series:
    """Return one signal over the steps of the episode; steps after its end (NaN) are not drawn."""
    steps = np.flatnonzero(np.isfinite(values))
    keep = (
        steps[np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int))] if len(steps) else steps
    )
    return Series(name, LOOKS[index % len(LOOKS)], keep.astype(float), values[keep], points=False)
