"""The pictures of returns: against size and measured gain, natural against worst, faults, changed plants, profiles."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from robust_policies.evaluation.report.chart import Chart, Heat, Look, Panel, Series
from robust_policies.evaluation.report.methods import (
    NORM_WORDS,
    Condition,
    Method,
    condition_title,
    conditions_of,
    interval_words,
    main_worst,
    shown_sizes,
    unit_of,
)
from robust_policies.evaluation.statistics import performance_profile, probability_of_improvement

RETURN = "return"


def slug(*parts: str) -> str:
    """Return a file name and anchor made of words."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")[:90]


def band_words(methods: Sequence[Method]) -> str:
    """Return what bands mean for these methods."""
    return f"Line: interquartile mean of the return; band: its {interval_words(methods)}."


def return_charts(methods: Sequence[Method], task: str) -> list[Chart]:
    """Return return against size: one picture for each norm of the attacks, and one for random noise."""
    charts = []
    attacks = conditions_of(methods, task, ("worst", "attack"))
    for norm in dict.fromkeys(condition.norm for condition in attacks):
        of_norm = [condition for condition in attacks if condition.norm == norm]
        words = NORM_WORDS.get(norm, norm or "its own size")
        caption = (
            f"{band_words(methods)} The size bounds the {words}. An attack never exceeds it; a stronger attack than "
            "these may exist. All policies and sizes see the same starts and the same noise of the environment."
        )
        charts.append(_curves(methods, task, of_norm, f"Return under attack: {words}", caption))
    noise = conditions_of(methods, task, ("noise",))
    if noise:
        caption = f"{band_words(methods)} Random perturbations of the observations, drawn anew at each step."
        charts.append(_curves(methods, task, noise, "Return under random noise", caption))
    return charts


def fault_chart(methods: Sequence[Method], task: str) -> Chart | None:
    """Return return against delay and the other faults of sensors and actuators; disturbances too."""
    found = [c for c in conditions_of(methods, task, ("fault", "disturbance", "parameter")) if _is_curve(methods, c)]
    if not found:
        return None
    caption = (
        f"{band_words(methods)} Faults of sensors and actuators, and pushes on the plant; none is chosen against the "
        "policy."
    )
    return _curves(methods, task, found, "Return under faults", caption)


def _is_curve(methods: Sequence[Method], condition: Condition) -> bool:
    return any(method.sizes(condition) for method in methods)


def curve_panel(methods: Sequence[Method], condition: Condition, title: str | None = None) -> Panel:
    """Return return against size under one condition, a line for each method that was measured."""
    series = []
    for method in methods:
        curve = method.curve(condition)
        if curve is not None:
            series.append(Series(method.name, method.look, curve.sizes, curve.value, curve.low, curve.high))
    unit = unit_of(methods, condition)
    label = (unit or "size") if condition.group == "fault" else f"size ({unit})" if unit else "size"
    return Panel(title if title is not None else condition_title(condition), label, RETURN, series)


def _curves(methods: Sequence[Method], task: str, found: Sequence[Condition], title: str, caption: str) -> Chart:
    panels = [curve_panel(methods, condition) for condition in found]
    return Chart(slug(task, title), title, caption, panels, share_y=True)


def gain_chart(methods: Sequence[Method], task: str) -> Chart | None:
    """Return return under the worst attack against the gain that the attacks measured, logarithmic."""
    worst = main_worst(methods, task)
    if worst is None:
        return None
    panels = []
    for size in shown_sizes(methods, worst):
        series = []
        for method in methods:
            points = [
                (gain, value)
                for number, value in method.seed_means(worst, size).items()
                if (gain := _gain(method, number, worst, size)) is not None
            ]
            series += _cloud(method, points)
        if series:
            panels.append(Panel(f"size {size:g}", "measured gain (log)", RETURN, series, log_x=True))
    if not panels:
        return None
    caption = (
        "Across: the largest ratio of the change of the actions to the perturbation (l2 over an episode) that any "
        "attack of this size measured in the closed loop. Up: mean return under the worst attack. Small points: "
        "training seeds; large: their medians. A measured ratio is not a bound, and no bound of the "
        "return follows from a gain of the policy alone."
    )
    return Chart(slug(task, "return against gain"), "Return against measured gain", caption, panels, True, 3)


def _gain(method: Method, number: int, worst: Condition, size: float) -> float | None:
    """Return the largest gain any attack of a norm and size measured on one training seed."""
    gains = [
        row.gain
        for condition in method.conditions
        if condition.task == worst.task and condition.norm == worst.norm and condition.group in ("attack", "worst")
        for row in method.rows(condition, size).get(number, [])
        if row.gain is not None
    ]
    return max(gains, default=None)


def _cloud(method: Method, points: Sequence[tuple[float, float]]) -> list[Series]:
    """Return the points of a method's training seeds, and their median in front."""
    if not points:
        return []
    values = np.array(points)
    middle = np.median(values, axis=0)
    clear = Series(method.name, method.look, middle[:1], middle[1:], line=False)
    if len(points) == 1:
        return [clear]
    return [Series(method.name, method.look, values[:, 0], values[:, 1], line=False, faint=True), clear]


def pareto_chart(methods: Sequence[Method], task: str) -> Chart | None:
    """Return natural return against return under the worst attack, with the methods none is better than in both."""
    worst = main_worst(methods, task)
    panels = []
    for size in shown_sizes(methods, worst) if worst is not None else []:
        assert worst is not None
        series, middles = [], []
        for method in methods:
            natural, attacked = method.interval(worst, 0.0), method.interval(worst, size)
            if not np.isfinite([natural[0], attacked[0]]).all():
                continue
            zero = method.seed_means(worst, 0.0)
            hit = method.seed_means(worst, size)
            both = sorted(zero.keys() & hit.keys())
            if len(both) > 1:
                x, y = [zero[n] for n in both], [hit[n] for n in both]
                series.append(Series(method.name, method.look, x, y, line=False, faint=True))
            (x, x_low, x_high), (y, low, high) = natural, attacked
            series.append(Series(method.name, method.look, [x], [y], [low], [high], [x_low], [x_high], line=False))
            middles.append((x, y))
        front = [p for p in middles if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in middles)]
        if len(front) > 1:
            front.sort()
            x, y = zip(*front, strict=True)
            # Between two methods of the front, what is surely reached is the worse of the two.
            series.insert(0, Series("front", Look("#6b6b6b", "circle", "dot"), x, y, points=False, step="after"))
        if series:
            panels.append(Panel(f"size {size:g}", "natural return", "return under the worst attack", series))
    if not panels:
        return None
    caption = (
        "Right and up is better. Large points: interquartile means, with bars in both directions, each the "
        f"{interval_words(methods)}; small points: mean returns of the training seeds. Dotted: the methods that no "
        "other beats in both."
    )
    return Chart(slug(task, "natural against worst"), "Natural against worst return", caption, panels, True, 3)


def heat_charts(methods: Sequence[Method], task: str) -> list[Chart]:
    """Return the return over two factors of the plant: one picture for each pair of factors, one map a method."""
    charts = []
    for condition in conditions_of(methods, task, ("parameter",)):
        names = {tuple(n for n, _ in point) for m in methods for point in m.points(condition)}
        for pair in sorted(pair for pair in names if len(pair) == 2):
            points = {
                m.name: {p: size for p, size in m.points(condition).items() if tuple(n for n, _ in p) == pair}
                for m in methods
            }
            xs = sorted({p[0][1] for found in points.values() for p in found})
            ys = sorted({p[1][1] for found in points.values() for p in found}, reverse=True)
            maps, notes = {}, {}
            for method in methods:
                said = [[""] * len(xs) for _ in ys]
                values = np.full((len(ys), len(xs)), np.nan)
                for point, size in points[method.name].items():
                    row, column = ys.index(point[1][1]), xs.index(point[0][1])
                    value, least, most = method.interval(condition, size, point)
                    values[row, column] = value
                    said[row][column] = f"{_point(point)}: {value:.4g} [{least:.4g}, {most:.4g}]"
                if np.isfinite(values).any():
                    maps[method.name], notes[method.name] = values, said
            if not maps:
                continue
            low = min(float(np.nanmin(values)) for values in maps.values())
            high = max(float(np.nanmax(values)) for values in maps.values())
            across, up = ([f"{value:g}" for value in side] for side in (xs, ys))
            panels = [
                Panel(
                    name,
                    f"{pair[0]} factor",
                    f"{pair[1]} factor",
                    heat=Heat(across, up, values, low, high, 3, notes[name]),
                )
                for name, values in maps.items()
            ]
            title = f"Return over {pair[0]} and {pair[1]}"
            caption = (
                "Interquartile mean of the return when the plant differs from the one of training by these factors "
                "(1 is the plant of training). One scale of colours for all methods."
            )
            charts.append(Chart(slug(task, title), title, caption, panels, columns=3, legend=False))
    return charts


def _point(point: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"{name} x {value:g}" for name, value in point)


def profile_chart(methods: Sequence[Method], task: str) -> Chart | None:
    """Return the share of episodes whose return is above each threshold, unperturbed and under the worst attack."""
    worst = main_worst(methods, task)
    if worst is None:
        return None
    sizes = [0.0, *shown_sizes(methods, worst)]
    matrices = {(m.name, size): m.matrix(worst, size) for m in methods for size in sizes}
    known = [matrix for matrix in matrices.values() if matrix is not None]
    if not known:
        return None
    low, high = min(float(m.min()) for m in known), max(float(m.max()) for m in known)
    thresholds = np.linspace(low - 0.02 * (high - low), high, 81)
    panels = []
    for size in sizes:
        series = []
        for method in methods:
            matrix = matrices[method.name, size]
            if matrix is not None:
                found = performance_profile(matrix, thresholds, resamples=500)
                shares = found.value, found.low, found.high
                series.append(Series(method.name, method.look, thresholds, *shares, points=False))
        title = "unperturbed" if size == 0 else f"worst attack, size {size:g}"
        panels.append(Panel(title, "threshold of the return", "share of episodes above it", series))
    caption = (
        "Performance profiles: the share of all episodes (of all training seeds) whose return is above the threshold; "
        f"band: {interval_words(methods)}. Higher is better; the left end shows the failures that a mean hides."
    )
    return Chart(slug(task, "performance profiles"), "Performance profiles", caption, panels, share_y=True)


def improvement_chart(methods: Sequence[Method], task: str) -> Chart | None:
    """Return the probability that one method's return is above another's under the worst attack."""
    worst = main_worst(methods, task)
    sizes = [0.0, *shown_sizes(methods, worst, 2)] if worst is not None else []
    panels = []
    for size in sizes:
        assert worst is not None
        known = [(m, matrix) for m in methods if (matrix := m.matrix(worst, size)) is not None]
        if len(known) < 2:
            continue
        values = np.full((len(known), len(known)), np.nan)
        notes = [[""] * len(known) for _ in known]
        for i, (first, a) in enumerate(known):
            for j, (second, b) in enumerate(known):
                if i != j:
                    found = probability_of_improvement(a, b, resamples=300)
                    values[i, j] = found.value
                    ends = f"[{found.low:.2f}, {found.high:.2f}]"
                    notes[i][j] = f"{first.name} above {second.name}: {found.value:.2f} {ends}"
        names = [method.name for method, _ in known]
        title = "unperturbed" if size == 0 else f"worst attack, size {size:g}"
        heat = Heat(names, names, values, 0.0, 1.0, 2, notes)
        panels.append(Panel(title, "than this one", "is better", heat=heat))
    if not panels:
        return None
    caption = (
        "Probability of improvement: how likely a training seed of the row has a higher return than one of the column "
        "(ties count half). With one training seed each: the same over episodes."
    )
    key, title = slug(task, "probability of improvement"), "Probability of improvement"
    return Chart(key, title, caption, panels, columns=2, legend=False)
