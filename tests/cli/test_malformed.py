"""Malformed input of every kind: one short line, status 2, no traceback, and nothing written."""

import hashlib
import os
import subprocess
import sys

import malformed
import pytest

from robust_policies.certificates.certificate import Certificate
from robust_policies.cli.app import main
from robust_policies.files.atomic import write_json
from robust_policies.files.yaml_text import dump_yaml
from robust_policies.policies import save_policy
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.train import load_recipe

LONGEST = 700


class ValidInput(BaseException):
    """The generator made what is not malformed: training or measuring was about to begin."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a run folder that is right, of a policy that was not trained."""
    import gymnasium

    from robust_policies.envs.batch import make_one
    from robust_policies.train.actor import new_actor

    folder = tmp_path_factory.mktemp("base") / "run"
    recipe = load_recipe(
        "pendulum_r2dn_gamma6", ["policy.state_size=3", "policy.features=3", "policy.hidden_sizes=[3]"]
    )
    env = make_one(recipe.task.id)
    assert isinstance(env, gymnasium.Env)
    actor = new_actor(recipe.policy, 3, env.action_space, 0)
    policy = DeployedPolicy(actor, env.observation_space, env.action_space, raw=True)
    save_policy(policy, folder)
    (folder / "recipe.yaml").write_text(dump_yaml(recipe.resolved()))
    write_json(folder / "provenance.json", {"schema": 1})
    certificate = policy.certificate()
    assert isinstance(certificate, Certificate)
    certificate.to_json(folder / "certificate.json")
    return folder


@pytest.fixture
def stopped(monkeypatch):
    """Let nothing be trained or measured."""

    def valid(*_, **__):
        raise ValidInput

    monkeypatch.setattr("robust_policies.train.run.loop.Training.__init__", valid)
    monkeypatch.setattr("robust_policies.cli.sweep._run", valid)
    monkeypatch.setattr("robust_policies.evaluation.run._measure", valid)
    monkeypatch.setattr("robust_policies.evaluation.certify.gain_curve", valid)
    monkeypatch.setattr("robust_policies.evaluation.report.page._charts", valid)


def listing(folder):
    """Return what is in a folder, but for the bytecode that Python keeps beside a plant's file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def complaint(case, status, errors, before, after):
    """Return what is wrong about how a command took malformed input, "" if nothing."""
    lines = errors.strip().splitlines()
    if "ValidInput" in errors or status == 0:
        return "VALID"
    if "Traceback" in errors:
        return "traceback"
    if case.verdict and status == 1:
        return "" if before == after else "wrote"
    if status != 2:
        return f"status {status}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines"
    if len(lines[0]) > LONGEST:
        return f"{len(lines[0])} characters"
    return "" if before == after else f"wrote {sorted(set(before.items()) ^ set(after.items()))}"


def taken(case, folder, monkeypatch, capsys):
    """Return what is wrong about how the command took a case, with what it said."""
    folder.mkdir()
    case.write(folder)
    before = listing(folder)
    capsys.readouterr()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.chdir(folder)
        main(case.arguments)
    errors = capsys.readouterr().err
    wrong = complaint(case, caught.value.code, errors, before, listing(folder))
    return f"{wrong} | {case.what} | {case.arguments} | {errors.strip()[:600]!r}" if wrong else ""


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 60), *(pytest.param(seed, 1000, marks=pytest.mark.soak) for seed in (1, 2, 3))]
)
def test_malformed_input_is_one_line_and_status_2(seed, count, base, stopped, tmp_path, monkeypatch, capsys):
    cases = (malformed.make(seed, number, base) for number in range(count))
    found = [taken(case, tmp_path / str(number), monkeypatch, capsys) for number, case in enumerate(cases)]
    wrong = [f"{number}: {one}" for number, one in enumerate(found) if one]
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.soak) for number in range(1, 10))])
def test_a_process_takes_malformed_input_alike(number, base, tmp_path):
    case = malformed.make(0, number, base)
    case.write(tmp_path)
    before = listing(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "robust_policies", *case.arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert not complaint(case, done.returncode, done.stderr, before, listing(tmp_path)), done.stderr
