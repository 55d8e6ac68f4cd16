"""`train --env ID`: the recipe that is made and printed, and what is refused."""

import pytest
import yaml
from in_process import answer, one_line

from robust_policies.files.yaml_text import parse_yaml
from robust_policies.train import RunFolder, parse_recipe
from robust_policies.train.compose import composed

PENDULUM = "robust_policies/Pendulum-v0"
ALGORITHMS = ["tensor_ppo", "recurrent_ppo", "apg", "ppo", "sac", "td3", "recurrent_sac"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("cell", ["r2dn", "lbdn", "lstm"])
def test_what_is_printed_is_the_recipe(algorithm, cell):
    gamma = None if cell == "lstm" else 6.0
    recipe, text = composed(PENDULUM, cell, gamma, algorithm, 1e5, {"max_episode_steps": 50}, seed=3)
    assert parse_recipe(parse_yaml(text, "test"), "test") == recipe
    assert (recipe.algorithm.name, recipe.algorithm.total_steps, recipe.seed) == (algorithm, 100_000, 3)
    assert (recipe.policy.cell, recipe.policy.gamma) == (cell, gamma)
    assert recipe.task.kwargs == {"max_episode_steps": 50}


def test_a_dry_run_prints_it_and_stops(tmp_path):
    options = ["--env", PENDULUM, "--cell", "r2dn", "--gamma", "6", "--algo", "sac", "--steps", "1e4", "--dry-run"]
    done = answer("train", *options, "--env-kwargs", "max_episode_steps=50", "randomize=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = yaml.safe_load(done.stdout)
    assert data["task"]["kwargs"] == {"max_episode_steps": 50, "randomize": True}
    assert data["policy"]["observation_scale"] == [1.0, 1.0, 8.0]
    assert not any(tmp_path.iterdir())


def test_scales_are_half_the_range_or_what_random_actions_show():
    recipe, _ = composed("MountainCarContinuous-v0", steps=1000)
    assert recipe.algorithm.name == "recurrent_ppo"
    assert recipe.policy.observation_scale == [0.9, 0.07]
    assert recipe.policy.observation_offset == pytest.approx([-0.3, 0.0])
    unbounded, _ = composed("robust_policies/HalfCheetah-v0", algorithm="sac", steps=1000)
    scales = unbounded.policy.observation_scale
    assert len(scales) == 17 and all(0 < scale < 50 for scale in scales)
    assert unbounded == composed("robust_policies/HalfCheetah-v0", algorithm="sac", steps=1000)[0]


def test_it_trains(tmp_path):
    small = ["policy.hidden_sizes=[4]", "algorithm.n_steps=16", "algorithm.batch_size=16", "task.num_envs=2"]
    options = ["--env", PENDULUM, "--cell", "mlp", "--algo", "ppo", "--steps", "32", "--no-evaluate"]
    done = answer("train", *options, "--env-kwargs", "max_episode_steps=16", "--set", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "results" / "Pendulum-v0_mlp_ppo")
    assert run.trained
    printed = done.stdout[: done.stdout.index("Trained ")]
    recipe = "\n".join(line for line in printed.splitlines() if "steps/s" not in line)
    assert parse_recipe(yaml.safe_load(recipe), "test") == run.read_recipe()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pendulum_gru", "--env", PENDULUM], "--env was given with the recipe 'pendulum_gru'"),
        (["pendulum_gru", "--steps", "5"], "--steps was given with the recipe"),
        ([], "No RECIPE was given"),
        (["--cell", "r2dn"], "No RECIPE was given"),
        (["--env", "robust_policies/Pendulm-v0"], "Did you mean 'robust_policies/Pendulum-v0'"),
        (["--env", PENDULUM, "--algo", "sack"], "Did you mean 'sac'"),
        (["--env", PENDULUM, "--cell", "r2dm"], "Did you mean 'r2dn'"),
        (["--env", PENDULUM, "--cell", "gru", "--gamma", "3"], "has no bound"),
        (["--env", PENDULUM, "--gamma", "-3"], "greater than 0"),
        (["--env", PENDULUM, "--steps", "1.5"], "algorithm.total_steps is 1.5"),
        (["--env", PENDULUM, "--steps", "nan"], "--steps is nan; expected"),
        (["--env", PENDULUM, "--steps", "inf"], "--steps is inf; expected"),
        (["--env", PENDULUM, "--env-kwargs", "limit"], "expected KEY=VALUE"),
        (["--env", PENDULUM, "--env-kwargs", "limit=3"], "does not take the options"),
        (["--env", "CartPole-v1", "--algo", "sac"], "has the actions"),
        (["--env", "CartPole-v1", "--algo", "apg"], "has the actions"),
        (["--env", "Pendulum-v1", "--algo", "apg"], "no gradients flow"),
        (["--env", PENDULUM, "--set", "policy.gama=3"], "Did you mean 'policy.gamma'"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, words, tmp_path):
    assert words in one_line(answer("train", *arguments, "--dry-run", cwd=tmp_path))
    assert not any(tmp_path.iterdir())
