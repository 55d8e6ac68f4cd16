"""The part of a report about loop.json: what is measured and proven of the linear part of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robust_policies.evaluation.report.load import Run
from robust_policies.evaluation.report.loop_charts import ABOUT, margin_rows
from robust_policies.evaluation.report.markup import escape, table
from robust_policies.files import numbers

_TEXT = (
    "Gain: factors at an input of the plant that leave the loop stable. Phase and delay: turns and steps (of one "
    "input, a number between steps; of all inputs, whole steps). “Measured” is from frequency response and poles in "
    "float64. “Proven” holds in exact arithmetic, for all inputs at once and by different amounts at each, the delay "
    "changing from step to step: of the linear part, and of the policy itself with the linear plant while nothing is "
    "clipped. It is rounded to its safe side."
)


def loop_part(run: Run) -> str:
    """Return the words and the table of a run's loop."""
    content: Mapping[str, Any] = run.loop or {}
    rows = [[escape(whose), escape(of), *_cells(one, "proven" in whose)] for whose, of, one in margin_rows(content)]
    head = ["Whose", "At", "Gain", "Phase", "Delay [steps]", "Largest |S|"]
    return (
        f"<p>{ABOUT} The model: {escape(content['model'])}. LQG: {escape(content['compared'])}.</p>"
        f"{''.join(f'<p class=note>{escape(one)}</p>' for one in notes(content))}"
        f"{table(head, rows, f'Margins of {escape(run.name)}', range(2, len(head)))}<p>{_TEXT}</p>"
    )


def notes(content: Mapping[str, Any]) -> list[str]:
    """Return what a reader of a loop's margins must know."""
    said = []
    if not content["policy"]["stable"]:
        said.append("The linear part of the loop is unstable: it has no margins.")
    if not content["equilibrium"]["smooth"]:
        said.append("A neuron has its kink at the equilibrium: the linear part is that of one side of it.")
    if not content["equilibrium"]["within_limits"]:
        said.append("At the equilibrium an input is beyond its limits: the linear part is not what happens there.")
    if not content["exact"]:
        said.append("The plant is not linear: what is proven here is of its linear model.")
    return said


def margin_texts(one: Mapping[str, Any] | None, proven: bool) -> list[str]:
    """Return gain, phase, delay and the peak of |S| as a reader sees them, proven ones rounded to their safe side."""
    if one is None:
        return ["-"] * 4
    lower, upper = (numbers.upper, numbers.lower) if proven else (numbers.shown, numbers.shown)
    high = "no limit" if one["gain_high"] is None else upper(one["gain_high"])
    delay = "no limit" if one["delay"] is None else numbers.shown(one["delay"])
    if proven and one["delay"] is None:
        delay = "-"
    peak = one.get("sensitivity")
    gain = f"{lower(one['gain_low'])} to {high}"
    return [gain, f"{upper(one['phase'])}°", delay, "-" if peak is None else numbers.shown(peak)]


def _cells(one: Mapping[str, Any] | None, proven: bool) -> list[str]:
    return list(map(escape, margin_texts(one, proven)))
