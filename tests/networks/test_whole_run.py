"""Parametrization and run over time as one node give PyTorch's numbers and derivatives; where it is used."""

import copy

import pytest
import torch
from torch.autograd import forward_ad

from robust_policies.networks import (
    R2DN,
    REN,
    Contracting,
    Dissipative,
    Lipschitz,
    compiled,
    make_cell,
    program,
    rows,
    whole_run,
)

pytest.importorskip("numba")
NU, NX, NY, NV = 3, 8, 2, 16
GUARANTEES = {
    "contracting": Contracting(),
    "lipschitz": Lipschitz(2.0),
    "trainable": Lipschitz(2.0, trainable=True),
    "dissipative": Dissipative(-0.5 * torch.eye(NY), 0.3 * torch.ones(NU, NY), 4 * torch.eye(NU)),
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """The loops run however few steps there are."""
    monkeypatch.setattr(compiled, "enough", lambda dtype: 1)


def cell(
    guarantee="lipschitz", hidden=(16, 16), activation="tanh", dtype=torch.float64, sizes=(NU, NX, NY, NV), **more
):
    torch.manual_seed(0)
    return R2DN(*sizes, hidden, activation, guarantee=GUARANTEES[guarantee], rate=0.95, **more).to(dtype)


def data(time=13, batch=8, dtype=torch.float64, nu=NU, nx=NX):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(time, batch, nu, generator=generator, dtype=dtype)
    state = torch.randn(batch, nx, generator=generator, dtype=dtype)
    return inputs, state, torch.rand(time, batch, generator=generator) < 0.1


def whole(outputs):
    """Whether outputs come from the one node."""
    return type(outputs.grad_fn) is whole_run._Node._backward_cls


def slopes(module, run, inputs, state):
    """Return outputs, final state and every gradient of a run."""
    module.zero_grad()
    given, first = inputs.clone().requires_grad_(), state.clone().requires_grad_()
    outputs, final = run(given, first)
    (outputs.sin().sum() + final.cos().sum()).backward()
    found = {name: one.grad for name, one in module.named_parameters()}
    return {"y": outputs.detach(), "x": final.detach(), "by u": given.grad, "by x": first.grad, **found}


def assert_alike(found, wanted, close):
    for name, one in wanted.items():
        assert (one is None) == (found[name] is None), name
        if one is not None:
            error = (found[name].to(one.dtype) - one).abs().max().item()
            assert error <= close * max(1.0, one.abs().max().item()), (name, error)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("hidden", [(16, 16), (5,), (7, 3, 18)])
@pytest.mark.parametrize("batch", [1, 8, 300])
def test_values_and_gradients_are_pytorchs(guarantee, hidden, batch):
    module, (inputs, state, starts) = cell(guarantee, hidden), data(batch=batch)
    assert whole(module(inputs, state, starts)[0])
    for begun in (starts, None):
        wanted = slopes(module, lambda u, x, b=begun: module.unroll(module._explicit(), u, x, b), inputs, state)
        assert_alike(slopes(module, lambda u, x, b=begun: module(u, x, b), inputs, state), wanted, 1e-10)


@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("neurons", [1, 5, 16])
@pytest.mark.parametrize("batch", [1, 8, 300])
def test_values_and_gradients_of_a_ren_are_pytorchs(guarantee, neurons, batch):
    torch.manual_seed(0)
    module = REN(NU, NX, NY, neurons, "tanh", guarantee=GUARANTEES[guarantee], rate=0.95).double()
    inputs, state, starts = data(batch=batch)
    assert whole(module(inputs, state, starts)[0])
    wanted = slopes(module, lambda u, x: module.unroll(module._explicit(), u, x, starts), inputs, state)
    assert_alike(slopes(module, lambda u, x: module(u, x, starts), inputs, state), wanted, 1e-10)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (5, 2, 7, 3), (2, 17, 1, 20)])
@pytest.mark.parametrize("linear", [True, False])
def test_sizes_of_all_kinds(sizes, linear):
    module = cell("contracting", (4, 2), "relu", sizes=sizes, linear_output=linear)
    inputs, state, starts = data(nu=sizes[0], nx=sizes[1])
    assert whole(module(inputs, state, starts)[0])
    wanted = slopes(module, lambda u, x: module.unroll(module._explicit(), u, x, starts), inputs, state)
    assert_alike(slopes(module, lambda u, x: module(u, x, starts), inputs, state), wanted, 1e-10)


def test_layers_wider_than_a_tape_takes_run_by_rows_alone(monkeypatch):
    module, (inputs, state, starts) = cell("contracting", (70, 50), sizes=(NU, NX, NY, 75)), data(batch=5)
    outputs = module(inputs, state, starts)[0]
    assert type(outputs.grad_fn) is compiled._Run._backward_cls
    wanted = slopes(module, lambda u, x: module.unroll(module._explicit(), u, x, starts), inputs, state)
    assert_alike(slopes(module, lambda u, x: module(u, x, starts), inputs, state), wanted, 1e-10)
    monkeypatch.setattr(rows, "WIDEST", 60)
    assert type(module(inputs, state, starts)[0].grad_fn) is not compiled._Run._backward_cls


@pytest.mark.parametrize("kind", ["r2dn", "ren", "nemon"])
def test_gradients_in_float32_of_steps_as_wide_as_the_widest_tiles(kind):
    # Tiles of 32 numbers; memory beside theirs is full of infinity.
    torch.manual_seed(0)
    wide = cell(hidden=(40, 33), dtype=torch.float32)
    module = wide if kind == "r2dn" else make_cell(kind, 2, 1, state_size=12, features=40)
    inputs, state, starts = data(30, 8, torch.float32, module.input_size, module.state_size)
    exact = copy.deepcopy(module).double()
    wanted = slopes(exact, lambda u, x: exact.unroll(exact.explicit(), u, x, starts), inputs.double(), state.double())
    for _ in range(10):
        torch.full((200, 16), float("inf")).unbind()
        assert_alike(slopes(module, lambda u, x: module(u, x, starts), inputs, state), wanted, 1e-4)


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_gradients_in_float32_are_those_of_float64(guarantee):
    module, (inputs, state, starts) = cell(guarantee, dtype=torch.float32), data(128, 8, torch.float32)
    found = slopes(module, lambda u, x: module(u, x, starts), inputs, state)
    exact = module.double_copy()
    wanted = slopes(exact, lambda u, x: exact.unroll(exact.explicit(), u, x, starts), inputs.double(), state.double())
    for name, one in wanted.items():
        if one is not None:
            scale = max(1.0, one.abs().max().item())
            assert (found[name].double() - one).abs().max().item() <= 2e-5 * scale, name


def test_gradcheck_first_and_second_derivatives_of_parameters_too():
    module, (inputs, state, starts) = cell(hidden=(3,), sizes=(2, 2, 1, 2)), data(3, 2, nu=2, nx=2)
    starts[1, 0] = True
    given = (inputs.requires_grad_(), state.requires_grad_(), *module.parameters())
    assert whole(module(inputs, state, starts)[0])
    assert torch.autograd.gradcheck(lambda u, x, *_: module(u, x, starts), given)
    assert torch.autograd.gradgradcheck(lambda u, x, *_: module(u, x, starts), given, atol=1e-5)


def test_second_derivatives_where_inputs_and_state_come_of_the_parameters():
    module, (inputs, state, starts) = cell(), data()

    def curvature(run):
        outputs, _ = run(inputs * module.bx.sum(), state + module.by[0], starts)
        first = torch.autograd.grad(outputs.sin().sum(), [module.X, module.bx], create_graph=True)
        return [*first, *torch.autograd.grad(sum(one.square().sum() for one in first), [module.C1, module.bx])]

    with torch.no_grad():
        module.bx.normal_()
    plain = lambda u, x, begun: module.unroll(module._explicit(), u, x, begun)  # noqa: E731
    for one, other in zip(curvature(module), curvature(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_a_graph_may_be_used_twice_beside_others_and_gradients_add_up():
    module, (inputs, state, starts) = cell(), data()
    first, second = module(inputs, state, starts)[0].sum(), module(2.0 * inputs, state)[0].sum()
    first.backward(retain_graph=True)
    once = {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}
    second.backward()
    module.zero_grad()
    first.backward(retain_graph=True)
    first.backward()
    for name, one in module.named_parameters():
        if name in once:
            torch.testing.assert_close(one.grad, 2.0 * once[name], rtol=1e-12, atol=1e-12)


def test_a_parameter_that_changed_before_backward_is_an_error_and_results_may_be_changed():
    module, (inputs, state, _) = cell(), data()
    outputs, final = module(inputs, state)
    wanted = torch.autograd.grad(outputs.sum(), module.B2, retain_graph=True)[0]
    with torch.no_grad():
        outputs.zero_()
        final.zero_()
    assert torch.equal(torch.autograd.grad(outputs, module.B2, torch.ones_like(outputs), retain_graph=True)[0], wanted)
    with torch.no_grad():
        module.B2.add_(1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        outputs.sum().backward()


def test_hooks_of_parameters_and_of_saved_tensors_run():
    module, (inputs, state, _) = cell(), data()
    module(inputs, state)
    seen, kept = [], []
    module.B2.register_hook(lambda grad: seen.append(grad.shape))
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.shape) or one, lambda one: one):
        outputs = module(inputs, state)[0]
    outputs.sum().backward()
    assert seen == [module.B2.shape] and module.B2.shape in kept


def test_frozen_parameters_have_no_gradient_and_the_others_have_theirs():
    module, (inputs, state, starts) = cell(), data()
    module.X.requires_grad_(False)
    module.network[0].b.requires_grad_(False)
    assert whole(module(inputs, state, starts)[0])
    found = slopes(module, lambda u, x: module(u, x, starts), inputs, state)
    assert found["X"] is None and found["network.0.b"] is None
    wanted = slopes(module, lambda u, x: module.unroll(module._explicit(), u, x, starts), inputs, state)
    assert_alike(found, wanted, 1e-10)


def test_gradients_of_one_thing_alone():
    module, (inputs, state, starts) = cell(), data()
    plain = lambda u, x: module.unroll(module._explicit(), u, x, starts)[0]  # noqa: E731
    for place, one in (("inputs", inputs), ("state", state)):
        given = {"inputs": inputs, "state": state, place: one.clone().requires_grad_()}
        found, wanted = (
            torch.autograd.grad(run(given["inputs"], given["state"]).sin().sum(), given[place])[0]
            for run in (lambda u, x: module(u, x, starts)[0], plain)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_where_it_is_not_used():
    module, (inputs, state, starts) = cell(), data()
    with torch.no_grad():
        assert module(inputs, state, starts)[0].grad_fn is None
    with forward_ad.dual_level():
        outputs = module(forward_ad.make_dual(inputs, torch.ones_like(inputs)), state, starts)[0]
        assert forward_ad.unpack_dual(outputs).tangent.abs().max() > 0
    per_sample = torch.func.vmap(lambda x: module(inputs[:, :1], x[None], None)[0])(state)
    torch.testing.assert_close(per_sample[3], module(inputs[:, :1], state[3:4])[0], rtol=1e-10, atol=1e-10)
    softplus = cell(activation="softplus")
    assert not whole(softplus(inputs, state)[0])
    for one in module.parameters():
        one.requires_grad_(False)
    assert not whole(module(inputs.clone().requires_grad_(), state)[0])


def test_a_subclass_with_arrays_of_its_own_keeps_them():
    class Scaled(R2DN):
        def explicit(self):
            found = super()._explicit()
            return found._replace(C2=2.0 * found.C2)

    torch.manual_seed(0)
    module, (inputs, state, _) = Scaled(NU, NX, NY, NV, (16, 16)).double(), data()
    outputs = module(inputs, state)[0]
    assert not whole(outputs)
    torch.testing.assert_close(outputs, module.unroll(module.explicit(), inputs, state, None)[0], rtol=1e-9, atol=1e-9)


def test_a_matrix_without_a_factor_has_pytorchs_error():
    module, (inputs, state, _) = cell(), data()
    module(inputs, state)
    with torch.no_grad():
        module.Mv.fill_(torch.nan)
    with pytest.raises(torch.linalg.LinAlgError):
        module(inputs, state)


def test_without_a_tape_or_a_compiler_the_arrays_come_first(monkeypatch):
    module, (inputs, state, starts) = cell(), data()
    wanted = module(inputs, state, starts)[0]
    with monkeypatch.context() as patch:
        patch.setattr(program, "works", lambda dtype: False)
        other = cell()
        found = other(inputs, state, starts)[0]
        assert not whole(found)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    with monkeypatch.context() as patch:
        patch.setattr(rows, "works", rows.works.__wrapped__)
        patch.setattr(rows.kernels_of(), "forward", lambda *given: 1 / 0)
        found = module(inputs, state, starts)[0]
        assert not whole(found)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_the_run_of_given_arrays_goes_by_rows_too():
    module, (inputs, state, starts) = cell(), data()
    explicit = module.explicit()
    outputs = module.run(explicit, inputs.requires_grad_(), state, starts)[0]
    assert type(outputs.grad_fn) is compiled._Run._backward_cls
    found = torch.autograd.grad(outputs.sin().sum(), [inputs, *explicit.collapsed[:6]], retain_graph=True)
    plain = compiled.plain_run("tanh", starts, inputs, state, explicit.collapsed)[0]
    wanted = torch.autograd.grad(plain.sin().sum(), [inputs, *explicit.collapsed[:6]], retain_graph=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
