"""results/identification says what was measured, and its pieces of the records do not overlap."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from results.identification import make, tables, transfer
from results.identification.benchmarks import BENCHMARKS, files_of
from robust_policies.envs import load_plant
from robust_policies.errors import MissingFileError
from robust_policies.identification import IdentificationFolder, IdentifiedModel, Signals
from robust_policies.identification.records import Experiment, split
from robust_policies.networks import make_cell

RESULTS = Path(__file__).resolve().parents[2] / "results" / "identification"
LENGTHS = {
    "silverbox": [127400 - 105712 - 50, 32000 - 50, 40475 - 50],
    "coupled_drives": [90, 90],
    "wiener_hammerstein": [184000 - 105200 - 50],
}
STORED = sorted(name for name in BENCHMARKS if (RESULTS / f"{name}.json").is_file())


@pytest.fixture(scope="module")
def stored():
    return tables.rows_of(RESULTS)


def test_the_page_is_that_of_the_stored_rows(stored):
    assert (RESULTS / "README.md").read_text() == tables.page(stored, RESULTS)
    assert "[[" not in (RESULTS / "README.md").read_text()


@pytest.mark.parametrize("name", STORED)
def test_every_row_has_the_errors_of_the_tests(stored, name):
    assert "linear" in {row["method"] for row in stored[name]}
    for row in stored[name]:
        assert row["method"] in tables.NAMES
        assert [error["samples"] for error in row["errors"]] == LENGTHS[name]
        for error in row["errors"]:
            assert error["all"]["fit"] == pytest.approx(100 * (1 - error["all"]["nrmse_std"]))


@pytest.mark.parametrize("name", STORED)
def test_only_what_has_a_certificate_has_a_proven_gain(stored, name):
    for row in stored[name]:
        if row["method"] != "linear":
            assert (row["gain"] is None) == (row["rate"] is None) == (row["method"] == "lstm")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_tests_are_no_part_of_what_is_learnt_from(name):
    counts = {"silverbox": ["silverbox", 131072], "wiener_hammerstein": ["wh", 188000]}
    known = [counts[name]] if name in counts else [["low", 500], ["high", 500]]
    records = [Experiment(label, np.zeros((count, 1)), np.zeros((count, 1))) for label, count in known]
    parts = split(records, BENCHMARKS[name].pieces)
    learnt = sum(map(len, parts.train)) + sum(map(len, parts.validation))
    assert (
        learnt
        == {"silverbox": round(0.75 * (127400 - 40650)), "coupled_drives": 800, "wiener_hammerstein": 100_000}[name]
    )


def test_records_are_put_together_in_their_order(tmp_path):
    parts = {f"{s}_{part}": np.full(2, k + 10 * (s == "y")) for k, part in enumerate(("train", "test", "validation"))
             for s in "uy"}  # fmt: skip
    np.savez(tmp_path / "wiener_hammerstein.npz", **parts)
    (path,) = files_of("wiener_hammerstein", tmp_path, tmp_path / "made")
    with np.load(path) as made:
        assert made["u"].tolist() == [0, 0, 1, 1, 2, 2] and made["y"].tolist() == [10, 10, 11, 11, 12, 12]
    with pytest.raises(MissingFileError, match="silverbox"):
        files_of("silverbox", tmp_path, tmp_path)


def test_stored_rows_stay_and_new_ones_replace_theirs():
    old = [{"method": "linear", "seed": 0}, {"method": "ren", "seed": 0, "n": 1}, {"method": "ren", "seed": 1, "n": 1}]
    new = [{"method": "r2dn", "seed": 0}, {"method": "ren", "seed": 1, "n": 2}]
    found = make.merged("silverbox", old, new)
    assert [(row["method"], row["seed"], row.get("n")) for row in found] == [
        ("linear", 0, None), ("r2dn", 0, None), ("ren", 0, 1), ("ren", 1, 2)
    ]  # fmt: skip


def test_the_table_of_policies_has_the_share_of_the_true_plants_return():
    path = RESULTS / "transfer.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    assert {row["task"] for row in rows} <= set(transfer.TASKS)
    plant = {"task": "dc_motor", "seed": 0, "trained_on": "plant", "return": -1.0, "status": "PASS", "gain": 2.0}
    model = {**plant, "trained_on": "r2dn", "return": -1.25, "gain": None, "fit": 90.0, "model_status": "PASS"}
    better = {**model, "seed": 1, "return": -0.5, "gain": 3.0}
    text = tables._transfer([{**plant, "seed": 1}, plant, model, better])
    first, second = text.splitlines()[2:]
    assert "true plant" in first and "140 (80 to 200)%" in second and "1 of 2" in second and "2 of 2" in second


def test_pieces_that_judge_a_pendulum_are_no_part_of_what_it_learns_from():
    files = [f"episode{k}.npz" for k in range(20)]
    data = transfer.settings_of("pendulum", "gru", [files], 0).data
    records = [
        Experiment(f"episode{k}", np.zeros((transfer.STEPS, 1)), np.zeros((transfer.STEPS, 3))) for k in range(20)
    ]
    parts = split(records, {"train": data.train, "validation": data.validation, "test": data.test})
    assert [len(part) for part in parts.parts().values()] == [14, 18, 18]
    assert {len(one) for one in (*parts.validation, *parts.test)} == {32}
    # Each sort of files is divided: of 20 more, 14 are learned from too.
    more = [f"again{k}.npz" for k in range(20)]
    data = transfer.settings_of("pendulum", "gru", [files, more], 0).data
    assert sum(name.startswith("again") for name in data.train) == 14 and len(data.train) == 28
    assert len(data.test) == len(data.validation) == 36
    assert not transfer.settings_of("dc_motor", "r2dn", [files], 0).data.train


def test_the_pendulums_cost_on_a_model_is_the_true_one(tmp_path):
    torch.manual_seed(0)
    signals = Signals(("torque",), ("cos", "sin", "speed"), 0.05, (0.1,), (1.2,), (0.0, 0.0, 0.5), (0.7, 0.7, 3.0))
    IdentifiedModel(make_cell("gru", 1, 3, state_size=4), signals).save(tmp_path / "model")
    members = [IdentificationFolder(tmp_path / "model")]
    plant = load_plant(transfer.task_folder(transfer.TASKS["pendulum"], members, tmp_path / "task"))
    state = plant.advance(torch.zeros(5, plant.state_size, dtype=torch.float64), torch.ones(5, 1).double(), {})
    action = torch.tensor([-5.0, -1.0, 0.0, 1.0, 9.0]).double()[:, None]
    cos, sin, speed = plant.observe(state, {}).T
    expected = -(torch.atan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * action[:, 0].clamp(-2, 2) ** 2)
    assert torch.allclose(plant.reward(state, action, state, {}), expected)
