"""results/identification says what was measured, and its pieces of the record do not overlap."""

import json
from pathlib import Path

import numpy as np
import pytest

from results.identification import make, tables
from robust_policies.identification.records import Experiment, split

RESULTS = Path(__file__).resolve().parents[2] / "results" / "identification"


@pytest.fixture(scope="module")
def content():
    return json.loads((RESULTS / "silverbox.json").read_text())


def test_the_page_is_that_of_the_stored_rows(content):
    assert (RESULTS / "README.md").read_text() == tables.page(content, RESULTS)
    assert "[[" not in (RESULTS / "README.md").read_text()


def test_every_row_has_the_errors_of_the_three_tests(content):
    assert {row["method"] for row in content["rows"]} == set(tables.NAMES)
    for row in content["rows"]:
        lengths = [error["samples"] for error in row["errors"]]
        assert lengths == [127400 - 105712 - 50, 32000 - 50, 40475 - 50]
        for error in row["errors"]:
            assert 0 < error["all"]["nrmse_std"] < 1
            assert error["all"]["fit"] == pytest.approx(100 * (1 - error["all"]["nrmse_std"]))


def test_only_what_has_a_certificate_has_a_proven_gain(content):
    for row in content["rows"]:
        if row["method"] != "linear":
            assert (row["gain"] is None) == (row["rate"] is None) == (row["method"] == "lstm")


def test_the_tests_are_no_part_of_what_is_learnt_from():
    record = Experiment("silverbox", np.zeros((131072, 1)), np.zeros((131072, 1)))
    parts = split([record], make.PIECES)
    assert sum(map(len, parts.train)) + sum(map(len, parts.validation)) == round(0.75 * (127400 - 40650))
