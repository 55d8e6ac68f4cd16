"""The pictures of gains and of training: proven against found, tightness over time, curves of learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robust_policies.evaluation.report.chart import Chart, Panel, Series
from robust_policies.evaluation.report.load import Array
from robust_policies.evaluation.report.methods import Method

RANGE = "Band: all training seeds; line: their median."


def found_gains(method: Method) -> list[float]:
    """Return the largest gain the search found for each training seed that has one."""
    known = [run.certificate.empirical_lower for run in method.runs if run.certificate is not None]
    return [gain for gain in known if gain is not None and np.isfinite(gain) and gain > 0]


def proven_gains(method: Method) -> list[float]:
    """Return the proven gain of each training seed that has one."""
    passed = [c for run in method.runs if (c := run.certificate) is not None and c.status == "PASS"]
    return [gain for gain in (c.gamma_raw for c in passed) if gain is not None and np.isfinite(gain) and gain > 0]


def gains_panel(methods: Sequence[Method]) -> Panel | None:
    """Return proven and found gains, one line of the picture a method; None if there are none."""
    shown = [method for method in methods if found_gains(method) or proven_gains(method)]
    series = []
    for row, method in enumerate(shown):
        found, proven = found_gains(method), proven_gains(method)
        bar = replace(method.look, marker="bar")
        for values, look, what in ((found, method.look, "found"), (proven, bar, "proven")):
            if len(values) > 1:
                text = [f"{what} {value:.4g}" for value in values]
                ys = [float(row)] * len(values)
                series.append(Series(method.name, look, values, ys, line=False, faint=True, text=text))
        if proven:
            middle = float(np.median(proven))
            start = [float(np.median(found))] if found else [middle]
            text = [f"proven: at most {middle:.4g}"]
            one = Series(method.name, bar, [middle], [float(row)], line=False, text=text)
            series.append(replace(one, x_low=start, x_high=[middle]))
        if found:
            middle = float(np.median(found))
            text = [f"found: at least {middle:.4g}" + ("" if proven else "; nothing proven")]
            series.append(Series(method.name, method.look, [middle], [float(row)], line=False, text=text))
    if not shown:
        return None
    names = [method.name for method in shown]
    return Panel(
        "Proven (stroke) and found (point) gain", "incremental l2 gain (log)", "", series, log_x=True, y_names=names
    )


def gains_chart(methods: Sequence[Method]) -> Chart | None:
    """Return the picture of proven and found gains."""
    panel = gains_panel(methods)
    if panel is None:
        return None
    caption = (
        "The incremental l2 gain from observations (each certificate says which) to mean actions, or to the "
        "logits of choices. Upright stroke: the "
        "gain that is proven, an upper bound. Point: the largest gain a search found, a lower bound with its two input "
        "sequences saved in "
        "float64. A distance between the two means a loose bound or a weak search: the picture cannot say which. A "
        "point alone: nothing is proven, and larger gains may exist. Small marks: training seeds; large: medians. "
        "The gain is an open-loop property of the policy; it does not bound the closed loop's return. A Youla policy's "
        "is of its linear closed loop, disturbance to performance."
    )
    return Chart("gains", "Proven and found gain", caption, [panel], columns=1, legend=False)


def tightness_chart(methods: Sequence[Method]) -> Chart | None:
    """Return the gain found over T steps against T, as it is and as a share of the proven one."""
    absolute, ratio = [], []
    for method in methods:
        curves = [run.tightness for run in method.runs if run.tightness is not None]
        absolute += _range(method, [(steps, gain) for steps, gain, _ in curves])
        ratio += _range(method, [(steps, gain / proven) for steps, gain, proven in curves if proven is not None])
    panels = []
    if absolute:
        panels.append(Panel("gain found", "steps T (log)", "gain (log)", absolute, log_x=True, log_y=True))
    if ratio:
        panels.append(Panel("share of the proven gain", "steps T (log)", "found / proven", ratio, log_x=True))
    if not panels:
        return None
    caption = (
        f"The largest gain that a search found over T steps (float64 witnesses; more steps can only find more). {RANGE}"
        " A share near 1 means that the bound is tight. A low share means a loose bound or a weak search, and does not "
        "say which."
    )
    return Chart("tightness", "Tightness of the bound over time", caption, panels)


def training_chart(methods: Sequence[Method]) -> Chart | None:
    """Return the training curves of the methods that have some."""
    series = []
    for method in methods:
        curves = [run.training for run in method.runs if run.training is not None]
        series += [replace(one, points=False) for one in _range(method, [_thin(curve) for curve in curves], True)]
    if not series:
        return None
    caption = f"Mean return of recent training episodes, with exploration, as training goes on. {RANGE}"
    panel = Panel("", "environment steps", "mean training return", series)
    return Chart("training", "Training curves", caption, [panel], columns=1)


def _range(method: Method, curves: Sequence[tuple[Array, Array]], between: bool = False) -> list[Series]:
    """Return the median and the range of curves (x, y): at the x they share, or interpolated where all have begun."""
    if not curves:
        return []
    if len(curves) == 1:
        return [Series(method.name, method.look, *curves[0])]
    if between:
        begin, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        grid = np.unique(np.concatenate([x for x, _ in curves]))
        grid = grid[(grid >= begin) & (grid <= end)]
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, 200).astype(int))] if len(grid) else grid
        values = [np.interp(grid, x, y) for x, y in curves]
    else:
        shared = set.intersection(*(set(x.tolist()) for x, _ in curves))
        grid = np.array(sorted(shared))
        values = [np.array([dict(zip(x.tolist(), y, strict=True))[step] for step in grid]) for x, y in curves]
    if not len(grid):
        return [Series(method.name, method.look, x, y) for x, y in curves]
    low, middle, high = np.quantile(np.stack(values), [0.0, 0.5, 1.0], axis=0)
    return [Series(method.name, method.look, grid, middle, low, high)]


def _thin(curve: tuple[Array, Array], points: int = 300) -> tuple[Array, Array]:
    """Return a curve with at most about `points` points."""
    x, y = curve
    keep = np.unique(np.linspace(0, len(x) - 1, min(points, len(x))).astype(int))
    return x[keep], y[keep]
