"""Errors in both forms, tests of residuals, and the linear model beside the identified one."""

import numpy as np
import pytest
from scipy.signal import lfilter

from robust_policies.identification.model import Signals
from robust_policies.identification.records import Experiment
from robust_policies.identification.residuals import crosscorrelation, mean_nrmse, scores, spectrum, whiteness
from robust_policies.identification.subspace import linear_baseline

RNG = np.random.default_rng(0)


def test_the_mean_has_an_error_of_one_deviation_and_zero_of_one_root_mean_square():
    y = 3.0 + RNG.normal(size=(500, 2)) * [1.0, 20.0]
    constant = np.broadcast_to(y[50:].mean(0), y.shape)
    found = scores(y, constant, 50)
    assert found["nrmse_std"] == pytest.approx([1.0, 1.0]) and found["all"]["fit"] == pytest.approx(0.0, abs=1e-9)
    assert found["rmse"] == pytest.approx(y[50:].std(0).tolist())
    zero = scores(y, np.zeros_like(y), 50)
    assert zero["nrmse_rms"] == pytest.approx([1.0, 1.0]) and zero["all"]["nrmse_rms"] == pytest.approx(1.0)
    assert scores(y, y, 0)["all"]["nrmse_std"] == 0.0
    assert mean_nrmse([(y[:200], constant[:200]), (y[200:], constant[200:])], 0) == pytest.approx(1.0, rel=1e-2)


def test_a_constant_output_has_no_ratio():
    found = scores(np.ones((20, 1)), np.zeros((20, 1)), 0)
    assert found["nrmse_std"] == [None] and found["all"]["fit"] is None and found["rmse"] == [1.0]


def test_white_noise_is_white_and_filtered_noise_is_not():
    noise = np.random.default_rng(1).normal(size=4000)
    white, coloured = whiteness(noise), whiteness(lfilter([1.0], [1.0, -0.8], noise))
    assert white["outside"] <= 0.12 and white["p"] > 1e-3
    assert coloured["p"] < 1e-12 and coloured["values"][0] == pytest.approx(0.8, abs=0.05)
    assert white["interval"] == pytest.approx(2.5758 / np.sqrt(4000), rel=1e-4)


def test_what_is_left_of_an_input_is_seen_at_its_lag():
    u, noise = np.random.default_rng(2).normal(size=(2, 4000))
    left = crosscorrelation(noise + 0.5 * np.concatenate((np.zeros(7), u[:-7])), u)
    values = dict(zip(left["lags"], left["values"], strict=True))
    assert max(values, key=values.get) == 7 and values[7] > 5 * left["interval"]
    assert crosscorrelation(noise, u)["outside"] <= 0.12


def test_the_interval_of_coloured_signals_is_wider():
    noise = np.random.default_rng(3).normal(size=(2, 60, 2000))
    slow = lfilter([1.0], [1.0, -0.9], noise)
    found = [crosscorrelation(e, u) for e, u in zip(*slow, strict=True)]
    inside = np.mean([np.abs(one["values"]) <= one["interval"] for one in found])
    assert found[0]["interval"] > 5 / np.sqrt(2000) and inside > 0.95


def test_a_spectrum_holds_the_power_of_the_signal():
    y = np.random.default_rng(4).normal(size=8000)
    f, power = spectrum(y, 0.01)
    assert power.sum() * (f[1] - f[0]) == pytest.approx(y.var(), rel=0.1) and f[-1] == pytest.approx(50.0)


def linear_record(name, count, seed):
    u = np.random.default_rng(seed).normal(size=(count, 1))
    y = lfilter([0.0, 0.5, 0.2], [1.0, -1.2, 0.5], u[:, 0])
    return Experiment(name, 2.0 + 3.0 * u, (5.0 + 10.0 * y)[:, None])


SIGNALS = Signals(("u",), ("y",), 0.1, (2.0,), (3.0,), (5.0,), (10.0,))


def test_the_linear_model_of_linear_data_is_the_plant():
    pytest.importorskip("nfoursid")
    found = linear_baseline([linear_record("a", 600, 0)], [linear_record("b", 300, 1)], SIGNALS, 50)
    test = linear_record("c", 300, 2)
    assert found.model is not None and "nfoursid" in found.note
    assert np.abs(found.model.simulate(test.inputs) - test.outputs)[80:].max() < 1e-6 * np.ptp(test.outputs)


def test_data_of_which_the_library_makes_a_wrong_model_gives_none():
    pytest.importorskip("nfoursid")
    one = linear_record("a", 600, 0)
    still = Experiment("still", np.full((600, 1), 2.0) + 1e-9 * one.inputs, one.outputs)
    sine = Experiment("sine", 2.0 + np.sin(np.arange(600.0))[:, None], one.outputs)
    short = one.piece(0, 30)
    for record, words in ((sine, "moves too little"), (short, "too short")):
        found = linear_baseline([record], [one], SIGNALS, 10)
        assert found.model is None and words in found.note
    assert (
        "too little"
        in linear_baseline([Experiment("z", still.inputs * 0 + 2.0, still.outputs)], [one], SIGNALS, 10).note
    )


def test_without_the_library_the_note_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nfoursid.nfoursid", None)
    found = linear_baseline([linear_record("a", 600, 0)], [], SIGNALS, 50)
    assert found.model is None and "robust-policies[identify]" in found.note
