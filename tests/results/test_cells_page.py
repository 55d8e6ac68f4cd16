"""results/cells says what was measured, nothing that was found exceeds what is proven, and a fit is made once."""

import json
from pathlib import Path

import pytest
import torch

from results.cells import make, policies, study, tables

RESULTS = Path(__file__).resolve().parents[2] / "results" / "cells"


@pytest.fixture(scope="module")
def rows():
    return json.loads((RESULTS / "cells.json").read_text())["rows"]


def test_the_page_is_that_of_the_stored_rows(rows):
    assert (RESULTS / "README.md").read_text() == tables.page(rows, RESULTS)
    assert set(tables.GOOD_FOR) == set(study.CELLS)


def test_nothing_that_was_found_exceeds_what_is_proven(rows):
    proven = 0
    for row in rows:
        fitted, bound = row.get("modes"), study.CELLS[row["cell"]].gamma
        if fitted is None:
            continue
        for kind in ("gain", "peak"):
            if fitted[kind] is not None:
                assert 0 < fitted[f"found_{kind}"] <= fitted[kind] * (1 + 1e-9), (row["cell"], row["seed"])
                proven += 1
        if bound is not None:
            designed = "peak" if row["cell"] == "nemon" else "gain"
            assert fitted[designed] <= bound * (1 + 1e-3)
        assert (fitted["gain"] is None) == (row["cell"] in ("lstm", "gru")) or row["cell"] == "lipschitz_rnn"
    assert proven > 10


def test_nothing_that_was_found_of_a_policy_exceeds_what_is_proven(rows):
    trained = [row for row in rows if "policy" in row]
    assert {row["cell"] for row in trained} == set(study.CELLS)
    for row in trained:
        learnt, bound = row["policy"], study.CELLS[row["cell"]].gamma
        assert [done for done, _ in learnt["evaluations"]][-1] >= policies.STEPS
        if learnt["gain"] is not None:
            assert 0 < learnt["found_gain"] <= learnt["gain"] * (1 + 1e-9), (row["cell"], row["seed"])
        if bound is not None and row["cell"] != "nemon":
            # Times the torque limit.
            assert learnt["gain"] <= 2 * bound * (1 + 1e-3)


def test_the_trainings_differ_by_the_cell_alone():
    recipes = [policies.recipe_of(name, 3) for name in study.CELLS]
    for recipe, entry in zip(recipes, study.CELLS.values(), strict=True):
        assert recipe.policy.cell == entry.cell and recipe.policy.gamma == entry.gamma
        same = ("task", "algorithm", "checkpoints", "seed")
        assert all(getattr(recipe, part) == getattr(recipes[0], part) for part in same)


def test_a_policy_is_trained_once_and_its_row_joins_the_others(tmp_path, monkeypatch):
    made = []

    def learn(name, seed, folder, steps):
        made.append((name, seed, folder, steps))
        return {"return": -200.0, "train_seconds": 1.0}

    monkeypatch.setattr(make, "learn", learn)
    folder = tmp_path / "gru" / "seed=7"
    for _ in range(2):
        make.learn_missing("gru", 7, folder)
    assert made == [("gru", 7, folder / "policy", policies.STEPS)]
    now = make.collected(tmp_path)
    assert now == [{"cell": "gru", "seed": 7, "policy": {"return": -200.0, "train_seconds": 1.0}}]
    before = [{"cell": "gru", "seed": 7, "speed": {}}, {"cell": "r2dn", "seed": 9, "speed": {}}]
    assert make.merged(before, now) == [before[1], {**before[0], **now[0]}]


def test_a_training_gives_the_row_of_its_last_policy(tmp_path):
    row = policies.learn("mlp", 0, tmp_path, steps=16384)
    assert row["return"] == row["evaluations"][-1][1] < 0 and row["evaluations"][-1][0] == 16384
    assert 0 < row["found_gain"] <= row["gain"] * (1 + 1e-9)


def test_a_fit_is_made_once_and_its_numbers_are_the_cells(tmp_path):
    folder = tmp_path / "lbdn" / "seed=0"
    make.fit_missing("lbdn", "speed", 0, folder, updates=2)
    kept = (folder / "speed.json").read_bytes()
    make.fit_missing("lbdn", "speed", 0, folder, updates=3)
    assert (folder / "speed.json").read_bytes() == kept
    (row,) = make.collected(tmp_path)
    assert row["cell"] == "lbdn" and row["seed"] == 0 and "modes" not in row
    assert row["speed"]["parameters"] == sum(one.numel() for one in study.made("lbdn", 0).parameters())
    assert tables.of([row], "lbdn", "speed")[0]["error"] > 0


def test_a_moment_has_no_speed_in_it_and_two_have():
    inputs, wanted = study.speed(64, torch.Generator().manual_seed(0))
    angle = torch.atan2(inputs[..., 1], inputs[..., 0])
    turned = torch.remainder(angle[1:] - angle[:-1] + torch.pi, 2 * torch.pi) - torch.pi
    # The speed of a step is that of the angle until then.
    torch.testing.assert_close(turned / 0.05 / 4, wanted[1:, :, 0], rtol=1e-3, atol=1e-4)
    again, _ = study.modes(8, torch.Generator().manual_seed(0))
    assert again.shape == (study.TIME, 8, 2)
