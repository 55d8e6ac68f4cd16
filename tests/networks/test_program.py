"""A recorded parametrization gives PyTorch's numbers and derivatives; what cannot be recorded takes PyTorch's way.

By a tape (compiled) as by NumPy.
"""

import copy
import gc
import sys

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten

from robust_policies.networks import (
    LBDN,
    R2DN,
    REN,
    Contracting,
    Dissipative,
    Lipschitz,
    numpy_calls,
    program,
    tape,
    tape_calls,
)
from robust_policies.networks.numpy_program import NumpyProgram

NU, NX, NY, NV = 3, 4, 2, 5
GUARANTEES = {
    "contracting": Contracting(),
    "lipschitz": Lipschitz(2.0),
    "trainable": Lipschitz(2.0, trainable=True),
    "dissipative": Dissipative(-0.5 * torch.eye(NY), 0.3 * torch.ones(NU, NY), 4 * torch.eye(NU)),
}


@pytest.fixture(params=["tape", "numpy"], autouse=True)
def engine(request, monkeypatch):
    """What runs the programs; without numba there are no tapes."""
    if request.param == "numpy":
        monkeypatch.setattr(program, "works", lambda dtype: False)
        return NumpyProgram
    pytest.importorskip("numba")
    return tape.Tape


CELLS = [(kind, guarantee) for kind in ("r2dn", "ren") for guarantee in GUARANTEES]
CELLS += [("lbdn", "lipschitz"), ("lbdn", "trainable")]


def cell(kind="r2dn", guarantee="lipschitz", dtype=torch.float64, linear=True):
    torch.manual_seed(0)
    if kind == "ren":
        return REN(NU, NX, NY, NV, guarantee=GUARANTEES[guarantee], rate=0.95).to(dtype)
    if kind == "lbdn":
        return LBDN(NU, (6, 4), NY, 2.0, linear_output=linear, trainable_gamma=guarantee == "trainable").to(dtype)
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


def used(module, engine=(tape.Tape, NumpyProgram)):
    found = program._known(module).program
    return found is not None and isinstance(found.engine, engine)


@pytest.mark.parametrize(("kind", "guarantee"), CELLS)
@pytest.mark.parametrize("linear", [True, False])
def test_arrays_and_gradients_are_pytorchs(kind, guarantee, linear, engine):
    module = cell(kind, guarantee, linear=linear)
    for _ in range(3):
        found, wanted = module.explicit(), module._explicit()
        assert isinstance(found, type(wanted)) and used(module, engine)
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
    for calls in (numpy_calls.CALLS, tape_calls.CALLS):
        monkeypatch.delitem(calls, "aten.mm.default")
    module = cell()
    for one, other in zip(arrays(module.explicit()), arrays(module._explicit()), strict=True):
        assert torch.equal(one, other)
    assert not used(module)


def test_a_program_with_other_numbers_is_not_used(monkeypatch, engine):
    def wrong(to, given, named, found):
        to.elementwise(tape.kernels().MULTIPLY, found[0], given[0], -1.001)

    if engine is tape.Tape:
        monkeypatch.setitem(tape_calls.CALLS, "aten.neg.default", wrong)
        module = cell()
        module.explicit()
        assert used(module, NumpyProgram)
    monkeypatch.setitem(numpy_calls.CALLS, "aten.neg.default", lambda given, named, values: f"1.001 * -{given[0]}")
    module = cell()
    module.explicit()
    assert not used(module, engine)


@pytest.mark.parametrize(("kind", "guarantee"), CELLS)
def test_float32_is_about_as_close_to_float64_as_pytorchs(kind, guarantee, engine):
    module = cell(kind, guarantee, torch.float32)

    def everything(make):
        return [*arrays(make()), *(one for one in slopes(module, make) if one is not None)]

    found, usual = everything(module.explicit), everything(module._explicit)
    assert used(module, engine)
    exact = everything(module.double()._explicit)
    for one, other, true in zip(found, usual, exact, strict=True):
        error, known = ((values.double() - true).abs().max().item() for values in (one, other))
        assert error <= max(5.0 * known, 1e-5 * max(1.0, true.abs().max().item()))


class Small(torch.nn.Module):
    """Matrices of some sizes, and what is done with them."""

    def __init__(self, m, k, n, dtype):
        super().__init__()
        torch.manual_seed(m + 31 * k + 101 * n)
        self.a, self.b = (torch.nn.Parameter(torch.randn(*size, dtype=dtype)) for size in ((m, k), (k, n)))
        self.s = torch.nn.Parameter(torch.randn(m, m, dtype=dtype) + 2 * m**0.5 * torch.eye(m, dtype=dtype))
        self.v = torch.nn.Parameter(torch.randn(k, dtype=dtype))

    def make(self):
        a, b, s = self.a, self.b, self.s
        gram = s @ s.mT
        lower = torch.linalg.cholesky(gram)
        c = a @ b
        return (
            c + (b.mT @ a.mT).mT,
            torch.linalg.solve(s, c),
            torch.linalg.inv(s) - s.mT,
            torch.linalg.solve_triangular(lower, c, upper=False),
            torch.linalg.solve_triangular(lower.mT, c.mT, upper=True, left=False),
            torch.linalg.solve(s, c.mT, left=False),
            torch.cat((a @ self.v, a.mT @ (a @ self.v), (a.square().sum(1) + 1.0).sqrt(), (b / (1.0 + b * b)).sum(0))),
            (a.tril() * self.v)[: len(a) // 2 + 1] - 3.0 * self.v.clamp(-0.5, 0.7).exp(),
            gram.diagonal().sum() * b,
        )


SIZES = [(1, 1, 1), (2, 3, 5), (4, 4, 4), (5, 8, 7), (3, 16, 16), (9, 2, 17), (8, 27, 19), (16, 9, 31), (33, 1, 12)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_of_all_sizes_are_pytorchs(dtype, engine):
    for size in SIZES:
        module = Small(*size, dtype)
        found, wanted = program.recorded(module, module.make), module.make()
        assert used(module, engine), size
        close = 1e-3 if dtype == torch.float32 else 1e-9
        pairs = [*zip(found, wanted, strict=True)]
        both = [torch.autograd.grad(weighted(part), list(module.parameters())) for part in (found, wanted)]
        for one, other in [*pairs, *zip(*both, strict=True)]:
            assert one.shape == other.shape
            assert (one - other).abs().max().item() <= close * max(1.0, other.abs().max().item()), size


def test_earlier_arrays_stay_and_gradients_have_numbers_of_their_own():
    module = cell()
    first = module.explicit()
    copies = [one.detach().clone() for one in arrays(first)]
    wanted = slopes(module, module._explicit)
    second = module.explicit()
    values = list(module.parameters())
    for explicit in (second, first, first):
        found = torch.autograd.grad(weighted(explicit), values, retain_graph=True, allow_unused=True)
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    places = [one.untyped_storage().data_ptr() for one in found if one is not None]
    assert len(set(places)) == len(places)
    for one, other in zip(arrays(first), copies, strict=True):
        assert torch.equal(one, other)


def test_what_is_not_finite_stays_as_it_is_in_pytorch():
    module = cell(guarantee="contracting")
    module.explicit()
    with torch.no_grad():
        module.D12[0, 0], module.D12[1, 1], module.bx[2] = torch.nan, torch.inf, -torch.inf
    found = module.explicit()
    assert used(module)
    found, wanted = found.collapsed, module.collapsed(module._explicit())
    for one, other in zip(arrays(tuple(found)), arrays(tuple(wanted)), strict=True):
        assert torch.equal(one.isnan(), other.isnan()) and torch.equal(one.isinf(), other.isinf())
    assert found.P.isnan().any() and found.c.isinf().any()


def test_parameters_that_are_replaced_for_a_while_leave_the_program_alone():
    module = cell()
    module.explicit()
    before = program._known(module).program
    values = {f"cell.{name}": value.detach().requires_grad_() for name, value in module.named_parameters()}
    torch.func.functional_call(_Arrays(module), values).backward()
    wanted = slopes(module, module._explicit)
    for one, other in zip(values.values(), wanted, strict=True):
        assert (one.grad is None) == (other is None)
    module.explicit()
    assert program._known(module).program is before


def test_a_parameter_behind_a_parametrization_is_left_to_pytorch():
    module = cell()
    module.explicit()
    torch.nn.utils.parametrize.register_parametrization(module, "C2", torch.nn.Tanh())
    for one, other in zip(arrays(module.explicit()), arrays(module._explicit()), strict=True):
        assert torch.equal(one, other)


def test_wide_matrices_and_a_lack_of_numba_leave_it_to_numpy(monkeypatch, engine):
    if engine is NumpyProgram:
        return
    with monkeypatch.context() as patch:
        patch.setattr(program, "_WIDEST", 4)
        module = cell()
        module.explicit()
        assert used(module, NumpyProgram)
    for lack in ("no numba", "a compiler that fails"):
        with monkeypatch.context() as patch:
            patch.setattr(tape, "kernels", tape.kernels.__wrapped__)
            patch.setattr(program, "works", tape.works.__wrapped__)
            if lack == "no numba":
                patch.setitem(sys.modules, "robust_policies.networks.tape_kernels", None)
            else:
                patch.setattr(tape.kernels(), "run", lambda *given: 1 / 0)
            module = cell()
            module.explicit()
            assert used(module, NumpyProgram), lack


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
