"""What is proven of returns: against the size of the error, and what an error of each sensor can move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.facts import names_of
from robust_policies.evaluation.report.load import Run
from robust_policies.evaluation.report.markup import details, escape, name_of, number, proven, table
from robust_policies.evaluation.report.methods import NORM_WORDS, Method
from robust_policies.evaluation.report.returns import RETURN, slug
from robust_policies.files import numbers
from robust_policies.policies.return_certificate import ReturnCertificate

GREY = "#7a7a7a"
_SHORT = {
    "per_step_l2": "l2 norm of each step",
    "per_step_linf": "of each sensor",
    "total_l2": "l2 norm, whole episode",
}


def certified_tasks(methods: Sequence[Method]) -> list[str]:
    """Return the tasks that certificates of returns are of, in order."""
    return list(dict.fromkeys(one.task for method in methods for one in _certificates(method)))


def certified_chart(methods: Sequence[Method], task: str) -> Chart | None:
    """Return return against the size of the error, a panel for each norm: nominal, worst found and certified."""
    panels = []
    for norm in NORM_WORDS:
        shown = [(method, _of(method, task, norm)) for method in methods]
        shown = [(method, found) for method, found in shown if found]
        if shown:
            panels.append(_panel(shown, f"error: {_SHORT[norm]}{_unit(methods, task)}"))
    if not panels:
        return None
    return Chart(
        slug(task, "certified return"), "Return against the size of the error", _caption(methods, task), panels
    )


def _panel(shown: Sequence[tuple[Method, list[ReturnCertificate]]], label: str) -> Panel:
    series = [one for method, found in shown for one in _lines(method, found)]
    # Beyond the largest of their limits an action of every certified policy may be clipped.
    limits = [_limit(found) for _, found in shown if any(one.status == "PASS" for one in found)]
    largest = max(row.size for _, found in shown for one in found for row in one.rows)
    grey = max(limits) if limits and max(limits) < largest else None
    return Panel("", label, RETURN, series, grey_from=grey)


def _limit(found: Sequence[ReturnCertificate]) -> float:
    """Return the size up to which it is proven of every training seed that no action is clipped."""
    return min(one.unclipped_up_to or 0.0 for one in found)


def _lines(method: Method, found: Sequence[ReturnCertificate]) -> list[Series]:
    """Return the lines of a method: means over its training seeds, at the sizes that all of them have."""
    by_size = [{row.size: row for row in one.rows} for one in found]
    sizes = sorted(set.intersection(*map(set, by_size)) - {0.0})
    if not sizes:
        return []
    look, x = method.look, [0.0, *sizes]
    dotted = Look(look.colour, look.marker, "dot")
    nominal = float(np.mean([one.rows[0].nominal for one in found]))
    worst = [nominal, *(float(np.mean([rows[size].found for rows in by_size])) for size in sizes)]
    lines = [
        Series(method.name, look, x, worst, kind="worst found"),
        Series(method.name, dotted, x, [nominal] * len(x), points=False, kind="no error"),
    ]
    proven = [[rows[size].certified for rows in by_size] for size in sizes]
    clear = next((place for place, values in enumerate(proven) if None in values), len(sizes))
    bounds = [nominal, *(_average(values) for values in proven[:clear])]
    if clear:
        lines.append(_step(method, look, x[: clear + 1], bounds, "proven"))
    void = [
        [row.certified if row.unclipped is None else row.unclipped for row in (rows[size] for rows in by_size)]
        for size in sizes[clear:]
    ]
    known = [(size, _average(values)) for size, values in zip(sizes[clear:], void, strict=True) if None not in values]
    if known:
        grey = Look(GREY, look.marker, look.dash)
        at, values = [x[clear], *(size for size, _ in known)], [bounds[-1], *(value for _, value in known)]
        lines.append(_step(method, grey, at, values, "proven if no action is clipped"))
    return lines


def _average(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _step(method: Method, look: Look, x: Sequence[float], y: Sequence[float], kind: str) -> Series:
    return Series(method.name, look, x, y, step="before", kind=kind)


def _caption(methods: Sequence[Method], task: str) -> str:
    found = [one for method in methods for one in _certificates(method) if one.task == task]
    aside = " Episodes of which nothing is proven are left out." * any(f.set_aside for f in found)
    episodes = sorted({f"{one.episodes} (seed {one.seed})" for one in found})
    open_ = sorted({method.name for method in methods for one in _of(method, task) if one.status != "PASS"})
    unproven = f" Nothing is proven of {', '.join(open_)}, which does not mean that it is bad." if open_ else ""
    return (
        "Across: how wrong what the policy reads may be. Dotted: the return without an error. Marked line: the worst "
        "error that a search of the whole episode found, which knows start and noise. Steps: proven; no error of at "
        "most this size, whoever makes it and whatever it knows, leads to a lower mean return, clipped actions "
        "included. Grey line: proven while no action is clipped. Grey area: where an action of every policy with a "
        "bound may be clipped. Means over "
        f"episodes: {', '.join(episodes)}. Rounding in a proven bound is covered by a margin, not by a proof."
        f"{aside}{unproven}"
    )


def certified_tables(methods: Sequence[Method], task: str) -> str:
    """Return the numbers of the picture, and what an error of each sensor can move."""
    rows = []
    for method in methods:
        for run, one in _runs(method, task):
            rows += [[f"{name_of(method)}{_seed(method, run)}", *cells] for cells in _cells(one)]
    head = [
        "Method",
        "Error at most",
        "Without errors",
        "Worst found",
        "Proven: at least",
        "Clipped at the worst found",
    ]
    unit = _unit(methods, task)
    caption = f"Mean returns; errors{escape(unit)}, in the norm that stands with them. “Proven” is rounded down."
    return table(head, rows, caption, range(2, len(head))) + _sensors(methods, task) + _claims(methods, task)


def _cells(one: ReturnCertificate) -> list[list[str]]:
    cells = []
    for row in sorted(one.rows, key=lambda row: row.size):
        bound = "-"
        if row.certified is not None:
            bound = numbers.lower(row.certified)
        elif row.unclipped is not None:
            bound = numbers.lower(row.unclipped) + " <span class='i'>if no action is clipped</span>"
        size = f"{number(row.size)} <span class='i'>{_SHORT[one.norm]}</span>"
        cells.append([size, number(row.nominal), number(row.found), bound, f"{row.clipped_share:.2%}"])
    return cells


def _sensors(methods: Sequence[Method], task: str) -> str:
    """Return a table for each sensor: what one unit of its error can do to each action and state, for ever."""
    sensors: dict[str, list[tuple[Method, str, dict[str, float | None], str]]] = {}
    for method in methods:
        for run, one in _runs(method, task):
            for entry in one.sensors:
                changes = {**entry.actions, **entry.states}
                sensors.setdefault(entry.sensor, []).append((method, _seed(method, run), changes, entry.reason))
    parts = []
    for sensor, found in sensors.items():
        signals = list(dict.fromkeys(name for _, _, changes, _ in found for name in changes))
        rows = []
        for method, seed, changes, reason in found:
            said = [_change(changes.get(name)) for name in signals]
            rows.append([f"{name_of(method)}{seed}", *said, escape(reason)])
        head = ["Method", *map(escape, signals), "Why nothing is proven"]
        if not any(reason for *_, reason in found):
            head, rows = head[:-1], [row[:-1] for row in rows]
        parts.append(table(head, rows, f"Error of the {escape(sensor)}", range(1, len(signals) + 1)))
    if not parts:
        return ""
    text = (
        "If this sensor alone is off by at most one unit at every step, each action and each state of the plant in the "
        "closed loop moves by at most so many of its own units, at any step, for ever; with half the error by half of "
        "it. Proven for the linear plant from the same start and noise, while no action is clipped."
    )
    return f"<h3>What an error of each sensor can do</h3><p>{text}</p>{''.join(parts)}"


def _change(value: float | None) -> str:
    return proven(value) if isinstance(value, int | float) else "-"


def _claims(methods: Sequence[Method], task: str) -> str:
    said = [
        f"<p><b>{escape(run.name)}</b>: {escape(one.claim)}</p>"
        for method in methods
        for run, one in _runs(method, task)
    ]
    return details("The claims in words", "".join(said))


def certified_words(method: Method) -> str:
    """Return a sentence about the largest error with a proven return, "" where there is none."""
    found = _certificates(method)
    if not found or any(one.status != "PASS" for one in found):
        return ""
    sizes = [row.size for row in found[0].rows if all(_bound(one, row.size) is not None for one in found)]
    if len({(one.task, one.norm) for one in found}) > 1 or not sizes:
        return ""
    size = max(sizes)
    bounds = [bound for one in found if (bound := _bound(one, size)) is not None]
    nominal = float(np.mean([one.rows[0].nominal for one in found]))
    return (
        f"In {escape(found[0].task)} no error of what it reads of at most {size:g} ({_SHORT[found[0].norm]}) takes its "
        f"mean return from {numbers.shown(nominal)} below <b>{numbers.lower(min(bounds))}</b>: proven."
    )


def _bound(one: ReturnCertificate, size: float) -> float | None:
    return next((row.certified for row in one.rows if row.size == size), None)


def _certificates(method: Method) -> list[ReturnCertificate]:
    return [run.returns for run in method.runs if run.returns is not None and run.returns.rows]


def _of(method: Method, task: str, norm: str | None = None) -> list[ReturnCertificate]:
    return [one for one in _certificates(method) if one.task == task and norm in (None, one.norm)]


def _runs(method: Method, task: str) -> list[tuple[Run, ReturnCertificate]]:
    return [(run, run.returns) for run in method.runs if run.returns is not None and run.returns.task == task]


def _seed(method: Method, run: Run) -> str:
    return f" <span class='i'>{escape(run.name)}</span>" if len(method.runs) > 1 else ""


def _unit(methods: Sequence[Method], task: str) -> str:
    """Return the unit in brackets that all of a task's observations have, "" where they differ or are not known."""
    units = {name.rpartition("[")[2].rstrip("]") for name in names_of(methods, task, "observations") if "[" in name}
    return f" ({units.pop()})" if len(units) == 1 else ""
