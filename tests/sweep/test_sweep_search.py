"""What a search tries and learns; its trials are told what they returned, as a sweep tells them."""

import importlib.util

import pytest

from robust_policies.errors import CorruptFileError
from robust_policies.sweep.folder import SweepFolder
from robust_policies.sweep.jobs import Ended
from robust_policies.sweep.space import read_space
from robust_policies.train import load_recipe

pytestmark = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="the extra sweep is not installed")
RECIPE = "pendulum_r2dn_gamma6"
SPACE = ["policy.gamma=3..12", "policy.state_size=2..8", "algorithm.learning_rate=log:1e-4..1e-2"]


def make_recipe(overrides, seed):
    return load_recipe(RECIPE, overrides, seed)


def search(path, count, seeds=(0,), space=SPACE, **options):
    # Imports Optuna: a second, of every process that collects the tests.
    from robust_policies.sweep.search import Search

    folder = SweepFolder(path)
    folder.begin({"recipe": load_recipe(RECIPE).resolved(), "keys": [], "search": space}, resume=True)
    read = read_space(space, lambda assignment: load_recipe(RECIPE, [assignment]))
    return Search(folder, read, count, seeds, options.pop("objective", "best"), make_recipe, evaluate=False, **options)


def end(found, trial, value=None, status="done"):
    """Tell the search that a trial ended with this objective, leaving the files of a finished run."""
    row = found.folder.record(trial.seed, trial.setting, Ended(trial.name, status))
    if value is not None:
        row["metrics"][found.objective] = value
        found.folder.write_tables()
        run = found.folder.trials / trial.name
        run.mkdir()
        for name in ("policy.json", "policy.safetensors"):
            (run / name).touch()
    found.ended(trial, row)


def value_of(trial):
    """Return an objective with its maximum at gamma 7 and three states."""
    return -((trial.setting["policy.gamma"] - 7) ** 2) - (trial.setting["policy.state_size"] - 3) ** 2


def run_all(found):
    tried = []
    while (trial := found.next()) is not None:
        tried.append(trial)
        end(found, trial, value_of(trial))
    return tried


def test_settings_lie_in_their_ranges_and_reach_the_recipe(tmp_path):
    tried = run_all(search(tmp_path, 12))
    assert [trial.name for trial in tried] == [f"search={number:04d}_seed=0" for number in range(12)]
    for trial in tried:
        assert 3 <= trial.setting["policy.gamma"] <= 12
        assert trial.setting["policy.state_size"] in range(2, 9)
        assert 1e-4 <= trial.setting["algorithm.learning_rate"] <= 1e-2
        assert trial.recipe.policy.gamma == trial.setting["policy.gamma"]
        assert trial.recipe.algorithm.learning_rate == trial.setting["algorithm.learning_rate"]
    assert len({trial.setting["policy.gamma"] for trial in tried}) == 12


def test_an_interrupted_search_tries_what_an_uninterrupted_one_does(tmp_path):
    whole = run_all(search(tmp_path / "whole", 14))
    first = run_all(search(tmp_path / "parts", 5))
    second = search(tmp_path / "parts", 14)
    begun = second.next()
    assert begun is not None
    # Here the process is killed: trial 5 was begun and never ended.
    third = search(tmp_path / "parts", 14)
    rest = run_all(third)
    assert rest[0].name == begun.name
    assert [trial.setting for trial in [*first, *rest]] == [trial.setting for trial in whole]
    assert third.summary() == search(tmp_path / "whole", 14).summary()
    assert run_all(search(tmp_path / "parts", 14)) == []


def test_the_best_setting_is_the_one_with_the_best_objective(tmp_path):
    found = search(tmp_path, 8)
    tried = run_all(found)
    best = max(tried, key=value_of)
    (line,) = found.summary()
    assert best.name.removesuffix("_seed=0") in line
    assert f"policy.gamma={best.setting['policy.gamma']!r}" in line
    smallest = search(tmp_path / "gamma", 4, objective="gamma")
    tried = run_all(smallest)
    assert min(tried, key=value_of).name.removesuffix("_seed=0") in smallest.summary()[0]


def test_the_objective_is_the_mean_over_seeds(tmp_path):
    found = search(tmp_path, 2, seeds=(0, 4))
    trials = [found.next() for _ in range(4)]
    assert found.next() is None
    assert [trial.name for trial in trials][:2] == ["search=0000_seed=0", "search=0000_seed=4"]
    assert trials[0].setting == trials[1].setting
    for trial, value in zip(trials, (1.0, 3.0, 2.5, 2.5), strict=True):
        end(found, trial, value)
    assert [trial.value for trial in found.study.trials] == [2.0, 2.5]
    assert "search=0001" in found.summary()[0]


def test_seeds_that_are_done_are_not_run_again(tmp_path):
    found = search(tmp_path, 1, seeds=(0, 1, 2))
    end(found, found.next(), 1.0)
    end(found, found.next(), status="failed")
    again = search(tmp_path, 1, seeds=(0, 1, 2))
    left = [again.next(), again.next()]
    assert [trial.seed for trial in left] == [1, 2]
    assert again.next() is None
    for trial in left:
        end(again, trial, 4.0)
    assert again.study.trials[0].value == 3.0


def test_a_failed_trial_fails_its_setting_and_the_search_goes_on(tmp_path):
    found = search(tmp_path, 3)
    end(found, found.next(), status="failed")
    end(found, found.next(), 1.0)
    end(found, found.next(), 2.0)
    assert [trial.state.name for trial in found.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "search=0002" in found.summary()[0]


def test_a_setting_that_the_recipe_refuses_is_reported(tmp_path):
    # Each value is fine beside the recipe's own, and no two of them fit together: batch <= 128 n_steps.
    rejected = []
    found = search(
        tmp_path, 3, space=["algorithm.batch_size=6144,8192", "algorithm.n_steps=16,32"], rejected=rejected.append
    )
    assert found.next() is None
    assert [row["name"] for row in rejected] == [f"search={number:04d}_seed=0" for number in range(3)]
    assert all(row["status"] == "failed" and "algorithm.batch_size" in row["reason"] for row in rejected)
    assert [trial.state.name for trial in found.study.trials] == ["FAIL"] * 3
    assert found.summary() == []


def test_pruning_ends_a_setting_below_the_median(tmp_path):
    found = search(tmp_path, 7, prune=True)
    for _ in range(6):
        trial = found.next()
        for rung in range(10):
            assert found.progress(trial, rung / 10, -100.0) == []
        end(found, trial, -100.0)
    trial = found.next()
    assert found.progress(trial, 0.1, -900.0) == [], "too early to judge"
    assert found.progress(trial, 0.5, -900.0) == [trial.name]
    assert found.progress(trial, 0.6, -900.0) == [], "it was asked once"
    end(found, trial, status="pruned")
    assert found.study.trials[6].state.name == "PRUNED"


def test_without_prune_nothing_is_ended(tmp_path):
    found = search(tmp_path, 7)
    for _ in range(6):
        trial = found.next()
        assert found.progress(trial, 0.5, -100.0) == []
        end(found, trial, -100.0)
    assert found.progress(found.next(), 0.5, -900.0) == []


def test_a_damaged_study_is_named(tmp_path):
    run_all(search(tmp_path, 1))
    (tmp_path / "search.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptFileError, match=r"search\.db"):
        search(tmp_path, 2)
