"""The parts of the page about where its numbers come from: the check of the files, and the task in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_policies.evaluation.report.load import Run
from robust_policies.evaluation.report.markup import details, escape, number, table
from robust_policies.evaluation.report.methods import Method
from robust_policies.evaluation.task_numbers import may_hold_code, task_numbers

_SHORT = 16
CHECKED = (
    "Computed again for this report, from the policy in each folder: the sha256 of its arrays, the proof, the gain of "
    "the saved sequences, and every number of the certificate; likewise of the loop with an identified model, where "
    "one is stated; and whether the evaluation is of these arrays. A sha256 is a fingerprint: two are equal only for "
    "the same numbers; its first digits are shown. “Not stated”: the file was written before such files held it."
)


def check_table(methods: Sequence[Method]) -> str:
    """Return what was found by computing again, a line for each run."""
    runs = [run for method in methods for run in method.runs]
    rows = [_checked(run) for run in runs]
    head = [
        "Run",
        "Policy's arrays (sha256)",
        "Certificate",
        "Evaluation's policy (sha256)",
        "Outcome",
        "Working tree when trained",
        "Commit",
    ]
    if any(run.model_loop is not None for run in runs):
        head.insert(3, "Loop with the model")
        rows = [[*row[:3], _model_loop(run), *row[3:]] for run, row in zip(runs, rows, strict=True)]
    content = table(head, rows, "The check of the files")
    return f"<p>{CHECKED}</p>" + (content if len(rows) <= 12 else details(f"The check of {len(rows)} runs", content))


def _checked(run: Run) -> list[str]:
    found, provenance = run.agreement, run.provenance
    if run.certificate is None:
        certificate = "none"
    elif found.certificate is None:
        certificate = f"not checked: {escape(found.reason)}"
    elif found.certificate:
        certificate = "does not agree"
    else:
        certificate = "agrees" + ("; its sentence is another than its numbers make" if found.sentence else "")
    outcome = "<span class='badge NOT_CERTIFIED'>not checked</span>"
    if found.differences:
        outcome = "<span class='badge DISAGREES'>does not agree</span>"
    elif found.policy is not None:
        outcome = "<span class='badge PASS'>agrees</span>"
    state = provenance.get("git_modified")
    modified = "files differed from the commit" if state is True else "clean" if state is False else "not stated"
    commit = provenance.get("git_commit")
    evaluated = _hash(found.evaluated) if run.evaluation is not None else "no evaluation"
    short = escape(commit[:12]) if isinstance(commit, str) else "not stated"
    return [escape(run.name), _hash(found.policy), certificate, evaluated, outcome, modified, short]


def _model_loop(run: Run) -> str:
    if run.model_loop is None:
        return "none"
    found = run.agreement
    if found.model_loop is None:
        return f"not checked: {escape(found.why_no_loop)}"
    return "does not agree" if found.model_loop else "agrees"


def _hash(value: str | None) -> str:
    return "not stated" if value is None else f"<code title='{escape(value)}'>{escape(value[:_SHORT])}</code>"


def numbers_of(methods: Sequence[Method], task: str) -> Mapping[str, Any]:
    """Return the task's numbers as an evaluation states them, else as they are here; {} if they are not known."""
    for run in (run for method in methods for run in method.runs):
        stated = (run.evaluation or {}).get("task_numbers")
        known = stated.get(task) if isinstance(stated, dict) else None
        if isinstance(known, dict):
            return known
    # Making a report runs no code that a file names.
    return {} if may_hold_code(task, {}) else task_numbers(task, {})


def names_of(methods: Sequence[Method], task: str, signal: str) -> list[str]:
    """Return the names with units of a task's observations or actions, [] if they are not known."""
    names = numbers_of(methods, task).get(signal)
    return [str(name) for name in names] if isinstance(names, list) else []


def task_table(methods: Sequence[Method], task: str) -> str:
    """Return a task in numbers: its signals with their units and its physical parameters; "" if nothing is known."""
    known = numbers_of(methods, task)
    rows = []
    if isinstance(known.get("max_episode_steps"), int):
        step = known.get("time_step")
        each = f" of {number(step)} s" if isinstance(step, float) else ""
        rows.append(["an episode", f"{known['max_episode_steps']} steps{each} at most"])
    for signal in ("observations", "actions"):
        names = names_of(methods, task, signal)
        if names:
            rows.append([f"the {signal}", escape(", ".join(names))])
    low, high = (known.get(key) for key in ("action_low", "action_high"))
    if isinstance(low, list) and isinstance(high, list):
        rows.append(["the actions' range", f"{_values(low)} to {_values(high)}"])
    parameters = known.get("parameters")
    for name, one in parameters.items() if isinstance(parameters, dict) else ():
        if isinstance(one, dict):
            rows.append([escape(name), f"{_values(one.get('value'))} {escape(one.get('unit') or '')}".strip()])
    options = known.get("options")
    if isinstance(options, dict) and options:
        rows.append(["options", escape(", ".join(f"{key} {value}" for key, value in options.items()))])
    return details("The task in numbers", table(["", escape(task)], rows)) if rows else ""


def _values(value: Any) -> str:
    """Return a number, or the numbers of a list, as a reader sees them."""
    if isinstance(value, list):
        return ", ".join(map(_values, value))
    if value is None:
        return "no limit"
    return number(value) if isinstance(value, int | float) else escape(value)
