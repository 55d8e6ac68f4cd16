"""Perturbations as data: parsing, describing, the table, and what is refused."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from robust_policies.envs import perturb as package
from robust_policies.envs.perturb import NAMES, SPECS, describe, parse, table, vector, wrapping
from robust_policies.errors import InvalidValueError, UnknownNameError, UserError

EVERY = """
- ObservationNoise: {kind: uniform, size: [0.1, 0.2, 0.3], units: normalized, scale: 2.0}
- ObservationBias: -0.5
- ObservationDropout: {probability: 0.3, fill: hold, per_dimension: true}
- ObservationDelay
- ObservationQuantize: 0.25
- ActionNoise: {kind: sphere}
- ActionDelay: 3
- ActionDropout: {fill: hold}
- StickyAction: 0.5
- ForceDisturbance: {kind: sine, size: [1, 2], start: [0.5, 1.5], duration: 2, frequency: 3}
- DynamicsShift: {parameter: mass, factor: [0.8, 1.2], offset: 0.1}
"""


def test_every_form_of_an_item_is_read():
    noise, delay, sticky, bias = parse("[{ObservationNoise: {size: 0.2}}, ObservationDelay, {StickyAction: 0.5}, "
                                       "{ObservationBias: [1, -1e-3]}]")  # fmt: skip
    assert (noise.name, noise.size, noise.kind, noise.units) == ("ObservationNoise", 0.2, "gaussian", "raw")
    assert (delay.steps, sticky.probability, bias.size) == (1, 0.5, (1.0, -0.001))
    assert parse([noise, {"ObservationDelay": 1}]) == [noise, delay]
    assert parse("ObservationNoise: 0.2\nObservationDelay: 1") == [noise, delay]
    assert parse("ObservationDelay") == [delay]
    assert parse("[]") == parse(None) == []


def test_the_first_parameter_may_be_given_alone_and_numpy_numbers_are_numbers():
    assert SPECS["ObservationNoise"].given((np.float32(0.5), "uniform")).size == 0.5
    assert SPECS["ObservationNoise"].given((np.array([1.0, 2.0]),)).size == (1.0, 2.0)
    assert SPECS["ObservationDelay"].given((np.int64(2),)).steps == 2


def test_a_list_survives_yaml_and_describes_itself_the_same():
    specs = parse(EVERY)
    assert [spec.name for spec in specs] == list(NAMES)
    short = describe(specs)
    assert short[3] == "ObservationDelay" and short[6] == {"ActionDelay": 3}
    assert parse(yaml.safe_dump(short)) == specs
    assert describe(parse(short)) == short


def test_every_perturbation_is_a_single_and_a_vector_wrapper_with_one_signature():
    for name in NAMES:
        single, batched = getattr(package, name), getattr(vector, name)
        assert list(inspect.signature(single).parameters) == ["env", *SPECS[name].model_fields]
        assert inspect.signature(single) == inspect.signature(batched)
        assert all(f"    {field}" in single.__doc__ for field in SPECS[name].model_fields)


def test_what_is_told_to_type_checkers_names_every_perturbation():
    folder = Path(package.__file__).parent
    for stub in (folder / "single.pyi", folder / "vector.pyi"):
        assert re.findall(r"^class (\w+)\(Wrapper\)", stub.read_text(), re.MULTILINE) == list(NAMES)
    assert set(NAMES) < set(package.__all__)
    assert set(wrapping.IMPLEMENTATIONS) == set(NAMES)


def test_the_table_explains_every_parameter():
    rows = table()
    assert {row.perturbation for row in rows} == set(NAMES)
    assert all(row.meaning and row.summary and row.default for row in rows)
    delay = next(row for row in rows if row.perturbation == "ObservationDelay")
    assert (delay.parameter, delay.default, delay.unit, delay.acts_on) == ("steps", "1", "steps", "observation")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("[{ObservationDelay: -1}]", InvalidValueError, ["perturbation 1", "steps is -1", "at least 0"]),
        ("[ObservationDelay, {ActionDelay: 1.5}]", InvalidValueError, ["perturbation 2", "steps is 1.5"]),
        ("[{ObservationNoise: {sise: 1}}]", UnknownNameError, ["'sise'", "Did you mean 'size'", "units"]),
        ("[{ObservationNoise: -0.1}]", InvalidValueError, ["size is -0.1", ">= 0"]),
        ("[{ObservationNoise: {size: .nan}}]", InvalidValueError, ["size is nan", "finite"]),
        ("[{ObservationNoise: {size: big}}]", InvalidValueError, ["'big'", "finite number"]),
        ("[{ObservationNoise: {kind: normal}}]", InvalidValueError, ["'normal'", "gaussian", "sphere"]),
        ("[{ObservationNoise: {kind: sphere, size: [1, 2]}}]", InvalidValueError, ["sphere", "one radius"]),
        ("[{ObservationNoise: {scale: 2}}]", InvalidValueError, ["scale", "normalized"]),
        ("[{ObservationNoise: {units: normalized, scale: 0}}]", InvalidValueError, ["scale is 0", "> 0"]),
        ("[{StickyAction: 1.5}]", InvalidValueError, ["probability is 1.5", "<= 1"]),
        ("[{ForceDisturbance: {duration: 0}}]", InvalidValueError, ["duration is 0"]),
        ("[{ForceDisturbance: {start: [2, 1]}}]", InvalidValueError, ["start", "low, high"]),
        ("[{ForceDisturbance: {start: -1}}]", InvalidValueError, ["start is -1"]),
        ("[DynamicsShift]", InvalidValueError, ["parameter is missing", "the name of a physical parameter"]),
        ("[ObservationNoice]", UnknownNameError, ["'ObservationNoice'", "Did you mean 'ObservationNoise'"]),
        ("[[1]]", InvalidValueError, ["perturbation 1 is [1]"]),
        ("[{A: 1, B: 2}]", InvalidValueError, ["perturbation 1"]),
        ("7", InvalidValueError, ["expected a list"]),
        ("[{", InvalidValueError, ["not YAML"]),
        ("[{ObservationNoise: {size: 1, size: 2}}]", InvalidValueError, ["not YAML", "'size' is there twice"]),
        ("[{[1]: 2}]", InvalidValueError, ["not YAML", "unhashable"]),
    ],
)
def test_what_cannot_be_read_is_refused_by_item_and_parameter(given, error, words):
    with pytest.raises(error) as caught:
        parse(given)
    assert isinstance(caught.value, UserError)
    assert not [word for word in words if word not in str(caught.value)]
    assert "\n" not in str(caught.value)


def test_too_many_or_repeated_arguments_are_refused():
    with pytest.raises(InvalidValueError, match="at most 1: steps"):
        SPECS["ObservationDelay"].given((1, 2))
    with pytest.raises(InvalidValueError, match="steps twice"):
        SPECS["ObservationDelay"].given((1,), {"steps": 2})
