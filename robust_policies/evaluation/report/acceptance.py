"""What is required of each run: the limits of a file, the values and their margins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_policies.errors import UserError
from robust_policies.evaluation.limits import Limits, Outcome, judge, read_limits, summary
from robust_policies.evaluation.report.load import Run
from robust_policies.evaluation.report.markup import details, escape, table
from robust_policies.evaluation.report.methods import Method
from robust_policies.train.run.folder import RunFolder

_TEXT = (
    "A limit is met where the number in the run folder is within it. The margin is what is left, negative beyond the "
    "limit. What is missing, or of a folder whose files do not agree, is not met. Proven bounds are rounded to their "
    "safe side; returns are means over the episodes of the evaluation."
)
Judged = Sequence[tuple[Method, Run, list[Outcome]]]


def limits_of(run: Run, given: Limits | None) -> Limits | None:
    """Return the limits of a run: those `given`, else those of limits.yaml in its folder.

    None where there are none, or they cannot be read, which becomes one of the run's notes.
    """
    own = RunFolder(run.folder).limits
    if given is not None or not own.is_file():
        return given
    try:
        return read_limits(own)
    except UserError as error:
        run.notes.append(str(error))
        return None


def judged(methods: Sequence[Method], file: str | Path | None) -> Judged:
    """Return the outcomes of each run that has limits; raises UserError where the given `file` cannot be read."""
    given = None if file is None else read_limits(file)
    known = [(method, run, limits_of(run, given)) for method in methods for run in method.runs]
    return [(method, run, judge(run, limits)) for method, run, limits in known if limits is not None]


def acceptance(runs: Judged) -> str:
    """Return the tables of limits, one for each run, those that do not meet all of them unfolded."""
    parts = [f"<p>{_TEXT}</p>"]
    for _, run, outcomes in runs:
        labelled = any(one.requirement.label for one in outcomes)
        head = [*(["Label"] if labelled else []), "Quantity", "What it is", "Value", "Limit", "Margin", "Outcome"]
        rows = [[*([escape(one.requirement.label)] if labelled else []), *_cells(one)] for one in outcomes]
        content = table(head, rows, f"Limits of {escape(run.name)}", range(len(head) - 4, len(head) - 1))
        met = all(one.met for one in outcomes)
        title = f"{escape(run.name)}: {escape(summary(outcomes))}"
        parts.append(content if len(runs) == 1 else details(title, content, opened=not met))
    return "".join(parts)


def _cells(one: Outcome) -> list[str]:
    asked = one.requirement.asked
    outcome = "<span class='badge PASS'>met</span>"
    if not one.met:
        outcome = f"<span class='badge DISAGREES'>not met</span> {escape(one.reason)}".rstrip()
    return [f"<code>{escape(asked)}</code>", escape(asked.quantity.what), *map(escape, one.shown), outcome]
