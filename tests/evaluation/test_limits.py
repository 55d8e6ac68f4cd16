"""Acceptance limits: what is asked for, where it is read, and that what is missing or forged is never met."""

import json
import math
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from policy_files import written
from report_fixtures import PENDULUM, write_run

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.errors import InvalidValueError, UnknownNameError, UserError
from robust_policies.evaluation import write_report
from robust_policies.evaluation.junit import write_junit
from robust_policies.evaluation.limits import Limits, judge, read_limits, requirement
from robust_policies.evaluation.quantities import QUANTITIES, asked_for
from robust_policies.evaluation.readings import read
from robust_policies.evaluation.report.load import load_runs
from robust_policies.policies import load_policy
from robust_policies.policies.return_certificate import ReturnCertificate, ReturnRow


def judged(folder, *texts, task=None):
    [run] = load_runs([folder], pictures=False)
    return judge(run, Limits(tuple(map(requirement, texts)), task))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "r2dn", "R2DN", 3.0)


def rows_of(folder, **labels):
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    return [row for row in rows if all(row[key] == value for key, value in labels.items())]


@pytest.mark.parametrize(
    ("text", "sign", "limit", "size", "of"),
    [
        ("gamma<=12", "<=", 12.0, None, None),
        ("  gamma <= 1e-2 ", "<=", 0.01, None, None),
        ("certified_return@.1>=-8", ">=", -8.0, 0.1, None),
        ("return @ 1e-1 > -.5", ">", -0.5, 0.1, None),
        ("return:closed_loop_pgd@0.1 ≥ -200", ">=", -200.0, 0.1, "closed_loop_pgd"),
        ("rate<+1.", "<", 1.0, None, None),
    ],
)
def test_limits_are_read_as_people_write_them(text, sign, limit, size, of):
    found = requirement(text)
    assert (found.operator, found.limit, found.asked.size, found.asked.of) == (sign, limit, size, of)
    assert requirement(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gama<=12", "Did you mean 'gamma'"),
        ("gamma 12", "expected NAME[@SIZE] OP NUMBER"),
        ("gamma=<12", "expected one of <=, >=, <, >"),
        ("gamma==12", "expected one of"),
        ("gamma<=twelve", "'twelve'; expected a finite number"),
        ("gamma<=inf", "finite number"),
        ("gamma<=nan", "finite number"),
        ("gamma<=", "finite number"),
        ("gamma<=1,2", "finite number"),
        ("gamma<=1<2", "expected NAME"),
        ("gamma@0.1<=1", "takes none"),
        ("certified_return>=-8", "certified_return@0.1"),
        ("return@-0.1>=1", "at least 0"),
        ("return@x>=1", "size of return"),
        ("gamma:mad_pgd<=1", "of no attack"),
        ("return:mad_pgd>=1", "expected its size"),
        ("", "expected NAME"),
    ],
)
def test_a_wrong_limit_is_one_line_that_says_what_is_right(text, said):
    with pytest.raises(UserError) as error:
        requirement(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_every_quantity_can_be_asked_for_and_its_absence_names_a_command(tmp_path):
    empty = write_run(tmp_path / "empty", "R2DN", 3.0)
    for path in empty.iterdir():
        if path.is_file():
            path.unlink()
    [run] = load_runs([empty], pictures=False)
    for name, quantity in QUANTITIES.items():
        found = read(run, asked_for(f"{name}@0.1" if quantity.size == "needed" else name, "test"))
        assert found.value is None and "robust-policies" in found.reason and str(empty) in found.reason, name


def test_bounds_and_what_was_found_are_those_of_the_certificate(made_up):
    content = json.loads((made_up / "certificate.json").read_text())
    met, found, rate, weighted, peak = judged(
        made_up, "gamma <= 3", "found_gain < 3", "rate < 1", "gamma_weighted < 9", "peak < 1"
    )
    assert met.met and met.value == content["gamma_raw"] and met.margin == 0.0
    assert found.met and found.value == content["empirical_lower"]
    assert not rate.met and rate.value == 1.0 and rate.margin == 0.0
    assert not weighted.met and "--weights" in weighted.reason
    assert not peak.met and "no peak is proven" in peak.reason
    assert not judged(made_up, f"gamma <= {math.nextafter(3.0, 0.0)!r}")[0].met


def test_returns_are_the_means_of_the_worst_that_was_run(made_up):
    names = ["return", "return@0.11", "return:total_l2@0.11", "return:mad_pgd@0.11", "return:ObservationDelay@2"]
    values = [one.value for one in judged(made_up, *(f"{name} >= -1e9" for name in names))]
    nominal = rows_of(made_up, perturbation="none")[0]["returns"]
    attacks = rows_of(made_up, group="attack", size=0.11)
    # The worst of each norm is chosen on other episodes; here they are the same ones.
    assert values[0] == pytest.approx(np.mean(nominal), rel=1e-12)
    assert values[1] == pytest.approx(min(row["mean"] for row in attacks), rel=1e-12)
    assert values[2] == pytest.approx(min(row["mean"] for row in attacks if row["norm"] == "total_l2"), rel=1e-12)
    assert values[3] == pytest.approx(next(row["mean"] for row in attacks if row["perturbation"] == "mad_pgd"))
    [delay] = rows_of(made_up, perturbation="ObservationDelay", size=2.0)
    assert values[4] == pytest.approx(delay["mean"], rel=1e-12)
    low, tenth, least, mean = (
        one.value
        for one in judged(made_up, *(f"{n}@0.11 > 0" for n in ("return_low", "return_cvar", "return_least", "return")))
    )
    assert least <= tenth <= mean and low < mean
    assert judged(made_up, "return@0 < 0")[0].value == values[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("return@0.12 > -1", ["no size 0.12", "0.06", "0.11", "evaluate", "--sizes"]),
        ("return:closed_lop_pgd@0.11 > -1", ["Did you mean 'closed_loop_pgd'", "There are"]),
        ("return:critic_pgd@0.11 > -1", ["Unknown", "--attack critic_pgd"]),
        ("survival >= 1", ["does not state how long", "evaluate"]),
        ("certified_return@0.1 >= -8", ["there is no return_certificate.json", "certify", "--return"]),
        ("smoothed_return@0.1 >= -8", ["there is no smoothed_return.json", "--smooth"]),
    ],
)
def test_what_is_missing_names_what_exists_and_what_makes_it(made_up, text, said):
    [one] = judged(made_up, text)
    assert not one.met and one.value is None and one.margin is None
    assert all(part in one.reason for part in said), one.reason


def test_another_task_has_its_own_returns(tmp_path):
    folder = write_run(tmp_path / "two", "R2DN", 3.0, tasks=(PENDULUM, "robust_policies/CartPole-v0"))
    [first] = judged(folder, "return > -1e9")
    [same] = judged(folder, "return > -1e9", task=PENDULUM)
    [second] = judged(folder, "return > -1e9", task="robust_policies/CartPole-v0")
    assert first.value == same.value != second.value
    [none] = judged(folder, "return > -1e9", task="robust_policies/Acrobot-v0")
    assert "was not evaluated" in none.reason and "--task robust_policies/Acrobot-v0" in none.reason


ROWS = (
    ReturnRow(size=0.02, nominal=-1.5, found=-2.0, certified=-2.5, clipped_share=0.0),
    ReturnRow(size=0.1, nominal=-1.5, found=-6.0, certified=None, clipped_share=0.25, unclipped=-12.0),
)
PROVEN = ReturnCertificate(
    "PASS", "per_step_l2", 6.7, 0.06, 2, ROWS, PENDULUM, 3, each=((-2.0, -3.0), (-10.0, -math.inf))
)


def with_return(root, certificate):
    folder = write_run(root / "run", "R2DN", 3.0)
    certificate.to_json(folder / "return_certificate.json")
    return folder


def test_what_is_proven_of_the_return_is_read_by_size(tmp_path):
    folder = with_return(tmp_path, PROVEN)
    bound, found, clipped, other = judged(
        folder, "certified_return@0.02 >= -3", "found_return@.02 >= -2.5", "certified_return@0.1 >= -20",
        "certified_return@0.05 >= -20",
    )  # fmt: skip
    assert bound.met and bound.value == -2.5 and bound.margin == 0.5 and bound.shown == ("-2.5", ">= -3", "0.5")
    assert found.met and found.value == -2.0
    assert not clipped.met and "only while no action is clipped" in clipped.reason
    assert not other.met and "there are 0.02, 0.1" in other.reason and "--return --sizes" in other.reason


@pytest.mark.parametrize(
    "forged",
    [
        replace(PROVEN, rows=(replace(ROWS[0], certified=-1.0, found=-0.5), ROWS[1])),
        replace(PROVEN, rows=(ROWS[0], replace(ROWS[1], certified=-7.0))),
        replace(PROVEN, rows=(replace(ROWS[0], found=-2.6), ROWS[1])),
        replace(PROVEN, each=()),
    ],
    ids=["a bound", "a bound where there was none", "worse was found", "without its episodes"],
)
def test_an_edited_bound_of_the_return_meets_nothing(tmp_path, forged):
    folder = with_return(tmp_path, forged)
    assert not judged(folder, "certified_return@0.02 >= -3")[0].met


@pytest.fixture
def real(tmp_path):
    """A folder whose returns are said to be of the policy in it."""
    folder = written(write_run(tmp_path / "real", "LSTM", None), "lstm")
    (folder / "certificate.json").unlink()
    changed(folder, policy_sha256=digest(array_hashes(load_policy(folder).running_arrays())))
    return folder


def changed(folder, **entries):
    path = folder / "evaluation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_an_honest_folder_meets_what_is_so(real):
    changed(real, task_numbers={PENDULUM: {"max_episode_steps": 200}})
    outcomes = judged(real, "return@0.3 >= -1e6", "survival >= 1", "measured_gain@0.3 < 1e6", "critical_size > 0")
    assert all(one.met for one in outcomes), [one.reason for one in outcomes]
    assert outcomes[2].value == max(row["measured_gain"] for row in rows_of(real, group="attack", size=0.3))
    changed(real, task_numbers={PENDULUM: {"max_episode_steps": 201}})
    assert judged(real, "survival >= 1")[0].value == 0.0


@pytest.mark.parametrize("forged", ["another policy's", "a mean"])
def test_a_folder_whose_files_do_not_agree_meets_nothing(real, forged):
    if forged == "a mean":
        rows = rows_of(real)
        changed(real, rows=[{**rows[0], "mean": rows[0]["mean"] + 5.0}, *rows[1:]])
    else:
        changed(real, policy_sha256="0" * 64)
    outcomes = judged(real, "steps <= 1e9", "return >= -1e6")
    assert not any(one.met for one in outcomes)
    assert all("do not agree" in one.reason for one in outcomes)


def test_a_proven_return_of_another_policy_meets_nothing(real):
    own = json.loads((real / "evaluation.json").read_text())["policy_sha256"]
    replace(PROVEN, policy_sha256=own).to_json(real / "return_certificate.json")
    assert judged(real, "certified_return@0.02 >= -3")[0].met
    replace(PROVEN, policy_sha256="0" * 64).to_json(real / "return_certificate.json")
    [one] = judged(real, "certified_return@0.02 >= -3")
    assert not one.met and "another policy" in one.reason


def test_a_file_of_limits_has_labels_and_a_task(tmp_path):
    path = tmp_path / "limits.yaml"
    path.write_text(
        f"schema: 1\ntask: {PENDULUM}\nrequire:\n- gamma <= 12\n- {{require: return@.1 >= -2e2, label: SR-7}}\n"
    )
    limits = read_limits(path)
    assert limits.task == PENDULUM
    assert [(str(one), one.label) for one in limits.requirements] == [
        ("gamma <= 12", ""),
        ("return@0.1 >= -200", "SR-7"),
    ]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("[gamma <= 12]", InvalidValueError, "holds no keys"),
        ("require: []", UserError, "require"),
        ("requre: [gamma <= 12]", UserError, "require"),
        ("require: [gama <= 12]", UnknownNameError, "gamma"),
        ("require: [{require: gamma <= 12, lable: x}]", UserError, "label"),
        ("schema: 2\nrequire: [gamma <= 12]", UserError, "schema"),
        ("require: [gamma <= 12", UserError, "not YAML"),
        ("require: [3]", UserError, "require"),
    ],
)
def test_a_wrong_file_of_limits_is_one_line(tmp_path, text, kind, said):
    path = tmp_path / "limits.yaml"
    path.write_text(text)
    with pytest.raises(kind) as error:
        read_limits(path)
    assert said in str(error.value) and "\n" not in str(error.value) and "limits.yaml" in str(error.value)


def test_junit_has_a_case_for_each_limit(tmp_path, made_up):
    outcomes = judged(made_up, "gamma <= 12", "return@0.12 > 0", "gamma < 3")
    outcomes[0] = replace(outcomes[0], requirement=replace(outcomes[0].requirement, label="SR-7 <\x00&>"))
    path = write_junit(tmp_path / "new" / "check.xml", "run \x1b & co", outcomes, {"commit": "ab\x00"})
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag == "testsuites" and (root.get("tests"), root.get("failures")) == ("3", "2")
    cases = root.findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["SR-7 <?&>: gamma <= 12", "return@0.12 > 0", "gamma < 3"]
    failures = [case.find("failure") for case in cases]
    assert failures[0] is None and failures[1].get("type") == "missing" and failures[2].get("type") == "limit"
    assert "no size 0.12" in failures[1].get("message") and "value 3" in failures[2].get("message")


def test_a_report_shows_the_limits_of_a_folder_or_a_file(made_up, tmp_path, monkeypatch):
    folder = shutil.copytree(made_up, tmp_path / "run")
    shutil.rmtree(folder / "tensorboard")
    monkeypatch.setattr(
        "robust_policies.evaluation.report.static.save_all", lambda charts, *_: {c.key: "" for c in charts}
    )
    monkeypatch.setattr("robust_policies.evaluation.report.page._charts", lambda methods: {"gains": [], "training": [],
        "certified": [], f"task {PENDULUM}": [], f"trajectories {PENDULUM}": []})  # fmt: skip
    assert "Acceptance limits" not in write_report(folder).read_text()
    (folder / "limits.yaml").write_text("require: [gamma <= 12, {require: gamma <= 2, label: SR-<1>}]")
    page = write_report(folder).read_text()
    assert "Acceptance limits" in page and "SR-&lt;1&gt;" in page and "1 of 2 requirements met" not in page
    assert page.count(">met</span>") == 1 and page.count(">not met</span>") == 1
    other = tmp_path / "other.yaml"
    other.write_text("require: [gamma <= 1]")
    page = write_report(folder, limits=other).read_text()
    assert page.count(">not met</span>") == 1 and ">met</span>" not in page
    (folder / "limits.yaml").write_text("require: [gama <= 1]")
    page = write_report(folder).read_text()
    assert "Acceptance limits" not in page and "Did you mean" in page
    other.write_text("require: [gama <= 1]")
    with pytest.raises(UnknownNameError):
        write_report(folder, limits=other)
