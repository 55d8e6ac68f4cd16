"""Environments of other packages go through every command: train, certify, evaluate, export, report, enjoy."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from in_process import answer

from robust_policies.policies import load_policy

needs_box2d = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="gymnasium[box2d] is not installed")
# Memory, gain and what the environment is: choices and continuous actions, one-hot states, Boxes with and without ends.
ENVIRONMENTS = {
    "CartPole-v1": "recurrent_ppo",
    "Acrobot-v1": "recurrent_ppo",
    "MountainCar-v0": "recurrent_ppo",
    "MountainCarContinuous-v0": "recurrent_ppo",
    "Pendulum-v1": "tensor_ppo",
    "FrozenLake-v1": "recurrent_ppo",
    "LunarLander-v3": "recurrent_ppo",
    "BipedalWalker-v3": "recurrent_ppo",
    "HalfCheetah-v5": "recurrent_ppo",
    "InvertedPendulum-v5": "tensor_ppo",
}
IN_SUITE = {"InvertedPendulum-v5"}
SUITE = Path(__file__).parents[1] / "tiny_suite.yaml"


def marks(env_id):
    found = [] if env_id in IN_SUITE else [pytest.mark.soak]
    return found + [needs_box2d] * env_id.startswith(("LunarLander", "Bipedal"))


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("env_id", [pytest.param(name, marks=marks(name)) for name in ENVIRONMENTS])
def test_an_environment_of_another_package_goes_through_every_command(env_id, tmp_path):
    recipe = {
        "schema": 1,
        "seed": 0,
        "task": {"id": env_id, "num_envs": 2, "kwargs": {"max_episode_steps": 50}},
        "policy": {"cell": "r2dn", "gamma": 5.0, "state_size": 4, "features": 4, "hidden_sizes": [8]},
        "algorithm": {
            "name": ENVIRONMENTS[env_id], "total_steps": 400, "n_steps": 100, "batch_size": 100, "n_epochs": 1,
        },
        "checkpoints": {"every": 200, "evaluate_every": 400, "evaluate_episodes": 2},
    }  # fmt: skip
    path, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe))
    done = answer("train", path, "-o", folder, "--no-evaluate")
    assert done.returncode == 0, done.stderr
    done = answer("certify", folder)
    assert done.returncode == 0 and "PASS" in done.stdout, done.stdout + done.stderr
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["empirical_lower"] <= certificate["gamma_raw"]
    done = answer("evaluate", folder, "--episodes", "2", "--seeds", "0", "--sizes", "0,0.1", "--suite", SUITE)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "evaluation.json").read_text())
    attacked = [row for row in found["rows"] if (row["perturbation"], row["size"]) == ("mad_pgd", 0.1)]
    assert len(attacked) == (env_id != "FrozenLake-v1"), "which of 16 fields it stands on cannot be off by a tenth"
    assert all(len(row["returns"]) == 2 and np.isfinite(row["returns"]).all() for row in attacked)
    done = answer("export", folder, "--format", "safetensors", "-o", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    policy, exported = load_policy(folder), load_policy(tmp_path / "exported")
    observation = policy.observation_space.sample()
    assert np.array_equal(policy.predict(observation)[0], exported.predict(observation)[0])
    done = answer("report", folder, "-o", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    assert env_id in (tmp_path / "report.html").read_text()
    done = answer("enjoy", folder, "--render", "none", "--episodes", "1")
    assert done.returncode == 0 and "episode 1: return" in done.stdout, done.stdout + done.stderr
