"""One self-contained HTML page about one or several run folders."""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from robust_policies import __version__
from robust_policies.certificates import Certificate
from robust_policies.certificates.files import write_atomic
from robust_policies.errors import InvalidValueError, MissingFileError
from robust_policies.evaluation import figures
from robust_policies.evaluation.figures import COLOURS, Run, svg
from robust_policies.evaluation.load import load_runs
from robust_policies.evaluation.run import pooled

STATUS_WORDS = {"PASS": "proven", "VIOLATED": "refuted", "NOT_CERTIFIED": "not certified"}


def write_report(folders: Sequence[str | Path] | str | Path, output: str | Path | None = None) -> Path:
    """Return the path of the report on `folders`, written with overview.png beside it.

    Args:
        folders: one or several run folders; the first decides colours and order.
        output: the HTML file, or a folder to put report.html in; None: report.html in the first folder.

    A part that is missing or broken in a folder is named in the report; the rest is still shown.

    Raises:
        MissingFileError: a folder does not exist. InvalidValueError: no folder has anything to show.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    if not paths:
        raise InvalidValueError("No run folder was given; expected at least one.")
    for path in paths:
        if not path.is_dir():
            raise MissingFileError(f"Run folder {str(path)!r} does not exist; make one with `robust-policies train`.")
    runs = load_runs(paths)
    if all(run.evaluation is None and run.certificate is None for run in runs):
        raise InvalidValueError(
            f"{', '.join(str(path) for path in paths)} holds neither a readable certificate.json nor "
            "evaluation.json; run `robust-policies certify` and `robust-policies evaluate` on it first."
        )
    target = Path(output) if output is not None else paths[0] / "report.html"
    if target.suffix.lower() != ".html":
        target = target / "report.html"
    page = render(runs)
    figures.save_png(figures.overview_figure(runs), target.parent / "overview.png")
    return write_atomic(target, lambda file: file.write(page.encode()))


def render(runs: Sequence[Run]) -> str:
    """Return the page."""
    names = ", ".join(run.label for run in runs)
    parts = [
        f"<h1>{_e(names)}</h1>",
        "<p class='lead'>What is proven of these control policies, and the worst that was found when the observations "
        "they read are perturbed. The certificate is about the policy alone; the returns are measurements.</p>",
        _notes(runs), "<h2>At a glance</h2>", _glance(runs), "<h2>What is proven</h2>", *(map(_certificate, runs)),
        _gain_section(runs), _return_section(runs), _training(runs),
        "<h2>How to reproduce</h2>", *(map(_reproduce, runs)),
    ]  # fmt: skip
    css = files("robust_policies.evaluation").joinpath("report.css").read_text()
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Report: {_e(names)}</title>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{css}</style></head><body><main>"
        + "\n".join(part for part in parts if part)
        + f"<p class='lead'>Written by robust-policies {_e(__version__)}.</p></main></body></html>\n"
    )


def _e(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", numeric: Sequence[int] = ()) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        scope = " scope='col'" if tag == "th" else ""
        return "".join(f"<{tag}{scope}{' class=n' if i in numeric else ''}>{c}</{tag}>" for i, c in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    head_row = f"<thead><tr>{cells(head, 'th')}</tr></thead>"
    return f"<div class='scroll'><table>{title}{head_row}<tbody>{body}</tbody></table></div>"


def _badge(certificate: Certificate | None) -> str:
    status = "MISSING" if certificate is None else certificate.status
    return f"<span class='badge {status}'>{STATUS_WORDS.get(status, 'no certificate')}</span>"


def _name(run: Run) -> str:
    colour = COLOURS[run.index % len(COLOURS)]
    return f"<span class='swatch' style='background:{colour}'></span>{_e(run.label)}"


def _interval(found: dict[str, Any], index: int) -> str:
    mean, low, high = (float(found[key][index]) for key in ("mean", "low", "high"))
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def _notes(runs: Sequence[Run]) -> str:
    notes = [f"<p class='note'><b>{_e(run.label)}</b>: {_e(note)}</p>" for run in runs for note in run.notes]
    tasks = [frozenset(task for task, _ in run.pairs()) for run in runs if run.evaluation is not None]
    if len(set(tasks)) > 1:
        notes.append(
            "<p class='note'>These policies were evaluated in different tasks; each picture shows those it has.</p>"
        )
    return "".join(notes)


def _glance(runs: Sequence[Run]) -> str:
    tasks = _tasks(runs)
    rows = []
    for run in runs:
        certificate = run.certificate
        row = [_name(run), _badge(certificate), _number(certificate.gamma_raw if certificate else None)]
        row.append(_number(certificate.empirical_lower if certificate else None))
        for task in tasks:
            kind = next((k for t, k in run.pairs() if t == task), None)
            if run.evaluation is None or kind is None:
                row.append("-")
                continue
            found = pooled(run.evaluation["rows"], task, kind)
            row.append(_interval(found, 0) if found["size"][0] == 0 else "-")
        rows.append(row)
    head = ["Policy", "Certificate", "Proven gain", "Found gain", *(f"Nominal return, {_e(task)}" for task in tasks)]
    caption = "Nominal return: mean over episodes without perturbation [95% bootstrap interval]."
    return _table(head, rows, caption, (2, 3, *range(4, 4 + len(tasks))))


def _tasks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(task for run in runs for task, _ in run.pairs()))


def _certificate(run: Run) -> str:
    certificate = run.certificate
    if certificate is None:
        return f"<h3>{_name(run)} {_badge(None)}</h3><p>No certificate; run <code>robust-policies certify</code>.</p>"
    parts = [f"<h3>{_name(run)} {_badge(certificate)}</h3><p>{_e(certificate.claim)}</p>"]
    if certificate.factors:
        rows = [[_e(f.name), _number(f.gain, 7), _e(f.note)] for f in certificate.factors]
        rows.append(
            ["<b>product</b>", f"<b>{_number(certificate.gamma_raw, 7)}</b>", "raw observation to raw mean action"]
        )
        parts.append(_table(["Factor", "Gain", ""], rows, "The gain, factor by factor", (1,)))
    facts = [
        ("contraction rate", certificate.rate),
        ("overshoot", certificate.overshoot),
        ("margin", certificate.margin),
    ]
    shown = [f"{name} {_number(value)}" for name, value in facts if value is not None]
    return "".join(parts) + (f"<p class='lead'>{_e('; '.join(shown))}.</p>" if shown else "")


def _figure(picture: Any, title: str, caption: str) -> str:
    return f"<figure>{svg(picture, _e(title))}<figcaption>{caption}</figcaption></figure>"


def _gain_section(runs: Sequence[Run]) -> str:
    shown = [run for run in runs if run.certificate is not None and run.certificate.empirical_lower is not None]
    if not shown:
        return ""
    caption = (
        "Bar: the gain that is proven, an upper bound. Dot: the largest gain a search found, a lower bound with its "
        "two input sequences saved in float64. A distance between the two means a loose bound or a weak search: the "
        "picture cannot say which. A dot alone: nothing is proven, and larger gains may exist. The gain is an "
        "open-loop property of the policy; it does not bound the closed loop's return."
    )
    return "<h2>Proven and found gain</h2>" + _figure(figures.gains_figure(shown), "Proven and found gain", caption)


def _return_section(runs: Sequence[Run]) -> str:
    parts = ["<h2>Return under perturbed observations</h2>"] if _tasks(runs) else []
    for task in _tasks(runs):
        kinds = list(dict.fromkeys(kind for run in runs for t, kind in run.pairs() if t == task))
        attack = next((row["attack"] for run in runs if run.evaluation for row in run.evaluation["rows"]
                       if row["task"] == task and row.get("attack")), "")  # fmt: skip
        how = {
            "closed_loop": "The attack (pgd) minimises the return through policy and plant, window by window.",
            "deviation": "The attack (pgd) drives the next actions away from the clean ones through the recurrent "
            "state; it does not see the plant.",
        }.get(attack, "")
        caption = (
            "Mean return and 95% bootstrap interval; the same start states and noise at every size. "
            f"{how} An attack keeps, episode by episode, the worst it found at this size or a smaller one. "
            "A stronger attack may exist."
        )
        parts.append(f"<h3>{_e(task)}</h3>")
        parts.append(_figure(figures.curves_figure(runs, task, kinds), f"Return against size in {task}", caption))
        parts += [_return_table(runs, task, kind) for kind in kinds]
    return "".join(parts)


def _return_table(runs: Sequence[Run], task: str, kind: str) -> str:
    found = {run.index: pooled(run.evaluation["rows"], task, kind) for run in runs
             if run.evaluation is not None and (task, kind) in run.pairs()}  # fmt: skip
    sizes = sorted({float(size) for one in found.values() for size in one["size"]})
    rows = []
    for run in runs:
        if run.index in found:
            one = found[run.index]
            at = {float(size): _interval(one, i) for i, size in enumerate(one["size"])}
            rows.append([_name(run), *(at.get(size, "-") for size in sizes)])
    head = ["Policy", *(f"size {size:g}" for size in sizes)]
    table = _table(head, rows, "", range(1, len(head)))
    return f"<details><summary>Table: {_e(kind)}</summary>{table}</details>"


def _training(runs: Sequence[Run]) -> str:
    parts = [_targets(runs)]
    if any(run.training is not None for run in runs):
        caption = "Mean return of recent training episodes, with exploration."
        parts.append(_figure(figures.training_figure(runs), "Training curves", caption))
    return "<h2>Training</h2>" + "".join(parts) if any(parts) else ""


def _targets(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        found = (run.provenance or {}).get("target")
        if not found:
            continue
        badge, at = "<span class='badge VIOLATED'>not reached</span>", ""
        if found["reached_steps"] is not None:
            badge = "<span class='badge PASS'>reached</span>"
            at = f" at {found['reached_steps']:,} steps, {found['reached_cpu_seconds']:.0f} CPU seconds"
        best = "-" if found["best"] is None else f"{found['best']:.1f} at {found['best_steps']:,} steps"
        rows.append([_name(run), f"{found['expected']:g}", f"{found['within']:,}", badge + at, best])
    if not rows:
        return ""
    caption = (
        "What the recipe expects of training, and whether an evaluation while training (the policy without "
        "exploration, in the training task) reached it in time."
    )
    head = ["Policy", "Target return", "Within steps", "Reached", "Best evaluation in time"]
    return _table(head, rows, caption, (1, 2))


def _reproduce(run: Run) -> str:
    provenance = run.provenance or {}
    folder = _e(run.folder)
    command = provenance.get("command")
    train = command if isinstance(command, str) else f"robust-policies train {run.folder / 'recipe.yaml'} -o NEW_FOLDER"
    commands = f"{_e(train)}\nrobust-policies certify {folder}\nrobust-policies evaluate {folder}\n"
    commands += f"robust-policies report {folder}"
    rows = [
        [_e(key.replace("_", " ")), _e(_setting("", provenance[key]).strip())]
        for key in ("seed", "num_timesteps", "training_seconds", "written", "git_commit", "machine")
        if provenance.get(key) is not None
    ]
    versions = provenance.get("versions")
    if isinstance(versions, dict):
        rows.append(["versions", _e(", ".join(f"{key} {value}" for key, value in versions.items()))])
    evaluation = run.evaluation
    if evaluation is not None:
        keys = ("suite", "episodes", "seeds", "attack_budget", "seconds")
        rows.append(["evaluation", _e("; ".join(_setting(k, evaluation[k]) for k in keys if k in evaluation))])
    return f"<h3>{_name(run)}</h3><pre>{commands}</pre>" + (_table(["", ""], rows) if rows else "")


def _setting(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {item}" for key, item in value.items())
    return f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
