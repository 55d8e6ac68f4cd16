"""The first sentences of a report: what is proven of what, what the worst found did, and what does not agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np

from robust_policies.certificates import Certificate
from robust_policies.certificates.signals import RAW
from robust_policies.evaluation.effect import Effect, effect
from robust_policies.evaluation.report.certified import certified_words
from robust_policies.evaluation.report.gains import proven_gains
from robust_policies.evaluation.report.markup import details, escape
from robust_policies.evaluation.report.methods import (
    NORM_WORDS,
    Condition,
    Method,
    condition_title,
    main_worst,
    unit_of,
)
from robust_policies.evaluation.report.model_loop import model_loop_words
from robust_policies.files import numbers

_IN_VIEW = 6
_LONGEST = 300
_HARMS = ("fault", "disturbance", "parameter")


@dataclass(frozen=True)
class Worst:
    """The condition and size with the lowest return, and what it did."""

    condition: Condition
    size: float
    attack: str
    effect: Effect
    point: tuple[tuple[str, float], ...] = ()


def verdict(methods: Sequence[Method]) -> str:
    """Return a sentence about what is proven and one about the worst found, for each method."""
    said = [f"<p class='verdict'>{' '.join(_said(method))}</p>" for method in methods]
    rest = details(f"The same of {len(said) - _IN_VIEW} more", "".join(said[_IN_VIEW:])) if said[_IN_VIEW:] else ""
    return "".join(said[:_IN_VIEW]) + rest


def _said(method: Method) -> list[str]:
    words = [_proven(method), certified_words(method), model_loop_words(method), _found(method)]
    return [one for one in words if one]


def marks(methods: Sequence[Method]) -> str:
    """Return what does not agree in the files of the runs, and which training seeds are copies of one run."""
    items = []
    for method in methods:
        for run in method.runs:
            items += [
                f"<b>{escape(run.name)}</b> does not agree. {escape(shorten(one, _LONGEST, placeholder=' …'))}"
                for one in run.agreement.differences
            ]
        items += copies(method)
    return "".join(f"<p class='note bad'>{item}</p>" for item in items)


def copies(method: Method) -> list[str]:
    """Return a line for each set of training seeds that are one policy: the same weights, or all the same returns."""
    groups: dict[object, list[str]] = {}
    for run in method.runs:
        key = run.agreement.weights or tuple(tuple(row.returns) for row in run.rows) or (run.name,)
        groups.setdefault(key, []).append(run.name)
    return [
        f"<b>{escape(', '.join(names))}</b> have {'the same weights' if isinstance(key, str) else 'the same returns'}: "
        "copies of one run, not training seeds. Every interval over training seeds here is too narrow."
        for key, names in groups.items()
        if len(names) > 1
    ]


def _proven(method: Method) -> str:
    name, runs = f"<b>{escape(method.name)}</b>", method.runs
    if any(run.agreement.differences for run in runs):
        return f"{name}: <b>not confirmed</b>; its files do not agree, see above."
    known = [run.certificate for run in runs if run.certificate is not None]
    states = [certificate.status for certificate in known]
    if not known:
        alone = " of the policy alone" if any(run.returns is not None for run in runs) else ""
        return f"{name}: there is no certificate{alone}."
    if "VIOLATED" in states:
        return f"{name}: what was claimed is <b>refuted</b>; a search found a larger gain than the claimed one."
    passed = states.count("PASS")
    if not passed:
        return f"{name}: <b>nothing is proven</b>, which does not mean that it is unstable."
    of = (
        ""
        if len(runs) == 1
        else f" for each of {len(runs)} training seeds"
        if passed == len(runs)
        else (f" for {passed} of {len(runs)} training seeds")
    )
    gains = proven_gains(method)
    loop = any(certificate.closed_loop is not None for certificate in known)
    constant = not gains and not loop and any(certificate.gamma_raw == 0 for certificate in known)
    if constant:
        what = "its actions are constant, whatever it observes"
    elif not gains:
        what = f"{_forgetting(known)} under the same observations; no gain is proven"
    elif loop:
        what = (
            "in its linear closed loop, the performance under two disturbances differs by at most "
            f"{numbers.upper(max(gains))} times what the disturbances differ by"
        )
    else:
        what = (
            f"its {_given(known)} for two sequences of {_read(known)} differ by at most "
            f"{numbers.upper(max(gains))} times what these differ by"
        )
    norm = " (l2 norm over all time steps and channels)" if gains and not constant else ""
    unchecked = (
        ""
        if all(run.agreement.certificate is not None for run in runs if run.certificate is not None)
        else (" So its certificate says, which was not checked here: the policy is not in the folder.")
    )
    return f"{name}: <b>proven</b>{of}: {what}{norm}.{unchecked}"


def _forgetting(certificates: Sequence[Certificate]) -> str:
    """Return what is proven of two copies of each policy that is certified, started differently."""
    entries = [one.forgets for one in certificates if one.status == "PASS"]
    if any(entry is None for entry in entries):
        return "two copies of it, started differently, do not move apart"
    steps = max(entry["steps"] for entry in entries if entry is not None)
    return f"two copies of it, started differently, have lost 99% of their difference within {steps} steps"


def _read(certificates: Sequence[Certificate]) -> str:
    """Return the words for what the policies read: other than observations where any is not certified from them."""
    other = {one.signals.reads for one in certificates if one.signals is not None} - {RAW}
    return " or ".join(sorted(other)) or "observations"


def _given(certificates: Sequence[Certificate]) -> str:
    """Return the word for what the policies give: a gain of choices is one to the logits, not to actions."""
    return "logits" if any(one.choices is not None for one in certificates) else "actions"


def _found(method: Method) -> str:
    if not method.tasks:
        return "" if any(run.returns is not None for run in method.runs) else "Its returns were not measured."
    task = method.tasks[0]
    said = []
    worst = worst_attack(method, task)
    if worst is not None:
        said.append(_attack_words(worst, task, unit_of([method], worst.condition)))
    harm = _lowest(method, [c for c in method.conditions if c.task == task and c.group in _HARMS])
    if harm is not None and not harm.effect.nothing:
        named = "" if harm.point else escape(condition_title(harm.condition))
        what = f"{named}{_size(harm, unit_of([method], harm.condition))}"
        before, after = numbers.shown(harm.effect.before), numbers.shown(harm.effect.after)
        said.append(f"The worst of the faults and changed plants ({what}) took it from {before} to <b>{after}</b>.")
    constant = constant_actions(method, task)
    if constant:
        said.append(f"Its action is constant ({escape(constant)}) in every recorded step, whatever it observes.")
    return " ".join(said) or f"No attack was run in {escape(task)}."


def _attack_words(worst: Worst, task: str, unit: str) -> str:
    norm = NORM_WORDS.get(worst.condition.norm, worst.condition.norm)
    attack = f"({escape(worst.attack)}{_size(worst, unit)}, {escape(norm)})"
    before, after = numbers.shown(worst.effect.before), numbers.shown(worst.effect.after)
    if worst.effect.nothing:
        return (
            f"In {escape(task)} the strongest attack found {attack} <b>does nothing</b> that can be told from chance: "
            f"mean return {before} without it, {after} with it."
        )
    return f"In {escape(task)} the worst attack found {attack} took the mean return from {before} to <b>{after}</b>."


def _size(worst: Worst, unit: str) -> str:
    if worst.point:
        return ", ".join(f"{escape(name)} x {factor:g}" for name, factor in worst.point)
    return f", size {worst.size:g}{f' {escape(unit)}' if unit else ''}" if worst.size > 0 else ""


def worst_attack(method: Method, task: str) -> Worst | None:
    """Return the attack and size with the lowest mean return in a task, None where none was run."""
    condition = main_worst([method], task)
    return None if condition is None else _lowest(method, [condition])


def effect_at(method: Method, condition: Condition, size: float) -> Effect | None:
    """Return what a perturbation of a size did, None where it or the unperturbed return is not known."""
    before, after = method.nominal(condition.task), method.matrix(condition, size)
    return None if before is None or after is None else effect(before, after)


def _lowest(method: Method, conditions: Sequence[Condition]) -> Worst | None:
    places: list[tuple[float, Condition, float, tuple]] = []
    for condition in conditions:
        sized = [(size, ()) for size in method.sizes(condition) if size > 0]
        for size, point in [*sized, *((size, point) for point, size in method.points(condition).items())]:
            matrix = method.matrix(condition, size, point)
            if matrix is not None:
                places.append((float(matrix.mean()), condition, size, point))
    if not places:
        return None
    _, condition, size, point = min(places, key=lambda place: place[0])
    before, after = method.nominal(condition.task), method.matrix(condition, size, point)
    if before is None or after is None:
        return None
    rows = [rows[0] for rows in method.rows(condition, size, point).values()]
    attacks = sorted({row.attack for row in rows if row.attack})
    return Worst(condition, size, ", ".join(attacks) or condition_title(condition), effect(before, after), point)


def constant_actions(method: Method, task: str) -> str:
    """Return the actions of a method whose recorded actions never change, "" if they do or none are recorded."""
    recorded = [
        recording.signals["actions"].reshape(-1, recording.signals["actions"].shape[-1])
        for run in method.runs
        for recording in run.recordings
        if recording.task == task and "actions" in recording.signals
    ]
    if not recorded or len({part.shape[-1] for part in recorded}) > 1:
        return ""
    actions = np.concatenate(recorded)
    actions = actions[np.isfinite(actions).all(axis=1)]
    if not len(actions) or np.ptp(actions, axis=0).max() > 1e-6 * max(1.0, float(np.abs(actions).max())):
        return ""
    return ", ".join(numbers.shown(float(value)) for value in actions[0])
