"""model_loop.json is proven again by certify --check and in reports: edits and other files are noticed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from small_models import policy_of, small_model
from typer.testing import CliRunner

from robust_policies.cli.app import app
from robust_policies.envs.registration import IDENTIFIED
from robust_policies.evaluation import certify_model_loop, certify_run, write_report
from robust_policies.evaluation.certify import check_run
from robust_policies.evaluation.model_loop import check_model_loop
from robust_policies.evaluation.report.facts import check_table
from robust_policies.evaluation.report.load import find_runs, load_runs
from robust_policies.evaluation.report.markup import escape
from robust_policies.evaluation.report.methods import group_by_method
from robust_policies.evaluation.report.model_loop import model_loop_part
from robust_policies.evaluation.report.verdict import marks, verdict
from robust_policies.files import numbers
from robust_policies.identification import load_model, loop_search
from robust_policies.policies import load_policy, save_policy

NAME, PROOF = "model_loop.json", "model_loop.npz"


def saved(policy, folder, **kwargs):
    """Save a policy of the task with the model in the working directory."""
    save_policy(policy, folder, {"id": IDENTIFIED, "kwargs": {"model": "model", **kwargs}})
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a model and the run of a policy whose loop with it is proven."""
    root = tmp_path_factory.mktemp("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small_model("r2dn", 1, 1).save(root / "model")
        certify_run(saved(policy_of("lbdn", gain=0.1, limit=2.0), root / "run"), steps=3)
        content = certify_model_loop("run")
        assert content is not None and content["status"] == "PASS" and content["gain"] is not None
    return root


@pytest.fixture
def run(original, tmp_path, monkeypatch):
    shutil.copytree(original, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy" / "run"


@pytest.fixture
def searches(monkeypatch):
    """Count the searches, which find nothing."""
    asked = []
    monkeypatch.setattr(
        loop_search, "_searched_for", lambda *_: asked.append(1) or loop_search.Proven(None, reason="not searched")
    )
    return asked


def stored(folder):
    return json.loads((folder / NAME).read_text())


def edited(folder, **changes):
    (folder / NAME).write_text(json.dumps({**stored(folder), **changes}))


def checked(folder):
    done = CliRunner().invoke(app, ["certify", str(folder), "--check"])
    return done.exit_code, done.output


def methods_of(*folders):
    return group_by_method(load_runs(find_runs(list(folders))))


def test_what_was_found_is_proven_again_without_a_search_and_nothing_is_written(run, searches):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert PROOF in before
    status, said = checked(run)
    assert status == 0 and "every entry of certificate.json and model_loop.json agree" in said and not searches
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_without_what_was_found_it_is_searched_for_again(run):
    (run / PROOF).unlink()
    assert check_run(run) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda name, one: np.full_like(one, np.nan),
        lambda name, one: one[..., None],
        lambda name, one: -one,
        lambda name, one: one * 0.9 if name == "gamma" else one,
        lambda name, one: None if name == "multipliers" else one,
        lambda name, one: np.zeros_like(one) if name == "metrics" else one,
        lambda name, one: one * [[1.0], [1e-70], [1.0]] if name == "multipliers" else one,
        lambda name, one: one + 7 if name == "reason" else one,
    ],
    ids=["nan", "shape", "sign", "smaller", "missing", "zero", "tiny", "reason"],
)
def test_what_proves_nothing_is_not_believed(run, searches, change):
    with np.load(run / PROOF) as file:
        arrays = {name: change(name.partition(".")[2], file[name].copy()) for name in file.files}
    np.savez(run / PROOF, **{name: one for name, one in arrays.items() if one is not None})
    assert check_run(run)[0].startswith(f"{NAME}: status is 'PASS' in the file") and searches


def test_a_gain_is_not_confirmed_by_a_file_that_says_that_none_was_found(run, searches):
    with np.load(run / PROOF) as file:
        arrays = {name: file[name] * (not name.endswith("gamma")) for name in file.files}
    np.savez(run / PROOF, **arrays)
    [said] = check_run(run)
    assert said.startswith(f"{NAME}: gain is ") and said.endswith("None when computed again") and not searches


EDITS = {
    "status": "NOT_PROVEN", "rate": 0.1, "overshoot": 1.0, "steps": 1, "gain": 1e-3, "reason": "none",
    "claim": "Proven: everything.", "policy_sha256": "0" * 64, "model_sha256": "0" * 64, "schema": 99,
}  # fmt: skip


@pytest.mark.parametrize("field", EDITS)
def test_an_edit_of_any_entry_is_noticed_and_the_file_is_named(run, searches, field):
    edited(run, **{field: EDITS[field]})
    status, said = checked(run)
    assert status == 1 and "Not confirmed" in said and not searches
    assert check_run(run) and all(NAME in line for line in check_run(run))


@pytest.mark.parametrize(
    "content", ["", "{}", '{"schema": 1, "status": "PASS", "claim": "", "reason": "", "gain": NaN}']
)
def test_a_broken_file_is_a_line_not_a_traceback(run, content):
    (run / NAME).write_text(content)
    status, said = checked(run)
    assert status == 1 and NAME in said and "Traceback" not in said
    assert any(NAME in note for note in methods_of(run)[0].runs[0].notes)


def test_another_policy_is_named(run, searches):
    saved(policy_of("lbdn", gain=0.2, limit=2.0), run)
    certify_run(run, steps=3)
    assert check_run(run) == [f"{NAME}: it is of another policy; the sha256 it states is not this one's"]
    assert not searches


def test_another_model_is_named_be_it_its_arrays_or_its_scales(run, searches):
    expected = [f"{NAME}: it is of another model than the one in model now; the sha256 it states is not that one's"]
    path = run.parent / "model" / "model.safetensors"
    before, weights = path.read_bytes(), load_file(path)
    name = next(name for name, value in weights.items() if value.ndim == 2)
    weights[name][0, 0] += 1e-6
    save_file(weights, path)
    assert check_run(run) == expected
    assert "another model than the one in model now" in marks(methods_of(run))
    path.write_bytes(before)
    model = load_model("model")
    scale = tuple(2 * one for one in model.signals.output_scale)
    model.signals = dataclasses.replace(model.signals, output_scale=scale)
    model.save("model")
    assert check_run(run) == expected and not searches


def test_without_the_model_it_is_not_checked_and_nothing_else_is_doubted(run):
    shutil.rmtree(run.parent / "model")
    status, said = checked(run)
    assert status == 1 and "model_loop.json cannot be checked" in said and "model has no model.json" in said
    methods = methods_of(run)
    assert marks(methods) == "" and "not confirmed" not in verdict(methods)
    assert "Not checked here" in model_loop_part(methods) and "its identified model" not in verdict(methods)
    assert "not checked: model_loop.json cannot be checked" in check_table(methods)


def test_a_refusal_is_confirmed_until_there_is_something_to_prove(run):
    shutil.move("model", "away")
    assert (certify_model_loop(run) or {})["status"] == "NOT_CERTIFIED" and not (run / PROOF).exists()
    assert check_run(run) == []
    shutil.move("away", "model")
    assert check_run(run)[0].startswith(f"{NAME}: status is 'NOT_CERTIFIED' in the file and 'PASS'")


def test_no_code_of_a_task_runs_for_a_proof_or_a_check(run):
    task = run.parent / "task"
    task.mkdir()
    (task / "own.py").write_text("raise SystemExit('it ran')\n")
    (task / "task.yaml").write_text("schema: 1\nplant: own.py:Own\nmodel: model\nmax_episode_steps: 5\n")
    policy = load_policy(run)
    save_policy(policy, run, {"id": IDENTIFIED, "kwargs": {"task": str(task)}})
    found = check_model_loop(run, policy)
    assert found is not None and "may step the model otherwise" in " ".join(found.differences)
    content = certify_model_loop(run)
    assert content is not None and "plant is own.py:Own, which may step the model otherwise" in content["reason"]


def test_files_of_another_task_are_removed_and_checked_no_more(run):
    policy = load_policy(run)
    save_policy(policy, run, task="robust_policies/Pendulum-v0")
    found = check_model_loop(run, policy)
    assert found is not None and found.differences == [f"{NAME}: the task of this folder is no identified model"]
    assert certify_model_loop(run) is None and not (run / NAME).exists() and not (run / PROOF).exists()
    assert check_model_loop(run, policy) is None


def test_a_report_shows_what_is_proven_of_which_loop(run):
    content, methods = stored(run), methods_of(run)
    gain, rate, claim = numbers.upper(content["gain"]), numbers.rate(content["rate"]), escape(content["claim"])
    said = model_loop_part(methods)
    assert f"<td class=n>{gain}</td>" in said and "badge PASS'>proven" in said and claim in said
    assert f"<td class=n>{rate}</td>" in said and f"<td class=n>{content['steps']}</td>" in said
    assert "about the model, not about the plant" in said
    assert f"by at most <b>{gain}</b> times their own norm: proven" in verdict(methods)
    assert marks(methods) == "" and "Loop with the model" in check_table(methods)
    page = write_report(run).read_text()
    assert "Proven of the loop with the identified model" in page and claim in page


def test_an_edited_gain_is_marked_in_the_report_and_no_longer_called_proven(run):
    edited(run, gain=stored(run)["gain"] / 2)
    methods = methods_of(run)
    assert "does not agree. model_loop.json: gain is" in marks(methods) and "not confirmed" in verdict(methods)
    said = model_loop_part(methods)
    assert "badge DISAGREES" in said and "badge PASS" not in said and "<b>Not confirmed</b>" in said
    assert "its identified model" not in verdict(methods) and "does not agree" in check_table(methods)


def test_what_is_not_proven_is_shown_with_its_reason_and_is_confirmed(run, tmp_path):
    saved(policy_of("lbdn", gain=300.0, limit=2.0), run)
    certify_run(run, steps=3)
    content = certify_model_loop(run)
    assert content is not None and content["status"] == "NOT_PROVEN" and check_run(run) == []
    other = shutil.copytree(run, run.parent / "other")
    saved(load_policy(run), other, model=["model", "model"])
    assert (certify_model_loop(other) or {})["status"] == "NOT_CERTIFIED"
    said = model_loop_part(methods_of(run, other))
    assert "badge NOT_PROVEN'>not proven" in said and content["reason"] in said and ">-</td>" in said
    assert "badge NOT_CERTIFIED'>not certified" in said and "the task is an ensemble of 2 models" in said
    assert "its identified model" not in verdict(methods_of(run))


def test_a_folder_without_the_file_has_no_such_part(run):
    for name in (NAME, PROOF):
        (run / name).unlink()
    methods = methods_of(run)
    assert check_run(run) == [] and model_loop_part(methods) == "" and "Loop with the model" not in check_table(methods)
    assert "model_loop" not in checked(run)[1]
