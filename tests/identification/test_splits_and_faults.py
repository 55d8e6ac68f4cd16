"""Training, validation and test, and data that is no use for them."""

import measured
import numpy as np
import pytest

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.identification.faults import REPEATS, check_split, repetition
from robust_policies.identification.records import Experiment, Split, split

RNG = np.random.default_rng(0)


def experiments(*lengths):
    return [Experiment(f"r{k}", RNG.normal(size=(n, 1)), RNG.normal(size=(n, 2))) for k, n in enumerate(lengths)]


def test_three_or_more_experiments_stay_whole():
    parts = split(experiments(50, 50, 50, 50), {})
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [2, 1, 1]
    assert len({one.name for part in parts.parts().values() for one in part}) == 4


def test_one_experiment_is_cut_into_consecutive_pieces():
    (whole,) = experiments(1000)
    parts = split([whole], {})
    pieces = [part[0] for part in (parts.train, parts.validation, parts.test)]
    assert [one.start for one in pieces] == [0, 700, 850]
    assert np.array_equal(np.concatenate([one.inputs for one in pieces]), whole.inputs)


def test_pieces_are_taken_by_name():
    both = experiments(100, 60)
    parts = split(both, {"train": ["r0[10:90]"], "test": ["r1", "r0[90:]"]})
    assert [one.label for one in parts.train] == ["r0[10:74]"]
    assert [one.label for one in parts.validation] == ["r0[74:90]"]
    assert [one.label for one in parts.test] == ["r1[0:60]", "r0[90:100]"]
    assert split(both[:1], {"train": ["[:50]"], "validation": ["[50:]"]}).test == ()


@pytest.mark.parametrize(
    ("named", "error", "words"),
    [
        ({"train": ["r9"]}, UnknownNameError, "r9"),
        ({"train": ["[0:50]"]}, InvalidValueError, "names no experiment"),
        ({"train": ["r0[50:20]"]}, InvalidValueError, "empty"),
        ({"train": ["r0[0:50]"], "test": ["r0[40:60]"]}, InvalidValueError, "overlaps"),
        ({"test": ["r0"]}, InvalidValueError, "--train"),
        ({"train": ["r0[a:b]"]}, InvalidValueError, "expected NAME"),
    ],
)
def test_wrong_pieces_are_refused(named, error, words):
    with pytest.raises(error, match=words):
        split(experiments(100, 60), named)


def test_constant_columns_and_short_pieces_are_refused():
    still = Experiment("still", np.full((100, 1), 3.0), RNG.normal(size=(100, 1)))
    with pytest.raises(InvalidValueError, match="'u' is constant \\(3\\)"):
        check_split(Split((still,), (), ()), ["u"], ["y"], 10)
    (one,) = experiments(100)
    with pytest.raises(InvalidValueError, match="40 samples and the burn-in is 30"):
        check_split(Split((one,), (one.piece(0, 40),), ()), ["u"], ["y", "z"], 30)
    quiet = Experiment("quiet", np.zeros((50, 1)), np.zeros((50, 2)))
    assert "u, y, z constant" in check_split(Split((one,), (quiet,), ()), ["u"], ["y", "z"], 10)[0]


def test_a_repeated_input_is_found_wherever_it_lies():
    u = RNG.normal(size=(500, 2))
    assert repetition(3.0 + u[120:260], u) > 1 - 1e-9
    assert repetition(u, np.concatenate((RNG.normal(size=(99, 2)), u))) > 1 - 1e-9
    assert repetition(RNG.normal(size=(140, 2)), u) < 0.6
    assert repetition(np.zeros((20, 2)), u) == 0.0
    mixed = np.column_stack((u[120:260, 0], RNG.normal(size=140)))
    assert repetition(mixed, u) < 0.9


def test_half_of_a_periodic_record_repeats_the_other():
    data = np.load(measured.record("f16_column3.npz"))["data"].astype(float)
    whole = Experiment("f16", data[:, :1], data[:, 2:])
    parts = Split((whole.piece(0, 16384),), (), (whole.piece(16384, 32768),))
    (warning,) = check_split(parts, ["force"], ["acceleration"], 100)
    assert "repeats the input" in warning and repetition(parts.test[0].inputs, parts.train[0].inputs) > REPEATS


def test_another_record_of_the_same_plant_does_not_repeat_it():
    data = np.load(measured.record("silverbox.npz"))
    u = data["u"].astype(float)[:, None]
    whole = Experiment("silverbox", u, data["y"].astype(float)[:, None])
    parts = Split((whole.piece(40650, 105712),), (), (whole.piece(105712, 127400), whole.piece(100, 40575)))
    assert check_split(parts, ["u"], ["y"], 50) == []
