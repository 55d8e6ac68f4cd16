"""results/observers: the process is the published one, and the page says what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from results.observers import make, process, tables
from robust_policies.identification import LearnedObserver, Signals, fit_observer
from robust_policies.identification.model import IdentifiedModel
from robust_policies.identification.observer_fit import ObserverTraining

RESULTS = Path(__file__).resolve().parents[2] / "results" / "observers"
REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "pde_trajectory.npz"


@pytest.fixture(scope="module")
def content():
    return json.loads((RESULTS / "observers.json").read_text())


def test_the_page_is_that_of_the_stored_runs(content):
    assert (RESULTS / "README.md").read_text() == tables.page(content, RESULTS)
    assert "[[" not in (RESULTS / "README.md").read_text()


def test_every_run_has_a_row_an_epoch_that_learns(content):
    for run in content["runs"]:
        assert run["method"] in make.METHODS
        assert [row["epoch"] for row in run["rows"]] == list(range(1, run["epochs"] + 1))
        losses = [row["loss"] for row in run["rows"]]
        assert min(losses) == pytest.approx(losses[-1], rel=10.0) and losses[-1] < losses[0]
        assert any("nrmse" in row for row in run["rows"])


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the published program's trajectory is not here")
def test_a_sample_is_the_published_programs():
    with np.load(REFERENCE) as stored:
        states, boundary = stored["X"], np.ravel(stored["U"])
    x = states[0]
    for t in range(len(states) - 1):
        x = process.advance(x, boundary[t])
        assert np.abs(x - states[t + 1]).max() < 1e-12


def test_diffusion_alone_keeps_a_constant_and_reaction_moves_it():
    flat = np.full(process.POINTS, 0.5)
    assert np.allclose(process.advance(flat, 0.5), 0.5, rtol=0, atol=1e-15)
    assert process.advance(np.full(process.POINTS, 0.7), 0.7)[10] > 0.7
    states, measured = process.simulated(50, 0.0, 0.0, 3)
    assert np.array_equal(measured[:, 1], states[:, 25]) and np.array_equal(states[1:, 0], measured[:-1, 0])
    assert measured[:, 0].min() >= 0 and measured[:, 0].max() <= 1


def test_the_free_run_of_a_zero_estimate_has_an_error_of_one():
    class Zero:
        @staticmethod
        def cell(inputs, state):
            return torch.zeros(len(inputs), 1, process.POINTS, dtype=torch.float64), state

    states, measured = process.simulated(60, 1.0, 0.5, 0)
    found = process.free_run(Zero(), states, measured, settled=10)
    assert found["nrmse"] == pytest.approx(1.0) and found["nrmse_settled"] == pytest.approx(1.0)


def test_an_interrupted_run_goes_on_with_the_rows_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "STEPS", 300)
    monkeypatch.setattr(make, "TEST_STEPS", 600)
    monkeypatch.setattr(make, "CHUNKS", 2)
    shapes = {"r2dn": {"features": 4, "hidden_sizes": (6,), "activation": "relu"}}
    monkeypatch.setattr(make, "SHAPES", shapes)
    make.fit("r2dn", 0, 5, tmp_path / "whole")
    make.fit("r2dn", 0, 3, tmp_path / "cut")
    make.fit("r2dn", 0, 5, tmp_path / "cut")
    make.fit("r2dn", 0, 5, tmp_path / "cut")
    whole, cut = (json.loads((tmp_path / name / "curve.json").read_text())["rows"] for name in ("whole", "cut"))
    assert [row["epoch"] for row in cut] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in cut] == [row["loss"] for row in whole]
    seconds = [row["cpu_seconds"] for row in cut]
    assert seconds == sorted(seconds)
    for epochs in (2, 3):
        make.fit("r2dn_cosine", 0, epochs, tmp_path / "cosine")
        made = json.loads((tmp_path / "cosine" / "curve.json").read_text())
        assert [row["epoch"] for row in made["rows"]] == list(range(1, epochs + 1))
        assert made["epochs"] == made["planned"] == epochs


def test_the_sizes_are_the_papers_and_one_epoch_runs():
    samples = process.samples_of(200, 0)
    how = ObserverTraining(epochs=1, batch=100, **make.PUBLISHED)
    options = {**make.SHAPES["r2dn"], "init": "long_memory"}
    losses = []
    observer = fit_observer(
        samples, "r2dn", 1.0, options, how, scaled=False, each=lambda epoch, loss, model: losses.append(loss)
    )
    # The paper has about 94,665, some of which are of an output that is fixed.
    assert 90_000 < sum(p.numel() for p in observer.model.parameters()) < 100_000
    assert len(losses) == 1 and observer.input_size == 0 and observer.output_size == 2
    assert isinstance(observer, LearnedObserver) and isinstance(observer.model, IdentifiedModel)
    assert observer.model.signals == Signals.unscaled(observer.model.signals)
