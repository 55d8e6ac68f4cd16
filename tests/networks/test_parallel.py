"""Runs over time in chunks side by side equal the scan, with gradients and resets, and are chosen where faster."""

import pytest
import torch

from robust_policies.errors import InvalidValueError, UnknownNameError
from robust_policies.networks import make_cell, parallel

pytest.importorskip("numba")
SIZES = {"state_size": 4, "features": 5}
CELLS = {
    "r2dn": {**SIZES, "hidden_sizes": (6,), "activation": "tanh", "gamma": 3.0, "rate": 0.95},
    "ren": {**SIZES, "rate": 0.95},
}


def made(name, **options):
    torch.manual_seed(0)
    return make_cell(name, 3, 2, **{**CELLS[name], **options}).double()


def values(cell, inputs, state, starts, **options):
    inputs, state = inputs.clone().requires_grad_(), state.clone().requires_grad_()
    outputs, final = cell(inputs, state, starts, **options)
    wanted = [inputs, state, *cell.parameters()]
    slopes = torch.autograd.grad(outputs.square().sum() + final.sum(), wanted, allow_unused=True)
    return [outputs.detach(), final.detach(), *(slope for slope in slopes if slope is not None)]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("time", "batch"), [(1024, 1), (523, 2)])
def test_chunks_equal_the_scan_with_gradients(name, resets, time, batch):
    cell = made(name)
    inputs, state = torch.randn(time, batch, 3).double(), torch.randn(batch, 4).double()
    starts = torch.rand(time, batch) < 0.02 if resets else None
    scan = values(cell, inputs, state, starts)
    for tolerance in (1e-4, 1e-12):
        found = values(cell, inputs, state, starts, parallel="chunks", tolerance=tolerance)
        for one, other in zip(scan, found, strict=True):
            assert float((one - other).abs().max()) <= 10 * tolerance * max(1.0, float(one.abs().max()))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("r2dn", {"state_size": 9, "features": 11, "hidden_sizes": (16, 10), "rate": 0.95}),
        # Powers of its Jacobians are below what float32 has.
        ("r2dn", {"state_size": 8, "features": 3, "hidden_sizes": (4,), "rate": 0.3}),
        ("ren", {"state_size": 10, "features": 12, "rate": 0.9}),
    ],
)
@pytest.mark.parametrize("resets", [False, True])
def test_wide_registers_of_float32_give_what_float64_gives(name, options, resets):
    cell = made(name, **options)
    inputs, state = torch.randn(1030, 2, 3).double(), torch.randn(2, options["state_size"]).double()
    starts = torch.rand(1030, 2) < 0.01 if resets else None
    scan = values(cell, inputs, state, starts)
    found = values(cell.float(), inputs.float(), state.float(), starts, parallel="chunks", tolerance=1e-6)
    for one, other in zip(scan, found, strict=True):
        assert float((one - other).abs().max()) <= 5e-5 * max(1.0, float(one.abs().max()))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_chunks_equal_the_scan(context):
    cell, inputs = made("r2dn"), torch.randn(523, 2, 3).double()
    with context():
        scan, found = (cell(inputs, parallel=mode, tolerance=1e-12) for mode in ("scan", "chunks"))
        with torch.no_grad():
            cell.by.add_(1.0)
        moved, now = (cell(inputs, parallel=mode, tolerance=1e-12)[0] for mode in ("scan", "chunks"))
    for one, other in zip(scan, found, strict=True):
        assert not other.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    # The parameters are those of the call.
    torch.testing.assert_close(moved, now, rtol=1e-10, atol=1e-10)
    assert float((moved - scan[0]).detach().abs().min()) > 0.5


def test_a_cell_that_forgets_slowly_runs_as_many_rounds_as_it_takes():
    cell = made("r2dn", rate=1.0, init="long_memory")
    inputs, state = torch.randn(1056, 1, 3).double(), 100 * torch.randn(1, 4).double()
    scan, found = (values(cell, inputs, state, None, parallel=mode, tolerance=1e-12) for mode in ("scan", "chunks"))
    for one, other in zip(scan, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


def test_a_cell_that_forgets_soon_runs_a_part_of_its_pieces_again():
    given = torch.randn(1024, 1, 3).double()
    rounds = []
    for options in ({"rate": 0.8}, {"rate": 0.999, "init": "long_memory"}):
        way = parallel.Chunks(16, 1e-8)
        with torch.no_grad():
            made("r2dn", **options).run_now(given, torch.zeros(1, 4).double(), None, way)
        rounds.append(way.rounds)
    assert 1 < rounds[0] < 2 < rounds[1] <= 16


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [3, 500, 1099])
def test_what_is_not_finite_stays_with_its_sequence_and_after_its_step(name, value, step):
    cell, inputs = made(name), torch.randn(1100, 2, 3).double()
    inputs[step, 1, 0] = value
    with torch.no_grad():
        scan, found = (cell(inputs, parallel=mode, tolerance=1e-12) for mode in ("scan", "chunks"))
    for one, other in zip(scan, found, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite()) and not bool(other[..., 1, :].isfinite().all())
        kept = one.isfinite()
        torch.testing.assert_close(one[kept], other[kept], rtol=1e-10, atol=1e-10)


def test_a_second_derivative_is_that_of_the_scan():
    cell, inputs = made("r2dn"), torch.randn(32, 32, 3).double()

    def curvature(mode):
        u = inputs.clone().requires_grad_()
        first = torch.autograd.grad(cell(u, parallel=mode, tolerance=1e-12)[0].pow(3).sum(), u, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), u)[0]

    torch.testing.assert_close(curvature("chunks"), curvature("scan"), rtol=1e-5, atol=1e-6)


def test_what_is_measured_to_be_faster_is_chosen(monkeypatch):
    cell, inputs = made("r2dn"), torch.randn(1100, 1, 3).double()
    clock = iter(range(10**6))
    monkeypatch.setattr(parallel.time, "process_time", lambda: 0.0)
    with torch.no_grad():
        assert torch.equal(cell(inputs, parallel="auto")[0], cell(inputs)[0])
        assert [choice.chunks for choice in parallel._CHOSEN[cell].values()] == [None]
    # Begin and end of the scan lie far apart, those of the chunks do not.
    laps = [0.0, 9.0, *(9.0, 10.0) * 3]
    monkeypatch.setattr(parallel.time, "process_time", lambda: laps[next(clock) % len(laps)])
    found = cell(inputs, parallel="auto")[0]
    assert [choice.chunks for choice in parallel._CHOSEN[cell].values()] == [None, 16]
    assert torch.equal(found, cell.run_now(inputs, cell.initial_state(1), None, parallel.Chunks(16, 1e-6))[0])


def test_what_has_no_chunks_takes_the_scan_or_is_refused():
    inputs = torch.randn(300, 2, 3)
    for name, options in (("lstm", {"state_size": 4}), ("nemon", {**SIZES, "gamma": 3.0})):
        cell = make_cell(name, 3, 2, **options)
        assert torch.equal(cell(inputs, parallel="auto")[0], cell(inputs)[0])
        with pytest.raises(InvalidValueError, match="parallel='auto'"):
            cell(inputs, parallel="chunks")
    with pytest.raises(UnknownNameError, match="chunks"):
        cell(inputs, parallel="chunk")
    for tolerance in (0.0, "tight"):
        with pytest.raises(InvalidValueError, match=f"tolerance is {tolerance!r}"):
            cell(inputs, parallel="auto", tolerance=tolerance)


def test_what_chunks_lack_is_said():
    for options, time, words in (
        ({}, 31, "at least 32 steps"),
        ({}, 300, "'r2dn' with tanh, 300 steps of 1 sequences.* and 1024 of all sequences"),
        ({"activation": "elu"}, 2000, "with elu, .* without elu or softplus"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            made("r2dn", **options)(torch.randn(time, 1, 3).double(), parallel="chunks")
