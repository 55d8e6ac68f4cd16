"""What the pages read from results: the folders of `make demo` and a pendulum's, trained for two seconds each."""

from pathlib import Path

import pytest
import torch

from robust_policies.evaluation import certify_return_run, evaluate_run
from robust_policies.policies import load_policy
from robust_policies.train import load_recipe, train

SUITE = Path(__file__).parents[1] / "tiny_suite.yaml"
SHORT = [
    "task.num_envs=4",
    "algorithm={name: tensor_ppo, total_steps: 800, n_steps: 100, batch_size: 200, n_epochs: 1}",
    "checkpoints.evaluate_every=400",
    "checkpoints.evaluate_episodes=2",
]
SHORT_APG = [
    "task={id: robust_policies/MassSpringDamper-v0, num_envs: 2, kwargs: {max_episode_steps: 10}}",
    "policy.state_size=2",
    "algorithm.total_steps=40",
    "algorithm.horizon=10",
    "checkpoints.evaluate_episodes=2",
]
SMALL = ["policy.features=2", "policy.hidden_sizes=[2]"]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Return a folder with results/pendulum, its certificate without a search for a witness, and results/demo."""
    torch.set_num_threads(1)
    results = tmp_path_factory.mktemp("demo") / "results"
    place = results / "pendulum"
    train(load_recipe("pendulum_r2dn_gamma6", SHORT), place)
    evaluate_run(place, tasks=["robust_policies/Pendulum-v0"], suite=str(SUITE), episodes=2, seeds=[0])
    load_policy(place).certificate().to_json(place / "certificate.json")
    for name, recipe, more in (("r2dn", "youla_certified", SMALL), ("lstm", "lstm_apg", [])):
        place = results / "demo" / name
        train(load_recipe(f"mass_spring_damper_{recipe}", [*SHORT_APG, *more]), place)
        certify_return_run(place, [0.02], episodes=2)
    return results.parent
