import csv
import json
from dataclasses import replace

import pytest

from robust_policies.certificates import not_certified
from robust_policies.errors import InvalidValueError
from robust_policies.files.lock import held
from robust_policies.sweep.folder import SweepFolder
from robust_policies.sweep.jobs import Ended
from robust_policies.sweep.table import interval, interval_text, read_metrics, settings, write_csv
from robust_policies.train import RunFolder


def row(name, seed, setting, status="done", **metrics):
    return {"name": name, "seed": seed, "setting": setting, "status": status, "reason": "", "metrics": metrics}


def test_the_interval_is_student_s():
    # Mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776445105 (tables); times sqrt(2.5 / 5) is 1.963243.
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3.0 and found["seeds"] == 5
    assert found["low"] == pytest.approx(3.0 - 1.963243, abs=1e-6)
    assert found["high"] == pytest.approx(3.0 + 1.963243, abs=1e-6)
    assert interval([5.0] * 5) == {"mean": 5.0, "low": 5.0, "high": 5.0, "seeds": 5}
    assert interval_text(found, lambda value: f"{value:.2f}") == "3.00 [1.04, 4.96]"


def test_below_five_seeds_the_least_and_the_largest_stand_in_its_place():
    found = interval([4.0, 1.0, 3.0, 2.0])
    assert found == {"mean": 2.5, "low": 1.0, "high": 4.0, "seeds": 4}
    assert interval_text(found, lambda value: f"{value:g}") == "2.5 (1 to 4)"
    assert interval([5.0]) == {"mean": 5.0, "low": None, "high": None, "seeds": 1}
    assert interval_text(interval([5.0]), str) == "5.0"


def test_settings_pool_the_seeds_that_are_done():
    rows = [
        row("a0", 0, {"policy.gamma": 4}, **{"return": -100.0, "gamma": 8.0}),
        row("a1", 1, {"policy.gamma": 4}, **{"return": -200.0, "gamma": 8.0}),
        row("a2", 2, {"policy.gamma": 4}, status="failed"),
        row("b0", 0, {"policy.gamma": 6}, **{"return": -50.0}),
    ]
    first, second = settings(rows)
    assert (first["trials"], first["done"], first["failed"]) == (3, 2, 1)
    assert first["metrics"]["return"]["mean"] == -150.0
    assert first["metrics"]["return"] == {"mean": -150.0, "low": -200.0, "high": -100.0, "seeds": 2}
    assert second["metrics"] == {"return": {"mean": -50.0, "low": None, "high": None, "seeds": 1}}


def test_the_csv_files_say_the_same(tmp_path):
    rows = [
        row("a0", 0, {"policy.gamma": 4, "policy.hidden_sizes": [4, 4]}, **{"return": -100.5}),
        row("b0", 0, {"policy.gamma": None, "policy.hidden_sizes": [8]}, status="failed"),
    ]
    rows[1]["reason"] = 'it said "no", twice'
    write_csv(tmp_path, rows)
    with (tmp_path / "trials.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["policy.gamma"], first["policy.hidden_sizes"], first["return"]) == ("4", "[4, 4]", "-100.5")
    assert (second["policy.gamma"], second["status"], second["return"]) == ("null", "failed", "")
    assert second["reason"] == 'it said "no", twice'
    with (tmp_path / "settings.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["done"], first["return_mean"], first["return_low"]) == ("1", "-100.5", "")
    assert (second["done"], second["failed"], second["return_mean"]) == ("0", "1", "")


def test_the_figures_of_a_run_folder(tmp_path):
    assert read_metrics(RunFolder(tmp_path)) == {}
    write(tmp_path, "provenance", num_timesteps=1600, training_seconds=2.5, best_mean_reward=-90.0)
    replace(not_certified("an LSTM"), empirical_lower=3.0).to_json(tmp_path / "certificate.json")
    kinds = {
        "gaussian": [(0.0, [-10.0, -20.0]), (0.2, [-30.0, -50.0])],
        "attack": [(0.0, [-10.0, -20.0]), (0.2, [-99])],
    }
    table = [
        {"task": task, "perturbation": kind, "size": size, "returns": [scale * value for value in returns]}
        for task, scale in (("Own-v0", 1.0), ("Other-v0", 7.0))
        for kind, rows in kinds.items()
        for size, returns in rows
    ]
    write(tmp_path, "evaluation", tasks=["Own-v0", "Other-v0"], rows=table)
    assert read_metrics(RunFolder(tmp_path)) == {
        "return": -15.0, "worst": -99.0, "best": -90.0, "found": 3.0, "steps": 1600.0, "seconds": 2.5,
    }  # fmt: skip


def write(folder, kind, **content):
    (folder / f"{kind}.json").write_text(json.dumps({"schema": 1, **content}))


def algorithm(n_steps):
    return {"total_steps": 1000, "n_steps": n_steps}


def facts(**changed):
    recipe = {"description": "x", "seed": 0, "task": {"id": "Pendulum-v1"}, "policy": {"gamma": 4.0, "cell": "r2dn"}}
    recipe["algorithm"] = algorithm(10)
    return {"recipe": recipe, "keys": ["policy.gamma"], "search": None, **changed}


def test_a_sweep_folder_goes_on_only_with_the_same_sweep(tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    folder.begin(facts(), resume=True)
    folder.record(3, {"policy.gamma": 4}, Ended("gamma=4_seed=3", "failed", "why"))
    with pytest.raises(InvalidValueError, match="add --resume"):
        SweepFolder(folder.path).begin(facts(), resume=False)
    again = SweepFolder(folder.path)
    again.begin(facts(), resume=True)
    assert again.rows == folder.rows
    other = facts()
    other["recipe"] = {**other["recipe"], "algorithm": algorithm(20), "policy": {"gamma": 9.0, "cell": "r2dn"}}
    with pytest.raises(InvalidValueError, match=r"algorithm\.n_steps was 10 and is now 20"):
        SweepFolder(folder.path).begin(other, resume=True)
    with pytest.raises(InvalidValueError, match="other keys"):
        SweepFolder(folder.path).begin(facts(keys=["policy.rate"]), resume=True)
    with pytest.raises(InvalidValueError, match="search was None"):
        SweepFolder(folder.path).begin(facts(search=["policy.gamma=3..4"]), resume=True)
    folder.plan.unlink()
    with pytest.raises(InvalidValueError, match=r"no sweep\.json"):
        SweepFolder(folder.path).begin(facts(), resume=True)


def test_a_folder_in_use_is_refused_until_it_is_free(tmp_path):
    with (
        held(tmp_path, "Folder"),
        pytest.raises(InvalidValueError, match="Folder is in use by another process"),
        held(tmp_path, "Folder"),
    ):
        pass
    with held(tmp_path, "Folder"):
        pass
