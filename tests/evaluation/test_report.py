"""The report: what it reads, what it shows, what it must never say, and what broken folders do to it."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import shutil

import numpy as np
import pytest
from report_fixtures import CARTPOLE, METHODS, PENDULUM, SIZES, write_run, write_table

from robust_policies.errors import InvalidValueError, MissingFileError
from robust_policies.evaluation import write_report
from robust_policies.evaluation.report.chart import Chart, Look, Panel, Series
from robust_policies.evaluation.report.load import Run, find_runs, load_runs
from robust_policies.evaluation.report.methods import (
    Condition,
    Method,
    group_by_method,
    interval_words,
    main_worst,
    shown_sizes,
)
from robust_policies.evaluation.report.static import save_all
from robust_policies.evaluation.statistics import iqm

FIGURES = (
    "Proven and found gain", "Tightness of the bound over time", "Return under attack: l2 norm of each step",
    "Return under attack: l2 norm of the whole sequence", "Return under random noise", "Return against measured gain",
    "Natural against worst return", "Return under faults", "Return over mass and length", "Performance profiles",
    "Probability of improvement", "Trajectories of R2DN gamma 3", "Training curves",
)  # fmt: skip
SECTIONS = (
    "At a glance", "Proven and found", f"Returns in {PENDULUM}", "Attack by policy", "What is proven", "Training",
    "How to reproduce", "How to read this report",
)  # fmt: skip


def page_data(page: str) -> dict:
    return json.loads(re.search(r"<script type='application/json' id='charts'>(.*?)</script>", page, re.S)[1])


def words(page: str) -> str:
    """Return the page without scripts, styles and pictures."""
    page = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.S)
    return re.sub(r"src='data:[^']*'", "", page)


def load(root):
    return group_by_method(load_runs(find_runs([root])))


def small(evaluation: dict, sizes=(0.0, 0.3)) -> dict:
    """Return an evaluation with one attack at two sizes, quick to draw."""
    rows = [r for r in evaluation["rows"] if r["perturbation"] == "mad_pgd" and r["size"] in sizes]
    return {**evaluation, "rows": rows, "worst": [], "trajectories": []}


def write_small(folder, method="LSTM", gamma=None, seed=0, **options):
    """Write a run folder whose report has few pictures."""
    write_run(folder, method, gamma, seed, **options)
    path = folder / "evaluation.json"
    path.write_text(json.dumps(small(json.loads(path.read_text()))))
    for name in ("tightness.json", "trajectories.npz"):
        (folder / name).unlink()
    shutil.rmtree(folder / "tensorboard")
    return folder


def test_the_page_has_every_section_and_figure(full_report):
    page = full_report.read_text()
    for title in SECTIONS:
        assert f">{title}</h2>" in page or f">{title}</h3>" in page, title
    for title in FIGURES:
        assert f"alt='{title}'" in page and f"aria-label='{title}" in page, title
    ids = re.findall(r"\bid='([^']+)'", words(page))
    assert len(ids) == len(set(ids)) > len(FIGURES)
    assert set(re.findall(r"href='#([^']+)'", page)) <= set(ids)
    assert page.count("<figcaption>") == page.count("<figure ") == page.count("class='still'") == len(page_data(page))


def test_the_page_is_one_file_that_can_load_nothing(full_report):
    page = full_report.read_text()
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)|@import|url\(["']?http""", outside)
    assert "default-src 'none'" in page and "connect-src" not in page
    (packed,) = re.findall(r"<script type='application/gzip' id='plotly'>([^<]*)</script>", page)
    assert gzip.decompress(base64.b64decode(packed)).decode().count("plotly.js v") == 1 and len(page) < 6e6


def test_the_static_set_holds_every_figure_as_png_and_pdf(full_report):
    folder = full_report.parent / "figures"
    index = json.loads((folder / "index.json").read_text())["figures"]
    assert {item["key"] for item in index} == set(page_data(full_report.read_text()))
    for item in index:
        assert (folder / f"{item['key']}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{item['key']}.pdf").read_bytes().startswith(b"%PDF")
        assert item["title"] and item["caption"]
    assert (full_report.parent / "overview.png").stat().st_size > 10_000


def test_every_figure_is_valid_plotly_and_holds_every_method(full_report):
    import plotly.graph_objects as go

    charts = page_data(full_report.read_text())
    for key, panels in charts.items():
        for panel in panels:
            assert go.Figure(panel).data, key
    worst = charts["robust-policies-pendulum-v0-return-under-attack-l2-norm-of-each-step"][0]["data"]
    assert {trace["name"] for trace in worst} == set(METHODS)
    lines = {trace["name"]: trace for trace in worst if "marker" in trace}
    assert lines["LSTM"]["x"] == list(SIZES) and len({line["marker"]["symbol"] for line in lines.values()}) == 3


def test_values_and_bands_are_the_interquartile_mean_over_training_seeds(tmp_path):
    write_table(tmp_path, seeds=3, methods={"LSTM": None})
    (method,) = load(tmp_path)
    condition = Condition(PENDULUM, "attack", "mad_pgd", "per_step_l2")
    matrix = []
    for run in sorted(tmp_path.iterdir()):
        rows = json.loads((run / "evaluation.json").read_text())["rows"]
        found = [r for r in rows if (r["perturbation"], r["size"]) == ("mad_pgd", 0.21)]
        matrix.append(found[0]["returns"])
    expected = iqm(np.array(matrix), resamples=1000)
    curve = method.curve(condition)
    at = list(curve.sizes).index(0.21)
    assert (curve.value[at], curve.low[at], curve.high[at]) == (expected.value, expected.low, expected.high)
    assert curve.low[at] < curve.value[at] < curve.high[at] and np.array_equal(method.matrix(condition, 0.21), matrix)


def test_intervals_of_methods_with_other_numbers_of_seeds_are_told_apart(tmp_path):
    run = Run(tmp_path, "run", "m", "m")
    several, few, one = (Method("m", 0, [run] * count) for count in (5, 4, 1))
    assert interval_words([several]) == "95% bootstrap interval over training seeds"
    assert interval_words([few]) == "range of the training seeds, least to largest"
    assert interval_words([one, several]) == (
        "95% bootstrap interval over training seeds (methods with five or more training seeds), 95% bootstrap interval "
        "over episodes (methods with one)"
    )


def test_what_intervals_are_over_is_said(full_report, undrawn, tmp_path):
    several = words(full_report.read_text())
    assert "3 methods with 2 training seeds each" in several
    assert "Intervals are the least and the largest training seed's value" in several
    assert "range of the training seeds, least to largest" in several
    assert "interquartile mean [range of the training seeds, least to largest]" in several
    assert "95% bootstrap" not in several.split("How to read this report")[0]
    one = words(write_report(write_small(tmp_path / "run")).read_text())
    assert "1 method with 1 training seed each" in one and "are over episodes" in one
    assert "bootstrap interval over episodes" in one


def test_the_page_states_the_limits_and_never_bounds_a_return(full_report):
    text = html.unescape(re.sub(r"<[^>]+>", "", words(full_report.read_text())))
    for limit in (
        "a gain in open loop does not bound a return in closed loop",
        "it does not bound the closed loop's return",
        "a loose bound or a weak search",
        "A stronger attack may exist.",
        "A measured ratio is not a bound",
    ):
        assert limit in text, limit
    assert not re.search(r"return[^.]{0,40} (is|are) (bounded|guaranteed|proven)|guarantee[sd]? [^.]*return", text)


def test_the_table_at_a_glance_has_proven_and_measured_side_by_side(full_report):
    table = re.search(r"id='glance'.*?</table>", full_report.read_text(), re.S)[0]
    for head in (
        "Proven gain", "Found gain", "Nominal return", "Worst attack, size 0.06", "CVaR 10%", "Size at 80%", "Seeds",
    ):  # fmt: skip
        assert head in table, head
    assert table.count("<tr>") == 1 + len(METHODS) and "&gt; 0.3" in table and "not certified" in table


def test_words_from_files_are_only_words(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"%{x}&amp;$x^2$"
    for seed in (0, 1):
        folder = write_small(tmp_path / f"run_{seed}", evil, 3.0, seed)
        content = json.loads((folder / "evaluation.json").read_text())
        for row in content["rows"]:
            row |= {"task": evil, "attack": evil, "unit": evil}
        content["failures"] = content["skipped"] = [{"task": evil, "perturbation": evil, "reason": evil}]
        (folder / "evaluation.json").write_text(json.dumps(content))
        certificate = json.loads((folder / "certificate.json").read_text())
        certificate |= {"claim": evil, "factors": [{"name": evil, "gain": 3.0, "note": evil}]}
        (folder / "certificate.json").write_text(json.dumps(certificate))
        (folder / "provenance.json").write_text(json.dumps({"schema": 1, "command": evil, "versions": {evil: evil}}))
    page = write_report(tmp_path).read_text()
    assert page.count("<script") - page.count("<script>") == 2 and page.count("<script>") == 1
    assert "<script>alert" not in page and "<img src=x" not in page and "onerror=alert(2)&gt;" in page
    names = {trace["name"] for panels in page_data(page).values() for panel in panels for trace in panel["data"]}
    assert evil in names
    metas = [t["meta"] for panels in page_data(page).values() for panel in panels for t in panel["data"] if "meta" in t]
    assert all("<" not in meta for meta in metas)


def test_broken_and_missing_files_are_named_and_the_rest_is_shown(tmp_path):
    whole = write_small(tmp_path / "whole", "LSTM")
    broken = write_run(tmp_path / "broken", "R2DN gamma 3", 3.0)
    (broken / "certificate.json").unlink()
    (broken / "tightness.json").write_text('{"schema": 1, "steps": [1, 2], "gain": [1.0]}')
    (broken / "trajectories.npz").write_bytes((broken / "trajectories.npz").read_bytes()[:200])
    (broken / "provenance.json").write_text("[1]")
    next((broken / "tensorboard").glob("events*")).write_bytes(b"\xff\xfe\x00")
    content = small(json.loads((broken / "evaluation.json").read_text()))
    content |= {"trajectories": [{"key": "t0_0"}], "rows": [*content["rows"], {"task": "x"}, "y", None]}
    content["rows"][0] = {**content["rows"][0], "returns": [1.0, float("nan")]}
    content |= {"failures": 3, "skipped": [None], "critical_sizes": {}, "perturbations": 1.5, "method": "\ud800"}
    (broken / "evaluation.json").write_text(json.dumps(content))
    cut = write_small(tmp_path / "cut", "MLP")
    (cut / "evaluation.json").write_text('{"schema": 2, "rows": [')
    text = words(write_report(tmp_path).read_text())
    for note in (
        "certificate.json does not exist", "tightness.json: steps and gains", "trajectories.npz cannot be read",
        "provenance.json has no whole-number", f"4 of {len(content['rows'])} rows", "evaluation.json is not JSON",
    ):  # fmt: skip
        assert note in text, note
    assert "no certificate" in text and "LSTM" in text and whole.name in text


def test_an_evaluation_of_a_newer_schema_is_named(tmp_path):
    write_small(tmp_path / "run")
    (tmp_path / "run/evaluation.json").write_text('{"schema": 99, "rows": []}')
    assert "Upgrade robust-policies" in words(write_report(tmp_path).read_text())


def test_mixed_tasks_have_a_part_each(undrawn, tmp_path):
    write_small(tmp_path / "a", "LSTM", tasks=(PENDULUM,))
    write_small(tmp_path / "b", "MLP", tasks=(PENDULUM, CARTPOLE))
    page = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html").read_text()
    assert f"Returns in {PENDULUM}</h2>" in page and f"Returns in {CARTPOLE}</h2>" in page
    assert "Not all of these policies were evaluated in the same tasks" in page
    charts = page_data(page)
    both, one = (charts[f"robust-policies-{name}-v0-return-under-attack-l2-norm-of-each-step"][0]["data"]
                 for name in ("pendulum", "cartpole"))  # fmt: skip
    assert {trace["name"] for trace in both} == {"LSTM", "MLP"} and {trace["name"] for trace in one} == {"MLP"}


def test_without_a_method_and_a_chosen_worst_attack_both_are_derived_and_said(undrawn, tmp_path):
    folder = write_small(tmp_path / "run")
    content = json.loads((folder / "evaluation.json").read_text()) | {"cell": "lstm"}
    del content["method"], content["worst"]
    (folder / "evaluation.json").write_text(json.dumps(content))
    page = write_report(folder).read_text()
    chart = page_data(page)["robust-policies-pendulum-v0-return-under-attack-l2-norm-of-each-step"]
    assert chart[0]["data"][-1]["x"] == [0, 0.3]
    assert "lstm (run)" in page and "it flatters the attack" in page


def test_training_seeds_of_one_recipe_are_one_method_without_a_name_too(tmp_path):
    for seed in range(3):
        folder = write_small(tmp_path / f"lstm_seed{seed}", seed=seed)
        content = json.loads((folder / "evaluation.json").read_text())
        del content["method"]
        (folder / "evaluation.json").write_text(json.dumps(content))
    (method,) = load(tmp_path)
    assert method.name == "r2dn (lstm)" and [run.training_seed for run in method.runs] == [0, 1, 2]


def test_folders_are_found_in_natural_order_and_once(tmp_path):
    for seed in (10, 2, 1):
        write_small(tmp_path / "runs" / f"seed_{seed}")
    (tmp_path / "runs" / "notes").mkdir()
    found = find_runs([tmp_path / "runs", tmp_path / "runs" / "seed_2"])
    assert [path.name for path in found] == ["seed_1", "seed_2", "seed_10"]
    write_small(tmp_path / "table" / "runs" / "lstm" / "seed=3")
    assert find_runs([tmp_path / "table" / "runs"]) == [tmp_path / "table" / "runs" / "lstm" / "seed=3"]
    with pytest.raises(InvalidValueError, match="holds none"):
        find_runs([tmp_path / "table"])


def test_the_worst_attack_is_that_chosen_on_other_episodes(tmp_path):
    write_run(tmp_path / "run", "LSTM", None)
    (method,) = load(tmp_path)
    worst = main_worst([method], PENDULUM)
    content = json.loads((tmp_path / "run/evaluation.json").read_text())
    chosen = [w for w in content["worst"] if (w["norm"], w["size"]) == ("per_step_l2", 0.3)]
    assert worst.norm == "per_step_l2" and np.array_equal(method.matrix(worst, 0.3)[0], chosen[0]["returns"])
    assert (
        shown_sizes([method], worst) == [0.06, 0.15, 0.3] and method.area(worst, 0.3) < method.interval(worst, 0.0)[0]
    )


def test_figures_of_an_earlier_report_do_not_stay(tmp_path):
    panel = Panel("", "x", "y", [Series("line", Look.of(0), [0.0, 1.0], [1.0, 2.0])])
    old, new = (Chart(key, key, "", [panel]) for key in ("old", "new"))
    save_all([old], tmp_path, "report.html")
    (tmp_path / "mine.png").write_bytes(b"mine")
    save_all([new], tmp_path, "other.html")
    assert (tmp_path / "old.png").is_file()
    save_all([old], tmp_path, "report.html")
    save_all([new], tmp_path, "report.html")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"new.png", "new.pdf", "mine.png", "index.json"}


def test_nothing_to_show_is_said_in_one_line(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        write_report(tmp_path / "none")
    with pytest.raises(InvalidValueError, match="is not a run folder and holds none"):
        write_report(tmp_path)
    with pytest.raises(InvalidValueError, match="No run folder"):
        write_report([])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("schema: 1\n")
    with pytest.raises(InvalidValueError, match="evaluate") as caught:
        write_report(tmp_path / "run")
    assert "\n" not in str(caught.value) and not list((tmp_path / "run").glob("*.html"))


@pytest.mark.parametrize(
    ("values", "inside"),
    [([1.0, 300.0], [1, 2, 5, 10, 20, 50, 100, 200]), ([11.857, 11.96], [11.86, 11.95]), ([4.0], [4.0])],
)
def test_logarithmic_axes_have_round_numbers_within_their_range(values, inside):
    panel = Panel("", "x", "y", [Series("line", Look.of(0), values, values)], log_x=True)
    assert set(inside) <= set(panel.ticks_x)
