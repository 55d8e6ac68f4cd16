"""The part of the report about proven returns: the picture's data, the tables, and what it must never say."""

import json
import re
from dataclasses import replace

import pytest

from robust_policies.evaluation import write_report
from robust_policies.evaluation.report.certified import certified_chart, certified_tables, certified_words
from robust_policies.evaluation.report.interactive import panels
from robust_policies.evaluation.report.load import find_runs, load_runs
from robust_policies.evaluation.report.methods import group_by_method
from robust_policies.evaluation.report.static import draw
from robust_policies.policies.return_certificate import ReturnCertificate, ReturnRow, SensorErrors

TASK = "robust_policies/MassSpringDamper-v0"
ROWS = (
    ReturnRow(size=0.02, nominal=-1.5, found=-2.0, certified=-2.5, clipped_share=0.0),
    ReturnRow(size=0.1, nominal=-1.5, found=-6.0, certified=None, clipped_share=0.25, unclipped=-12.0),
    ReturnRow(size=0.05, nominal=-1.5, found=-3.0, certified=-5.0, clipped_share=0.0),
)
SENSORS = (SensorErrors("position [m]", {"force [N]": 36.24311}, {"position [m]": 9.8, "velocity [m/s]": None}),)
PROVEN = ReturnCertificate("PASS", "per_step_l2", 6.7, 0.06, 16, ROWS, TASK, 3, sensors=SENSORS)
UNPROVEN = replace(
    PROVEN,
    status="NOT_CERTIFIED",
    gain=None,
    unclipped_up_to=None,
    rows=tuple(replace(row, certified=None, unclipped=None, found=row.found - 1) for row in ROWS),
    reason="it has gates",
    sensors=(SensorErrors("position [m]", {"force [N]": None}, {"position [m]": None}, "it has gates"),),
)


def methods(root, **certificates):
    for name, certificate in certificates.items():
        (root / name).mkdir(parents=True)
        certificate.to_json(root / name / "return_certificate.json")
    return group_by_method(load_runs(find_runs([root])))


def lines(found):
    (panel,) = certified_chart(found, TASK).panels
    return panel, {(one.name, one.kind): (list(one.x), list(one.y)) for one in panel.series}


def test_the_picture_holds_nominal_found_and_proven_and_greys_what_may_be_clipped(tmp_path):
    found = methods(tmp_path, r2dn=PROVEN, lstm=UNPROVEN)
    panel, shown = lines(found)
    assert panel.x_label == "error: l2 norm of each step (m)" and panel.grey_from == 0.06
    sizes = [0.0, 0.02, 0.05, 0.1]
    assert shown == {
        ("lstm", "worst found"): (sizes, [-1.5, -3.0, -4.0, -7.0]),
        ("lstm", "no error"): (sizes, [-1.5] * 4),
        ("r2dn", "worst found"): (sizes, [-1.5, -2.0, -3.0, -6.0]),
        ("r2dn", "no error"): (sizes, [-1.5] * 4),
        ("r2dn", "proven"): (sizes[:3], [-1.5, -2.5, -5.0]),
        ("r2dn", "proven if no action is clipped"): ([0.05, 0.1], [-5.0, -12.0]),
    }
    # A bound of an error holds for every smaller one: the step is down before its size.
    assert {one.kind for one in panel.series if one.step == "before"} == {"proven", "proven if no action is clipped"}


def test_the_page_and_the_file_draw_the_same(tmp_path):
    chart = certified_chart(methods(tmp_path, r2dn=PROVEN, lstm=UNPROVEN), TASK)
    (panel,) = panels(chart)
    steps = [trace for trace in panel["data"] if trace.get("line", {}).get("shape") == "vh"]
    assert [trace["y"] for trace in steps] == [[-1.5, -2.5, -5.0], [-5.0, -12.0]]
    words = [trace["text"][0] for trace in panel["data"] if "text" in trace["mode"]]
    assert sorted(words) == ["no error", "proven", "proven if no action is clipped", "worst found"]
    (area,) = panel["layout"]["shapes"]
    assert (area["x0"], area["x1"]) == (0.06, 0.1)
    (axes,) = draw(chart).axes
    drawn = [list(line.get_ydata()) for line in axes.lines if line.get_drawstyle() == "steps-pre"]
    assert drawn == [[-1.5, -2.5, -5.0], [-5.0, -12.0]]
    assert axes.patches[0].get_x() == pytest.approx(0.06)


def test_training_seeds_are_averaged_and_no_seed_without_a_proof_is_hidden(tmp_path):
    lower = [replace(row, certified=row.certified - 4) if row.certified is not None else row for row in ROWS]
    worse = replace(PROVEN, rows=tuple(replace(row, found=row.found - 2) for row in lower))
    for name, certificates in (("both", (PROVEN, worse)), ("one", (PROVEN, UNPROVEN))):
        for seed, certificate in enumerate(certificates):
            folder = tmp_path / name / f"seed{seed}"
            folder.mkdir(parents=True)
            certificate.to_json(folder / "return_certificate.json")
            (folder / "evaluation.json").write_text(json.dumps({"schema": 2, "method": "R2DN", "rows": []}))
    (both,) = group_by_method(load_runs(find_runs([tmp_path / "both"])))
    _, shown = lines([both])
    assert shown["R2DN", "worst found"][1] == [-1.5, -3.0, -4.0, -7.0]
    assert shown["R2DN", "proven"][1] == [-1.5, -4.5, -7.0]
    assert "below <b>-9</b>" in certified_words(both)
    (one,) = group_by_method(load_runs(find_runs([tmp_path / "one"])))
    _, shown = lines([one])
    assert set(shown) == {("R2DN", "worst found"), ("R2DN", "no error")} and certified_words(one) == ""


def test_the_tables_have_the_numbers_in_the_tasks_units_and_say_why_there_are_none(tmp_path):
    found = methods(tmp_path, r2dn=PROVEN, lstm=UNPROVEN)
    html = certified_tables(found, TASK)
    cells = [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", html)]
    assert cells[cells.index("r2dn") + 1 :][:5] == ["0.02 l2 norm of each step", "-1.5", "-2", "-2.5", "0.00%"]
    assert "-12 if no action is clipped" in cells and "-5" in cells
    # Rounded up, in the order of the head; nothing proven is a dash with its reason.
    assert cells[-5:] == ["r2dn", "36.25", "9.8", "-", ""]
    assert cells[-10:-5] == ["lstm", "-", "-", "-", "it has gates"]
    for head in ("force [N]", "position [m]", "velocity [m/s]", "Why nothing is proven"):
        assert f">{head}</th>" in html
    (proven,) = (method for method in found if method.name == "r2dn")
    assert "below <b>-5</b>: proven" in certified_words(proven)


def test_a_report_of_return_certificates_alone_is_written(tmp_path):
    methods(tmp_path, r2dn=PROVEN)
    page = write_report(tmp_path, tmp_path / "out").read_text()
    assert f"Proven of the return in {TASK}</h2>" in page and "certified-return" in page
    assert (tmp_path / "out" / "overview.png").stat().st_size > 10_000


def test_a_broken_certificate_is_named_and_an_older_one_is_read(tmp_path):
    methods(tmp_path, r2dn=PROVEN, lstm=UNPROVEN)
    path = tmp_path / "lstm" / "return_certificate.json"
    content = json.loads(path.read_text())
    content["rows"][0]["found"] = "-2"
    path.write_text(json.dumps(content))
    old = tmp_path / "r2dn" / "return_certificate.json"
    content = json.loads(old.read_text())
    del content["sensors"]
    old.write_text(json.dumps(content))
    broken, read = load_runs(find_runs([tmp_path]))
    assert not any("evaluation.json" in note for note in read.notes)
    assert broken.returns is None and any("something else than numbers" in note for note in broken.notes)
    assert read.returns == replace(PROVEN, sensors=())
