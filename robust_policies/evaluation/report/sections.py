"""The parts of the page that are words and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robust_policies.certificates.certificate import Certificate, claim
from robust_policies.evaluation.report.gains import found_gains, proven_gains
from robust_policies.evaluation.report.load import Run
from robust_policies.evaluation.report.markup import (
    badges,
    details,
    escape,
    found,
    interval,
    name_of,
    number,
    proven,
    spread,
    table,
)
from robust_policies.evaluation.report.methods import (
    NORM_WORDS,
    Condition,
    Method,
    condition_title,
    conditions_of,
    interval_words,
    main_worst,
    shown_sizes,
    tasks_of,
    unit_of,
    worst_was_derived,
)
from robust_policies.evaluation.report.methods import interval as intervals
from robust_policies.evaluation.report.verdict import effect_at
from robust_policies.evaluation.statistics import FEW
from robust_policies.files import numbers

READING = (
    "A certificate is about the policy alone (a Youla policy's: about the linear closed loop): the gain from the "
    "observations it reads to its mean actions (of choices: to their logits), in open "
    "loop. It says nothing about exploration noise, and <b>a gain in open loop does not bound a return in closed "
    "loop</b>: every return here is a measurement, apart from those called proven, which a certificate of the return "
    "bounds: of the linear plant, the episodes it names, and every error of what the policy reads.",
    "A low ratio of found to proven gain means a loose bound <b>or</b> a weak search; it cannot say which. "
    "“Not certified” never means unstable.",
    "The worst attack is the worst of those that were run, chosen on other episodes than those reported. "
    "<b>A stronger attack may exist.</b>",
    "Numbers have four digits; proven gains are rounded up, found ones down.",
)
TERMS = {
    "Proven gain": "what the actions for two sequences of observations can differ by, at most, over what the "
    "observations differ by; both differences as l2 norms over all time steps and channels. Median of the training "
    "seeds [smallest, largest]. A Youla policy's is of its linear closed loop, from disturbance to performance.",
    "Found gain": "the largest such ratio that a search found, with its two sequences saved.",
    "Nominal return": "the sum of the rewards of an episode that nothing perturbs; its interquartile mean (the best "
    "and the worst quarter of the episodes left out) [95% interval; of two to four training seeds, least and largest].",
    "Worst attack": "the same return under the attack that was worst for this policy on other episodes. Marked “does "
    "nothing” where the loss cannot be told from chance.",
    "CVaR 10%": "the mean return of the worst tenth of the episodes.",
    "Return per size": "the mean return over attack sizes from 0 to the largest that all methods share.",
    "Size at 80%": "the smallest attack size, found by bisection, at which the mean return has lost a fifth of its "
    "nominal magnitude.",
}


def notes(runs: Sequence[Run]) -> str:
    """Return what is missing or broken, the same words said once."""
    return _listed([(run, note) for run in runs for note in run.notes])


def asides(runs: Sequence[Run]) -> str:
    """Return the notes about secondary tasks."""
    several = len({frozenset(row.task for row in run.rows) for run in runs if run.rows}) > 1
    text = "Not all of these policies were evaluated in the same tasks; each task's part shows those that were."
    return f"<p>{text}</p>" * several + _listed([(run, note) for run in runs for note in run.asides], "aside")


def _listed(items: Sequence[tuple[Run, str]], kind: str = "note") -> str:
    said: dict[str, list[str]] = {}
    for run, note in items:
        said.setdefault(note.replace(f"{run.folder}/", ""), []).append(run.name)
    lines = []
    for note, names in said.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"<p class='{kind}'><b>{escape(', '.join(names[:3]))}{more}</b>: {escape(note)}</p>")
    if len(lines) > 5:
        return details(f"{len(lines)} notes on what is missing, broken or particular", "".join(lines))
    return "".join(lines)


def badge(runs: Sequence[Run]) -> str:
    """Return the status of the certificates of some runs: one word, and how many of how many where they differ."""
    return badges(list(map(_state, runs)))


def _state(run: Run) -> str:
    if run.certificate is None:
        return "MISSING"
    return "DISAGREES" if run.agreement.certificate else run.certificate.status


def glance(methods: Sequence[Method], task: str) -> str:
    """Return the table of everything at a glance, in one task."""
    worst = main_worst(methods, task)
    shown = [method for method in methods if task in method.tasks]
    sizes = shown_sizes(shown, worst) if worst is not None else []
    middle = sizes[len(sizes) // 2] if sizes else None
    shared = [set(method.sizes(worst)) for method in shown if worst is not None and method.sizes(worst)]
    up_to = max(set.intersection(*shared), default=0.0) if shared else 0.0
    rows = []
    for method in shown:
        row = [name_of(method), str(len(method.runs)), badge(method.runs)]
        row += [spread(proven_gains(method), proven), spread(found_gains(method), found)]
        nominal = method.nominal(task)
        if worst is None:
            rows.append([*row, "-" if nominal is None else interval(intervals(nominal))])
            continue
        row.append(interval(method.interval(worst, 0.0)))
        row += [interval(method.interval(worst, size)) + _nothing(method, worst, size) for size in sizes]
        row += [number(method.tail(worst, middle)) if middle is not None else "-"]
        rows.append([*row, number(method.area(worst, up_to)), _critical(method, worst)])
    head = ["Method", "Seeds", "Certificate", "Proven gain", "Found gain", "Nominal return"]
    if worst is not None:
        head += [f"Worst attack, size {size:g}" for size in sizes]
        head += [f"CVaR 10%, size {middle:g}" if middle is not None else "CVaR 10%", "Return per size", "Size at 80%"]
    norm = ""
    if worst is not None:
        norm = f" Attack sizes bound the {NORM_WORDS.get(worst.norm, worst.norm)}, in {unit_of(shown, worst)}."
    gains = "gains: median of the training seeds [smallest, largest]"
    caption = f"Returns: interquartile mean [{interval_words(shown)}]; {gains}.{norm}"
    return table(head, rows, escape(caption), (1, *range(3, len(head))))


def terms(methods: Sequence[Method]) -> str:
    """Return what the columns of the tables at a glance mean, those that are there."""
    attacked = any(main_worst(methods, task) is not None for task in tasks_of(methods))
    shown = {name: text for name, text in TERMS.items() if attacked or name in list(TERMS)[:3]}
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in shown.items()) + "</dl>"


def _nothing(method: Method, worst: Condition, size: float) -> str:
    """Return a mark for an attack whose effect cannot be told from none."""
    did = effect_at(method, worst, size)
    return " <span class='i'>does nothing</span>" if did is not None and did.nothing else ""


def _critical(method: Method, worst: Condition) -> str:
    """Return the size at which the return has fallen to its threshold: the median of the training seeds."""
    critical = []
    for run in method.runs:
        items = [item for item in run.critical if (item.get("task"), item.get("norm")) == (worst.task, worst.norm)]
        if items:
            sizes = [item.get("size") for item in items]
            critical.append(min(float(s) if isinstance(s, int | float) else math.inf for s in sizes))
    if not critical:
        return "-"
    middle = float(np.median(critical))
    return number(middle) if math.isfinite(middle) else f"&gt; {max(method.sizes(worst), default=0.0):g}"


def attack_tables(methods: Sequence[Method], task: str) -> str:
    """Return return by method and attack, a table for each norm and some sizes."""
    parts = []
    for worst in conditions_of(methods, task, ("worst",)):
        attacks = [c for c in conditions_of(methods, task, ("attack", "worst")) if c.norm == worst.norm]
        sizes = shown_sizes(methods, worst)
        for size in sizes:
            rows = []
            for method in methods:
                values = [method.interval(attack, size) for attack in attacks]
                if all(math.isnan(value) for value, _, _ in values):
                    continue
                least = min(
                    (v for c, (v, _, _) in zip(attacks, values, strict=True) if c.group == "attack" and v == v),
                    default=math.nan,
                )
                cells = [interval(v) if v[0] != least else f"<b>{interval(v)}</b>" for v in values]
                rows.append([name_of(method), *cells, _chosen(method, worst, size)])
            head = ["Method", *(escape(condition_title(attack)) for attack in attacks), "chosen as the worst"]
            words = escape(NORM_WORDS.get(worst.norm, worst.norm))
            caption = f"Return under each attack, size {size:g} ({words}); the lowest of a row is bold."
            content = table(head, rows, caption, range(1, len(head) - 1))
            opened = worst == main_worst(methods, task) and size == sizes[len(sizes) // 2]
            parts.append(details(f"Size {size:g}, {words}", content, opened))
    return f"<h3>Attack by policy</h3>{''.join(parts)}" if parts else ""


def _chosen(method: Method, worst: Condition, size: float) -> str:
    """Return which attacks were chosen as the worst, most often chosen first."""
    names = [rows[0].attack for rows in method.rows(worst, size).values() if rows[0].attack]
    order = sorted(set(names), key=lambda name: (-names.count(name), name))
    several = len(method.runs) > 1
    said = escape(", ".join(f"{name} ({names.count(name)})" if several else name for name in order)) or "-"
    return said + _nothing(method, worst, size)


def worst_note(methods: Sequence[Method]) -> str:
    """Return a warning where the worst attack was not chosen on other episodes."""
    if not worst_was_derived([run for method in methods for run in method.runs]):
        return ""
    text = (
        "Where an evaluation did not choose its worst attack on other episodes, the lowest mean of the reported ones "
        "is taken: it flatters the attack a little."
    )
    return f"<p class='note'>{text}</p>"


def certificates(methods: Sequence[Method]) -> str:
    """Return the certificates: claim and factors of one training seed a method, and a table of all seeds."""
    return "".join(map(_certificate, methods))


def _certificate(method: Method) -> str:
    known = [(run, run.certificate) for run in method.runs if run.certificate is not None]
    title = f"<h3>{name_of(method)} {badge(method.runs)}</h3>"
    if not known:
        return f"<section>{title}<p>No certificate; run <code>robust-policies certify</code>.</p></section>"
    # The weakest claim stands for the method; the others are in the table.
    rank = {"VIOLATED": 2, "NOT_CERTIFIED": 1, "PASS": 0}
    run, shown = max(known, key=lambda pair: (rank[pair[1].status], pair[1].gamma_raw or 0.0))
    seed = "" if len(method.runs) == 1 else f"<b>{escape(run.name)}</b>, the weakest claim of the training seeds: "
    parts = [f"<p class='claim'>{seed}{_claim(run, shown)}</p>"]
    if shown.closed_loop is not None:
        parts.append(_loop_table(shown.closed_loop, shown.gamma_raw))
    elif shown.factors:
        rows = [[escape(f.name), proven(f.gain), escape(f.note)] for f in shown.factors]
        rows.append(["<b>product</b>", f"<b>{proven(shown.gamma_raw)}</b>", _from_to(shown)])
        parts.append(table(["Factor", "Gain", "Where it comes from"], rows, "The gain, factor by factor", (1,)))
    head = [
        "Training seed",
        "Status",
        "Proven gain",
        "Found gain",
        "Ratio",
        "Rate",
        "Overshoot",
        "Forgets 99% in steps",
        "Margin",
    ]
    rows = [
        [
            escape(one.name),
            badge([one]),
            proven(c.gamma_raw),
            found(c.empirical_lower),
            number(c.ratio),
            "-" if c.rate is None else numbers.rate(c.rate),
            proven(c.overshoot),
            "-" if c.forgets is None else f"{c.forgets['steps']}",
            number(c.margin),
        ]
        for one, c in known
    ]
    content = table(head, rows, "All training seeds", range(2, len(head)))
    if len(known) > 1:
        claims = "".join(f"<p><b>{escape(one.name)}</b>: {_claim(one, c)}</p>" for one, c in known)
        content = details(f"All {len(known)} training seeds", content + claims)
    return f"<section>{title}{''.join(parts)}{content}</section>"


def _from_to(certificate: Certificate) -> str:
    """Return what a certificate's gain is from, and to what."""
    signals = certificate.signals
    return "raw observation to raw mean action" if signals is None else escape(f"{signals.reads} to {signals.gives}")


def _claim(run: Run, certificate: Certificate) -> str:
    """Return the sentence of a certificate, that of its numbers where the file has another."""
    if not run.agreement.certificate:
        return escape(claim(certificate) if run.agreement.sentence else certificate.claim)
    return f"<b>Not confirmed</b>, the files do not agree: {escape(certificate.claim)}"


def _loop_table(loop: Mapping[str, Any], gain: float | None) -> str:
    """Return the bounds of a closed loop's gain, from what they are made of to what counts."""
    known = [
        ("parameter_gain", "Youla parameter", "normalised innovation to normalised input"),
        ("T0", "base loop", "disturbance to performance, without the Youla parameter"),
        ("T1", "Youla input to performance", ""),
        ("T2", "disturbance to innovation", ""),
        ("triangle", "triangle bound", "base loop + product of the three others"),
        ("scaled", "bound by the parameter's gain", "the best that uses nothing else of it"),
        ("closed_loop", "bound by the parameter's matrices", "plant, observer and parameter as one cell"),
    ]
    rows = [[escape(what), proven(loop.get(name)), escape(note)] for name, what, note in known]
    rows.append(["<b>proven</b>", f"<b>{proven(gain)}</b>", "disturbance to performance, linear closed loop"])
    return table(["Map", "Gain", "From where to where"], rows, "The closed loop's gain", (1,))


def targets(methods: Sequence[Method]) -> str:
    """Return what the recipes expect of training, and whether it was reached."""
    rows = []
    for method in methods:
        for run in method.runs:
            target = run.provenance.get("target")
            row = _target(target) if isinstance(target, dict) else None
            if row is not None:
                rows.append([name_of(method), escape(run.name), *row])
    if not rows:
        return ""
    caption = (
        "What the recipe expects of training, and whether an evaluation while training (the policy without "
        "exploration, in the training task) reached it in time."
    )
    head = ["Method", "Run", "Target return", "Within steps", "Reached", "Best evaluation in time"]
    content = table(head, rows, caption, (2, 3))
    return content if len(rows) <= 12 else details(f"Targets of {len(rows)} runs", content)


def _target(target: dict[str, Any]) -> list[str] | None:
    """Return the cells about one target, None if they cannot be read."""
    try:
        state, at = "<span class='badge VIOLATED'>not reached</span>", ""
        if target["reached_steps"] is not None:
            state = "<span class='badge PASS'>reached</span>"
            at = f" at {target['reached_steps']:,} steps, {target['reached_cpu_seconds']:.0f} CPU seconds"
        best = "-" if target["best"] is None else f"{target['best']:.1f} at {target['best_steps']:,} steps"
        return [f"{target['expected']:g}", f"{target['within']:,}", state + at, best]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def reading() -> str:
    """Return how to read the report, and what it does not say."""
    return f"<ul class='reading'>{''.join(f'<li>{text}</li>' for text in READING)}</ul>"


def subtitle(methods: Sequence[Method]) -> str:
    """Return how much there is, and what the intervals are over."""
    counts = {len(method.runs) for method in methods}
    least, most, tasks = min(counts), max(counts), len(tasks_of(methods))
    seeds = f"{least}" if least == most else f"{least} to {most}"
    if least > 1:
        over = (
            "Intervals are the least and the largest training seed's value, for they are few."
            if most < FEW
            else "Intervals are 95% bootstrap intervals over training seeds, of two to four seeds their range."
        )
    elif most == 1:
        over = (
            "With one training seed, intervals (95% bootstrap) are over episodes: they say nothing of another training."
        )
    else:
        over = "Intervals (95% bootstrap; few: the range) are over training seeds; with one seed, over episodes."
    words = f"{_count(len(methods), 'method')} with {seeds} training seed{'s' * (most > 1)} each"
    return f"<p class='lead'>{words}; {_count(tasks, 'evaluated task')}. {over}</p>"


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'s' * (number != 1)}"
