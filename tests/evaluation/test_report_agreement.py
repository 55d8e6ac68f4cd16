"""What was edited, copied or measured on another policy is marked at the top of a report; honest folders are not."""

import json
import re
import shutil

import pytest
import torch
from tiny import tiny_folder, tiny_policy, tiny_suite

from robust_policies.certificates.certificate import array_hashes, digest
from robust_policies.evaluation import certify_run, evaluate_run
from robust_policies.evaluation.report.facts import check_table, task_table
from robust_policies.evaluation.report.load import find_runs, load_runs
from robust_policies.evaluation.report.methods import group_by_method
from robust_policies.evaluation.report.sections import badge, certificates
from robust_policies.evaluation.report.verdict import marks, verdict
from robust_policies.policies import save_policy

OURS = "robust_policies/Pendulum-v0"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tiny_folder(tmp_path_factory.mktemp("runs") / "good", steps=10)
    certify_run(folder, steps=3)
    evaluate_run(
        folder, suite=tiny_suite(noise=[], faults=[], parameters=[], disturbances=[], sizes=[0, 0.4]), tasks=[OURS]
    )
    return folder


@pytest.fixture
def run(good, tmp_path):
    return shutil.copytree(good, tmp_path / "run")


def edited(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def methods_of(*folders):
    return group_by_method(load_runs(find_runs(list(folders))))


def test_an_honest_folder_has_its_hashes_and_no_mark(run):
    methods = methods_of(run)
    assert marks(methods) == "" and "badge PASS" in badge(methods[0].runs)
    assert "<b>proven</b>" in verdict(methods) and "not checked" not in verdict(methods)
    own = digest(array_hashes(tiny_policy().running_arrays()))
    assert json.loads((run / "evaluation.json").read_text())["policy_sha256"] == own
    table = check_table(methods)
    assert table.count(own[:16]) == 4 and "not stated" in table and ">agrees<" in table


def test_a_halved_gain_is_marked_and_no_longer_called_proven(run):
    certificate = json.loads((run / "certificate.json").read_text())
    edited(run / "certificate.json", gamma_raw=certificate["gamma_raw"] / 2)
    methods = methods_of(run)
    assert "does not agree" in marks(methods) and "gamma_raw" in marks(methods)
    assert "not confirmed" in verdict(methods) and "<b>proven</b>" not in verdict(methods)
    assert "badge DISAGREES" in badge(methods[0].runs) and "badge PASS" not in certificates(methods)
    assert ">does not agree<" in check_table(methods)


def test_a_larger_found_gain_beside_a_smaller_proven_one_is_marked_without_the_policy_too(run):
    (run / "policy.json").unlink()
    edited(run / "certificate.json", empirical_lower=9.0, gamma_raw=4.5, ratio=2.0)
    assert "the gain 9 that was found is above the proven 4.5" in marks(methods_of(run))


def test_without_the_policy_the_certificate_is_called_unchecked(run):
    (run / "policy.json").unlink()
    methods = methods_of(run)
    assert marks(methods) == "" and "was not checked here" in verdict(methods)
    assert "not checked: the policy cannot be read" in check_table(methods)


def test_returns_of_another_policy_are_marked(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    policy = tiny_policy()
    with torch.no_grad():
        policy.actor.head.scale.mul_(0.5)
    save_policy(policy, other)
    certify_run(other, steps=3)
    assert "its returns are of another policy" in marks(methods_of(other))


def test_an_older_evaluation_states_no_policy(run):
    content = json.loads((run / "evaluation.json").read_text())
    del content["policy_sha256"], content["task_numbers"]
    (run / "evaluation.json").write_text(json.dumps(content))
    methods = methods_of(run)
    assert marks(methods) == "" and methods[0].runs[0].agreement.evaluated is None
    assert check_table(methods).count(">not stated<") == 3


@pytest.mark.parametrize("where", ["rows", "worst"])
def test_edited_returns_are_marked(run, where):
    content = json.loads((run / "evaluation.json").read_text())
    worst = content["worst"][-1]
    same = [row for row in content["rows"] if (row["perturbation"], row["size"]) == (worst["attack"], worst["size"])]
    row = worst if where == "worst" else same[0]
    row["returns"][0] += 100.0
    edited(run / "evaluation.json", **content)
    assert "means are not those of the returns beside them" in marks(methods_of(run))
    row["mean"] = sum(row["returns"]) / len(row["returns"])
    edited(run / "evaluation.json", **content)
    assert "worst attacks have other returns than the same attack" in marks(methods_of(run))


def test_copies_of_one_run_are_no_training_seeds(run, tmp_path):
    for seed in (0, 1, 2):
        copy = shutil.copytree(run, tmp_path / f"copies/run_seed{seed}")
        text = (copy / "recipe.yaml").read_text()
        (copy / "recipe.yaml").write_text(re.sub(r"(?m)^seed: .*$", f"seed: {seed}", text))
    said = marks(methods_of(tmp_path / "copies"))
    assert "run_seed0, run_seed1, run_seed2</b> have the same weights" in said
    assert "the training seed is 1 in recipe.yaml, 7 in evaluation.json" in said


def test_a_task_with_other_numbers_is_marked(run):
    content = json.loads((run / "evaluation.json").read_text())
    content["task_numbers"][OURS]["parameters"]["mass"]["value"] = 2.0
    edited(run / "evaluation.json", **content)
    assert f"parameters of {OURS} are other numbers" in marks(methods_of(run))


def test_the_task_is_shown_in_numbers_with_units(run):
    said = task_table(methods_of(run), OURS)
    for words in ("10 steps of 0.05 s", "speed [rad/s]", "torque [N m]", "-2 to 2", "1 kg", "10 m/s^2"):
        assert words in said, words


def test_what_is_not_json_of_this_package_breaks_nothing(run):
    edited(
        run / "evaluation.json", task_numbers={OURS: 3, "x": {"options": None}}, policy_sha256=4, worst=[{"mean": "a"}]
    )
    methods = methods_of(run)
    assert check_table(methods) and verdict(methods) and marks(methods) == ""


def test_a_sentence_that_its_numbers_do_not_make_is_not_shown(run):
    edited(run / "certificate.json", claim="Proven: everything.")
    methods = methods_of(run)
    assert "everything" not in certificates(methods) and "its sentence is another" in check_table(methods)
