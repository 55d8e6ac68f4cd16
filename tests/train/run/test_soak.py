"""benchmarks/soak.py runs through and finds what it looks for, at sizes that prove nothing of hours."""

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
from tiny_recipe import TINY

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SMALL = [
    *TINY,
    "algorithm.name=tensor_ppo",
    "algorithm.total_steps=4000",
    "algorithm.learning_rate=lin_1e-3",
    "checkpoints.evaluate_every=2000",
]


@pytest.fixture(scope="module")
def soak():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("soak")
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_training_ends_with_the_numbers_of_a_whole_one(soak, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "certify_run", partial(soak.certify_run, steps=2))
    found = soak.soak(tmp_path / "soak", 4000, 2, 0, SMALL)
    assert found["steps"] == 4000 and found["finite"] and found["certificate"]["confirmed"]
    assert len(found["kills"]) == 2 and all(found["same"].values())
    assert found["memory"]["last_quarter"] > 1e6
    assert soak.held({**found, "flat": True}, 2)
    # Begun again, nothing is left to train; and what differs is found.
    checkpoint = soak.checkpoints_in(tmp_path / "soak" / "killed" / "checkpoints")[-1]
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "random": {**state["random"], "python": []}}))
    again = soak.soak(tmp_path / "soak", 4000, 2, 0, SMALL)
    assert again["kills"] == found["kills"] and again["same"] == {**found["same"], "random": False}
    assert not soak.held({**again, "flat": True}, 2)
