"""A model in raw units: what it simulates, what is proven of it, and its files."""

import json

import numpy as np
import pytest
import torch

from robust_policies.errors import CorruptFileError, InvalidValueError, MissingFileError, ShapeError
from robust_policies.identification import load_model
from robust_policies.networks import LearnedState, StateEncoder

RNG = np.random.default_rng(0)


def test_a_simulation_is_that_of_the_cell_between_scales(model):
    made = model()
    inputs = RNG.normal(size=(30, 2)) * [0.5, 20.0]
    outputs, state = made.simulate(inputs)
    s = made.signals
    scaled = torch.as_tensor((inputs - s.input_offset) / s.input_scale)[:, None]
    found, final = made.cell(scaled)
    assert np.allclose(outputs, found[:, 0].detach().numpy() * s.output_scale + s.output_offset, rtol=1e-12)
    assert np.allclose(state, final[0].detach().numpy())


def test_a_simulation_goes_on_from_its_state_in_any_shape(model):
    made = model(dtype=torch.float32)
    inputs = RNG.normal(size=(30, 3, 2))
    outputs, state = made.simulate(inputs)
    first, middle = made.simulate(inputs[:12])
    second, final = made.simulate(inputs[12:], middle)
    assert np.allclose(np.concatenate((first, second)), outputs, rtol=1e-5) and np.allclose(final, state, atol=1e-5)
    one, x = made.simulate(inputs[:, 1])
    assert one.shape == (30, 2) and x.shape == (4,)
    assert np.allclose(one, outputs[:, 1], rtol=1e-5) and np.allclose(x, state[1], atol=1e-5)


def test_tensors_pass_gradients_and_one_input_may_be_a_plain_list(model):
    made = model(nu=1, ny=2)
    inputs = torch.randn(10, 1, dtype=torch.float64, requires_grad=True)
    outputs, state = made.simulate(inputs)
    (outputs.sum() + state.sum()).backward()
    assert inputs.grad is not None and bool((inputs.grad != 0).all())
    assert np.allclose(made.simulate(inputs.detach().numpy()[:, 0])[0], outputs.detach().numpy())


@pytest.mark.parametrize("shape", [(30,), (30, 3), (0, 2), (3, 3, 3, 2)])
def test_inputs_of_another_shape_are_refused(model, shape):
    with pytest.raises(ShapeError, match="inputs has shape"):
        model().simulate(np.zeros(shape))
    with pytest.raises(ShapeError, match="state has shape"):
        model().simulate(np.zeros((5, 2)), np.zeros(3))


@pytest.mark.parametrize("initial", [None, LearnedState, lambda cell: StateEncoder(cell, 5, 2, (6,))])
def test_the_files_hold_the_whole_model(model, tmp_path, initial):
    made = model(initial=initial)
    made.save(tmp_path)
    again = load_model(tmp_path)
    inputs, outputs = RNG.normal(size=(20, 2)), RNG.normal(size=(20, 2))
    assert np.array_equal(again.simulate(inputs)[0], made.simulate(inputs)[0])
    assert np.array_equal(again.encode(inputs, outputs), made.encode(inputs, outputs))
    assert again.signals == made.signals


def test_files_that_are_not_whole_are_refused(model, tmp_path):
    with pytest.raises(MissingFileError, match="identify"):
        load_model(tmp_path)
    model().save(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    for change in (
        {"signals": {}},
        {"cell": {"type": "r2dn"}},
        {"dtype": "int8"},
        {"initial_state": {"kind": "encoded"}},
    ):
        (tmp_path / "model.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(CorruptFileError, match="no whole model"):
            load_model(tmp_path)
    signals = {**content["signals"], "output_scale": [0.0, 1.0]}
    (tmp_path / "model.json").write_text(json.dumps({**content, "signals": signals}))
    with pytest.raises(CorruptFileError, match="positive"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(CorruptFileError):
        load_model(tmp_path)


def found_gain(made, source, target, seed):
    """Return the gain from one raw input to one raw output that a random pair of runs shows."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(60, 2)) * np.asarray(made.signals.input_scale)
    other = inputs.copy()
    other[:, source] += rng.normal(size=60) * made.signals.input_scale[source] * 10.0 ** rng.uniform(-4, 0)
    change = made.simulate(other)[0] - made.simulate(inputs)[0]
    return np.linalg.norm(change[:, target]) / np.linalg.norm(other - inputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gamma": 2.0},
        {"name": "ren", "features": 5},
        {"name": "l2ru", "gamma": 2.0},
        {"name": "lipschitz_rnn"},
    ],
)
def test_the_proven_raw_gains_are_above_what_runs_show(model, options):
    made = model(**options)
    certificate = made.certificate()
    assert certificate.status == "PASS" and certificate.rate <= 1.0
    gains = np.array(certificate.gains)
    assert gains.shape == (2, 2) and (gains <= certificate.gamma_raw * (1 + 1e-12)).all()
    for source in range(2):
        for target in range(2):
            for seed in range(5):
                assert found_gain(made, source, target, seed) <= gains[target, source] * (1 + 1e-9)
    # The channels' scales differ by 40 and 300: their gains cannot all be that of the whole.
    assert gains.min() < 0.5 * gains.max()


def test_a_prescribed_gain_is_folded_into_raw_units(model):
    certificate = model(nu=1, ny=1, gamma=2.0).certificate()
    assert certificate.gamma_core <= 2.0 * (1 + 1e-6)
    assert certificate.gamma_raw == pytest.approx(certificate.gamma_core * 3.0 / 0.5, rel=1e-3)
    assert certificate.gains == ((certificate.gamma_raw,),)


def test_nothing_is_proven_of_gates_and_the_claim_says_so(model, tmp_path):
    certificate = model(name="lstm").certificate()
    assert (
        certificate.status == "NOT_CERTIFIED" and certificate.gains is None and "Nothing is proven" in certificate.claim
    )
    assert json.loads(certificate.to_json(tmp_path / "c.json").read_text())["reason"]


def test_the_state_at_the_end_of_a_record(model):
    made = model(output="state", ny=2, state_size=2)
    inputs, outputs = RNG.normal(size=(9, 2)), RNG.normal(size=(9, 2))
    begun = (outputs[0] - made.signals.output_offset) / made.signals.output_scale
    assert np.allclose(made.encode(inputs, outputs), made.simulate(inputs, begun)[1])
    plain = model()
    assert np.allclose(plain.encode(inputs, outputs), plain.simulate(inputs)[1])
    with pytest.raises(InvalidValueError, match="samples"):
        plain.encode(inputs, outputs[:5])
