"""The page results/youla: tables of the measured rows around the words of page.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from results.youla.measure import Case, undecided, unstable
from results.youla.pictures import NAMES, TASKS, Rows, attacks, model_errors, of_method, training
from robust_policies.files.atomic import write_atomic
from robust_policies.sweep.table import interval, interval_text

# Parts of the page that results/youla/example.py and results/youla/doyle.py write.
OTHERS = {"APG": "apg.md", "DOYLE": "doyle.md"}


def write_page(cases: dict[str, Case], tasks: dict[str, Rows], results: Path) -> None:
    """Write README.md and its figures from the measured rows."""
    tasks = {task: tasks[task] for task in cases if task in tasks}
    for name, figure in (
        ("training.png", training(tasks)),
        ("attacks.png", attacks(cases, tasks)),
        ("model_error.png", model_errors(cases, tasks)),
    ):
        figure.savefig(results / name, dpi=110)
    write_atomic(results / "README.md", lambda file: file.write(page(cases, tasks, results).encode()))
    print(f"{results / 'README.md'}: {', '.join(f'{len(rows)} runs of {task}' for task, rows in tasks.items())}")


def page(cases: dict[str, Case], tasks: dict[str, Rows], results: Path) -> str:
    """Return README.md."""
    parts = {key: other(results / name) for key, name in OTHERS.items()}
    for task, rows in tasks.items():
        case, key = cases[task], task.upper()
        parts[f"{key}_NOMINAL"] = summary(case, rows)
        parts[f"{key}_MODEL"] = model_table(case, rows)
        parts[f"{key}_CURVES"] = stability_table(rows)
        parts[f"{key}_PROVEN"] = proven_table(rows)
        parts[f"{key}_UNSTABLE"] = unstable_counts(rows)
    seeds = {TASKS[task]: len(of_method(rows, "youla_r2dn")) for task, rows in tasks.items()}
    parts["SEEDS"] = ", ".join(f"{count} of {name}" for name, count in seeds.items())
    text = (Path(__file__).resolve().parent / "page.md").read_text()
    for name, content in parts.items():
        text = text.replace(f"[[{name}]]", content)
    return text


def other(path: Path) -> str:
    """Return the page that another measurement left in `path`, as a section; where it left none, nothing."""
    return f"#{path.read_text()}\n" if path.is_file() else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its first column to the left."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def shown(values: Sequence[float | None], digits: str = ".3g") -> str:
    """Return the mean over seeds with its 95% interval or, of few seeds, the least and the largest."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values) or not finite:
        return "no number in some seeds"
    return interval_text(interval(finite), lambda value: format(value, digits))


def middle(values: Sequence[float], digits: str = ".3g") -> str:
    """Return the median over seeds (least to largest)."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return f"{ordered[0]:{digits}}"
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return f"{median:{digits}} ({ordered[0]:{digits}} to {ordered[-1]:{digits}})"


def _lines(rows: Rows, cells: Callable[[Rows], Sequence[str]]) -> list[list[str]]:
    groups = [(name, of_method(rows, method)) for method, name in NAMES.items()]
    return [[name, str(len(found)), *cells(found)] for name, found in groups if found]


def summary(case: Case, rows: Rows) -> str:
    """Return nominal costs and what is tolerated."""

    def cells(found: Rows) -> list[str]:
        return [
            shown([row["nominal"]["mean"] for row in found]),
            shown([row["nominal"]["median"] for row in found]),
            f"{100 * sum(row['nominal']['share'] for row in found) / len(found):.3g}%",
            shown([row["attack"]["tolerated"] for row in found]),
            *(
                f"{middle([row[name]['tolerated'] for row in found])}; "
                f"{100 * sum(row[name]['shares'][1] for row in found) / len(found):.0f}%"
                for name in ("ObservationDelay", "ActionDelay")
            ),
        ]

    head = ["", "seeds", "mean cost", "median cost", "held", "attack tolerated", "measurement delay", "action delay"]
    return table(head, _lines(rows, cells))


def model_table(case: Case, rows: Rows) -> str:
    """Return the range of factors of each parameter that is tolerated."""

    def cells(found: Rows) -> list[str]:
        return [
            f"{middle([row['factors'][name]['low'] for row in found])} to "
            f"{middle([row['factors'][name]['high'] for row in found])}"
            for name in case.parameters
        ]

    return table(["tolerated factors", "seeds", *case.parameters], _lines(rows, cells))


def stability_table(rows: Rows) -> str:
    """Return how many policies on the way were unstable on the linear model."""

    def cells(found: Rows) -> list[str]:
        entries = [entry for row in found for entry in row["curve"]]
        radii = [entry["radius"] for entry in entries if entry["radius"] is not None]
        proved = sum(entry.get("proven", False) for entry in entries)
        return [
            str(len(entries)),
            str(sum(unstable(entry) for entry in entries)),
            str(sum(entry["runaways"] > 0 for entry in entries)),
            str(sum(map(undecided, entries))),
            str(sum(any(unstable(entry) for entry in row["curve"][-1:]) for row in found)),
            middle(radii, ".4f"),
            f"{proved} of {len(entries)}" if any("proven" in entry for entry in entries) else "none",
        ]

    head = ["", "seeds", "policies", "unstable", "of these runaways", "undecided", "unstable in the end",
            "spectral radius", "proven stable"]  # fmt: skip
    return table(head, _lines([row for row in rows if row["curve"]], cells))


def unstable_counts(rows: Rows) -> str:
    """Return in words how many policies on the way were unstable on the linear model, by method."""
    words = []
    for method, name in NAMES.items():
        entries = [entry for row in of_method(rows, method) for entry in row["curve"]]
        if entries:
            words.append(f"{sum(map(unstable, entries))} of {len(entries)} ({name})")
    return ", ".join(words)


def proven_table(rows: Rows) -> str:
    """Return what the certificates of the kept policies say."""

    def cells(found: Rows) -> list[str]:
        def numbers(name: str) -> str:
            values = [row["proven"].get(name) for row in found]
            known = [value for value in values if value is not None]
            return f"{middle(known, '.4g')}; {len(known)} of {len(values)}" if known else "none"

        own = [row["proven"].get("parameter_gain", row["proven"].get("policy_gain")) for row in found]
        gains = [value for value in own if value is not None]
        # A parameter that is zero has a gain of rounding errors.
        gains = [0.0 if value < 1e-12 else value for value in gains]
        return [middle(gains, ".4g") if gains else "none", numbers("loop_rate"), numbers("loop_gain")]

    head = ["", "seeds", "gain of the policy (Youla parameter)", "rate of the linear loop", "gain of the linear loop"]
    return table(head, _lines(rows, cells))
