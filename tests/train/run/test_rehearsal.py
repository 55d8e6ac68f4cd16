"""What a training would refuse at its end is refused before its first step, and the numbers stay the same."""

import random
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tiny_recipe import TINY

from robust_policies.cli.app import main
from robust_policies.errors import InvalidValueError
from robust_policies.evaluation import rehearsal
from robust_policies.evaluation.rehearsal import in_small, rehearse
from robust_policies.policies import DeployedPolicy
from robust_policies.train import load_recipe, train
from robust_policies.train.imitate import imitation_recipe

RECIPES = {
    "recurrent_ppo": lambda: load_recipe("pendulum_r2dn_gamma6"),
    "tensor_ppo": lambda: load_recipe("pendulum_r2dn_gamma6", ["algorithm.name=tensor_ppo"]),
    "apg": lambda: load_recipe("pendulum_r2dn_apg"),
    "imitation": lambda: imitation_recipe("lqg", "robust_policies/DoubleIntegrator-v0"),
    "gail": lambda: imitation_recipe("lqg", "robust_policies/DoubleIntegrator-v0", method="gail"),
}


def numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("name", RECIPES)
def test_every_algorithm_is_rehearsed_and_no_random_number_is_used_up(name, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(rehearsal, "train", lambda recipe, *a, **k: made.append(train(recipe, *a, **k)))
    # Nothing may be left where the command was given.
    monkeypatch.chdir(tmp_path)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = numbers()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    rehearse(RECIPES[name]())
    assert numbers() == expected
    assert len(made) == 1 and made[0].num_timesteps <= 4
    assert not Path(made[0].folder).exists() and not list(tmp_path.iterdir())


def test_what_is_rehearsed_is_the_recipe_with_fewer_steps():
    recipe = load_recipe("pendulum_r2dn_gamma6")
    small = in_small(recipe)
    assert (small.policy, small.task.id, small.algorithm.discount) == (
        recipe.policy, recipe.task.id, recipe.algorithm.discount,
    )  # fmt: skip
    assert small.algorithm.total_steps == 1


def test_a_rehearsed_training_ends_with_the_same_weights(tmp_path):
    recipe = load_recipe("pendulum_r2dn_gamma6", [*TINY, "algorithm.total_steps=400"])
    train(recipe, tmp_path / "alone")
    rehearse(recipe)
    train(recipe, tmp_path / "rehearsed")
    alone, rehearsed = ((tmp_path / name / "policy.safetensors").read_bytes() for name in ("alone", "rehearsed"))
    assert alone == rehearsed


def test_a_policy_that_cannot_be_saved_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def parts(self):
        raise InvalidValueError("This policy cannot be stored.")

    monkeypatch.setattr(DeployedPolicy, "parts", parts)
    with pytest.raises(InvalidValueError, match="cannot be stored"):
        train(load_recipe("pendulum_r2dn_gamma6", TINY), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_of_the_evaluation_that_does_not_fit_the_policy_is_refused_first(tmp_path, capsys):
    command = ["train", "pendulum_r2dn_gamma6", "--set", *TINY, "evaluation.tasks=[robust_policies/CartPole-v0]"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "-o", str(tmp_path / "run")])
    assert caught.value.code == 2, capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "pendulum_r2dn_gamma6", "--set", *TINY, "--dry-run", "-o", str(tmp_path / "run")])
    assert caught.value.code == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_an_environment_of_another_package_is_rehearsed():
    recipe = load_recipe("pendulum_r2dn_gamma6", [*TINY, "task.id=Pendulum-v1", "evaluation.tasks=[]"])
    assert "Pendulum-v1" in gymnasium.registry
    rehearse(recipe)
