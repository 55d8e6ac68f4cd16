"""One self-contained HTML page about one or several run folders, and its pictures as files beside it."""

from __future__ import annotations

import base64
import gc
import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs

from robust_policies import __version__
from robust_policies.errors import InvalidValueError
from robust_policies.evaluation.report import facts, sections, static
from robust_policies.evaluation.report.acceptance import Judged, acceptance, judged
from robust_policies.evaluation.report.certified import certified_chart, certified_tables, certified_tasks
from robust_policies.evaluation.report.chart import Chart
from robust_policies.evaluation.report.gains import gains_chart, gains_panel, tightness_chart, training_chart
from robust_policies.evaluation.report.interactive import embed, panels
from robust_policies.evaluation.report.load import Run, find_runs, load_runs
from robust_policies.evaluation.report.loop import loop_part
from robust_policies.evaluation.report.loop_charts import loop_charts
from robust_policies.evaluation.report.markup import details, escape, figure
from robust_policies.evaluation.report.methods import (
    Method,
    condition_title,
    conditions_of,
    group_by_method,
    main_worst,
    tasks_of,
)
from robust_policies.evaluation.report.model_loop import model_loop_part
from robust_policies.evaluation.report.reproduce import reproduce
from robust_policies.evaluation.report.returns import (
    curve_panel,
    fault_chart,
    gain_chart,
    heat_charts,
    improvement_chart,
    pareto_chart,
    profile_chart,
    return_charts,
    slug,
)
from robust_policies.evaluation.report.trajectories import trajectory_charts
from robust_policies.evaluation.report.verdict import marks, verdict
from robust_policies.files.atomic import output_folder, write_atomic

# The page can load nothing at all: no address but those inside it.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
LEAD = (
    "What is proven of these control policies, and the worst that was found when what they observe, or the plant, is "
    "changed. The certificate is about the policy alone; the returns are measurements, but for those called proven."
)


def write_report(
    folders: Sequence[str | Path] | str | Path, output: str | Path | None = None, limits: str | Path | None = None
) -> Path:
    """Return the path of the report on `folders`, written with overview.png and figures/ beside it.

    Args:
        folders: run folders, or folders that hold run folders; runs of one method are training seeds of it.
        output: the HTML file, or a folder to put report.html in; None: report.html in the first folder.
        limits: a file of acceptance limits for every run; None: limits.yaml of each folder that has one.

    A part that is missing or broken in a folder is named in the report; the rest is still shown.

    Raises:
        MissingFileError: a folder does not exist. InvalidValueError: a folder holds no run, or nothing can be shown.
        UserError: the file of limits is wrong.
    """
    with _uncollected():
        return _written(folders, output, limits)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let Python not look for cycles: it would go through all that was read and imported, again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _written(folders: Sequence[str | Path] | str | Path, output: str | Path | None, limits: str | Path | None) -> Path:
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    runs = load_runs(find_runs(paths))
    if all(run.evaluation is run.certificate is run.returns is None for run in runs):
        why = "; ".join(dict.fromkeys(note.rstrip(".") for run in runs for note in run.notes))
        raise InvalidValueError(
            f"{', '.join(str(path) for path in paths)} holds neither a readable certificate.json nor evaluation.json "
            f"({why}); run `robust-policies certify` and `robust-policies evaluate` on it first."
        )
    target = Path(output) if output is not None else paths[0] / "report.html"
    if target.suffix.lower() != ".html":
        target = target / "report.html"
    with output_folder(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    methods = group_by_method(runs)
    required = judged(methods, limits)
    parts = _charts(methods)
    charts = list({chart.key: chart for group in parts.values() for chart in group}.values())
    pictures = static.save_all(charts, target.parent / "figures", target.name)
    _overview(methods, parts["certified"], target.parent / "overview.png")
    page = render(methods, parts, pictures, required)
    return write_atomic(target, lambda file: file.write(page.encode(errors="replace")))


def _charts(methods: Sequence[Method]) -> dict[str, list[Chart]]:
    """Return the pictures of each part of the page: gains, training, and each task by name."""
    parts = {"gains": _some(gains_chart(methods), tightness_chart(methods)), "training": _some(training_chart(methods))}
    parts["certified"] = _some(*(certified_chart(methods, task) for task in certified_tasks(methods)))
    for run in _with_loop(methods):
        parts[f"loop {run.name}"] = loop_charts(run.loop or {}, slug("loop", run.name), run.name)
    for task in tasks_of(methods):
        here = [method for method in methods if task in method.tasks]
        parts[f"task {task}"] = [
            *return_charts(here, task),
            *_some(gain_chart(here, task), pareto_chart(here, task), fault_chart(here, task)),
            *heat_charts(here, task),
            *_some(profile_chart(here, task), improvement_chart(here, task)),
        ]
        parts[f"trajectories {task}"] = trajectory_charts(here, task)
    return parts


def _with_loop(methods: Sequence[Method]) -> list[Run]:
    return [run for method in methods for run in method.runs if run.loop is not None]


def _some(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _overview(methods: Sequence[Method], certified: Sequence[Chart], path: Path) -> None:
    """Write the picture for a README: what is proven of a return, else the worst attack and the gains."""
    if certified:
        first = certified[0]
        static.save_overview(first.panels[:1], first.legend_entries(), path)
        return
    shown = []
    for task in tasks_of(methods)[:1]:
        here = [method for method in methods if task in method.tasks]
        condition = main_worst(here, task) or next(iter(conditions_of(here, task, ("noise", "fault"))), None)
        if condition is not None:
            shown.append(curve_panel(here, condition, f"Return in {task}: {condition_title(condition)}"))
    gains = gains_panel(methods)
    if gains is not None:
        shown.append(gains)
    if shown:
        chart = Chart("overview", "Overview", "", shown)
        entries = chart.legend_entries() if len(shown) > 1 or gains is None else []
        static.save_overview(shown, entries, path)


def render(
    methods: Sequence[Method], parts: dict[str, list[Chart]], pictures: dict[str, str], required: Judged = ()
) -> str:
    """Return the page."""
    title = ", ".join(method.name for method in methods[:4])
    if len(methods) > 4:
        title += f" and {len(methods) - 4} more"
    header = (
        f"<h1>{escape(title)}</h1>{marks(methods)}<div id='verdict'>{verdict(methods)}</div>"
        f"<p class='lead'>{LEAD}</p>{sections.subtitle(methods)}"
    )
    notes = sections.notes([run for method in methods for run in method.runs])
    charts = [chart for group in parts.values() for chart in group]
    return whole_page(title, header, list(_blocks(methods, parts, pictures, required)), charts, notes)


def whole_page(
    title: str, header: str, blocks: Sequence[tuple[str, str, str]], charts: Sequence[Chart], notes: str = ""
) -> str:
    """Return a page that holds all it needs: style, script and the data of its pictures.

    Args:
        title: plain text.
        header: HTML above the contents.
        blocks: (anchor, title, HTML) of each part.
        charts: all that `figure` was called with.
        notes: HTML between the contents and the parts.
    """
    menu = "".join(f"<a href='#{anchor}'>{escape(name)}</a>" for anchor, name, _ in blocks)
    content = "".join(
        f"<section id='{anchor}'><h2>{escape(name)}</h2>{body}</section>" for anchor, name, body in blocks
    )
    resources = files("robust_policies.evaluation.report")
    css, script = (resources.joinpath(name).read_text() for name in ("report.css", "report.js"))
    data = embed({chart.key: panels(chart) for chart in charts})
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Report: {escape(title)}</title>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{css}</style></head><body><main>"
        f"<header>{header}</header><nav aria-label='Contents'>{menu}</nav>{notes}{content}"
        f"<footer>Written by robust-policies {escape(__version__)}. The pictures are in the folder figures beside this "
        f"page, as PNG and PDF.</footer></main>\n<script type='application/json' id='charts'>{data}</script>\n"
        f"<script type='application/gzip' id='plotly'>{_plotly()}</script>\n<script>{script}</script></body></html>\n"
    )


def _plotly() -> str:
    """Return plotly's library compressed, in base64: two fifths of its length."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _blocks(
    methods: Sequence[Method], parts: dict[str, list[Chart]], pictures: dict[str, str], required: Judged = ()
) -> Iterator[tuple[str, str, str]]:
    """Yield (anchor, title, HTML) of each part of the page that has something to show."""

    def draw(name: str) -> str:
        return "".join(figure(chart, pictures[chart.key]) for chart in parts[name])

    tasks = tasks_of(methods)
    if tasks:
        tables = [
            f"{f'<h3>{escape(task)}</h3>' if len(tasks) > 1 else ''}{sections.glance(methods, task)}" for task in tasks
        ]
        tables.insert(1, sections.terms(methods))
        yield "glance", "At a glance", "".join(tables) + sections.worst_note(methods)
    if required:
        yield "limits", "Acceptance limits", acceptance(required)
    for chart, task in zip(parts["certified"], certified_tasks(methods), strict=True):
        body = figure(chart, pictures[chart.key]) + certified_tables(methods, task)
        yield slug("certified", task), f"Proven of the return in {task}", body
    if parts["gains"]:
        yield "proven-found", "Proven and found", draw("gains")
    for task in tasks:
        here = [method for method in methods if task in method.tasks]
        body = draw(f"task {task}") + sections.attack_tables(here, task)
        episodes = parts[f"trajectories {task}"]
        body += "<h3>Attacked and nominal trajectories</h3>" if episodes else ""
        for number, chart in enumerate(episodes):
            picture = figure(chart, pictures[chart.key], heading=False)
            body += details(escape(chart.title), picture, opened=number == 0)
        yield slug("task", task), f"Returns in {task}", facts.task_table(here, task) + body
    yield "certificates", "What is proven", sections.certificates(methods)
    if loops := model_loop_part(methods):
        yield "model-loop", "Proven of the loop with the identified model", loops
    for run in _with_loop(methods):
        yield (
            slug("linear part", run.name),
            f"Linear part of the loop: {run.name}",
            loop_part(run) + draw(f"loop {run.name}"),
        )
    training = sections.targets(methods) + draw("training")
    if training:
        yield "training-part", "Training", training
    yield "agreement", "What was checked", facts.check_table(methods)
    yield "reproduce", "How to reproduce", reproduce(methods)
    yield "reading", "How to read this report", sections.reading()
    secondary = sections.asides([run for method in methods for run in method.runs])
    if secondary:
        yield "notes", "Notes", secondary
