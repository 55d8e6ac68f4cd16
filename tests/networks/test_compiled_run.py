"""The compiled run of a cell is PyTorch's, and where it does not apply PyTorch runs."""

import sys

import numpy as np
import pytest
import torch

from robust_policies.networks import R2DN, REN, Lipschitz, compiled, rows

kernels = pytest.importorskip("robust_policies.networks.kernels")
NU, NX, NY, NV = 3, 8, 2, 16


def cell(kind="r2dn", activation="tanh", dtype=torch.float32, **options):
    torch.manual_seed(0)
    if kind == "ren":
        return REN(NU, NX, NY, NV, activation, guarantee=Lipschitz(3.0), **options).to(dtype)
    return R2DN(NU, NX, NY, NV, (16, 16), activation, guarantee=Lipschitz(3.0), **options).to(dtype)


def data(dtype=torch.float32, time=40, batch=26):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(time, batch, NU, generator=generator, dtype=dtype)
    state = torch.randn(batch, NX, generator=generator, dtype=dtype)
    return inputs, state, torch.rand(time, batch, generator=generator) < 0.1


def applied(module, inputs, state):
    explicit = module.explicit()
    return compiled.applies(module.activation.name, inputs, state, explicit.collapsed)


def both(module, inputs, state, starts, monkeypatch):
    """Return outputs, final state and gradients by the compiled run and without it."""
    found = []
    for enough in (1, 10**9):
        monkeypatch.setattr(compiled, "enough", lambda dtype, found=enough: found)
        inputs.grad = state.grad = None
        module.zero_grad()
        given, first = inputs.clone().requires_grad_(), state.clone().requires_grad_()
        outputs, final = module(given, first, starts)
        (outputs.sin().sum() + final.cos().sum()).backward()
        slopes = {name: one.grad for name, one in module.named_parameters()}
        found.append((outputs.detach(), final.detach(), given.grad, first.grad, slopes))
    return found


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("reset", [True, False])
def test_values_and_gradients_are_pytorchs(kind, activation, reset, monkeypatch):
    module, (inputs, state, starts) = cell(kind, activation, torch.float64), data(torch.float64)
    assert applied(module, inputs, state)
    fast, slow = both(module, inputs, state, starts if reset else None, monkeypatch)
    for one, other in zip(fast[:4], slow[:4], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    for name, one in fast[4].items():
        scale = max(1.0, float(slow[4][name].abs().max()))
        assert float((one - slow[4][name]).abs().max()) <= 1e-9 * scale, name


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_float32_is_as_close_to_float64_as_pytorchs(kind, activation, monkeypatch):
    module, (inputs, state, starts) = cell(kind, activation), data()
    fast, slow = both(module, inputs, state, starts, monkeypatch)
    exact = both(module.double(), inputs.double(), state.double(), starts, monkeypatch)[1]
    for one, other, true in zip(fast[:4], slow[:4], exact[:4], strict=True):
        scale = max(1.0, float(true.abs().max()))
        error, usual = float((one - true).abs().max()), float((other - true).abs().max())
        assert error <= max(4.0 * usual, 4e-6 * scale)


def test_the_tanh_is_as_near_as_it_says_and_never_hides_what_is_not_finite():
    x = np.concatenate((np.linspace(-12, 12, 200_001), np.geomspace(1e-30, 1.0, 20_001))).astype(np.float32)
    found = x.copy()[None]
    kernels.activated(kernels.kind_of("tanh", x.dtype), found)
    assert np.abs(found[0] - np.tanh(x.astype(np.float64))).max() <= 4e-7
    odd = np.array([[np.nan, np.inf, -np.inf, 0.0]], np.float32)
    kernels.activated(kernels.kind_of("tanh", x.dtype), odd)
    assert np.isnan(odd[0, 0]) and odd[0, 3] == 0.0
    np.testing.assert_allclose(odd[0, 1:3], [1.0, -1.0], atol=4e-7)


@pytest.mark.parametrize("activation", kernels.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_stays_nan(activation, dtype):
    values = np.array([[np.nan, 0.5]], dtype)
    kernels.activated(kernels.kind_of(activation, np.dtype(dtype)), values)
    assert np.isnan(values[0, 0]) and np.isfinite(values[0, 1])


def test_a_sample_that_is_not_finite_leaves_the_others_alone_and_ends_at_its_reset(monkeypatch):
    monkeypatch.setattr(compiled, "enough", lambda dtype: 1)
    module, (inputs, state, starts) = cell(), data()
    starts[:] = False
    starts[20, 3] = True
    clean = module(inputs, state, starts)[0]
    inputs[5, 3] = torch.nan
    found = module(inputs, state, starts)[0]
    assert found[5:20, 3].isnan().all() and torch.equal(found[20:, 3], clean[20:, 3])
    others = [k for k in range(inputs.shape[1]) if k != 3]
    assert torch.equal(found[:, others], clean[:, others])


def test_where_it_does_not_apply():
    inputs, state, _ = data()
    assert applied(cell(), inputs, state) and applied(cell(), inputs[:3], state)
    assert not applied(cell(), inputs[:2], state)
    with torch.no_grad():
        step = cell().collapsed(cell().explicit())
        assert compiled.applies("tanh", inputs, state, step) and not compiled.applies("tanh", inputs[:10], state, step)
    assert not applied(cell(), torch.zeros(1, 2048, NU), torch.zeros(2048, NX))
    assert not applied(cell(activation="softplus"), inputs, state)
    wide = R2DN(NU, NX, NY, NV, (compiled._WIDEST + 1,), guarantee=Lipschitz(3.0))
    assert not applied(wide, inputs, state)


@pytest.mark.parametrize("lack", ["no numba", "a compiler that fails"])
def test_without_a_working_numba_pytorch_runs(lack, monkeypatch):
    module, (inputs, state, starts) = cell(), data()
    wanted = module(inputs, state, starts)[0]
    caches = (compiled._works, compiled.kernels_of, rows.works, rows.kernels_of)
    by_rows = rows.kernels_of()
    for known in caches:
        known.cache_clear()
    if lack == "no numba":
        for name in ("kernels", "row_kernels"):
            monkeypatch.setitem(sys.modules, f"robust_policies.networks.{name}", None)
    else:
        for module_of in (kernels, by_rows):
            monkeypatch.setattr(module_of, "forward", lambda *given: 1 / 0)
    try:
        assert not applied(module, inputs, state)
        found = module(inputs, state, starts)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert not torch.equal(found, wanted)
    finally:
        for known in caches:
            known.cache_clear()


def test_gradients_of_one_result_alone(monkeypatch):
    monkeypatch.setattr(compiled, "enough", lambda dtype: 1)
    module, (inputs, state, starts) = cell(dtype=torch.float64), data(torch.float64)
    for index in (0, 1):
        fast = torch.autograd.grad(module(inputs, state, starts)[index].sum(), module.B2)
        slow = torch.autograd.grad(module.unroll(module.explicit(), inputs, state, starts)[index].sum(), module.B2)
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
