"""A certificate is computed again and compared: what was edited or broken is noticed."""

import copy
import dataclasses
import hashlib
import json

import numpy as np
import pytest
from policy_files import written
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from robust_policies.certificates import Certificate
from robust_policies.cli.app import app
from robust_policies.errors import MissingFileError, ShapeError
from robust_policies.evaluation import certify
from robust_policies.evaluation.certify import SENTENCE, certify_run, check_run
from robust_policies.evaluation.task_numbers import task_numbers
from robust_policies.train import load_recipe

COMPARED = ("certificate.json", "tightness.json", "witness.npz")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("run"), "r2dn")
    assert certify_run(folder, steps=5, weights=[1.0, 0.5, 0.1]).status == "PASS"
    return folder


@pytest.fixture(scope="module", autouse=True)
def proven_once():
    """What the same files prove is computed once: here the comparison with certificate.json is the matter."""
    done = {}

    def once(prove):
        def proven(run, policy, *given):
            files = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
            # None of these is read for a proof.
            files = {name: held for name, held in files.items() if name not in COMPARED}
            key = (prove.__name__, repr(given[-1]), tuple(sorted(files.items())))
            if key not in done:
                done[key] = prove(run, policy, *given)
            return copy.deepcopy(done[key])

        return proven

    with pytest.MonkeyPatch.context() as patch:
        for prove in (certify._proven, certify._peak_again):
            patch.setattr(certify, prove.__name__, once(prove))
        yield


@pytest.fixture
def run(original, tmp_path):
    for path in original.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def checked(folder):
    done = CliRunner().invoke(app, ["certify", str(folder), "--check"])
    return done.exit_code, done.output


def test_a_check_runs_no_code_of_the_task(run):
    task, trace = run / "task", run / "trace"
    task.mkdir()
    (task / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    (task / "task.yaml").write_text("schema: 1\nplant: own.py:Own\n")
    recipe = load_recipe("pendulum_r2dn_gamma6", ["task.id=robust_policies/Linear-v0", f"task.kwargs.task={task}"])
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    assert check_run(run) == [] and not trace.exists()
    certify_run(run)
    assert trace.exists()


def test_an_untouched_folder_is_confirmed_and_left_alone(run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert check_run(run) == []
    assert checked(run) == (
        0,
        "Confirmed: the arrays, the proof, the witness and every entry of certificate.json agree.\n",
    )
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


EDITS = {
    "gamma_raw": 0.5, "gamma_core": 1.0, "gamma_weighted": 0.01, "rate": 0.5, "overshoot": 1.0, "margin": 1.0,
    "empirical_lower": 0.0, "ratio": 0.999, "status": "NOT_CERTIFIED", "method": "belief", "reason": "none",
    "claim": "Proven: everything.", "weights": [9.0, 0.5, 0.1], "witness": "other.npz", "factors": [],
    "arrays_sha256": {}, "forgets": {"percent": 99, "steps": 1}, "signals": None,
}  # fmt: skip


@pytest.mark.parametrize("field", EDITS)
def test_an_edit_of_any_field_is_noticed(run, field):
    path = run / "certificate.json"
    content = json.loads(path.read_text())
    assert content[field] != EDITS[field]
    path.write_text(json.dumps({**content, field: EDITS[field]}))
    if field == next(iter(EDITS)):
        status, text = checked(run)
        assert status == 1 and "Not confirmed" in text
    assert len(check_run(run)) >= 1


def test_a_factor_that_was_edited_is_named(run):
    path = run / "certificate.json"
    content = json.loads(path.read_text())
    content["factors"][1]["gain"] = 0.1
    path.write_text(json.dumps(content))
    assert any("'cell'" in line for line in check_run(run))


def test_one_changed_weight_is_noticed_even_with_a_new_hash(run):
    weights = load_file(run / "policy.safetensors")
    name = next(name for name in weights if name.endswith("cell.C2"))
    weights[name][0, 0] += 0.01
    save_file(weights, run / "policy.safetensors")
    assert any("sha256" in line for line in check_run(run))
    path = run / "policy.json"
    content = json.loads(path.read_text())
    content["weights"]["sha256"] = hashlib.sha256((run / "policy.safetensors").read_bytes()).hexdigest()
    path.write_text(json.dumps(content))
    lines = check_run(run)
    assert any("sha256 of cell.C2" in line or "cell.C2" in line for line in lines) and len(lines) > 1
    assert checked(run)[0] == 1


@pytest.mark.parametrize(
    "name", ["certificate.json", "policy.safetensors", "policy.json", "witness.npz", "tightness.json"]
)
def test_a_truncated_or_missing_file_is_a_message_not_a_traceback(run, name):
    path = run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, text = checked(run)
    assert status == 1 and name in text and "Traceback" not in text
    path.unlink()
    status, text = checked(run)
    assert status == 1 and name in text and "does not exist" in text


def test_a_witness_of_other_sequences_is_noticed(run):
    with np.load(run / "witness.npz") as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(run / "witness.npz", **{**arrays, "inputs_b": arrays["inputs_a"] + 1.0})
    assert any("empirical_lower" in line for line in check_run(run))


def test_edited_gains_against_length_are_noticed(run):
    path = run / "tightness.json"
    content = json.loads(path.read_text())
    assert content["steps"] == [1, 2, 5] and content["gain"] == sorted(content["gain"])
    for edit in (
        {"gain": content["gain"][::-1]},
        {"gamma_raw": 9.0},
        {"gain": [*content["gain"][:-1], 9.0]},
        {"gain": 1},
    ):
        path.write_text(json.dumps({**content, **edit}))
        assert any("tightness.json" in line for line in check_run(run))


def test_a_certificate_without_a_search_needs_no_file_of_one(run):
    searched = Certificate.from_json(run / "certificate.json")
    dataclasses.replace(searched, empirical_lower=None, ratio=None, witness=None).to_json(run / "certificate.json")
    assert any("tightness.json" in line for line in check_run(run))
    for name in ("witness.npz", "tightness.json"):
        (run / name).unlink()
    assert check_run(run) == []


def test_wrong_weights_and_folders_leave_nothing_behind(run, tmp_path):
    (run / "certificate.json").unlink()
    with pytest.raises(ShapeError, match="weights"):
        certify_run(run, steps=5, weights=[1.0])
    assert not (run / "certificate.json").exists()
    with pytest.raises(MissingFileError, match="nowhere"):
        check_run(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="nowhere"):
        certify_run(tmp_path / "nowhere")


@pytest.mark.parametrize("cell", ["lstm", "mlp"])
def test_policies_without_a_designed_gain_have_checkable_certificates(tmp_path, cell):
    folder = written(tmp_path, cell)
    certificate = certify_run(folder, steps=5)
    assert certificate.status == {"lstm": "NOT_CERTIFIED", "mlp": "PASS"}[cell]
    assert check_run(folder) == []
    assert Certificate.from_json(folder / "certificate.json") == certificate


def test_a_sentence_may_have_more_digits_but_no_other_numbers(run):
    path = run / "certificate.json"
    content = json.loads(path.read_text())
    bound = content["gamma_raw"]
    printed = content["claim"].split("is at most ")[1].split(" ")[0]
    for value, differences in ((f"{bound * (1 + 1e-6):.6g}", 0), (f"{bound * 0.9:.4g}", 1)):
        path.write_text(
            json.dumps({**content, "claim": content["claim"].replace(f"at most {printed}", f"at most {value}")})
        )
        assert len(check_run(run)) == differences


def test_a_file_of_an_older_version_is_read_and_its_weaker_rate_is_no_contradiction(run):
    path = run / "certificate.json"
    content = json.loads(path.read_text())
    old = {name: value for name, value in content.items() if name not in ("signals", "forgets")}
    path.write_text(json.dumps({**old, "rate": 1.0, "overshoot": 99.0}))
    assert check_run(run) == [SENTENCE]
    path.write_text(json.dumps({**old, "rate": content["rate"] * 0.9}))
    assert any(line.startswith("rate is") for line in check_run(run))


def test_the_claim_names_the_sensors_of_the_folders_task(run):
    recipe = load_recipe("pendulum_r2dn_gamma6")
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    names = task_numbers(recipe.task.id, recipe.task.kwargs)["observations"]
    certificate = certify_run(run, steps=5, weights=[1, 0.5, 0.1])
    # The policy gives two actions and the task takes one, which names neither of them.
    assert certificate.signals.sensors == tuple(names) and certificate.signals.actuators == ()
    assert ", ".join(names) in certificate.claim and "summed over all time steps and channels" in certificate.claim
    assert check_run(run) == []
