"""Faults, disturbances and grids against the same episodes run one by one inside the wrappers."""

import numpy as np
import pytest
from tiny import OURS, THEIRS, tiny_policy, tiny_suite

from robust_policies.envs.perturb import parse
from robust_policies.envs.perturb.blocks import Blocks, in_blocks
from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.evaluation.bench import Bench
from robust_policies.evaluation.episodes import run_episodes
from robust_policies.evaluation.faults import grid_names, measure_fault, measure_grid, unsuited

DISTURBANCE = {"perturbation": "ForceDisturbance", "parameter": "size", "values": [0, 2], "start": 1.0, "duration": 2.0}


def bench(task=OURS, around=(), kwargs=None, **changed):
    return Bench(tiny_policy(), task, kwargs or {}, parse(list(around)), tiny_suite(seeds=[5], **changed))


def returns_of(measured, index):
    return measured["rows"][index]["episodes"]["5"]["returns"]


def alone(perturbations, task=OURS):
    return run_episodes(tiny_policy(), task, "uniform", [0.0], 3, 5, perturbations=perturbations).returns[0]


@pytest.mark.parametrize("task", [OURS, THEIRS])
def test_a_delay_curve_is_what_the_wrapper_does(task):
    place = bench(task)
    found = measure_fault(place, place.suite.faults[0], "fault")
    assert [row["size"] for row in found["rows"]] == [0.0, 2.0] and found["rows"][1]["unit"] == "steps"
    assert np.allclose(returns_of(found, 0), alone([], task))
    assert np.allclose(returns_of(found, 1), alone([{"ObservationDelay": 2}], task))
    assert not np.allclose(returns_of(found, 0), returns_of(found, 1))


def test_a_fault_sits_nearer_to_the_plant_than_the_wrappers_around():
    place = bench(around=[{"ObservationNoise": 0.3}])
    found = measure_fault(place, place.suite.faults[0], "fault")
    assert np.allclose(returns_of(found, 1), alone([{"ObservationDelay": 2}, {"ObservationNoise": 0.3}]))


def test_other_faults_and_their_fixed_options():
    faults = [
        {"perturbation": "ObservationDropout", "parameter": "probability", "values": [0.5], "fill": "hold"},
        {"perturbation": "ObservationBias", "parameter": "size", "values": [0.2]},
        {"perturbation": "ObservationQuantize", "parameter": "step", "values": [0.3]},
        {"perturbation": "ActionDropout", "parameter": "probability", "values": [0.5]},
    ]
    place = bench(faults=faults)
    for entry, options in zip(place.suite.faults, faults, strict=True):
        name, parameter, value = options["perturbation"], options["parameter"], options["values"][0]
        more = {"fill": "hold"} if "fill" in options else {}
        assert np.allclose(
            returns_of(measure_fault(place, entry, "fault"), 0), alone([{name: {parameter: value, **more}}])
        )


def test_a_disturbance_step_pushes_the_plant():
    place = bench(disturbances=[DISTURBANCE])
    found = measure_fault(place, place.suite.disturbances[0], "disturbance")
    force = {"ForceDisturbance": {"size": 2, "start": 1.0, "duration": 2.0}}
    assert np.allclose(returns_of(found, 1), alone([force])) and found["rows"][1]["group"] == "disturbance"
    assert not np.allclose(returns_of(found, 0), returns_of(found, 1))


def test_a_grid_of_parameters_side_by_side_is_each_point_alone():
    place = bench()
    entry = place.suite.parameters[0]
    names = grid_names(place, entry)
    assert names == ("mass", "length")
    found = measure_grid(place, entry, names)
    assert [row["point"] for row in found["rows"]] == [
        {"mass": mass, "length": length} for mass in (0.8, 1.0) for length in (0.8, 1.0)
    ]
    for index, row in enumerate(found["rows"]):
        shifts = [{"DynamicsShift": {"parameter": name, "factor": factor}} for name, factor in row["point"].items()]
        assert np.allclose(returns_of(found, index), alone(shifts), rtol=1e-5)
    assert [round(row["size"], 9) for row in found["rows"]] == [0.2, 0.2, 0.2, 0.0]


def test_named_parameters_are_checked():
    place = bench(parameters=[{"x": "mass", "y": "lenght", "factors": [0.9, 1.0]}])
    entry = place.suite.parameters[0]
    with pytest.raises(UnknownNameError, match="Did you mean 'length'"):
        measure_grid(place, entry, grid_names(place, entry))


def test_what_does_not_suit_a_task_is_said():
    place = bench(THEIRS, disturbances=[DISTURBANCE])
    assert (
        "body" in unsuited(place, place.suite.disturbances[0]) and grid_names(place, place.suite.parameters[0]) is None
    )
    assert unsuited(place, place.suite.faults[0]) is None
    assert unsuited(bench(disturbances=[DISTURBANCE]), place.suite.disturbances[0]) is None


@pytest.mark.parametrize("task", [OURS, THEIRS])
@pytest.mark.parametrize(
    "fault",
    [
        {"perturbation": "ObservationDelay", "parameter": "steps", "values": [0, 1, 3]},
        {"perturbation": "ObservationDropout", "parameter": "probability", "values": [0.0, 0.5], "fill": "hold"},
        {"perturbation": "ObservationNoise", "parameter": "size", "values": [0.0, 0.1, 0.4], "kind": "sphere"},
        {"perturbation": "ActionNoise", "parameter": "size", "values": [0.0, 0.3]},
        {"perturbation": "StickyAction", "parameter": "probability", "values": [0.3, 0.6]},
        DISTURBANCE,
    ],
    ids=lambda fault: fault["perturbation"],
)
def test_values_side_by_side_are_those_of_each_alone(task, fault):
    place = bench(task, faults=[fault])
    entry = place.suite.faults[0]
    if unsuited(place, entry):
        pytest.skip("nothing pushes that plant")
    assert in_blocks([entry.spec(value) for value in entry.values], place.around)
    found = measure_fault(place, entry, "fault")
    for index, value in enumerate(entry.values):
        wanted = alone([entry.spec(value)], task)
        np.testing.assert_allclose(returns_of(found, index), wanted, rtol=1e-5)


def test_what_is_written_for_all_environments_or_clips_is_played_one_by_one():
    shifts = parse([{"DynamicsShift": {"parameter": "mass", "factor": factor}} for factor in (0.8, 1.2)])
    noises = parse([{"ObservationNoise": size} for size in (0.0, 0.1)])
    assert not in_blocks(shifts, []) and in_blocks(noises, [])
    assert in_blocks(noises, parse(["ActionDelay"])) and not in_blocks(noises, parse([{"ObservationQuantize": 0.1}]))
    with pytest.raises(InvalidValueError, match="5 environments make no 2 equal blocks"):
        run_episodes(tiny_policy(), OURS, "uniform", [0.0], 5, 0, perturbations=[Blocks(parts=tuple(noises))])
