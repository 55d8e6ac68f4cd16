"""A recipe's target: what training must reach by when, said at the end, kept in the run folder, shown in the report."""

import shutil

import pytest
import torch
from stopping import stop_at
from tiny_recipe import TINY

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.evaluation import certify_run, write_report
from robust_policies.train import RunFolder, TrainingInterruptedError, load_recipe, open_run, parse_recipe, train
from robust_policies.train.recipe.sections import TargetSection
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.target import outcome

APG = [
    "task.num_envs=4", "policy.state_size=4", "policy.features=4", "policy.hidden_sizes=[4]",
    "algorithm.total_steps=256", "algorithm.horizon=16", "checkpoints.evaluate_every=128",
    "checkpoints.evaluate_episodes=4",
]  # fmt: skip


def recipe_with(reward, steps, *assignments):
    return load_recipe("pendulum_r2dn_gamma6", [*TINY, f"target={{return: {reward}, steps: {steps}}}", *assignments])


def found(reward, steps):
    evaluations = [(100, 1.0, -300.0), (200, 2.0, -150.0), (300, 3.0, -100.0)]
    return outcome(TargetSection.model_validate({"return": reward, "steps": steps}), Progress(evaluations=evaluations))


def test_the_first_evaluation_in_time_counts():
    late = found(-200.0, 300)
    assert (late.reached, late.reached_steps, late.reached_cpu_seconds) == (True, 200, 2.0)
    assert (late.best, late.best_steps) == (-100.0, 300)
    assert late.text == "Target: mean return -200 within 300 steps: reached at 200 (best -100.0 at 300)."
    assert found(-150.0, 200).reached_steps == 200


def test_an_evaluation_after_the_steps_does_not_count():
    missed = found(-120.0, 299)
    assert not missed.reached
    assert (missed.best, missed.best_steps) == (-150.0, 200)
    assert missed.text == "Target: mean return -120 within 299 steps: NOT reached (best -150.0 at 200)."
    nothing = found(-120.0, 99)
    assert not nothing.reached
    assert "no evaluation within them" in nothing.text
    assert outcome(None, Progress()) is None


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `train` returns of a recipe whose target is reached, missed, reached too late, and of one without."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("targets")
    recipes = {
        "reached": recipe_with(-1e4, 1600),
        "missed": recipe_with(0.0, 1600),
        "late": recipe_with(-1e4, 799),
        "none": load_recipe("pendulum_r2dn_gamma6", [*TINY, "target=null"]),
    }
    return {name: train(recipe, folder / name) for name, recipe in recipes.items()}


@pytest.mark.parametrize(
    ("name", "reward", "reached"), [("reached", -1e4, 800), ("missed", 0.0, None), ("late", -1e4, None)]
)
def test_training_says_what_came_of_it(name, reward, reached, results):
    result = results[name]
    provenance = open_run(result.folder).read_provenance()
    assert result.target is not None
    assert result.target.reached_steps == reached
    assert provenance["target"]["reached_steps"] == reached
    assert provenance["target"]["expected"] == reward
    assert [entry[0] for entry in provenance["evaluations"]] == [800, 1600]
    assert 0 < provenance["evaluations"][0][1] < provenance["evaluations"][1][1] <= provenance["cpu_seconds"] + 0.1
    assert max(entry[2] for entry in provenance["evaluations"]) == result.best_reward


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_it_and_a_recipe_without_one_has_none(results):
    pages = {}
    for name in ("reached", "missed", "none"):
        assert (results[name].target is None) == (name == "none")
        certify_run(results[name].folder, steps=2)
        pages[name] = write_report(results[name].folder).read_text()
    assert "<span class='badge PASS'>reached</span> at 800 steps" in pages["reached"]
    assert "<span class='badge VIOLATED'>not reached</span>" in pages["missed"]
    assert "Target return" not in pages["none"]


def test_evaluations_from_before_an_interruption_count(tmp_path):
    recipe = recipe_with(-1e4, 800)
    with pytest.raises(TrainingInterruptedError):
        train(recipe, tmp_path / "run", **stop_at(900))
    result = train(recipe, tmp_path / "run", resume=True)
    assert result.target is not None
    assert result.target.reached_steps == 800
    assert [entry[0] for entry in RunFolder(tmp_path / "run").read_provenance()["evaluations"]] == [800, 1600]


def test_another_target_is_no_other_training(results, tmp_path):
    run = shutil.copytree(results["reached"].folder, tmp_path / "run")
    result = train(recipe_with(0.0, 1600), run, resume=True)
    assert result.target is not None
    assert not result.target.reached


def test_analytic_policy_gradients_have_targets_too(tmp_path):
    recipe = load_recipe("pendulum_r2dn_apg", [*APG, "target={return: -1.0e+4, steps: 128}"])
    result = train(recipe, tmp_path / "run")
    assert result.target is not None
    assert result.target.reached_steps == 128
    assert [entry[0] for entry in open_run(tmp_path / "run").read_provenance()["evaluations"]] == [128, 256]


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("{return: high, steps: 4}", InvalidValueError, "target.return is 'high'"),
        ("{return: 4.0, steps: 0}", InvalidValueError, "target.steps is 0; expected greater than or equal to 1"),
        ("{return: 4.0}", InvalidValueError, "target.steps is missing"),
        ("{returns: 4.0, steps: 3}", UnknownNameError, "unknown key 'target.returns'. Did you mean 'target.return'"),
        ("-200", InvalidValueError, "target is -200; expected a section with the keys return, steps"),
    ],
)
def test_a_wrong_target_is_named(target, error, words):
    with pytest.raises(error) as caught:
        load_recipe("pendulum_r2dn_gamma6", [f"target={target}"])
    assert words in str(caught.value)


def test_a_resolved_recipe_keeps_its_target():
    recipe = recipe_with(-200.0, 1600)
    assert recipe.resolved()["target"] == {"return": -200.0, "steps": 1600}
    assert parse_recipe(recipe.resolved(), "again") == recipe
