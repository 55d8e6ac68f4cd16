"""`imitate` as a user meets it: what it prints, what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest

from robust_policies.cli.app import main

MASS = "robust_policies/DoubleIntegrator-v0"
QUICK = ["algorithm.rounds=2", "algorithm.updates=20", "algorithm.horizon=40", "algorithm.held_out=4",
         "task.num_envs=8", "policy.state_size=4", "policy.features=4", "policy.hidden_sizes=[8]",
         "checkpoints.evaluate_episodes=4", "checkpoints.certify_every=0"]  # fmt: skip


@pytest.fixture
def command(capsys, tmp_path):
    """Return a function that runs the command in this process and gives status, output and error lines."""

    def ask(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["imitate", *arguments, "-o", str(tmp_path / "run")])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err.strip().splitlines()

    return ask


def test_it_says_how_well_it_learnt_and_what_is_proven(command, tmp_path):
    quick = [*QUICK, "task.kwargs={max_episode_steps: 40}"]
    status, out, _ = command("lqg", "--task", MASS, "--gamma", "4", "--method", "bc", "--no-evaluate", "--set", *quick)
    assert status == 0
    said = json.loads((tmp_path / "run" / "imitation.json").read_text())
    assert said["method"] == "bc" and [row["imitation/teacher_acts"] for row in said["rounds"]] == [1.0, 1.0]
    assert f"action error on 4 held-out episodes: {said['held_out_mse'][0]:.3g}" in out
    assert "Closed loop" in out and "the teacher's" in out
    for name in ("recipe.yaml", "policy.json", "policy.safetensors", "provenance.json", "closed_loop.json"):
        assert (tmp_path / "run" / name).is_file()
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_the_new_folder_is_certified_and_evaluated_like_any_other(command, tmp_path):
    suite = Path(__file__).parents[1] / "tiny_suite.yaml"
    quick = [*QUICK, "algorithm.rounds=1", "evaluation.episodes=2", "evaluation.seeds=[0]", "evaluation.sizes=[0.0]",
             f"evaluation.suite={suite}", "task.kwargs={max_episode_steps: 20}"]  # fmt: skip
    status, out, lines = command("lqg", "--task", MASS, "--gamma", "4", "--no-report", "--set", *quick)
    assert status == 0, lines
    assert "PASS: Proven" in out and "Evaluated in" in out
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert certificate["status"] == "PASS" and certificate["gamma_raw"] <= 4.0 * (1 + 1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lqg"], "No task was given for teacher 'lqg'"),
        (["results/none", "--task", MASS], "no such file or folder"),
        (["lqg", "--task", MASS, "--set", "algorithm.round=3"], "algorithm.round"),
        (["lqg", "--task", MASS, "--set", "algorithm.name=apg"], "unknown key 'algorithm.teacher'"),
        (["lqg", "--task", MASS, "--set", "evaluation.suite=huge"], "huge"),
        (["lqg", "--task", "Pendulum-v1"], "no equations known here"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, words, command, tmp_path):
    status, _, lines = command(*arguments)
    assert status == 2, lines
    (line,) = lines
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "run").exists()
