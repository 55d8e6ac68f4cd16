"""The fast runs equal the step-by-step loop, in value and in every kind of derivative."""

import pytest
import torch
from torch.autograd import forward_ad

from robust_policies.networks import (
    ACTIVATIONS,
    R2DN,
    REN,
    Contracting,
    Dissipative,
    Lipschitz,
    cell_from_config,
    compiled,
    make_cell,
)

NU, NX, NY, NV = 3, 4, 2, 5


@pytest.fixture(params=["torch", "compiled"], autouse=True)
def way(request, monkeypatch):
    """Run every test by PyTorch's operations alone, and with compiled loops for however few steps."""
    if request.param == "compiled":
        pytest.importorskip("numba")
        monkeypatch.setattr(compiled, "enough", lambda dtype: 1)
    return request.param


GUARANTEES = {
    "contracting": Contracting(),
    "lipschitz": Lipschitz(2.0),
    "trainable": Lipschitz(2.0, trainable=True),
    "dissipative": Dissipative(-0.5 * torch.eye(NY), 0.3 * torch.ones(NU, NY), 4 * torch.eye(NU)),
}
SHAPES = {"deep": ((6, 4), True), "one layer": ((4,), True), "full last layer": ((6,), False), "only last": ((), False)}


def r2dn(guarantee="lipschitz", hidden=(6, 4), linear=True, activation="tanh", seed=0):
    torch.manual_seed(seed)
    cell = R2DN(NU, NX, NY, NV, hidden, activation, GUARANTEES[guarantee], 0.95, linear_output=linear).double()
    with torch.no_grad():
        for bias in (cell.bx, cell.bv, cell.by):
            bias.normal_()
    return cell


def ren(guarantee="lipschitz", activation="tanh"):
    torch.manual_seed(1)
    return REN(NU, NX, NY, NV, activation, GUARANTEES[guarantee], rate=0.95).double()


def data(time=7, batch=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(time, batch, NU, dtype=torch.float64, generator=generator, requires_grad=True)
    state = torch.randn(batch, NX, dtype=torch.float64, generator=generator, requires_grad=True)
    starts = torch.rand(time, batch, generator=generator) < 0.3
    return inputs, state, starts


def loss(outputs, state):
    return outputs.square().sum() + state.sin().sum()


def assert_equals_loop(cell, inputs, state, starts):
    fast, slow = cell(inputs, state, starts), cell.unroll(cell.explicit(), inputs, state, starts)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    variables = [*cell.parameters(), inputs, state]
    found = torch.autograd.grad(loss(*fast), variables, allow_unused=True)
    wanted = torch.autograd.grad(loss(*slow), variables, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_r2dn_scan_equals_the_loop(guarantee, shape):
    inputs, state, starts = data()
    assert_equals_loop(r2dn(guarantee, *SHAPES[shape]), inputs, state, starts)
    assert_equals_loop(r2dn(guarantee, *SHAPES[shape]), inputs, state, None)


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_ren_run_equals_the_loop(guarantee):
    inputs, state, starts = data()
    assert_equals_loop(ren(guarantee), inputs, state, starts)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_its_derivative(activation):
    inputs, state, starts = data()
    cell = r2dn(activation=activation)
    assert_equals_loop(cell, inputs, state, starts)
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    x = x[x.abs() > 1e-3]
    slope = torch.func.vmap(torch.func.grad(ACTIVATIONS[activation].function))(x)
    assert float(slope.min()) >= 0 and float(slope.max()) <= 1
    h = ACTIVATIONS[activation].function(x)
    torch.testing.assert_close(ACTIVATIONS[activation].slope(h, torch.empty_like(h)), slope, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ACTIVATIONS[activation].inplace(x.clone()), h)


@pytest.mark.parametrize(
    "name", ["r2dn", "ren", "nemon", "l2ru", "convex", "lipschitz_rnn", "lstm", "gru", "mlp", "lbdn"]
)
@pytest.mark.parametrize(("time", "batch"), [(1, 1), (1, 4), (6, 1), (9, 4)])
def test_every_cell_equals_its_loop_with_resets(name, time, batch):
    options = (
        {"state_size": 4} if name in ("r2dn", "ren", "nemon", "l2ru", "convex", "lipschitz_rnn", "lstm", "gru") else {}
    )
    options |= {"features": 5} if name in ("r2dn", "ren", "nemon", "l2ru") else {}
    options |= {"hidden_sizes": (6,)} if name in ("r2dn", "mlp", "lbdn") else {}
    torch.manual_seed(0)
    cell = make_cell(name, NU, NY, **options).double()
    inputs = torch.randn(time, batch, NU, dtype=torch.float64)
    state = torch.randn(batch, cell.state_size, dtype=torch.float64)
    starts = torch.rand(time, batch) < 0.3
    for flags in (None, starts, torch.ones_like(starts)):
        outputs, final = cell(inputs, state, flags)
        expected, expected_final = cell.unroll(cell.explicit(), inputs, state, flags)
        assert outputs.shape == (time, batch, NY) and final.shape == (batch, cell.state_size)
        torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(final, expected_final, rtol=1e-12, atol=1e-12)
    again = cell_from_config(cell.config()).double()
    again.load_state_dict(cell.state_dict())
    torch.testing.assert_close(again(inputs, state)[0], cell(inputs, state)[0], rtol=0, atol=0)


def test_a_reset_forgets_what_came_before():
    cell = r2dn()
    inputs, state, _ = data(6)
    starts = torch.zeros(6, 3, dtype=torch.bool)
    starts[4] = True
    outputs, final = cell(inputs, state, starts)
    fresh, fresh_final = cell(inputs[4:])
    torch.testing.assert_close(outputs[4:], fresh, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(final, fresh_final, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(outputs[4:].square().sum(), inputs)
    assert float(gradient[:4].abs().max()) == 0.0 and float(gradient[4:].abs().min()) > 0.0


@pytest.mark.parametrize("build", [r2dn, ren])
def test_gradcheck_and_gradgradcheck(build):
    cell = build()
    inputs, state, starts = data(3, 2)
    assert torch.autograd.gradcheck(lambda u, x: cell(u, x, starts), (inputs, state))
    assert torch.autograd.gradgradcheck(lambda u, x: cell(u, x, starts), (inputs, state))


@pytest.mark.parametrize("build", [r2dn, ren])
def test_second_derivatives_in_the_parameters_equal_the_loops(build):
    cell = build()
    inputs, state, starts = data(4, 2)
    parameters = [p for p in cell.parameters() if p.numel()]
    results = []
    for outputs in (cell(inputs, state, starts), cell.unroll(cell.explicit(), inputs, state, starts)):
        first = torch.autograd.grad(loss(*outputs), parameters, create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        results.append(torch.autograd.grad(penalty, [*parameters, inputs], allow_unused=True))
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("build", [r2dn, ren])
def test_forward_mode_and_transforms_equal_reverse_mode(build):
    cell = build()
    inputs, state, starts = data(4, 2)
    inputs, state = inputs.detach(), state.detach()
    tangent = torch.randn(inputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def run(u):
        return cell(u, state, starts)[0]

    jacobian = torch.autograd.functional.jacobian(run, inputs)
    expected = (jacobian.flatten(3) @ tangent.flatten()).reshape(jacobian.shape[:3])
    _, transformed = torch.func.jvp(run, (inputs,), (tangent,))
    torch.testing.assert_close(transformed, expected, rtol=1e-10, atol=1e-10)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(run(forward_ad.make_dual(inputs, tangent))).tangent
    torch.testing.assert_close(dual, expected, rtol=1e-10, atol=1e-10)
    reverse = torch.func.jacrev(run)(inputs)
    torch.testing.assert_close(reverse, jacobian, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", [r2dn, ren])
def test_a_parameter_tangent_is_not_lost(build):
    cell = build()
    inputs, state, starts = data(3, 2)
    inputs, state = inputs.detach(), state.detach()
    parameters = {name: p.detach() for name, p in cell.named_parameters()}

    def run(c2):
        return torch.func.functional_call(cell, {**parameters, "C2": c2}, (inputs, state, starts))[0]

    tangent = torch.ones_like(parameters["C2"])
    _, found = torch.func.jvp(run, (parameters["C2"],), (tangent,))
    step = 1e-6
    difference = (run(parameters["C2"] + step * tangent) - run(parameters["C2"] - step * tangent)) / (2 * step)
    torch.testing.assert_close(found, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("build", [r2dn, ren])
def test_float32_is_close_to_float64_and_keeps_its_dtype(build):
    cell = build()
    inputs, state, starts = data(20)
    expected, _ = cell(inputs, state, starts)
    outputs, final = cell.float()(inputs.float(), state.float(), starts)
    assert outputs.dtype == final.dtype == torch.float32
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("build", [r2dn, ren])
def test_cuda_equals_cpu(build):
    cell = build()
    inputs, state, starts = data()
    expected, expected_final = cell(inputs, state, starts)
    cell = cell.cuda()
    outputs, final = cell(inputs.cuda(), state.cuda(), starts.cuda())
    torch.testing.assert_close(outputs.cpu(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(final.cpu(), expected_final, rtol=1e-10, atol=1e-10)
    assert_equals_loop(
        cell, inputs.detach().cuda().requires_grad_(), state.detach().cuda().requires_grad_(), starts.cuda()
    )
