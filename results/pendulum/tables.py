"""The tables and the picture of results/pendulum: the evaluated runs beside the published figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from robust_policies.evaluation.report.chart import Look
from robust_policies.evaluation.report.load import Array, Run, find_runs, load_runs
from robust_policies.evaluation.report.methods import Condition, Method, group_by_method
from robust_policies.evaluation.report.static import DASHES, MARKERS
from robust_policies.evaluation.statistics import (
    area_under_curve,
    cvar,
    iqm,
    mean_interval,
    probability_of_improvement,
)
from robust_policies.files.atomic import write_atomic
from robust_policies.policies import load_policy

TASK = "robust_policies/Pendulum-v0"
NORM = "per_step_l2"
SIZES = (0.0, 0.06, 0.11, 0.15, 0.21, 0.3)
DELAYS = (2.0, 3.0)
# Returns at SIZES, then at delays of 2 and 3 steps; the stored results of the paper named in the page.
PUBLISHED = {
    "gamma 3": (-170, -268, -392, -552, -584, -641, -205, -588),
    "gamma 4": (-161, -169, -184, -280, -536, -601, -171, -202),
    "gamma 6": (-158, -166, -239, -312, -543, -599, -167, -184),
    "gamma 10": (-157, -181, -313, -395, -544, -607, -258, -192),
    "MLP": (-156, -178, -330, -480, -558, -645, -415, -356),
}
COLUMNS = [*(f"{size:g}" for size in SIZES), *(f"delay {steps:g}" for steps in DELAYS)]
LOOKS = ("published", "worst")
CONDITIONS = {
    "published": Condition(TASK, "attack", "published", NORM),
    "mad": Condition(TASK, "attack", "mad_pgd", NORM),
    "sequence": Condition(TASK, "attack", "sequence_pgd", NORM),
    "closed_loop": Condition(TASK, "attack", "closed_loop_pgd", NORM),
    "worst": Condition(TASK, "worst", "worst", NORM),
    "delay": Condition(TASK, "fault", "ObservationDelay", ""),
}


def write_tables(runs: Path, results: Path, order: Sequence[str]) -> None:
    """Write README.md, table.json and comparison.png from the evaluated runs, methods in this order."""
    methods = group_by_method([run for run in load_runs(find_runs([runs])) if run.evaluation is not None])
    names = [name + suffix for suffix in ("", "_plain") for name in order]
    methods = sorted((m for m in methods if m.name in names), key=lambda m: names.index(m.name))
    entries = {method.name: measured(method) for method in methods}
    text = json.dumps({"schema": 1, "sizes": SIZES, "delays": DELAYS, "published": PUBLISHED, "methods": entries})
    write_atomic(results / "table.json", lambda file: file.write((text + "\n").encode()))
    write_atomic(results / "README.md", lambda file: file.write(page(entries).encode()))
    shown = [method for method in methods if not method.name.endswith("_plain")]
    picture(shown).savefig(results / "comparison.png", dpi=150)
    print(f"{results / 'README.md'}: {len(methods)} methods, {sum(len(m.runs) for m in methods)} runs")


def measured(method: Method) -> dict[str, Any]:
    """Return the statistics of a method over its training seeds."""
    entry: dict[str, Any] = {"seeds": sorted(run.training_seed or 0 for run in method.runs)}
    for name, condition in CONDITIONS.items():
        found = {size: method.matrix(condition, size) for size in method.sizes(condition)}
        entry[name] = {f"{size:g}": statistics(matrix) for size, matrix in found.items() if matrix is not None}
    worst = [method.matrix(CONDITIONS["worst"], size) for size in SIZES]
    if all(matrix is not None for matrix in worst):
        curve = np.stack([np.asarray(matrix).mean(axis=1) for matrix in worst])
        entry["area"] = mean_interval(area_under_curve(SIZES, curve)[:, None]).as_dict()
        entry["critical_size"] = [critical_size(means) for means in curve.T]
    entry |= gains(method.runs)
    cell = load_policy(method.runs[0].folder).cell
    entry["parameters"] = sum(parameter.numel() for parameter in cell.parameters())
    return entry


def critical_size(means: Array) -> float:
    """Return the size that leaves 80% of a seed's nominal mean return, between sizes linearly; the largest if none."""
    lowest = np.minimum.accumulate(means)
    threshold = means[0] - 0.2 * abs(means[0])
    return float(np.interp(-threshold, -lowest, SIZES))


def statistics(matrix: Array) -> dict[str, Any]:
    """Return what is reported of returns (training seeds, episodes)."""
    return {
        "mean": mean_interval(matrix).as_dict(),
        "iqm": iqm(matrix).as_dict(),
        "cvar10": cvar(matrix.ravel(), 0.1),
        "seeds": matrix.mean(axis=1).tolist(),
    }


def gains(runs: Sequence[Run]) -> dict[str, Any]:
    """Return proven and found gains, a number a training seed (None where there is none)."""
    certificates = [run.certificate for run in runs]
    return {
        "status": [None if c is None else c.status for c in certificates],
        "proven": [None if c is None else c.gamma_raw for c in certificates],
        "found": [None if c is None else c.empirical_lower for c in certificates],
    }


def page(entries: dict[str, dict[str, Any]]) -> str:
    """Return README.md."""
    intro = (Path(__file__).resolve().parent / "page.md").read_text()
    parts = {
        "COMPARISON": comparison(entries),
        "WORST": worst_table(entries),
        "GAINS": gains_table(entries),
        "SEEDS": seeds(entries),
    }
    for key, text in parts.items():
        intro = intro.replace(f"[[{key}]]", text)
    return intro


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its first column to the left."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def shown(found: dict[str, float] | None, digits: str = ".0f") -> str:
    """Return value [low, high]."""
    if found is None:
        return ""
    return f"{found['value']:{digits}} [{found['low']:{digits}}, {found['high']:{digits}}]"


def seeds(entries: dict[str, dict[str, Any]]) -> str:
    """Return how many training seeds were evaluated: one number where it is that of all methods."""
    counts = {name: len(entry["seeds"]) for name, entry in entries.items()}
    same = len(set(counts.values())) == 1
    return f"{next(iter(counts.values()))} each" if same else ", ".join(f"{k} {v}" for k, v in counts.items())


def comparison(entries: dict[str, dict[str, Any]]) -> str:
    """Return the published rows, their best, and ours under the published attacker."""
    best = [max(column) for column in zip(*PUBLISHED.values(), strict=True)]
    rows = [[f"published: {name}", *map(str, row)] for name, row in PUBLISHED.items()]
    rows.append(["**best published**", *(f"**{value}**" for value in best)])
    for name, entry in entries.items():
        found = [entry["published"].get(f"{size:g}") for size in SIZES]
        found += [entry["delay"].get(f"{steps:g}") for steps in DELAYS]
        cells = []
        for cell, value in zip(found, best, strict=True):
            text = shown(cell and cell["mean"])
            cells.append(f"**{text}**" if cell and cell["mean"]["value"] > value else text)
        rows.append([name, *cells])
    return table(["mean return", *COLUMNS], rows)


def worst_table(entries: dict[str, dict[str, Any]]) -> str:
    """Return the worst over all attacks, its tail, its area and the size that leaves 80%."""
    rows = []
    reference = entries.get("lstm")
    for name, entry in entries.items():
        cells = [shown(entry["worst"].get(f"{size:g}", {}).get("iqm")) for size in SIZES]
        tail = entry["worst"].get("0.15", {}).get("cvar10")
        critical = entry.get("critical_size", [])
        better = ""
        if reference is not None and entry is not reference:
            pair = [np.array(e["worst"]["0.15"]["seeds"])[:, None] for e in (entry, reference)]
            better = shown(probability_of_improvement(*pair).as_dict(), ".2f")
        rows.append([
            name, *cells, "" if tail is None else f"{tail:.0f}", shown(entry.get("area")),
            spread(critical, ".3f"), better,
        ])  # fmt: skip
    head = [
        "IQM of the return",
        *COLUMNS[: len(SIZES)],
        "worst tenth at 0.15",
        "mean over sizes",
        "80% left at",
        "P(> lstm)",
    ]
    return table(head, rows)


def gains_table(entries: dict[str, dict[str, Any]]) -> str:
    """Return parameters, proven and found gains."""
    rows = []
    for name, entry in entries.items():
        proven = [value for value in entry["proven"] if value is not None]
        found = [value for value in entry["found"] if value is not None]
        ratios = [
            f / p for f, p in zip(entry["found"], entry["proven"], strict=True) if f is not None and p is not None
        ]
        passed = sum(status == "PASS" for status in entry["status"])
        rows.append([
            name, f"{entry['parameters']:,}", f"{passed} of {len(entry['status'])}", spread(proven), spread(found),
            spread(ratios, ".2f"),
        ])  # fmt: skip
    head = ["raw observation to raw action", "parameters", "proven runs", "proven gain", "found gain", "found / proven"]
    return table(head, rows)


def spread(values: Sequence[float], digits: str = ".4g") -> str:
    """Return median (least to largest)."""
    if not values:
        return ""
    return f"{np.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def picture(methods: Sequence[Method]) -> Figure:
    """Return two panels, the published attacker and the worst over ours, with the best published figures."""
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    best = [max(column) for column in zip(*PUBLISHED.values(), strict=True)][: len(SIZES)]
    titles = ("the published attacker", "the worst over our attacks")
    for axis, name, title in zip(axes, LOOKS, titles, strict=True):
        for index, method in enumerate(methods):
            curve = method.curve(CONDITIONS[name])
            if curve is None:
                continue
            look = Look.of(index)
            style = {"color": look.colour, "marker": MARKERS[look.marker], "linestyle": DASHES[look.dash]}
            axis.plot(curve.sizes, curve.value, **style, label=method.name, lw=1.5, ms=4)
            axis.fill_between(curve.sizes, curve.low, curve.high, color=look.colour, alpha=0.1, lw=0)
        axis.plot(SIZES, best, "k--", lw=2, label="best published column (mean)")
        axis.set_title(f"Under {title}")
        axis.set_xlabel("size: l2 norm at each step, raw observation")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("return, interquartile mean over seeds and episodes")
    axes[0].legend(fontsize=8, loc="lower left", ncols=2)
    return figure
