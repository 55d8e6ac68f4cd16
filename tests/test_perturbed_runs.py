"""Perturbation wrappers where users put them: recipes, the bridge, evaluation, `enjoy` and the command line."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from robust_policies.cli import main
from robust_policies.envs import SB3VecEnv, make_sb3_vec_env
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.evaluation import evaluate_run, write_report
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.networks import R2DN, Lipschitz
from robust_policies.policies import save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.train import parse_recipe
from robust_policies.train.environment import make_env

OURS, THEIRS = "robust_policies/Pendulum-v0", "Pendulum-v1"
TINY_SUITE = Path(__file__).parent / "tiny_suite.yaml"
DELAY = [{"ObservationDelay": 3}]


def policy():
    torch.manual_seed(0)
    actor = Actor(ScaledCell(R2DN(3, 4, 1, 6, (8,), guarantee=Lipschitz(4.0)), Scaling(3)), MeanHead(1, 1, False, 2.0))
    limit = np.array([1.0, 1.0, 8.0], np.float32)
    return DeployedPolicy(actor, spaces.Box(-limit, limit), spaces.Box(-2.0, 2.0, (1,)))


def recipe(**task):
    return {"schema": 1, "task": {"id": OURS, **task}, "algorithm": {"total_steps": 1000}}


@pytest.fixture
def folder(tmp_path):
    save_policy(policy(), tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(perturbations=DELAY, kwargs={"max_episode_steps": 40})))
    return tmp_path


@pytest.mark.parametrize("env_id", [OURS, THEIRS])
def test_the_bridge_wraps_every_kind_of_environment(env_id):
    plain, delayed = make_sb3_vec_env(env_id, 2, seed=0), make_sb3_vec_env(env_id, 2, seed=0, perturbations=DELAY)
    assert isinstance(delayed, SB3VecEnv) is (env_id == OURS)
    seen = [plain.reset()]
    assert np.array_equal(delayed.reset(), seen[0])
    for _ in range(6):
        actions = np.ones((2, 1), np.float32)
        seen.append(plain.step(actions)[0])
        np.testing.assert_allclose(delayed.step(actions)[0], seen[max(0, len(seen) - 4)], atol=1e-6)


def test_a_recipes_perturbations_are_checked_and_used():
    parsed = parse_recipe(recipe(perturbations=[{"ObservationDelay": {"steps": 3}}]), "mine")
    assert parsed.resolved()["task"]["perturbations"] == DELAY
    env = make_env(parsed, 2, 0, "cpu", training=False)
    first = env.reset()
    np.testing.assert_array_equal(env.step(np.ones((2, 1), np.float32))[0], first)
    for wrong, error, message in (
        ([{"ObservationDelay": -1}], InvalidValueError, "perturbation 1"),
        ([{"ObservationDely": 1}], UnknownNameError, "Did you mean 'ObservationDelay'"),
    ):
        with pytest.raises((error, InvalidValueError), match=message):
            parse_recipe(recipe(perturbations=wrong), "mine")


@pytest.mark.parametrize("env_id", [OURS, THEIRS])
def test_episodes_run_inside_the_wrappers(env_id):
    plain = run_episodes(policy(), env_id, "uniform", [0.0], 3, 0, max_steps=60, record=1)
    shifted = run_episodes(
        policy(), env_id, "uniform", [0.0], 3, 0, max_steps=60, record=1, perturbations=[{"ActionDropout": 1.0}]
    )
    assert not np.allclose(plain.returns, shifted.returns)
    assert np.array_equal(plain.recorded["actions"][0], shifted.recorded["actions"][0])


@pytest.mark.usefixtures("undrawn")
def test_evaluation_takes_the_recipes_wrappers_or_those_given(folder):
    options = {"episodes": 2, "sizes": [0.0], "seeds": [0], "tasks": [OURS], "suite": str(TINY_SUITE)}
    own = evaluate_run(folder, **options)
    given = evaluate_run(folder, **options, perturbations=[])
    noisy = evaluate_run(folder, **options, perturbations="[ObservationNoise: 0.5]")
    assert (own["perturbations"], given["perturbations"], noisy["perturbations"]) == (
        DELAY, [], [{"ObservationNoise": 0.5}],
    )  # fmt: skip
    returns = [content["rows"][0]["returns"] for content in (own, given, noisy)]
    assert returns[0] != returns[1] != returns[2]
    assert "ObservationNoise: 0.5" in write_report([folder], None).read_text()
    evaluate_run(folder, **options, perturbations="[ActionDelay, ObservationNoise: {size: 0.5, kind: sphere}]")
    assert "ActionDelay, ObservationNoise: {size: 0.5, kind: sphere}" in write_report([folder], None).read_text()


def test_the_command_line_wraps_and_refuses(folder, monkeypatch, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return left.value.code, capsys.readouterr()

    quick = ("--episodes", 1, "--sizes", "0", "--seeds", "0", "--task", OURS, "--suite", TINY_SUITE)
    status, _ = call("evaluate", folder, *quick, "--perturb", "[ObservationDelay: 2, ActionNoise: 0.3]")
    listed = json.loads(Path(folder, "evaluation.json").read_text())["perturbations"]
    assert status == 0 and listed == [{"ObservationDelay": 2}, {"ActionNoise": 0.3}]
    status, said = call("enjoy", folder, "--render", "none", "--episodes", 1, "--perturb", "ObservationDelay")
    assert status == 0 and "episode 1: return" in said.out
    for wrong, message in (
        ("[ObservationDelay: -2]", "perturbation 1"),
        ("[ObservationDelays: 2]", "Did you mean 'ObservationDelay'"),
        ("[unclosed", "not YAML"),
    ):
        before = Path(folder, "evaluation.json").read_bytes()
        status, said = call("evaluate", folder, *quick, "--perturb", wrong)
        assert status == 2 and message in said.err and len(said.err.strip().splitlines()) == 1
        assert Path(folder, "evaluation.json").read_bytes() == before


def test_wrappers_leave_the_registered_environment_alone():
    make_sb3_vec_env(THEIRS, 1, perturbations=DELAY)
    assert gymnasium.make(THEIRS).spec.additional_wrappers == ()
