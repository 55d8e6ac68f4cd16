"""Rollouts, attacks, run folders and the report."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny import tiny_suite

from robust_policies.cli.app import main
from robust_policies.errors import DivergedError, InvalidValueError, ShapeError, UnknownNameError
from robust_policies.evaluation import certify_run, evaluate_run, write_report
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.evaluation.noise import unit_noise
from robust_policies.networks import R2DN, Lipschitz, LSTMCell
from robust_policies.policies import save_policy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.deployed import DeployedPolicy

OURS, THEIRS = "robust_policies/Pendulum-v0", "Pendulum-v1"


def make_policy(kind="r2dn"):
    torch.manual_seed(0)
    cell = LSTMCell(3, 8, 1) if kind == "lstm" else R2DN(3, 4, 1, 6, (8,), guarantee=Lipschitz(4.0))
    actor = Actor(ScaledCell(cell, Scaling(3, [1.0, 1.0, 8.0])), MeanHead(1, 1, False, 2.0))
    limit = np.array([1.0, 1.0, 8.0], np.float32)
    return DeployedPolicy(actor, spaces.Box(-limit, limit), spaces.Box(-2.0, 2.0, (1,)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name in ("r2dn", "lstm"):
        save_policy(make_policy(name), root / name)
        (root / name / "recipe.yaml").write_text(f"task: {{id: {OURS}}}\nalgorithm: {{total_steps: 1000}}\n")
        evaluate_run(root / name, suite=tiny_suite(), tasks=[OURS])
        certify_run(root / name, steps=5)
    return root


@pytest.mark.parametrize("env_id", [OURS, THEIRS])
@pytest.mark.parametrize("kind", ["uniform", "sequence_pgd"])
def test_episodes_are_reproducible_by_seed(env_id, kind):
    first, again, other = (
        run_episodes(make_policy(), env_id, kind, [0.1], 2, seed, max_steps=40).returns for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_our_pendulum_and_gymnasiums_give_the_same_returns():
    ours, theirs = (run_episodes(make_policy(), env, "l2", [0.0, 0.2], 3, 0) for env in (OURS, THEIRS))
    assert np.allclose(ours.returns, theirs.returns, rtol=1e-4)
    assert (ours.lengths == 200).all() and (theirs.lengths == 200).all()


def test_an_environment_or_a_function_that_makes_one_is_played_as_its_id_is():
    there = gymnasium.make(THEIRS)
    named, made, copied = (
        run_episodes(make_policy(), env, "l2", [0.0, 0.2], 2, 0, max_steps=20)
        for env in (THEIRS, lambda: gymnasium.make(THEIRS), there)
    )
    assert np.array_equal(named.returns, made.returns) and np.array_equal(named.returns, copied.returns)
    with pytest.raises(InvalidValueError, match="PendulumEnv is there already and takes no options"):
        run_episodes(make_policy(), there, "l2", [0.0], 1, 0, env_kwargs={"g": 9.0})


def test_noise_has_the_stated_shape_and_size():
    assert unit_noise("uniform", (50, 4, 3), 0).abs().max() <= 1
    assert torch.allclose(unit_noise("l2", (50, 4, 3), 0).norm(dim=-1), torch.ones(50, 4))
    assert torch.equal(unit_noise("gaussian", (9, 2, 3), 1), unit_noise("gaussian", (9, 2, 3), 1))
    with pytest.raises(UnknownNameError, match="gaussian"):
        unit_noise("gausian", (1, 1, 1), 0)


def test_wrong_input_is_named():
    with pytest.raises(UnknownNameError, match="Pendulum-v1"):
        run_episodes(make_policy(), "Pendulm-v1", "l2", [0.1], 1, 0)
    with pytest.raises(ShapeError, match="MountainCar"):
        run_episodes(make_policy(), "MountainCarContinuous-v0", "l2", [0.1], 1, 0)
    with pytest.raises(InvalidValueError, match="size"):
        run_episodes(make_policy(), THEIRS, "l2", [-0.1], 1, 0)
    broken = make_policy()
    broken.actor.head.scale.fill_(float("nan"))
    with pytest.raises(DivergedError, match="NaN"):
        run_episodes(broken, OURS, "l2", [0.1], 1, 0)


@pytest.mark.usefixtures("undrawn")
def test_a_task_that_fails_is_named_and_the_others_are_evaluated(runs, tmp_path):
    save_policy(make_policy(), tmp_path)
    content = evaluate_run(tmp_path, suite=tiny_suite(), tasks=[OURS, "MountainCarContinuous-v0"])
    assert {row["task"] for row in content["rows"]} == {OURS}
    assert [failure["task"] for failure in content["failures"]] == ["MountainCarContinuous-v0"]
    page = write_report(tmp_path).read_text()
    assert "MountainCarContinuous-v0 was not evaluated" in page and "certificate.json does not exist" in page


def test_certify_writes_the_certificate_and_its_witness(runs):
    proven = json.loads((runs / "r2dn" / "certificate.json").read_text())
    assert proven["status"] == "PASS" and 0 < proven["ratio"] <= 1 and (runs / "r2dn" / proven["witness"]).is_file()
    unproven = json.loads((runs / "lstm" / "certificate.json").read_text())
    assert unproven["status"] == "NOT_CERTIFIED" and unproven["empirical_lower"] > 0 and unproven["gamma_raw"] is None


def test_a_folder_saved_with_its_task_is_evaluated_and_watched_as_it_is(tmp_path, capsys):
    task = {"id": "robust_policies/Pendulum-v0", "kwargs": {"max_episode_steps": 5}}
    save_policy(make_policy(), tmp_path, task=task)
    found = evaluate_run(tmp_path, suite="quick", sizes=[0.0], episodes=1, seeds=[0], attacks=["random"])
    assert found["tasks"] == [task["id"]] and set(found["rows"][0]["lengths"]) == {5}
    with pytest.raises(SystemExit) as ended:
        main(["enjoy", str(tmp_path), "--render", "none", "--episodes", "1"])
    assert ended.value.code == 0 and "episode 1: return" in capsys.readouterr().out
    with pytest.raises(UnknownNameError, match="Pendulum"):
        save_policy(make_policy(), tmp_path / "other", task="robust_policies/Pendulun-v0")
    assert not (tmp_path / "other").exists()
