"""A recorded function does what the function does, or says in one line why it is not recorded."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from graph_without_one import graphs_without_one, held

from robust_policies.graphs import Graph, Place

CUDA = torch.device("cuda")


def graph_of(function, owner, settings=lambda: None, name="A sum", **options):
    return Graph(name, function, lambda: {key: Place(owner, key) for key in vars(owner)}, settings, CUDA, **options)


def adding():
    """Return an owner, and a function that adds a random number to its sum and counts in place."""
    owner = SimpleNamespace(total=torch.zeros(3, device="cuda"), factor=torch.full((3,), 2.0, device="cuda"), mode=1)

    def function():
        owner.total = owner.total + owner.factor * torch.rand(3, device="cuda") * owner.mode
        return owner.total.sum()

    return owner, function


def played(calls, recorded, between=lambda owner, call: None):
    """Return the results of calls of a function or of its graph, what its owner then holds, and the graph."""
    torch.manual_seed(3)
    owner, function = adding()
    graph, found = graph_of(function, owner), []
    for call in range(calls):
        between(owner, call)
        found.append(held(graph() if recorded else function()))
    return torch.stack(found), held(vars(owner)), graph


def test_replays_give_the_functions_numbers_to_the_last_bit():
    with graphs_without_one() as (waits, state):
        expected, kept, _ = played(6, False)
        found, now, graph = played(6, True)
        assert torch.equal(found, expected) and all(torch.equal(now[name], kept[name]) for name in ("total", "factor"))
        assert (graph.replays, state.recordings, graph.why_not) == (4, 1, None)
        assert not waits.taken()


def test_a_replay_writes_into_the_tensors_of_the_one_before():
    with graphs_without_one():
        owner, function = adding()
        graph = graph_of(function, owner)
        for _ in range(3):
            graph()
        result, total, before = graph(), owner.total, held(owner.total)
        assert graph() is result and owner.total is total
        assert not torch.equal(held(total), before) and held(result) == held(total).sum()


def test_what_was_changed_in_place_between_calls_is_seen():
    def between(owner, call):
        owner.factor.fill_(0.5 * call)

    with graphs_without_one() as (_, state):
        expected, *_ = played(7, False, between)
        found, _, graph = played(7, True, between)
        assert torch.equal(found, expected) and graph.replays == 5 and state.recordings == 1


@pytest.mark.parametrize("what", ["factor", "mode"])
def test_what_was_replaced_is_recorded_anew(what):
    def between(owner, call):
        if call == 4:
            setattr(owner, what, torch.ones(3, device="cuda") if what == "factor" else 3)

    with graphs_without_one() as (_, state):
        expected, *_ = played(8, False, between)
        found, _, graph = played(8, True, between)
        assert torch.equal(found, expected)
        # The call after the change is one as it is.
        assert graph.replays == 5 and state.recordings == 2


def test_a_function_that_trades_places_is_followed():
    def run(recorded):
        owner = SimpleNamespace(a=torch.arange(3.0, device="cuda"), b=torch.ones(3, device="cuda"))

        def function():
            owner.a, owner.b = owner.b, owner.a + owner.b

        graph = graph_of(function, owner)
        for _ in range(9):
            graph() if recorded else function()
        return held([owner.a, owner.b])

    with graphs_without_one():
        assert all(map(torch.equal, run(True), run(False)))


def test_settings_that_change_are_recorded_anew_until_that_is_too_often():
    with graphs_without_one() as (_, state):
        owner, function = adding()
        setting = [0]
        graph = graph_of(function, owner, lambda: setting[0])
        for _ in range(4):
            graph()
        setting[0] += 1
        for _ in range(3):
            graph()
        assert state.recordings == 2
        with pytest.warns(UserWarning) as caught:
            for _ in range(40):
                setting[0] += 1
                graph()
                graph()
        said = [str(one.message) for one in caught]
        assert said == [
            "A sum runs call by call on cuda, not as one CUDA graph: its tensors or settings were replaced 8 times."
        ]
        assert state.recordings == 8


def refused(function, owner, calls=4, state=None):
    """Return what a graph said, in one line, and what its calls returned."""
    graph = graph_of(function, owner)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [held(graph()) for _ in range(calls)]
    assert len(caught) == 1 and graph.why_not is not None and graph.replays == 0
    said = str(caught[0].message)
    assert said == f"A sum runs call by call on cuda, not as one CUDA graph: {graph.why_not}." and "\n" not in said
    return graph.why_not, found


def test_a_function_that_counts_on_the_host_is_not_recorded():
    with graphs_without_one():
        owner = SimpleNamespace(total=torch.zeros(2, device="cuda"), count=0)

        def function():
            owner.count += 1
            owner.total += owner.count
            return owner.total

        why, found = refused(function, owner, 5)
        assert why == "count is 2 before it and 3 after"
        assert [float(one[0]) for one in found] == [1, 3, 6, 10, 15] and owner.count == 5


def test_what_appears_or_changes_its_shape_or_its_twin_is_not_recorded():
    with graphs_without_one():
        owner = SimpleNamespace(total=torch.zeros(2, device="cuda"))

        def grows():
            owner.total = torch.cat((owner.total, owner.total))
            return owner.total.sum()

        assert refused(grows, owner)[0] == "total is (8,) torch.float32 before it and (16,) torch.float32 after"
        other = SimpleNamespace(total=torch.zeros(2, device="cuda"))
        calls = []

        def appears():
            calls.append(None)
            setattr(other, f"number{len(calls)}", 1)
            return other.total + 1

        assert refused(appears, other)[0] == "number3 appears after it"
        twins = SimpleNamespace(a=torch.zeros(2, device="cuda"))

        def parts():
            twins.a = twins.b = torch.ones(2, device="cuda") if len(calls) < 9 else twins.a + 1
            if len(calls) == 9:
                twins.b = twins.b + 1
            calls.append(None)
            return twins.a

        calls[:] = [None] * 7
        assert refused(parts, twins)[0] == "b is no longer one with another tensor after it"


def test_a_function_that_waits_for_the_device_is_not_even_tried():
    with graphs_without_one() as (_, state):
        owner = SimpleNamespace(total=torch.zeros(2, device="cuda"))

        def function():
            return owner.total + float(owner.total.sum())

        why, _ = refused(function, owner)
        assert why.startswith("it waits for the device in ") and state.recordings == 0 and state.debug == 0


def test_a_recording_that_fails_leaves_all_as_it_was():
    with graphs_without_one() as (_, state):
        expected, kept, _ = played(6, False)
        torch.manual_seed(3)
        owner, function = adding()
        calls = []

        def fails():
            calls.append(None)
            found = function()
            if len(calls) == 3:
                raise RuntimeError("CUDA error: operation not permitted\nCompile with more to know more")
            return found

        why, found = refused(fails, owner, 6)
        assert why == "CUDA error: operation not permitted" and state.recordings == 1
        assert torch.equal(torch.stack(found), expected) and torch.equal(held(owner.total), kept["total"])


def test_where_graphs_are_missing_the_function_runs():
    with graphs_without_one() as (_, state):
        state.refusing = "this device cannot record"
        owner, function = adding()
        assert refused(function, owner)[0] == "this device cannot record"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = Graph("A sum", lambda: 5, dict, lambda: None, torch.device("cpu"))
        assert graph() == 5 and graph.why_not == "the device is cpu"


def failing_in_its_third_call():
    calls = []

    def function():
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("no")
        return torch.ones(1, device="cuda")

    return function


def test_a_generator_renewed_by_another_graphs_failure_is_recorded_anew():
    with graphs_without_one() as (_, state):
        expected, *_ = played(9, False)
        torch.manual_seed(3)
        owner, function = adding()
        graph, found = graph_of(function, owner), []
        for call in range(9):
            if call == 5:
                refused(failing_in_its_third_call(), SimpleNamespace(a=torch.zeros(1, device="cuda")))
            found.append(held(graph()))
        assert torch.equal(torch.stack(found), expected) and state.recordings == 3
