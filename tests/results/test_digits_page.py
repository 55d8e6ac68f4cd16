"""results/digits says what was measured, and no answer that is certified is ever misled."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from results.digits import study, tables

RESULTS = Path(__file__).resolve().parents[2] / "results" / "digits"


@pytest.fixture(scope="module")
def rows():
    return json.loads((RESULTS / "digits.json").read_text())["rows"]


def test_the_page_is_that_of_the_stored_rows(rows):
    assert (RESULTS / "README.md").read_text() == tables.page(rows, RESULTS)


def test_certified_is_never_above_attacked(rows):
    for row in rows:
        assert row["certified_but_misled"] == 0
        right = [row["accuracy"], *row["attacked"]]
        assert right == sorted(right, reverse=True) and row["certified"] == sorted(row["certified"], reverse=True)
        for certified, attacked in zip(row["certified"], row["attacked"], strict=True):
            assert certified <= attacked


def test_the_order_is_the_one_that_the_page_states(rows):
    place = study.RADII.index(0.05)
    found = {
        method: np.mean([row["certified"][place] for row in study.seeds_of(rows, method)]) for method in study.METHODS
    }
    assert found["lbdn"] > found["nemon"] > found["mlp_margin"] > found["mlp"] and found["mlp"] < 0.05


@pytest.mark.parametrize("kind", [study.Nemon, study.Sandwich, study.Perceptron])
def test_the_bound_of_the_logits_differences_holds_and_is_the_one_that_is_trained(kind):
    torch.manual_seed(0)
    model = kind().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        proven, trained = model.proven(), model.differences().numpy()
        assert (proven <= trained * (1 + 1e-6) + 1e-9).all()
        u = torch.rand(40, study.PIXELS, dtype=torch.float64)
        for size in (1e-3, 0.3):
            moved = model(u + size * (2 * torch.randint(0, 2, u.shape) - 1)) - model(u)
            apart = (moved[:, :, None] - moved[:, None, :]).abs().amax(0).numpy()
            assert (apart <= size * proven * (1 + 1e-9) + 1e-12).all() and apart.max() > 0


def test_a_radius_is_the_least_margin_over_its_bound():
    bounds = np.array([[0.0, 2.0, 4.0], [2.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
    logits = np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    np.testing.assert_allclose(study.radii(logits, np.array([0, 1]), bounds), [3 / 4, -1.0], rtol=1e-8)


def test_a_classifier_is_trained_and_attacked():
    pytest.importorskip("sklearn", reason="scikit-learn, whose digits these are, is not installed")
    data = study.load(3)
    assert data.pixels.shape == (1797 - study.TEST, 64) and 0 <= data.pixels.min() and data.pixels.max() == 1
    few = data._replace(test_pixels=data.test_pixels[:40], test_digits=data.test_digits[:40])
    model = study.train(study.METHODS["mlp"], data, 0, epochs=6).double()
    with torch.no_grad():
        logits, bounds = model(few.test_pixels).numpy(), model.proven()
    holds = study.radii(logits, few.test_digits.numpy(), bounds)
    clean = logits.argmax(1) == few.test_digits.numpy()
    misled = [~study.attacked(model, few, radius, 0, steps=5) for radius in (0.02, 0.5)]
    assert clean.mean() > 0.6 and misled[1].mean() > 0.9 > misled[0].mean()
    assert not ((holds > 0.02) & misled[0]).any() and ((holds > 0) == clean).all()
