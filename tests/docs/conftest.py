"""One demo folder as `make demo` leaves it, but trained for two seconds: what the pages read from results/demo."""

from pathlib import Path

import pytest
import torch

from robust_policies.evaluation import evaluate_run
from robust_policies.policies import load_policy
from robust_policies.train import load_recipe, train

SUITE = Path(__file__).parents[1] / "tiny_suite.yaml"
SHORT = [
    "task.num_envs=4",
    "algorithm={name: tensor_ppo, total_steps: 800, n_steps: 100, batch_size: 200, n_epochs: 1}",
    "checkpoints.evaluate_every=400",
    "checkpoints.evaluate_episodes=2",
]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Return a folder with results/demo, its certificate without a search for a witness, and results/demo/lstm."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("demo") / "results" / "demo"
    for name, place in (("pendulum_r2dn_gamma6", folder), ("pendulum_lstm", folder / "lstm")):
        train(load_recipe(name, SHORT), place)
        evaluate_run(place, tasks=["robust_policies/Pendulum-v0"], suite=str(SUITE), episodes=2, seeds=[0])
    load_policy(folder).certificate().to_json(folder / "certificate.json")
    return folder.parents[1]
