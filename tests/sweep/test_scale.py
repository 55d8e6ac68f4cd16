"""The plan of benchmarks/scale.py: parts placed on cores, and how many machines are too many."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scale():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("scale")
    sys.path.remove(str(BENCHMARKS))


def test_a_part_begins_where_a_core_is_free_first(scale):
    # The longest first: 3 and 2 begin, 2 follows the 2, 1 the 3.
    assert scale.placed([[1.0, 2.0, 2.0, 3.0]], 2, 0.0) == 4.0
    assert scale.placed([[1.0, 2.0, 2.0, 3.0]], 1, 0.0) == 8.0
    # A stage waits for the one before, and an empty one for nothing.
    assert scale.placed([[1.0, 2.0], [], [5.0]], 9, 0.0) == 7.0
    # Handed out one a second, the last part of eight begins at eight.
    assert scale.placed([[1.0] * 8], 100, 1.0) == 9.0


@pytest.fixture
def measured(scale):
    jobs = {"nominal": 1.0, "attack a": 4.0, "attack b": 2.0, f"{scale.CRITICAL}attack a": 3.0}
    return {
        "training": {"cpu_seconds": 8.0, "certificate_cpu_seconds": 2.0},
        "evaluation": {"cpu_seconds": jobs},
        "ray": {"driver_cpu_seconds_a_part": 0.0, "loading_seconds": 5.0},
    }


def test_a_thousand_policies_are_the_work_of_one_and_end_at_the_longest_chain(scale, measured):
    rows, end = scale.plan(measured, 1000, 16)
    assert [row["machines"] for row in rows] == [1, 10, 100]
    assert end["cpu_hours"] == pytest.approx(1000 * 20 / 3600) and end["parts"] == 5000
    assert end["chain_seconds"] == 10 + 1 + 4 + 3 and end["least_hours"] == pytest.approx((5 + 18) / 3600)
    hours = [row["hours"] for row in rows]
    assert hours[0] == pytest.approx((5 + 1000 * 20 / 16) / 3600, rel=0.01) and hours[0] > hours[1] > hours[2]
    assert hours[2] >= end["least_hours"] and rows[0]["busy"] > 0.98
    # 1,000 attacks of 4 s, and beside them 1,000 of 2 s two by two, want 1,500 cores.
    assert end["enough_machines"] == 94
    text = scale.said(rows, end, 1000)
    assert text.endswith("takes 0.3 and handing out all parts 0.")
    del measured["ray"]
    assert scale.said(*scale.plan(measured, 1000, 16), 1000).endswith("takes 0.3; Ray's own time is not in it.")
    assert text.splitlines()[0] == "| machines | cores | hours | cores busy |" and "| 100 | 1,600 |" in text
    assert "1,000 policies are 5.56 CPU hours in 5,000 parts." in text


def test_who_hands_out_the_parts_ends_what_more_machines_save(scale, measured):
    measured["ray"]["driver_cpu_seconds_a_part"] = 1.0
    rows, end = scale.plan(measured, 1000, 16)
    assert end["handing_out_seconds"] == 5000 and end["least_hours"] * 3600 > 5000
    assert end["enough_machines"] <= 10 and rows[1]["hours"] == pytest.approx(rows[2]["hours"], rel=0.05)
