"""Run folders beside one another: what the numbers are over, in which order, in which form."""

import csv
import io
import json

import numpy as np
import pytest
from in_process import answer, one_line
from report_fixtures import write_run

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.evaluation import compare_runs
from robust_policies.evaluation.statistics import mean_interval


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, gamma, seeds in (("soft", 3.0, 2), ("hard", 10.0, 1), ("lstm", None, 1)):
        for seed in range(seeds):
            write_run(root / f"{name}_seed{seed}", name, gamma, seed)
    return root


def returns_of(folder, size=0.0):
    rows = json.loads((folder / "evaluation.json").read_text())["worst" if size else "rows"]
    chosen = [row for row in rows if row["size"] == size and (size or row["perturbation"] == "none")]
    return min((row["returns"] for row in chosen), key=np.mean)


def names(found):
    return [method.name for method, _ in found.lines]


def test_a_line_is_a_method_and_its_interval_is_over_seeds_or_episodes(runs):
    found = compare_runs([runs], ["return", "gamma", "return@0.11"])
    cells = dict(zip(names(found), (cells for _, cells in found.lines), strict=True))
    assert set(cells) == {"soft", "hard", "lstm"}
    soft = [returns_of(runs / f"soft_seed{seed}") for seed in (0, 1)]
    assert cells["soft"][0].value == pytest.approx(np.mean(soft)) and cells["soft"][0].seeds == 2
    assert (cells["soft"][0].low, cells["soft"][0].high) == pytest.approx(tuple(sorted(map(np.mean, soft))))
    one = mean_interval(returns_of(runs / "hard_seed0", 0.11))
    assert (cells["hard"][2].value, cells["hard"][2].low, cells["hard"][2].high) == (one.value, one.low, one.high)
    assert "over episodes" in cells["hard"][2].over and "least to largest" in cells["soft"][2].over
    assert cells["lstm"][1].value is None and "nothing is proven" in cells["lstm"][1].reasons["lstm_seed0"]


@pytest.mark.parametrize(("sort", "least_first"), [("gamma", True), ("found_gain", True), ("return@0.3", False)])
def test_the_best_is_first_and_what_lacks_it_last(runs, sort, least_first):
    found = compare_runs([runs], ["return"], sort)
    assert str(found.columns[-1]) == sort
    values = [cells[-1].value for _, cells in found.lines]
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=not least_first) and values[: len(known)] == known
    assert sort != "gamma" or names(found)[-1] == "lstm"


def test_without_columns_there_is_what_the_runs_have(runs):
    shown = list(map(str, compare_runs([runs]).columns))
    assert shown == ["gamma", "found_gain", "rate", "return", "return@0.06", "return@0.3"]


def test_a_task_that_was_not_evaluated_is_said_to_be(runs):
    found = compare_runs([runs], task="robust_policies/Pendulm-v0")
    assert "return" in map(str, found.columns)
    assert any("Pendulm-v0 was not evaluated" in note for note in found.notes())


def test_all_forms_hold_the_same_numbers(runs):
    found = compare_runs([runs], ["gamma", "return", "critical_size"], "gamma")
    content = json.loads(found.written("json"))
    table = list(csv.DictReader(io.StringIO(found.written("csv"))))
    text, page = found.written("text").splitlines(), found.written("markdown").splitlines()
    assert len(table) == len(content) == len(text) - 1 == len(page) - 2 == 3
    for entry, row in zip(content, table, strict=True):
        assert entry["policy"] == row["policy"] and entry["seeds"] == int(row["seeds"])
        assert float(row["return"]) == entry["values"]["return"]["value"]
        assert (row["gamma"] == "") == (entry["values"]["gamma"]["value"] is None)
    assert text[1].startswith("soft") and page[2].startswith("| soft | 2 | 3 |")
    with pytest.raises(UnknownNameError, match="markdown"):
        found.written("markdwon")


def test_wrong_columns_are_refused(runs):
    with pytest.raises(UnknownNameError, match="Did you mean 'gamma'"):
        compare_runs([runs], ["gama"])
    with pytest.raises(InvalidValueError, match="--columns"):
        compare_runs([runs], [])
    with pytest.raises(InvalidValueError, match="--sort"):
        compare_runs([runs], None, "certified_return")


def test_the_command(runs, tmp_path):
    done = answer("compare", runs, "--sort", "gamma", "--columns", "gamma, return")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["policy", "seeds", "gamma", "return"] and lines[1].startswith("soft")
    assert "Returns are means" in done.stderr and "gamma: lstm_seed0: nothing is proven" in done.stderr
    assert "Did you mean 'return'" in one_line(answer("compare", runs, "--sort", "retrun"))
    assert "does not exist" in one_line(answer("compare", tmp_path / "nowhere"))
