"""results/cells says what was measured, nothing that was found exceeds what is proven, and a fit is made once."""

import json
from pathlib import Path

import pytest
import torch

from results.cells import make, study, tables

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
