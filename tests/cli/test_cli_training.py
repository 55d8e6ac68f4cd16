"""`train` as a user meets it when a recipe does not fit, a run cannot go on, or the machine is too small."""

import json

import pytest
from safetensors.numpy import load_file

from robust_policies.cli.app import main

TINY = [
    "task.num_envs=4", "policy.state_size=4", "policy.features=4", "policy.hidden_sizes=[4]",
    "checkpoints.every=400", "checkpoints.evaluate_every=800", "checkpoints.evaluate_episodes=4",
    "checkpoints.certify_every=0", "task.kwargs={max_episode_steps: 50}",
]  # fmt: skip
OF_PPO = [*TINY, "algorithm.total_steps=800", "algorithm.n_steps=100", "algorithm.batch_size=200",
          "algorithm.n_epochs=2"]  # fmt: skip
OF_APG = [*TINY, "algorithm.total_steps=800", "algorithm.horizon=20"]


@pytest.fixture
def command(capsys, tmp_path):
    """Return a function that trains in this process and gives status, output and error lines."""

    def ask(recipe, *settings, options=(), folder="run"):
        given = OF_APG if recipe.endswith("apg") else OF_PPO
        with pytest.raises(SystemExit) as caught:
            main(["train", recipe, "--set", *given, *settings, "--no-evaluate", "-o", str(tmp_path / folder), *options])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err.strip().splitlines()

    return ask


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        (
            "pendulum_r2dn_gamma6",
            ["algorithm.name=tensor_ppo", "task.num_envs=5"],
            "num_envs is 5 and batch_size 200: 2.5 minibatches of the 5 x 100 samples",
        ),
        (
            "pendulum_r2dn_apg",
            ["task.id=robust_policies/Hopper-v0"],
            "a mujoco task, through which no gradients flow",
        ),
        ("pendulum_r2dn_apg", ["task.id=Pendulum-v1"], "whose equations are not known here"),
        (
            "pendulum_r2dn_gamma6",
            ["task.id=Pendulum-v1", "algorithm.name=tensor_ppo", "algorithm.normalize_observation=true"],
            "normalize_observation=True works on the device only, but the environment is a DummyVecEnv",
        ),
        ("pendulum_r2dn_gamma6", ["checkpoints.certify_every=-1"], "checkpoints.certify_every is -1"),
        ("pendulum_r2dn_gamma6", ["checkpoints.stop_at_reward=high"], "checkpoints.stop_at_reward is 'high'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(recipe, settings, words, command, tmp_path):
    status, _, lines = command(recipe, *settings)
    assert status == 2, lines
    (line,) = lines
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "run").exists()


def test_numpy_environments_on_the_tensor_path_are_trained_and_one_line_says_how(command):
    status, _, lines = command("pendulum_r2dn_gamma6", "task.id=Pendulum-v1")
    assert status == 0, lines
    (line,) = lines
    assert line.startswith(
        "warning: TensorRecurrentPPO trains by sb3-contrib's NumPy path and without spread_episodes, because the "
        "environment is"
    )


@pytest.mark.parametrize("recipe", ["pendulum_r2dn_gamma6", "pendulum_r2dn_apg"])
def test_divergence_ends_with_one_line_and_status_1(recipe, command, tmp_path):
    status, _, lines = command(recipe, "algorithm.learning_rate=1e30")
    assert status == 1
    (line,) = lines
    assert line.startswith("error: Training diverged in update") and "algorithm.learning_rate" in line
    assert not (tmp_path / "run" / "policy.json").exists()


@pytest.mark.parametrize("recipe", ["pendulum_r2dn_gamma6", "pendulum_r2dn_apg"])
def test_too_little_memory_ends_with_one_line_and_status_1(recipe, command, tmp_path):
    status, _, lines = command(recipe, f"task.num_envs={10**14}")
    assert status == 1
    (line,) = lines
    assert line.startswith("error: Not enough memory: ") and f"task.num_envs (now {10**14})" in line
    assert not (tmp_path / "run").exists()


def test_deterministic_runs_of_one_seed_are_equal_and_say_so(command, tmp_path):
    for folder in "ab":
        status, _, lines = command("pendulum_r2dn_gamma6", options=["--deterministic"], folder=folder)
        assert (status, lines) == (0, [])
    first, second = (load_file(tmp_path / folder / "policy.safetensors") for folder in "ab")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert json.loads((tmp_path / "a" / "provenance.json").read_text())["deterministic"] is True
    assert "deterministic: true" in (tmp_path / "a" / "recipe.yaml").read_text()


def test_a_reached_return_is_said(command):
    status, output, _ = command("pendulum_r2dn_apg", "checkpoints.stop_at_reward=-5000", "algorithm.total_steps=8000")
    assert status == 0
    assert "Trained 800 steps" in output
    assert "(checkpoints.stop_at_reward was reached)" in output
