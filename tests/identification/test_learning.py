"""Losses, batches, early stops, and a run that is continued as if it had not been interrupted."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from small_data import TIME_STEP, write_csv

from robust_policies.certificates.certificate import array_hashes
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.identification import IdentificationFolder, IdentifiedModel, Signals, identify, load_model
from robust_policies.identification.batches import Batches
from robust_policies.identification.learner import Identification, free_run_error, one_step_error, simulated
from robust_policies.identification.records import Experiment
from robust_policies.identification.run import new_model, prepare
from robust_policies.networks import CELLS, R2DN, StateEncoder
from robust_policies.train import StopRequest
from robust_policies.train.run.checkpoints import Progress
from robust_policies.train.run.job import TrainingInterruptedError

SIGNALS = Signals(("u",), ("y",), TIME_STEP, (0.0,), (1.0,), (0.0,), (1.0,))


def model_of(initial=None, **options):
    torch.manual_seed(0)
    cell = R2DN(1, 4, 1, 6, (8,), "tanh", **{"rate": 0.9, **options}).double()
    return IdentifiedModel(cell, SIGNALS, None if initial is None else initial(cell))


def signals_of(model, time=60, batch=3):
    generator = torch.Generator().manual_seed(1)
    nu, ny = model.cell.input_size, model.cell.output_size
    inputs = torch.randn(time, batch, nu, dtype=torch.float64, generator=generator)
    return inputs, torch.randn(time, batch, ny, dtype=torch.float64, generator=generator)


def test_the_error_of_a_window_is_that_of_a_long_run_but_for_what_is_forgotten():
    model = model_of()
    found = model.certificate()
    inputs, outputs = signals_of(model, 200)
    with torch.no_grad():
        whole, states = model.cell.trajectory(inputs)
        for burn_in in (10, 40, 80):
            window, _ = free_run_error(model, inputs[60:], outputs[60:], None, burn_in)
            long = (whole[60 + burn_in :] - outputs[60 + burn_in :]).square().mean()
            left = found.overshoot * found.rate**burn_in * float(states[59].norm(dim=1).max())
            largest = float((whole - outputs).abs().max()) + left
            gain = float(torch.linalg.matrix_norm(model.cell.explicit().C2, 2)) + 10.0
            assert abs(float(window - long)) <= 2 * largest * gain * left + 1e-12
    assert left < 1e-2 * float(states[59].norm(dim=1).max())


def test_segments_with_the_state_carried_over_are_one_long_run():
    model = model_of()
    inputs, outputs = signals_of(model)
    with torch.no_grad():
        whole = (model.cell(inputs)[0] - outputs).square()
        first, state = free_run_error(model, inputs[:20], outputs[:20], None, 5)
        second, _ = free_run_error(model, inputs[20:], outputs[20:], state, 5)
    assert float(first) == pytest.approx(float(whole[5:20].mean()), rel=1e-12)
    assert float(second) == pytest.approx(float(whole[20:].mean()), rel=1e-12)


def test_the_true_plant_has_no_error():
    torch.manual_seed(0)
    cell = R2DN(2, 3, 3, 6, (8,), "tanh", output="state").double()
    three = ("a", "b", "c")
    model = IdentifiedModel(cell, Signals(("u", "v"), three, TIME_STEP, (0.0,) * 2, (1.0,) * 2, (0.0,) * 3, (1.0,) * 3))
    inputs, _ = signals_of(model)
    outputs = cell(inputs, torch.randn(3, 3, dtype=torch.float64))[0].detach()
    with torch.no_grad():
        assert float(one_step_error(model, inputs, outputs)) < 1e-25
        assert float(free_run_error(model, inputs, outputs, None, 0)[0]) < 1e-25
        assert float(one_step_error(model, inputs, outputs + 0.1)) > 1e-4


def test_one_step_from_an_encoder_reads_only_what_was_before():
    model = model_of(lambda cell: StateEncoder(cell, 5, 1, (6,)))
    inputs, outputs = signals_of(model)
    by_hand = []
    for t in range(5, len(inputs)):
        state = model.initial(inputs[t - 5 : t], outputs[t - 5 : t])
        by_hand.append(model.cell(inputs[t : t + 1], state)[0][0] - outputs[t])
    expected = torch.stack(by_hand).square().mean()
    assert float(one_step_error(model, inputs, outputs)) == pytest.approx(float(expected), rel=1e-10)


def test_windows_lie_inside_their_records_and_are_drawn_by_number(settings, experiment):
    pieces = [experiment(0, 60), experiment(1, 45), experiment(2, 30)]
    own = settings().algorithm
    batches = Batches(pieces, SIGNALS, own, 3, torch.float64)
    known = np.concatenate([np.lib.stride_tricks.sliding_window_view(p.outputs[:, 0], 40) for p in pieces[:2]])
    for number in range(6):
        inputs, outputs = batches.batch(number)
        assert inputs.shape == (40, 4, 1) and batches.begins(number)
        for row in outputs[:, :, 0].T.numpy():
            assert (np.abs(known - row).max(1) < 1e-12).any()
    assert torch.equal(batches.batch(4)[0], batches.batch(4)[0])
    assert not torch.equal(batches.batch(4)[0], batches.batch(5)[0])


def test_segments_follow_one_another(settings, experiment):
    pieces = [experiment(0, 170), experiment(1, 170)]
    own = settings(batching="segments", batch=2).algorithm
    batches = Batches(pieces, SIGNALS, own, 0, torch.float64)
    assert batches.size == 2 and batches.per_epoch == 4
    for number in range(9):
        place = number % 4 * 40
        assert batches.begins(number) == (place == 0)
        expected = np.stack([p.inputs[place : place + 40, 0] for p in pieces], 1)
        assert np.array_equal(batches.batch(number)[0][:, :, 0].numpy(), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batching": "segments", "batch": 2},
        {"initial_state": "encoded", "one_step": 0.5},
        {"initial_state": "learned"},
        {"cell": {"name": "gru", "state_size": 4}},
    ],
)
def test_an_update_lowers_the_error(settings, experiment, options):
    made = settings(total_steps=30, learning_rate=0.01, **options)
    train, validation = [experiment(0), experiment(1)], [experiment(2)]
    learner = Identification(new_model(made, SIGNALS), made, train, validation, lambda model, run: None)
    progress, losses = Progress(), []
    before = learner.evaluate()["validation/nrmse_std"]
    for _ in range(30):
        losses.append(learner.update(progress)["train/loss"])
        progress.n_updates += 1
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert learner.evaluate()["validation/nrmse_std"] < before


@pytest.mark.parametrize("cell", sorted(set(CELLS) - {"mlp", "lbdn"}))
@pytest.mark.parametrize("initial", ["learned", "encoded"])
def test_both_precisions_train(settings, experiment, cell, initial):
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        made = settings(cell={"name": cell, "state_size": 4}, initial_state=initial)
        made = made.model_copy(update={"precision": precision})
        model = new_model(made, SIGNALS)
        learner = Identification(model, made, [experiment(0)], [experiment(1)], lambda model, run: None)
        assert np.isfinite(learner.update(Progress())["train/loss"])
        assert model.dtype == dtype and all(p.dtype == dtype for p in model.parameters())
        kept = {name: value.dtype for name, value in learner.tensors().items() if not name.endswith(".step")}
        assert set(kept.values()) == {dtype}


def test_float64_means_float64_from_the_data_to_the_certificate(settings, tmp_path):
    files = [write_csv(tmp_path / f"r{k}.csv", k, 200) for k in range(3)]
    made = settings(files, initial_state="learned")
    wide = made.model_copy(update={"precision": "float64"})
    losses = {}
    for name, each in (("narrow", made), ("wide", wide)):
        identify(each, tmp_path / name, page=False)
        prepared = prepare(each)
        learner = Identification(
            new_model(prepared.settings, prepared.signals), prepared.settings, prepared.parts.train,
            prepared.parts.validation, lambda model, run: None
        )  # fmt: skip
        losses[name] = learner.update(Progress())["train/loss"]
    # The same numbers to what float32 holds, and no nearer: nothing on the way was rounded to it.
    assert losses["wide"] == pytest.approx(losses["narrow"], rel=1e-4)
    assert losses["wide"] != float(np.float32(losses["wide"]))
    assert losses["narrow"] == float(np.float32(losses["narrow"]))
    run = tmp_path / "wide"
    stored = safetensors.torch.load((run / "model.safetensors").read_bytes())
    assert {value.dtype for value in stored.values()} == {torch.float64}
    assert all(bool((value != value.float().double()).any()) for value in stored.values())
    model = load_model(run)
    assert model.dtype == torch.float64 and torch.equal(model.state_dict()["cell.X"], stored["cell.X"])
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["status"] == "PASS" and certificate["rate"] == model.certificate().rate
    hashes = array_hashes({name: value for name, value in model.cell.state_dict().items()})
    assert hashes.items() <= certificate["arrays_sha256"].items()
    narrow = json.loads((tmp_path / "narrow" / "certificate.json").read_text())
    assert not hashes.items() <= narrow["arrays_sha256"].items()
    found = np.load(run / "simulation.npz")["2.model"]
    rows = np.loadtxt(files[2], delimiter=",", skiprows=1)
    assert np.abs(found - model.simulate(rows[:, 1])[0]).max() < 1e-14 * np.abs(found).max()


def test_it_ends_when_the_validation_is_no_better_for_a_while(settings, experiment):
    made = settings(patience=2)
    learner = Identification(new_model(made, SIGNALS), made, [experiment(0)], [experiment(1)], lambda model, run: None)
    progress = Progress()
    for steps, fit in ((0, 10.0), (1, 50.0), (2, 40.0)):
        progress.num_timesteps = steps
        progress.evaluated(fit, fit)
        assert not learner.exhausted(progress)
    progress.num_timesteps = 3
    progress.evaluated(49.0, 49.0)
    assert learner.exhausted(progress)


def test_what_does_not_fit_is_refused(settings, experiment):
    with pytest.raises(InvalidValueError, match="one_step"):
        made = settings(one_step=1.0)
        Identification(new_model(made, SIGNALS), made, [experiment(0)], [experiment(1)], lambda model, run: None)
    for key, value, words in (("burn_in", 40, "burn_in"), ("windw", 3, "Did you mean 'algorithm.window'")):
        with pytest.raises((InvalidValueError, UnknownNameError), match=words):
            settings(**{key: value})
    with pytest.raises(UnknownNameError, match="Did you mean 'ren'"):
        new_model(settings(cell={"name": "ran"}), SIGNALS)
    with pytest.raises(UnknownNameError, match="state_size"):
        new_model(settings(cell={"name": "ren", "state_sise": 3}), SIGNALS)
    with pytest.raises(InvalidValueError, match="no memory"):
        new_model(settings(cell={"name": "lbdn"}), SIGNALS)


def test_the_burn_in_suits_the_records_unless_it_is_given(settings):
    short, long = (settings(window=200, burn_in=None).for_records(n) for n in (100, 10_000))
    assert (short.burn_in, long.burn_in) == (25, 50) and long.washout == 50
    assert settings(window=4000, burn_in=None).for_records(10_000).burn_in == 64
    assert settings().for_records(20).burn_in == 10


class StopAfter(StopRequest):
    """Asks for an end when it has been asked `count` times."""

    def __init__(self, count):
        self.count = count

    @property
    def requested(self):
        self.count -= 1
        return self.count < 0


@pytest.mark.parametrize("batching", ["windows", "segments"])
def test_a_continued_run_is_the_run(settings, tmp_path, batching):
    files = [write_csv(tmp_path / f"r{k}.csv", k, 200) for k in range(3)]
    made = settings(files, total_steps=7, batching=batching, batch=2, initial_state="learned")
    identify(made, tmp_path / "whole", page=False)
    with pytest.raises(TrainingInterruptedError, match="3 of 7"):
        identify(made, tmp_path / "cut", page=False, stop=StopAfter(3))
    assert not IdentificationFolder(tmp_path / "cut").trained
    identify(made, tmp_path / "cut", page=False, resume=True)
    one, other = (load_model(tmp_path / name).state_dict() for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    changed = made.model_copy(update={"seed": 5})
    with pytest.raises(InvalidValueError, match="seed was 0 and is now 5"):
        identify(changed, tmp_path / "cut", page=False, resume=True)
    with pytest.raises(InvalidValueError, match="--resume"):
        identify(made, tmp_path / "cut", page=False)


def test_a_simulation_of_a_record_is_the_models(settings, experiment):
    one = experiment(0, offset=(2.0, -1.0), scale=(3.0, 0.1))
    made = settings()
    signals = dataclasses.replace(SIGNALS, input_offset=(2.0,), output_scale=(0.1,))
    model = new_model(made, signals)
    assert np.allclose(simulated(model, one), model.simulate(one.inputs)[0], rtol=1e-6)
    encoded = new_model(settings(initial_state="encoded"), signals)
    found = simulated(encoded, one)
    assert np.array_equal(found[:10], one.outputs[:10])
    begun = encoded.encode(one.inputs[:10], one.outputs[:10])
    assert np.allclose(found[10:], encoded.simulate(one.inputs[10:], begun)[0], rtol=1e-5, atol=1e-6)
    assert isinstance(one, Experiment)
