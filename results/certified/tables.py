"""The page results/certified: tables and a figure of the measured rows around the words of page.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from results.certified.study import METHODS, STUDIES, Study
from results.youla.tables import table
from robust_policies.evaluation.report.chart import Look
from robust_policies.evaluation.report.static import DASHES, MARKERS
from robust_policies.files.atomic import write_atomic
from robust_policies.sweep.table import interval, interval_text

Rows = list[dict[str, Any]]
TITLES = {
    "double_integrator": "DoubleIntegrator",
    "mass_spring_damper": "MassSpringDamper",
    "dc_motor": "DCMotor",
    "aircraft_pitch": "AircraftPitch",
    "cart_pole": "CartPole, near the upright",
}


def write_page(tasks: dict[str, Rows], results: Path) -> None:
    """Write README.md and its figure from the measured rows."""
    picture(tasks).savefig(results / "certified.png", dpi=110)
    write_atomic(results / "README.md", lambda file: file.write(page(tasks, results).encode()))
    print(f"{results / 'README.md'}: {', '.join(f'{len(rows)} runs of {name}' for name, rows in tasks.items())}")


def page(tasks: dict[str, Rows], results: Path) -> str:
    """Return README.md."""
    text = (results / "page.md").read_text()
    for name, content in {"TASKS": _tasks(tasks), "AIMS": aims(tasks), "SEEDS": _seeds(tasks)}.items():
        text = text.replace(f"[[{name}]]", content)
    return text


def of(rows: Rows, method: str) -> Rows:
    """Return the rows of a method, its training seeds in order."""
    return sorted((row for row in rows if row["method"] == method), key=lambda row: row["seed"])


def shown(values: Sequence[float | None], digits: str = ".3g") -> str:
    """Return the mean over seeds with its 95% interval, of fewer than five the least and the largest."""
    finite = [value for value in values if value is not None]
    if not finite:
        return "none"
    text = f"{finite[0]:{digits}}"
    if len(values) > 1:
        text = interval_text(interval(finite), lambda value: format(value, digits))
    return text if len(finite) == len(values) else f"{text} in {len(finite)} of {len(values)}"


def _at(rows: Rows, index: int, key: str) -> list[Any]:
    return [row["sizes"][index][key] for row in rows]


def _ratio(row: dict[str, Any], index: int) -> float | None:
    size = row["sizes"][index]
    return None if size["certified"] is None else size["certified"] / size["worst"]


def _seeds(tasks: dict[str, Rows]) -> str:
    return ", ".join(f"{len(of(rows, 'youla'))} of {TITLES[name]}" for name, rows in tasks.items())


def _tasks(tasks: dict[str, Rows]) -> str:
    return "\n\n".join(_task(STUDIES[name], TITLES[name], rows) for name, rows in tasks.items())


def _task(study: Study, title: str, rows: Rows) -> str:
    """Return the section of a task."""
    names = [f"{size:g} {study.unit.split(',')[0]}" for size in study.sizes]
    if study.sigmas:
        names = [f"{factor:g}σ = {name}" for factor, name in zip(study.sigmas, names, strict=True)]
    sizes = range(len(names))
    methods = [(METHODS[method], of(rows, method)) for method in study.methods() if of(rows, method)]

    def lines(cells: Callable[[Rows], list[str]]) -> list[list[str]]:
        return [[name, *cells(found)] for name, found in methods]

    worst = lines(lambda found: [shown(_at(found, 0, "nominal")), *(shown(_at(found, k, "worst")) for k in sizes)])
    proven = lines(
        lambda found: [shown([row["gain"] for row in found]), *(shown(_at(found, k, "certified")) for k in sizes)]
    )
    ratios = lines(lambda found: [shown([_ratio(row, k) for row in found]) for k in sizes])
    late = lines(_changed_costs)
    factors = study.plant().task.randomize
    changed = [f"{name} × {factor:g}" for name in methods[0][1][0]["factors"] for factor in factors[name]]
    delayed = [f"{entry['steps']} step(s) late" for entry in methods[0][1][0]["delays"][1:]]
    parts = [
        f"## {title}",
        "Worst found, mean cost J of the episodes:",
        table(["policy", "no error", *names], worst),
        "Certified, mean cost J at most; g the proven gain:",
        table(["policy", "g", *names], proven),
        "Certified over worst found:",
        table(["policy", *names], ratios),
        "Without an error, actions late or the plant another one, mean cost J:",
        table(["policy", *delayed, *changed], late),
    ]
    return "\n\n".join(parts)


def _changed_costs(found: Rows) -> list[str]:
    """Return the costs with actions late, and with each parameter at both ends."""
    cells = [shown([row["delays"][k]["nominal"] for row in found]) for k in range(1, len(found[0]["delays"]))]
    for name in found[0]["factors"]:
        cells += [shown([row["factors"][name][end] for row in found]) for end in (0, 1)]
    return cells


def aims(tasks: dict[str, Rows]) -> str:
    """Return what came of the aims, in sentences made of the rows."""
    found = []
    for name, rows in tasks.items():
        study, title = STUDIES[name], TITLES[name]
        for method in ("youla", "certified", "direct"):
            if own := of(rows, method):
                last = len(study.sizes) - 1
                one = study.sigmas.index(1.0) if study.sigmas else 0
                where = ("1σ", "5σ") if study.sigmas else (f"{study.sizes[0]:g}", f"{study.sizes[-1]:g}")
                ratios = [shown([_ratio(row, index) for row in own]) for index in (one, last)]
                found.append([title, METHODS[method], f"{where[0]}: {ratios[0]}", f"{where[1]}: {ratios[1]}"])
    lines = [table(["task", "policy", "certified / found", "certified / found"], found)]
    for name, rows in tasks.items():
        best = of(rows, "certified")
        words = []
        for index, size in enumerate(STUDIES[name].sizes):
            mean = float(np.mean(_at(best, index, "worst")))
            others = {other: of(rows, other) for other in ("lstm", "r2dn", "youla", "lqg")}
            beaten = [METHODS[key] for key, own in others.items() if own and mean < np.mean(_at(own, index, "worst"))]
            words.append(f"{size:g}: {', '.join(beaten) or 'none'}")
        lines.append(
            f"{TITLES[name]}: the Youla policy trained for the certificate costs less at the worst found than, at "
            f"{'; at '.join(words)}."
        )
    return "\n\n".join(lines)


def picture(tasks: dict[str, Rows]) -> Figure:
    """Return the costs against the size of the error, a panel a task: worst found, and dashed certified."""
    figure = Figure(figsize=(4.0 * len(tasks), 4.4), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, (name, rows) in zip(axes, tasks.items(), strict=True):
        study = STUDIES[name]
        for place, method in enumerate(METHODS):
            if not (own := of(rows, method)):
                continue
            look = Look.of(place)
            line = {"color": look.colour, "marker": MARKERS[look.marker], "ms": 4, "lw": 1.4}
            sizes = [0.0, *study.sizes]
            worst = [float(np.mean(_at(own, 0, "nominal")))]
            worst += [float(np.mean(_at(own, k, "worst"))) for k in range(len(study.sizes))]
            axis.plot(sizes, worst, label=METHODS[method], **line)
            proven = [_at(own, k, "certified") for k in range(len(study.sizes))]
            bound = [worst[0], *(np.nan if None in one else float(np.mean(one)) for one in proven)]
            axis.plot(sizes, bound, linestyle=DASHES["dash"], **{**line, "marker": None})
        axis.set_title(TITLES[name])
        axis.set_xlabel(f"error of each step [{study.unit.split(',')[0]}]")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cost J (solid: worst found, dashed: certified)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
