"""The search for a large gain: exact derivatives, share of gamma reached, curve against the horizon, broken models."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from robust_policies.certificates import GainResult, empirical_gain, gain_curve, secant_gain, verify
from robust_policies.certificates.gain_search import (
    Linearization,
    generated_bases,
    input_units,
    recorded_bases,
    running_map,
)
from robust_policies.errors import DivergedError, InvalidValueError, NonFiniteError, ShapeError
from robust_policies.networks import R2DN, REN, GRUCell, LBDNCell, Lipschitz, LSTMCell, MLPCell
from robust_policies.policies.actor import Actor, FrozenNormalizer, MeanHead, ScaledCell, Scaling
from robust_policies.policies.window import WindowCell

QUICK = {"batch": 8, "power_iterations": 10, "adam_iterations": 20}


def random_cell(kind, scale, seed, gamma=5.0, nx=8, nv=16, nu=2, ny=2):
    """Return a cell of which every free parameter is e^scale times its initial draw."""
    torch.manual_seed(seed)
    hidden: dict[str, Any] = {"hidden_sizes": (16, 16)} if kind is R2DN else {}
    cell = kind(nu, nx, ny, features=nv, guarantee=Lipschitz(gamma), **hidden).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(math.exp(scale))
    return cell


def unbounded(kind):
    torch.manual_seed(1)
    return kind(3, (8, 8), 2) if kind is MLPCell else kind(3, 6, 2)


def window(masked):
    torch.manual_seed(1)
    return WindowCell(random_cell(R2DN, 0.0, 0, nx=4, nv=5, nu=3), MLPCell(2, (4,), 2), 4, masked)


def actor_around(cell):
    scaling = Scaling(cell.input_size, [2.0, 0.5, 10.0], [1.0, 0.0, -5.0])
    return Actor(ScaledCell(cell, scaling), MeanHead(cell.output_size, 2, linear=True, scale=3.0)).eval()


CELLS = [
    lambda: random_cell(R2DN, 0.0, 0, nx=4, nv=5, nu=3),
    lambda: random_cell(REN, 0.0, 0, nx=4, nv=5, nu=3),
    lambda: LBDNCell(3, (6,), 2, gamma=2.0, activation="tanh"),
    lambda: unbounded(MLPCell),
    lambda: unbounded(LSTMCell),
    lambda: unbounded(GRUCell),
    lambda: actor_around(unbounded(GRUCell)),
    lambda: actor_around(window(masked=True)),
    lambda: actor_around(window(masked=False)),
]


@pytest.mark.parametrize("make", CELLS)
def test_linearization_is_exact_through_time(make):
    mapped = running_map(make())
    generator = torch.Generator().manual_seed(0)
    base, v = (torch.randn(7, 3, mapped.input_size, generator=generator, dtype=torch.float64) for _ in range(2))
    tangent = Linearization(mapped, base)
    expected, pushed = torch.func.jvp(mapped.run, (base,), (v,))[:2]
    assert torch.allclose(mapped.run(base), expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(tangent.push(v), pushed, rtol=1e-9, atol=1e-11)
    w = torch.randn(pushed.shape, generator=generator, dtype=torch.float64)
    point = base.clone().requires_grad_(True)
    (pulled,) = torch.autograd.grad(mapped.run(point), point, w)
    assert torch.allclose(tangent.pull(w), pulled, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("scale", "adam", "share"), [(0.0, 0, 0.52), pytest.param(1.0, 20, 0.90, marks=pytest.mark.soak), (3.0, 0, 0.98)]
)
def test_search_reaches_the_stated_share_of_gamma_on_random_rens(scale, adam, share):
    cells = [random_cell(REN, scale, seed) for seed in range(3)]
    ratios = [empirical_gain(cell, 50, batch=8, adam_iterations=adam).gain / 5.0 for cell in cells]
    assert np.mean(ratios) >= share
    assert max(ratios) <= 1 + 1e-9


@pytest.mark.parametrize("kind", [R2DN, LBDNCell])
@pytest.mark.parametrize("scale", [1.0, *(pytest.param(one, marks=pytest.mark.soak) for one in (0.0, 3.0))])
def test_search_is_never_above_gamma(kind, scale):
    for seed in range(4):
        cell = LBDNCell(2, (8, 8), 2, gamma=5.0).double() if kind is LBDNCell else random_cell(kind, scale, seed)
        found = empirical_gain(cell, 20, seed, **QUICK)
        assert 0 < found.gain <= 5.0 * (1 + 1e-9)


def test_each_turn_of_the_search_adds_to_what_power_iteration_finds():
    cell = random_cell(R2DN, 0.0, 3)
    alone = empirical_gain(cell, 20, 0, batch=8, adam_iterations=0).gain
    assert empirical_gain(cell, 20, 0, batch=8, adam_iterations=60).gain > 1.01 * alone


@pytest.mark.parametrize("make", CELLS)
def test_curve_does_not_decrease_and_every_witness_shows_its_gain(make, tmp_path):
    model = make()
    curve = gain_curve(model, (5, 1, 2, 12), **QUICK)
    assert curve.steps == (1, 2, 5, 12)
    assert all(low <= high for low, high in zip(curve.gain, curve.gain[1:], strict=False))
    for steps, witness in zip(curve.steps, curve.witnesses, strict=True):
        assert witness.inputs_a.dtype == np.float64 and witness.inputs_a.shape[0] == steps
        again = GainResult.load(witness.save(tmp_path / "witness.npz"))
        assert secant_gain(model, again.inputs_a, again.inputs_b) == pytest.approx(witness.gain, rel=1e-9)
    assert curve.at(5) is curve.witnesses[2]
    content = json.loads(curve.to_json(tmp_path / "tightness.json", 5.0).read_text())
    assert content == {"schema": 1, "steps": [1, 2, 5, 12], "gain": list(curve.gain), "gamma_raw": 5.0}


def test_a_witness_followed_by_equal_inputs_shows_at_least_its_gain():
    for seed in range(4):
        cell = random_cell(REN, 1.0, seed, nv=6)
        found = empirical_gain(cell, 6, seed, **QUICK)
        tail = np.random.default_rng(seed).normal(size=(9, 2))
        padded = secant_gain(cell, *(np.concatenate((part, tail)) for part in (found.inputs_a, found.inputs_b)))
        assert padded >= found.gain * (1 - 1e-9)


def test_float32_secants_of_tiny_size_lie_and_float64_ones_do_not():
    cell = random_cell(R2DN, 0.0, 0)
    generator = torch.Generator().manual_seed(0)
    base = 30 * torch.randn(50, 64, 2, generator=generator, dtype=torch.float64)
    delta = torch.randn(base.shape, generator=generator, dtype=torch.float64)
    delta = 1e-6 * delta / delta.square().sum(dim=(0, 2), keepdim=True).sqrt()
    gains = {}
    for dtype in (torch.float32, torch.float64):
        run = cell.to(dtype)
        a, b = (base + delta).to(dtype), base.to(dtype)
        with torch.no_grad():
            change = (run(a)[0] - run(b)[0]).double()
        gains[dtype] = float((change.square().sum(dim=(0, 2)).sqrt() / 1e-6).max())
    assert gains[torch.float32] > 5.0 * 1.5
    assert gains[torch.float64] <= 5.0


def test_search_starts_from_the_models_own_units():
    cell = random_cell(R2DN, 0.0, 0, nu=3)
    scaling = Scaling(3, [2.0, 0.5, 10.0], [1.0, 0.0, -5.0])
    normalizer = FrozenNormalizer([0.5, 0.0, 1.0], [2.0, 1.0, 4.0], 10.0)
    centre, scale = input_units(Actor(ScaledCell(cell, scaling), MeanHead(2, 2, linear=False), normalizer), 3)
    assert torch.allclose(centre, torch.tensor([2.5, 0.0, -19.0], dtype=torch.float64))
    assert torch.allclose(scale, torch.tensor([4.0, 0.5, 40.0], dtype=torch.float64))


def test_recorded_rollouts_are_cut_into_windows_and_lead_to_gains_that_random_bases_miss():
    rollouts = np.arange(24.0).reshape(12, 2, 1)
    windows = recorded_bases(rollouts, 4, 1, 100)
    assert windows.shape == (4, 10, 1)
    assert {tuple(window.flatten().tolist()) for window in windows.unbind(1)} >= {(0, 2, 4, 6), (17, 19, 21, 23)}
    assert recorded_bases(rollouts, 4, 1, 3).shape == (4, 3, 1)
    assert recorded_bases(rollouts, 15, 1, 9)[-1].flatten().tolist() == [22.0, 23.0]
    cell = MLPCell(1, (2,), 1, "tanh").double()
    with torch.no_grad():
        # Two steep flanks far from zero: only data says where they are.
        for parameter in cell.parameters():
            parameter.fill_(1.0)
        cell.explicit().biases[0].fill_(-1000.0)
    assert empirical_gain(cell, 3, **QUICK).gain < 1e-6
    assert empirical_gain(cell, 3, bases=np.full((5, 2, 1), 1000.3), **QUICK).gain == pytest.approx(2.0, rel=1e-3)


def test_broken_models_and_inputs_are_said():
    cell = random_cell(REN, 0.0, 0, nx=2, nv=3)
    with pytest.raises(ShapeError, match="bases"):
        empirical_gain(cell, 4, bases=np.zeros((5, 2, 7)), **QUICK)
    with pytest.raises(ShapeError, match="input_scale"):
        empirical_gain(cell, 4, input_scale=np.ones(7), **QUICK)
    with pytest.raises(NonFiniteError, match="bases"):
        empirical_gain(cell, 4, bases=np.full((5, 2, 2), np.nan), **QUICK)
    with pytest.raises(InvalidValueError, match="steps names no horizon"):
        gain_curve(cell, ())
    with pytest.raises(InvalidValueError, match="no witness over 3"):
        gain_curve(cell, (1, 2), **QUICK).at(3)
    with torch.no_grad():
        cell.by[0] = float("nan")
    with pytest.raises(DivergedError, match="NaN or infinite values, so it has no gain"):
        empirical_gain(cell, 4, **QUICK)


def test_a_diverging_model_names_the_step():
    cell = GRUCell(1, 2, 1)
    exploding = MLPCell(1, (2,), 1, "identity").double()
    with torch.no_grad():
        for parameter in exploding.parameters():
            parameter.fill_(1e200)
    with pytest.raises(DivergedError, match="from step 0 on for finite inputs"):
        empirical_gain(exploding, 5, **QUICK)
    assert empirical_gain(cell, 5, **QUICK).gain > 0


def test_memory_is_bounded_by_chunks_that_do_not_change_the_samples(monkeypatch):
    cell = random_cell(R2DN, 0.0, 1, nx=3, nv=4)
    whole = empirical_gain(cell, 10, **QUICK).gain
    monkeypatch.setattr("robust_policies.certificates.gain_search._ROWS", 40)
    assert empirical_gain(cell, 10, **QUICK).gain == pytest.approx(whole, rel=0.05)


def test_generated_bases_span_sizes_and_kinds():
    bases = generated_bases(30, 60, 2, torch.Generator().manual_seed(0))
    size = bases.square().mean(dim=(0, 2)).sqrt()
    assert size.min() < 0.05 and size.max() > 10
    constant = (bases == bases[:1]).all(dim=2).all(dim=0)
    assert int(constant.sum()) == 20


def test_cancellation_inside_a_network_is_not_taken_for_a_gain():
    for seed, scale in ((1, 5.0), (1, 7.0)):
        torch.manual_seed(seed)
        cell = R2DN(2, 3, 2, features=5, hidden_sizes=(6,), guarantee=Lipschitz(5.0))
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.copy_(torch.randn(parameter.shape) * math.exp(scale))
        proven = verify(cell).gamma
        found = empirical_gain(cell, 15, seed, batch=6, adam_iterations=6)
        assert proven is not None and found.gain <= proven * (1 + 1e-9)
        assert secant_gain(cell, found.inputs_a, found.inputs_b) <= proven * (1 + 1e-9)
