"""results/certified says what was measured, no bound lies below what was found, and its recipes have the same steps."""

import json
from pathlib import Path

import pytest

from results.certified import study, tables
from robust_policies.train import load_recipe

RESULTS = Path(__file__).resolve().parents[2] / "results" / "certified"


@pytest.fixture(scope="module")
def tasks():
    return json.loads((RESULTS / "results.json").read_text())["tasks"]


def test_the_page_is_that_of_the_stored_rows(tasks):
    assert (RESULTS / "README.md").read_text() == tables.page(tasks, RESULTS)


def test_every_policy_has_five_training_seeds_or_is_not_trained(tasks):
    assert list(tasks) == list(study.STUDIES)
    for name, rows in tasks.items():
        for method in study.STUDIES[name].methods():
            seeds = [row["seed"] for row in tables.of(rows, method)]
            assert seeds == ([0] if method == "lqg" else [0, 1, 2, 3, 4]), (name, method)


def test_no_bound_lies_below_what_was_found_and_more_is_never_better(tasks):
    for name, rows in tasks.items():
        for row in rows:
            before = None
            for size in row["sizes"]:
                where = (name, row["method"], row["seed"], size["size"])
                assert size["nominal"] <= size["found"] * (1 + 1e-9), where
                assert max(size["found"], size["attacked"]) <= size["worst"], where
                if size["certified"] is not None:
                    assert size["worst"] <= size["certified"], where
                    assert before is None or before["certified"] <= size["certified"], where
                before = size if size["certified"] is not None else before
            proven = any(size["certified"] is not None for size in row["sizes"])
            assert proven == (row["status"] == "PASS"), (name, row["method"], row["seed"])


@pytest.mark.parametrize("name", study.STUDIES)
def test_all_policies_of_a_task_are_trained_with_the_same_steps(name, tmp_path):
    found, one = set(), study.STUDIES[name]
    for method in one.methods():
        recipe, changes = one.recipe(method, tmp_path)
        made = load_recipe(recipe, changes)
        found.add((made.algorithm.total_steps, made.task.num_envs))
        assert (made.algorithm.certified_size is not None) == (method in ("certified", "direct"))
        assert (made.policy.cell == "lstm") == (method == "lstm")
    assert found == {(study.UPDATES * study.ENVIRONMENTS * one.horizon, study.ENVIRONMENTS)}
