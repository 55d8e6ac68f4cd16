"""A recorded parametrization gives PyTorch's numbers and derivatives; what cannot be recorded takes PyTorch's way."""

import copy
import gc

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten

from robust_policies.networks import R2DN, REN, Contracting, Dissipative, Lipschitz, numpy_calls, program

NU, NX, NY, NV = 3, 4, 2, 5
GUARANTEES = {
    "contracting": Contracting(),
    "lipschitz": Lipschitz(2.0),
    "trainable": Lipschitz(2.0, trainable=True),
    "dissipative": Dissipative(-0.5 * torch.eye(NY), 0.3 * torch.ones(NU, NY), 4 * torch.eye(NU)),
}


def cell(kind="r2dn", guarantee="lipschitz", dtype=torch.float64, linear=True):
    torch.manual_seed(0)
    if kind == "ren":
        return REN(NU, NX, NY, NV, guarantee=GUARANTEES[guarantee], rate=0.95).to(dtype)
    return R2DN(NU, NX, NY, NV, (6, 4), guarantee=GUARANTEES[guarantee], rate=0.95, linear_output=linear).to(dtype)


def arrays(explicit):
    return [leaf for leaf in tree_flatten(explicit)[0] if isinstance(leaf, torch.Tensor)]


def weighted(explicit):
    """Return a scalar to which every entry of every array counts differently."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(one.shape, generator=generator, dtype=torch.float64) for one in arrays(explicit)]
    return sum((one * weight.to(one.dtype)).sum() for one, weight in zip(arrays(explicit), weights, strict=True))


def slopes(module, make):
    return torch.autograd.grad(weighted(make()), list(module.parameters()), allow_unused=True)


def used(module):
    return program._known(module).program is not None


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("linear", [True, False])
def test_arrays_and_gradients_are_pytorchs(kind, guarantee, linear):
    module = cell(kind, guarantee, linear=linear)
    for _ in range(3):
        found, wanted = module.explicit(), module._explicit()
        assert isinstance(found, type(wanted)) and used(module)
        for one, other in zip(arrays(found), arrays(wanted), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        pairs = zip(slopes(module, module.explicit), slopes(module, module._explicit), strict=True)
        for one, other in pairs:
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
        # Another point: nothing of the recorded numbers is left in the program.
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
def test_float32_has_its_own_program_and_is_close_to_float64(kind):
    module = cell(kind, dtype=torch.float32)
    found = slopes(module, module.explicit)
    assert used(module) and all(one.dtype == torch.float32 for one in arrays(module.explicit()))
    module.double()
    wanted = slopes(module, module.explicit)
    assert used(module) and all(one.dtype == torch.float64 for one in arrays(module.explicit()))
    for one, other in zip(found, wanted, strict=True):
        if other is not None:
            scale = max(1.0, float(other.abs().max()))
            assert float((one.double() - other).abs().max()) <= 2e-3 * scale


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
def test_gradients_of_several_uses_add_up_and_none_is_left_over(kind):
    module = cell(kind)

    def gradients(make):
        module.zero_grad()
        # Later uses leave most arrays out.
        (weighted(make()) + make().A.sum() + make().bx.sum()).backward()
        make().by.square().sum().backward()
        return [one.grad.clone() for one in module.parameters()]

    wanted = gradients(module._explicit)
    for _ in range(3):
        for one, other in zip(gradients(module.explicit), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_what_is_not_trained_gets_no_gradient():
    module = cell()
    module.X.requires_grad_(False)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(weighted(module.explicit()), trained, allow_unused=True)
    wanted = torch.autograd.grad(weighted(module._explicit()), trained, allow_unused=True)
    assert used(module)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    module.requires_grad_(False)
    assert not any(one.requires_grad for one in arrays(module.explicit()))


def test_without_gradients_the_arrays_are_pytorchs_to_the_last_bit():
    module = cell(dtype=torch.float32)
    module.explicit()
    with torch.no_grad():
        for one, other in zip(arrays(module.explicit()), arrays(module._explicit()), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
def test_second_derivatives_go_through_pytorch(kind):
    module = cell(kind)
    names, values = zip(*module.named_parameters(), strict=True)

    def second(make):
        first = torch.autograd.grad(weighted(make()).square(), values, create_graph=True, allow_unused=True)
        total = sum(one.square().sum() for one in first if one is not None)
        return torch.autograd.grad(total, values, allow_unused=True)

    for name, one, other in zip(names, second(module.explicit), second(module._explicit), strict=True):
        if other is not None:
            scale = max(1.0, float(other.abs().max()))
            assert float((one - other).abs().max()) <= 1e-9 * scale, name


def test_forward_mode_and_transforms_take_pytorchs_way():
    module = cell()
    values = dict(module.named_parameters())
    tangents = {name: torch.randn_like(value) for name, value in values.items()}
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value.detach(), tangents[name]) for name, value in values.items()}
        moved = torch.func.functional_call(_Arrays(module), {f"cell.{name}": one for name, one in duals.items()})
        slope = forward_ad.unpack_dual(moved).tangent
    gradient = torch.autograd.grad(weighted(module._explicit()), list(values.values()), allow_unused=True)
    wanted = sum((one * tangents[name]).sum() for name, one in zip(values, gradient, strict=True) if one is not None)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-9)


class _Arrays(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.cell = module

    def forward(self):
        return weighted(self.cell.explicit())


def test_an_operation_that_is_not_known_is_left_to_pytorch(monkeypatch):
    monkeypatch.delitem(numpy_calls.CALLS, "aten.mm.default")
    module = cell()
    for one, other in zip(arrays(module.explicit()), arrays(module._explicit()), strict=True):
        assert torch.equal(one, other)
    assert not used(module)


def test_a_program_with_other_numbers_is_not_used(monkeypatch):
    monkeypatch.setitem(numpy_calls.CALLS, "aten.neg.default", lambda given, named, values: f"1.001 * -{given[0]}")
    module = cell()
    module.explicit()
    assert not used(module)


def test_a_matrix_without_a_factor_has_pytorchs_error():
    module = cell()
    module.explicit()
    with torch.no_grad():
        module.Mv.fill_(torch.nan)
    with pytest.raises(torch.linalg.LinAlgError):
        module.explicit()
    assert used(module)


def test_copies_and_other_modules_have_their_own_and_none_is_kept_alive():
    module = cell()
    module.explicit()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.C2.add_(1.0)
    torch.testing.assert_close(other.explicit().C2, other._explicit().C2, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(other.explicit().C2, module.explicit().C2)
    before = len(program._KNOWN)
    del module, other
    gc.collect()
    assert len(program._KNOWN) < before


def test_factors_of_a_matrix_and_of_its_transpose_solve_alike():
    generator = np.random.default_rng(0)
    matrix, right = generator.normal(size=(4, 4)), generator.normal(size=(4, 3))
    for transposed in (False, True):
        found, factor, pivots, info = numpy_calls.solved(matrix, right, transposed)
        np.testing.assert_allclose(matrix @ found, right, atol=1e-12)
        again = numpy_calls.solved_again(factor, pivots, right, True, transposed)
        np.testing.assert_allclose(matrix @ again, right, atol=1e-12)
        beside = numpy_calls.solved_again(factor, pivots, right.T, False, transposed)
        np.testing.assert_allclose(beside @ matrix, right.T, atol=1e-12)
        assert info == 0
    with pytest.raises(np.linalg.LinAlgError):
        numpy_calls.check(numpy_calls.solved(np.zeros((2, 2)), np.ones((2, 1)), False)[3])
