"""`robust-policies check` as a pipeline meets it: statuses, the table, the XML."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
from in_process import answer, one_line

from robust_policies.evaluation import certify_run
from robust_policies.networks import R2DN, Lipschitz
from robust_policies.policies import save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from gymnasium import spaces

    folder = tmp_path_factory.mktemp("runs") / "one"
    actor = Actor(ScaledCell(R2DN(2, 2, 1, 2, (2,), guarantee=Lipschitz(2.0)), Scaling(2)), MeanHead(1, 1, False))
    save_policy(DeployedPolicy(actor, spaces.Box(-1.0, 1.0, (2,)), spaces.Box(-1.0, 1.0, (1,))), folder)
    certify_run(folder, steps=2)
    return folder


def test_all_met_ends_with_0_and_something_not_with_1(folder, tmp_path):
    gamma = json.loads((folder / "certificate.json").read_text())["gamma_raw"]
    done = answer("check", folder, "--require", f"gamma <= {gamma!r}", "--require", "rate<=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 requirements met" in done.stdout and "NOT MET" not in done.stdout and not done.stderr
    xml = tmp_path / "out" / "check.xml"
    done = answer("check", folder, "--require", "gamma<=1e-9", "--require", "return>=0", "--junit", xml)
    assert done.returncode == 1 and done.stdout.count("NOT MET") == 2 and not done.stderr
    assert f"robust-policies evaluate {folder}" in done.stdout
    assert ElementTree.parse(xml).getroot().get("failures") == "2"


def test_limits_lie_in_the_folder_or_in_a_file(folder, tmp_path):
    assert "--require" in one_line(answer("check", folder))
    (folder / "limits.yaml").write_text("require: [{require: rate <= 1, label: SR-1}]")
    try:
        done = answer("check", folder)
        assert done.returncode == 0 and "SR-1" in done.stdout
        done = answer("check", folder, "--require", "gamma < 1e9")
        assert done.returncode == 0 and "SR-1" not in done.stdout
    finally:
        (folder / "limits.yaml").unlink()
    file = tmp_path / "own.yaml"
    file.write_text("require: [rate < 0]")
    done = answer("check", folder, "--limits", file, "--require", "gamma < 1e9")
    assert done.returncode == 1 and "1 of 2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--require", "gama<=1"], "Did you mean 'gamma'"),
        (["--require", "gamma"], "expected NAME"),
        (["--limits", "nowhere.yaml"], "does not exist"),
        (["--requir", "gamma<=1"], "--require"),
        (["--require", "gamma<=1", "--junit", "."], "a folder"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(folder, arguments, said):
    assert said in one_line(answer("check", folder, *arguments))
    assert not (folder / "check.xml").exists()


def test_a_folder_that_does_not_exist_or_was_edited(folder, tmp_path):
    assert "does not exist" in one_line(answer("check", tmp_path / "nowhere", "--require", "gamma<=1"))
    path = folder / "certificate.json"
    honest = path.read_text()
    path.write_text(json.dumps({**json.loads(honest), "gamma_raw": 1e-3}))
    try:
        done = answer("check", folder, "--require", "gamma <= 1")
        assert done.returncode == 1 and "do not agree" in done.stdout and "gamma_raw" in done.stderr
    finally:
        path.write_text(honest)


def test_the_quantities_are_listed():
    done = answer("list", "quantities")
    assert done.returncode == 0
    assert {line.split()[0] for line in done.stdout.splitlines()} >= {"gamma", "certified_return@SIZE", "return[@SIZE]"}
