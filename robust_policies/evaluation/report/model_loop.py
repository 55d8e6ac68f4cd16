"""The part of a report about model_loop.json: what is proven of policies in the loop with their identified models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from robust_policies.evaluation.report.load import Run
from robust_policies.evaluation.report.markup import badges, details, escape, name_of, proven, table
from robust_policies.evaluation.report.methods import Method
from robust_policies.files import numbers

_TEXT = (
    "Of the loop of each policy and the identified model that it was trained on, the clips of the actions included. "
    "<b>It is about the model, not about the plant</b>: how far these are apart is measured, not proven. Rate: any two "
    "states of the loop, under the same errors of the sensors, are after t steps at most overshoot * rate^t times as "
    "far apart (l2 norm, as the model scales its signals). Gain: for two sequences of errors added to the measurements "
    "the actions applied differ by at most so many times what the errors differ by; both as l2 norms over all time "
    "steps and channels, in raw units. “Not proven” means that no proof was found, never unstable."
)
_HEAD = [
    "Training seed",
    "Status",
    "Gain, errors of the sensors to actions",
    "Rate",
    "Overshoot",
    "Forgets 99% in steps",
]
_WEAKEST = ("PASS", "NOT_PROVEN", "NOT_CERTIFIED", "DISAGREES")


def model_loop_part(methods: Sequence[Method]) -> str:
    """Return the claims and a table for each method that has some, "" where none has."""
    parts = [_of_method(method, runs) for method in methods if (runs := _runs(method))]
    return f"<p>{_TEXT}</p>{''.join(parts)}" if parts else ""


def model_loop_words(method: Method) -> str:
    """Return a sentence about the gain that is proven of every training seed, "" where it is not of each."""
    gains = [gain for run in _runs(method) if _confirmed(run) and (gain := _gain(run)) is not None]
    if len(gains) < len(method.runs):
        return ""
    return (
        "In the loop with its identified model, which is not the plant, errors of its sensors move its actions by at "
        f"most <b>{numbers.upper(max(gains))}</b> times their own norm: proven."
    )


def _runs(method: Method) -> list[Run]:
    return [run for run in method.runs if run.model_loop is not None]


def _gain(run: Run) -> float | None:
    return (run.model_loop or {}).get("gain")


def _confirmed(run: Run) -> bool:
    return run.agreement.model_loop == []


def _state(run: Run) -> str:
    return "DISAGREES" if run.agreement.model_loop else str((run.model_loop or {})["status"])


def _of_method(method: Method, runs: Sequence[Run]) -> str:
    # The weakest claim stands for the method; the others unfold.
    shown = max(runs, key=lambda run: (_WEAKEST.index(_state(run)), _weakness(run)))
    seed = f"<b>{escape(shown.name)}</b>, the weakest claim of the training seeds: " if len(method.runs) > 1 else ""
    title = f"<h3>{name_of(method)} {badges(list(map(_state, runs)))}</h3>"
    content = table(
        _HEAD, [_row(run) for run in runs], f"Loop with the model: {escape(method.name)}", range(2, len(_HEAD))
    )
    if len(runs) > 1:
        claims = "".join(f"<p><b>{escape(run.name)}</b>: {_claim(run)}</p>" for run in runs)
        content = details(f"All {len(runs)} training seeds", content + claims)
    return f"<section>{title}<p class='claim'>{seed}{_claim(shown)}</p>{content}</section>"


def _weakness(run: Run) -> float:
    gain = _gain(run)
    return math.inf if gain is None else gain


def _row(run: Run) -> list[str]:
    content = run.model_loop or {}
    rate, steps = content.get("rate"), content.get("steps")
    return [
        escape(run.name),
        badges([_state(run)]),
        proven(_gain(run)),
        "-" if rate is None else numbers.rate(rate),
        proven(content.get("overshoot")),
        "-" if steps is None else f"{steps}",
    ]


def _claim(run: Run) -> str:
    said = escape((run.model_loop or {})["claim"])
    if run.agreement.model_loop:
        return f"<b>Not confirmed</b>, the files do not agree: {said}"
    return said if _confirmed(run) else f"<b>Not checked here</b> ({escape(run.agreement.why_no_loop)}): {said}"
