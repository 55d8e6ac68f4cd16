"""The command line as a user meets it: exit statuses, one line for a mistake; real processes where those matter."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pictures
import pytest
import typer
from forked import Command
from in_process import answer, one_line
from safetensors.numpy import load_file, save_file

from robust_policies.cli.app import app
from robust_policies.policies import load_policy

TINY_SUITE = Path(__file__).parents[1] / "tiny_suite.yaml"
COMMAND = [sys.executable, "-c", "from robust_policies.cli import main; main()"]
TINY = [
    "--set", "task.num_envs=4", "policy.state_size=4", "policy.features=4", "policy.hidden_sizes=[4]",
    "algorithm.n_steps=100", "algorithm.batch_size=200", "algorithm.n_epochs=2", "checkpoints.every=400",
    "checkpoints.evaluate_every=800", "checkpoints.evaluate_episodes=4", "checkpoints.certify_every=0",
    "task.kwargs={max_episode_steps: 50}", "evaluation.episodes=3",
    "evaluation.seeds=[0]", "evaluation.sizes=[0.0, 0.2]", "evaluation.tasks=[robust_policies/Pendulum-v0]",
    f"evaluation.suite={TINY_SUITE}",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def run(*arguments, cwd=None):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    with pictures.undrawn():
        done = answer("train", "pendulum_r2dn_gamma6", *TINY, "algorithm.total_steps=800", "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder


def copied(folder, target):
    return Path(shutil.copytree(folder, target))


def test_train_writes_the_whole_run_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "recipe.yaml", "policy.zip", "policy.safetensors", "policy.json", "certificate.json", "evaluation.json",
        "tensorboard", "checkpoints", "report.html", "provenance.json",
    }  # fmt: skip
    certificate = json.loads((trained / "certificate.json").read_text())
    assert certificate["status"] == "PASS"
    assert certificate["empirical_lower"] <= certificate["gamma_raw"] <= 12.0 * (1 + 1e-3)
    assert not [name for name in names if name.startswith(".")]


def test_the_recipe_it_wrote_trains_again(trained, tmp_path):
    done = answer("train", trained / "recipe.yaml", "-o", tmp_path / "again", "--no-evaluate")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "policy.safetensors").read_bytes() == (trained / "policy.safetensors").read_bytes()


def test_every_option_of_train_may_follow_set(trained, tmp_path):
    done = answer(
        "train",
        trained / "recipe.yaml",
        "--set",
        "seed=3",
        "algorithm.total_steps=400",
        "-o",
        tmp_path / "x",
        "--no-evaluate",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "x" / "provenance.json").read_text())["seed"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_a_run_that_was_stopped_goes_on(number, tmp_path):
    folder = tmp_path / "run"
    command = ["train", "pendulum_r2dn_gamma6", *TINY, "algorithm.total_steps=2000", "-o", folder, "--no-evaluate"]
    process = Command(*command)
    limit = time.monotonic() + 900
    while not list(folder.glob("checkpoints/step_*/state.json")) and time.monotonic() < limit:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=900)
    assert not (folder / "policy.json").exists(), "it finished before it could be stopped"
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert "--resume" in errors
    else:
        assert process.returncode == -signal.SIGKILL
    done = answer("certify", folder)
    assert "continue it with --resume" in one_line(done)
    done = answer(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "provenance.json").read_text())["num_timesteps"] == 2000
    assert not list(folder.rglob(".*"))
    load_policy(folder)


def test_certify_says_what_is_proven_and_ends_with_1_where_nothing_is(trained, tmp_path):
    done = answer("certify", trained)
    assert done.returncode == 0
    assert "PASS: Proven" in done.stdout
    lstm = tmp_path / "lstm"
    options = [option for option in TINY if not option.startswith(("policy.features", "policy.hidden"))]
    done = answer("train", "pendulum_lstm", *options, "algorithm.total_steps=400", "-o", lstm, "--no-evaluate")
    assert done.returncode == 0, done.stderr
    done = answer("certify", lstm)
    assert done.returncode == 1
    assert "NOT_CERTIFIED" in done.stdout
    assert json.loads((lstm / "certificate.json").read_text())["status"] == "NOT_CERTIFIED"


@pytest.mark.usefixtures("undrawn")
def test_evaluate_report_export_and_enjoy(trained, tmp_path):
    done = answer("evaluate", trained, "--sizes", "0,0.1", "--episodes", "2", "--seeds", "0-1")
    assert done.returncode == 0, done.stderr
    found = json.loads((trained / "evaluation.json").read_text())
    assert (found["sizes"], found["seeds"], found["episodes"]) == ([0.0, 0.1], [0, 1], 2)
    done = answer("report", trained, "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "<html" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "overview.png").is_file()
    done = answer("export", trained, "--format", "safetensors", "-o", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    assert load_policy(tmp_path / "exported").cell.config() == load_policy(trained).cell.config()
    done = answer("enjoy", trained, "--render", "none", "--env", "Pendulum-v1", "--episodes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("return -") == 2


def test_enjoy_records_a_video(trained, tmp_path):
    folder = copied(trained, tmp_path / "run")
    done = answer("enjoy", folder, "--render", "video", "--episodes", "1")
    assert done.returncode == 0, done.stderr
    (video,) = (folder / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("envs", "robust_policies/Pendulum-v0"),
        ("recipes", "pendulum_r2dn_gamma6"),
        ("policies", "r2dn"),
        ("attacks", "closed_loop_pgd"),
        ("perturbations", "gaussian"),
    ],
)
def test_list(what, expected, tmp_path):
    done = answer("list", what, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(line.split()[0] == expected for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["list", "env"], "'envs'"),
        (["train"], "RECIPE"),
        (["train", "pendulum_r2dn_gama6"], "Did you mean 'pendulum_r2dn_gamma6'"),
        (["train", "pendulum_lstm", "--sed", "1"], "--seed"),
        (["train", "pendulum_lstm", "--seed", "-1"], "-1"),
        (["train", "pendulum_lstm", "--seed", "one"], "one"),
        (["train", "pendulum_lstm", "--devise", "cpu"], "--device"),
        (["train", "pendulum_lstm", "--device", "cuda:99"], "use 'cpu'"),
        (["train", "pendulum_lstm", "--device", "gpu"], "expected 'cpu', 'cuda' or 'cuda:N'"),
        (["train", "pendulum_lstm", "--resme"], "--resume"),
        (["train", "pendulum_lstm", "--outptu", "x"], "--output"),
        (["train", "pendulum_lstm", "--threads", "0"], "0"),
        (["train", "pendulum_lstm", "--set", "policy.gama=3"], "Did you mean 'policy.gamma'"),
        (["train", "pendulum_lstm", "--set", "evaluation.suite=quik"], "Did you mean 'quick'"),
        (["certify", "nowhere"], "does not exist"),
        (["certify", "nowhere", "--depth", "3"], "--depth"),
        (["evaluate", "nowhere"], "does not exist"),
        (["evaluate", "nowhere", "--siute", "quick"], "--suite"),
        (["evaluate", "nowhere", "--sizes", "a,b"], "numbers separated by commas"),
        (["evaluate", "nowhere", "--episodes", "0"], "0"),
        (["evaluate", "nowhere", "--seeds", "3-1"], "names none"),
        (["report", "nowhere"], "does not exist"),
        (["report", "nowhere", "--ouput", "x"], "--output"),
        (["export", "nowhere", "--format", "safetensor"], "for '--format': 'safetensor' is not one of 'safetensors'"),
        (["export", "nowhere", "--format", "cpp"], "'numpy'; --format was given 'cpp'."),
        (["enjoy", "nowhere", "--render", "vidoe"], "video"),
        (["enjoy", "nowhere", "--episode", "1"], "--episodes"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(arguments, words, tmp_path):
    line = one_line(answer(*arguments, cwd=tmp_path))
    assert words in line
    assert not list(tmp_path.iterdir()), "something was written"


def test_a_process_ends_alike_and_debug_shows_the_traceback(tmp_path):
    assert "does not exist" in one_line(run("certify", "nowhere", cwd=tmp_path))
    done = answer("certify", "nowhere", "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "MissingFileError" in done.stderr


def test_a_corrupt_policy_is_refused_by_every_command_that_reads_it(trained, tmp_path):
    folder = copied(trained, tmp_path / "run")
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    for command in (["certify", folder], ["evaluate", folder], ["enjoy", folder, "--render", "none"]):
        assert "policy.safetensors" in one_line(answer(*command))


def test_an_edited_policy_is_noticed(trained, tmp_path):
    folder = copied(trained, tmp_path / "run")
    weights = load_file(folder / "policy.safetensors")
    name = next(name for name in weights if name.endswith("C2"))
    weights[name] = weights[name] + 1
    save_file(weights, folder / "policy.safetensors")
    assert "sha256" in one_line(answer("certify", folder))


def test_a_run_folder_of_a_newer_schema_is_refused(trained, tmp_path):
    folder = copied(trained, tmp_path / "run")
    path = folder / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    for command in ("certify", "evaluate"):
        line = one_line(answer(command, folder))
        assert "99" in line
        assert "upgrade" in line.lower()


def test_help_and_version_answer():
    assert "certify" in answer("--help").stdout
    assert answer("--version").stdout.startswith("robust-policies ")
    assert "--resume" in answer("train", "--help").stdout


def test_help_leaves_no_word_of_an_option_out(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    for name, command in cast(Any, typer.main.get_command(app)).commands.items():
        shown = answer(name, "--help").stdout
        for text in (option.help.replace("`", "") for option in command.params if getattr(option, "help", None)):
            assert text in shown, (name, text)


def test_the_package_is_the_command_too():
    done = subprocess.run([sys.executable, "-m", "robust_policies", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("robust-policies ")
