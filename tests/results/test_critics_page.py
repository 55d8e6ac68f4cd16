"""results/critics: the page is that of the stored rows, and the rows are of trainings that the study describes."""

import json
from pathlib import Path

import pytest

from results.critics import make, study
from robust_policies.train.recipe.sections import BoundedCritic

RESULTS = Path(__file__).resolve().parents[2] / "results" / "critics"


@pytest.fixture(scope="module")
def rows():
    return json.loads((RESULTS / "critics.json").read_text())


def test_the_page_is_that_of_the_stored_rows(rows):
    page = (RESULTS / "README.md").read_text()
    assert page == make.page(rows) and "<!--" not in page


def test_a_row_is_a_whole_training_of_the_study(rows):
    keys = [(row["part"], row["task"], row["variant"], row["seed"]) for row in rows]
    assert len(set(keys)) == len(keys) > 0
    for row in rows:
        assert row["variant"] in study.variants(row["part"])
        steps = [done for done, _ in row["evaluations"]]
        assert len(steps) >= 4 and steps == sorted(steps) and steps[-1] >= study.TASKS[row["task"]]


def test_seeds_are_compared_in_pairs():
    rows = [
        {"part": "critic", "task": "DCMotor", "variant": variant, "seed": seed, "evaluations": [[1, value]]}
        for variant, values in (("unbounded", (-3.0, -1.0)), ("gamma 1", (-2.0, -2.0, 0.0)))
        for seed, value in enumerate(values)
    ]
    assert (make.above(rows[:2], rows), make.above(rows[2:], rows)) == ("", "1 of 2")


def test_a_bounded_reward_kept_its_bound(rows):
    bounded = [row for row in rows if row["part"] == "reward" and row["variant"] == "gamma 1"]
    assert bounded
    for row in bounded:
        assert row["found"] <= row["proven"] * (1 + 1e-6) <= 1.0 + 1e-5


def test_the_variants_differ_by_the_bound_alone(tmp_path):
    free, bounded = (study.recipe_of("critic", "DCMotor", variant, 0, tmp_path) for variant in study.CRITICS)
    assert free.policy.critic == "mlp" and isinstance(bounded.policy.critic, BoundedCritic)
    changed = bounded.model_copy(update={"policy": bounded.policy.model_copy(update={"critic": "mlp"})})
    assert changed == free
    free, bounded = (study.recipe_of("reward", "DCMotor", variant, 0, tmp_path) for variant in study.REWARDS)
    assert (free.algorithm.reward.cell, bounded.algorithm.reward.cell) == ("mlp", "lbdn")
    same = free.algorithm.model_copy(update={"reward": bounded.algorithm.reward})
    assert same == bounded.algorithm and free.policy == bounded.policy
