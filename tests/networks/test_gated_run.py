"""The compiled run of an LSTM or a GRU is PyTorch's, and where it does not apply PyTorch runs."""

import sys

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from robust_policies.networks import gated, make_cell

kernels = pytest.importorskip("robust_policies.networks.gated_kernels")
NU, NX, NY = 3, 10, 2
CELLS = ("lstm", "gru")


def cell(name, dtype=torch.float32, size=NX):
    torch.manual_seed(0)
    return make_cell(name, NU, NY, state_size=size).to(dtype)


def data(dtype=torch.float32, time=40, batch=26, size=NX):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(time, batch, NU, generator=generator, dtype=dtype)
    state = torch.randn(batch, size, generator=generator, dtype=dtype)
    return inputs, state, torch.rand(time, batch, generator=generator) < 0.1


def both(module, inputs, state, starts, monkeypatch):
    """Return outputs, final state and all gradients by the compiled run and without it."""
    found = []
    for enough in (1, 10**9):
        monkeypatch.setattr(gated, "_ENOUGH", enough)
        module.zero_grad()
        given, first = inputs.clone().requires_grad_(), state.clone().requires_grad_()
        outputs, final = module(given, first, starts)
        assert (type(outputs.grad_fn).__name__ == "_RunBackward") == (enough == 1)
        (outputs.sin().sum() + final.cos().sum()).backward()
        slopes = [one.grad for one in module.parameters()]
        found.append([outputs.detach(), final.detach(), given.grad, first.grad, *slopes])
    return found


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize(("size", "batch", "time"), [(10, 26, 40), (2, 1, 20), (34, 17, 5), (6, 3, 1)])
def test_values_and_gradients_are_pytorchs(name, reset, size, batch, time, monkeypatch):
    module, (inputs, state, starts) = cell(name, torch.float64, size), data(torch.float64, time, batch, size)
    fast, slow = both(module, inputs, state, starts if reset else None, monkeypatch)
    for one, other in zip(fast, slow, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max().item() <= 1e-12 * max(1.0, other.abs().max().item())


@pytest.mark.parametrize("name", CELLS)
def test_float32_is_as_close_to_float64_as_pytorchs(name, monkeypatch):
    module, (inputs, state, starts) = cell(name), data()
    fast, slow = both(module, inputs, state, starts, monkeypatch)
    exact = both(module.double(), inputs.double(), state.double(), starts, monkeypatch)[1]
    for one, other, true in zip(fast, slow, exact, strict=True):
        error, usual = ((values.double() - true).abs().max().item() for values in (one, other))
        assert error <= max(4.0 * usual, 4e-6 * max(1.0, true.abs().max().item()))


@pytest.mark.parametrize("name", CELLS)
def test_gradcheck_first_and_second_derivatives(name, monkeypatch):
    monkeypatch.setattr(gated, "_ENOUGH", 1)
    module, (inputs, state, starts) = cell(name, torch.float64, 2), data(torch.float64, 3, 2, 2)
    starts[1, 0] = True

    def ends(inputs, state, *weights):
        return gated.run(starts, inputs, state, gated.GatedMatrices(*weights))

    given = [
        inputs.requires_grad_(),
        state.requires_grad_(),
        *(one.detach().requires_grad_() for one in module.explicit()),
    ]
    assert torch.autograd.gradcheck(ends, given)
    assert torch.autograd.gradgradcheck(ends, given, atol=1e-6)


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_one_result_alone_and_of_few_inputs(name, monkeypatch):
    module, (inputs, state, starts) = cell(name, torch.float64), data(torch.float64)
    module.core.requires_grad_(False)
    for index in (0, 1):
        found = []
        for enough in (1, 10**9):
            monkeypatch.setattr(gated, "_ENOUGH", enough)
            first = state.clone().requires_grad_()
            result = module(inputs, first, starts)[index].sin().sum()
            found.append(torch.autograd.grad(result, [first, module.output.weight], allow_unused=True))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-12)
        if index == 0:
            torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_a_sample_that_is_not_finite_leaves_the_others_alone_and_ends_at_its_reset(name):
    module, (inputs, state, starts) = cell(name), data()
    assert gated.applies(inputs, state, module.explicit())
    starts[:] = False
    starts[20, 3] = True
    clean = module(inputs, state, starts)[0]
    inputs[5, 3] = torch.nan
    found = module(inputs, state, starts)[0]
    assert found[5:20, 3].isnan().all() and torch.equal(found[20:, 3], clean[20:, 3])
    others = [k for k in range(inputs.shape[1]) if k != 3]
    assert torch.equal(found[:, others], clean[:, others])


@pytest.mark.parametrize("name", CELLS)
def test_forward_mode_and_transforms_take_pytorchs_way(name, monkeypatch):
    module, (inputs, state, _) = cell(name, torch.float64, 2), data(torch.float64, 4, 2, 2)
    weights, tangent = module.explicit(), torch.randn_like(state)
    monkeypatch.setattr(gated, "_ENOUGH", 1)
    with forward_ad.dual_level():
        assert not gated.applies(inputs, forward_ad.make_dual(state, tangent), weights)
    torch.func.vmap(lambda one: torch.zeros(()) if not gated.applies(inputs, one, weights) else 1 / 0)(state[None])


def test_where_it_does_not_apply():
    inputs, state, _ = data()
    weights = cell("gru").explicit()
    assert gated.applies(inputs, state, weights)
    assert not gated.applies(inputs[: (gated._ENOUGH - 1) // inputs.shape[1]], state, weights)
    assert not gated.applies(inputs.half(), state.half(), weights)
    assert not gated.applies(inputs.double(), state.double(), weights)
    wide = gated._WIDEST + 2
    assert not gated.applies(inputs, torch.zeros(26, wide), cell("gru", size=wide).explicit())


@pytest.mark.parametrize("lack", ["no numba", "a compiler that fails"])
def test_without_a_working_numba_pytorch_runs(lack, monkeypatch):
    module, (inputs, state, starts) = cell("lstm"), data()
    wanted = module(inputs, state, starts)[0]
    monkeypatch.setattr(gated, "_works", gated._works.__wrapped__)
    monkeypatch.setattr(gated, "_kernels", gated._kernels.__wrapped__)
    if lack == "no numba":
        monkeypatch.setitem(sys.modules, "robust_policies.networks.gated_kernels", None)
    else:
        monkeypatch.setattr(kernels, "forward", lambda *given: 1 / 0)
    assert not gated.applies(inputs, state, module.explicit())
    torch.testing.assert_close(module(inputs, state, starts)[0], wanted, rtol=1e-5, atol=1e-5)


def test_weights_and_data_of_any_layout():
    module, (inputs, state, starts) = cell("lstm"), data()
    wanted = module(inputs, state, starts)
    turned = gated.GatedMatrices(
        *(one.detach().mT.contiguous().mT if one.dim() == 2 else one for one in module.explicit())
    )
    strided = torch.as_strided(torch.cat((inputs, inputs), 2).contiguous(), inputs.shape, (26 * 6, 6, 1))
    found = gated.run(starts, strided, state.t().contiguous().t(), turned)
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one.detach().numpy(), other.detach().numpy())
