"""The recipes of the analytic policy gradient: what each learns in a few updates, and how near the optimum it comes."""

import pytest
import torch

from robust_policies.errors import InvalidValueError
from robust_policies.evaluation import certify_run
from robust_policies.train import load_recipe, train
from robust_policies.train.apg.algorithm import AnalyticPolicyGradient
from robust_policies.train.apg.run import make_actor, task_plant


def algorithm_of(name, *changes):
    recipe = load_recipe(name, list(changes), 0)
    plant, limit = task_plant(recipe)
    actor = make_actor(recipe, plant, "cpu")
    return AnalyticPolicyGradient(plant, actor, recipe.algorithm, recipe.task.num_envs, recipe.seed, limit)


def learn(algorithm, updates):
    for k in range(updates):
        algorithm.update(1.0 - k / updates)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("double_integrator_r2dn_apg", 0.5),
        *(
            pytest.param(name, share, marks=pytest.mark.soak)
            for name, share in (
                ("mass_spring_damper_r2dn_apg", 0.75), ("dc_motor_r2dn_apg", 0.5), ("aircraft_pitch_r2dn_apg", 0.5),
            )
        ),
    ],
)  # fmt: skip
def test_a_linear_task_costs_less_than_doing_nothing_after_a_few_updates(name, share):
    algorithm = algorithm_of(name, "task.num_envs=16", "algorithm.horizon=50", "algorithm.learning_rate=cos_2e-2")
    nothing, _ = algorithm.evaluate(50, seed=7)
    learn(algorithm, 24)
    after, _ = algorithm.evaluate(50, seed=7)
    assert nothing < 0
    assert after > share * nothing


def test_the_pole_stands_more_than_twice_as_long_after_a_few_updates():
    algorithm = algorithm_of("cartpole_r2dn_apg")
    _, before = algorithm.evaluate(50, seed=7)
    learn(algorithm, 50)
    _, after = algorithm.evaluate(50, seed=7)
    assert after > 2 * before


@pytest.mark.soak
def test_the_free_mass_costs_little_more_than_the_linear_quadratic_optimum_in_the_long_run():
    algorithm = algorithm_of("double_integrator_r2dn_apg")
    learn(algorithm, 60)
    totals = []
    for steps in (400, 2000):
        algorithm.limit = steps
        totals.append(-algorithm.evaluate(64, seed=5)[0])
    long_run = (totals[1] - totals[0]) / 1600
    assert long_run < 1.25 * algorithm.plant.task.optimum.lqg


@pytest.mark.parametrize("cell", [pytest.param("ren", marks=pytest.mark.soak), "r2dn"])
def test_the_youla_recipe_trains_either_cell_into_a_folder_that_passes(cell, tmp_path):
    hidden = "[8]" if cell == "r2dn" else "null"
    recipe = load_recipe(
        "youla_example_r2dn_apg",
        [f"policy.cell={cell}", f"policy.hidden_sizes={hidden}", "policy.features=8", "task.num_envs=4",
         "algorithm.total_steps=1600", "checkpoints.evaluate_every=1600", "checkpoints.evaluate_episodes=4",
         "checkpoints.certify_every=0", "task.kwargs={max_episode_steps: 100}"],
    )  # fmt: skip
    result = train(recipe, tmp_path / "run")
    assert result.num_timesteps == 1600
    assert certify_run(tmp_path / "run", steps=5).status == "PASS"


def test_the_betas_of_a_recipe_are_those_of_adam():
    algorithm = algorithm_of("pendulum_r2dn_apg", "algorithm.betas=[0.5, 0.75]", "algorithm.max_grad_norm=1e6")
    before = [p.detach().clone() for p in algorithm.actor.parameters()]
    algorithm.update(1.0)
    for state, parameter in zip(algorithm.optimizer.state.values(), algorithm.optimizer.state, strict=True):
        # After one step the averages hold (1 - beta) of the gradient and of its square.
        assert torch.allclose(state["exp_avg"], 0.5 * parameter.grad)
        assert torch.allclose(state["exp_avg_sq"], 0.25 * parameter.grad**2)
    assert any(not torch.equal(old, new) for old, new in zip(before, algorithm.actor.parameters(), strict=True))


@pytest.mark.parametrize("betas", ["[0.9]", "[0.9, 1.0]", "[-0.1, 0.9]"])
def test_betas_that_adam_cannot_have_are_refused(betas):
    with pytest.raises(InvalidValueError, match=r"two numbers from 0 to below 1, such as \[0.9, 0.999\]"):
        load_recipe("pendulum_r2dn_apg", [f"algorithm.betas={betas}"])
