"""The hidden layers of critics as one operation: values and first and second derivatives are the modules' own."""

import copy
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from robust_policies.networks import perceptron
from robust_policies.networks.perceptron import layers, regression


def network(activation, widths=(3, 7, 5), dtype=torch.float64):
    torch.manual_seed(0)
    pairs = [[nn.Linear(a, b, dtype=dtype), activation()] for a, b in pairwise(widths)]
    return nn.Sequential(*(module for pair in pairs for module in pair))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SiLU, nn.ELU])
def test_values_and_gradients_are_those_of_the_modules(activation):
    modules = network(activation)
    inputs = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    wanted = [inputs, *modules.parameters()]
    outputs, expected = layers(modules, inputs), modules(inputs)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(layers(modules, inputs), outputs)
    weights = torch.randn_like(expected)
    for one, other in zip(torch.autograd.grad(outputs, wanted, weights),
                          torch.autograd.grad(expected, wanted, weights), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU])
def test_second_derivatives_are_those_of_the_modules(activation):
    modules = network(activation)
    inputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for outputs in (layers(modules, inputs), modules(inputs)):
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [inputs, *list(modules.parameters())[:3]]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def tanh_of(inputs):
    modules = network(nn.Tanh, (1, 1), torch.float32)
    with torch.no_grad():
        modules[0].weight.fill_(1.0)
        modules[0].bias.zero_()
        return layers(modules, inputs)


def test_in_float32_tanh_is_within_rounding_of_one(monkeypatch):
    monkeypatch.setattr(perceptron, "_ENOUGH", 10**9)
    inputs = torch.linspace(-12.0, 12.0, 4001).unsqueeze(-1)
    found = tanh_of(inputs)
    assert float((found - inputs.tanh()).abs().max()) < 3e-7
    assert float(found.abs().max()) <= 1.0


def test_the_compiled_tanh_is_as_near_as_it_says():
    pytest.importorskip("numba")
    inputs = torch.linspace(-12.0, 12.0, 4001).unsqueeze(-1)
    assert float((tanh_of(inputs).double() - inputs.double().tanh()).abs().max()) <= 4e-7


def test_what_is_fixed_gets_no_gradient_and_passes_it_on():
    modules = network(nn.SiLU).requires_grad_(False)
    inputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    (one,) = torch.autograd.grad(layers(modules, inputs).sum(), inputs)
    (other,) = torch.autograd.grad(modules(inputs).sum(), inputs)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_networks_of_other_make_run_by_their_own_modules():
    inputs = torch.randn(5, 3)
    assert layers([], inputs) is inputs
    for modules in ([nn.Linear(3, 2)], [nn.Linear(3, 4, bias=False), nn.Tanh()], [nn.Tanh(), nn.Linear(3, 2)]):
        assert torch.equal(layers(modules, inputs), nn.Sequential(*modules)(inputs))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_the_compiled_layers_give_the_modules_values_and_gradients(activation, head, dtype, close, monkeypatch):
    pytest.importorskip("numba")
    modules = [*network(activation, (3, 24, 7), dtype), *([nn.Linear(7, 2, dtype=dtype)] if head else [])]
    inputs = torch.randn(10, 30, 3, dtype=dtype).transpose(0, 1).requires_grad_()
    wanted = [inputs, *(value for module in modules for value in module.parameters())]
    found = []
    for enough in (1, 10**9):
        monkeypatch.setattr(perceptron, "_ENOUGH", enough)
        outputs = layers(modules, inputs)
        assert (outputs.grad_fn.next_functions[0][0].kept is None) == (enough > 1)
        weights = torch.linspace(-1.0, 1.0, outputs.numel(), dtype=dtype).view_as(outputs)
        found.append((outputs.detach(), *torch.autograd.grad(outputs, wanted, weights)))
    for one, other in zip(*found, strict=True):
        # Sums over 300 rows, whose tanh is within 4e-7 in float32.
        assert float((one - other).abs().max()) <= close * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("widths", [(5, 40, 33), (2, 6, 3, 5)])
def test_wide_and_narrow_layers_are_the_modules_too(widths, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(perceptron, "_ENOUGH", 1)
    modules = network(nn.Tanh, widths, torch.float32)
    exact = copy.deepcopy(modules).double()
    inputs = torch.randn(150, widths[0])
    found = []
    for outputs, wanted in ((layers(modules, inputs), modules), (exact(inputs.double()), exact)):
        weights = torch.linspace(-1.0, 1.0, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
        found.append((outputs.detach(), *torch.autograd.grad(outputs, list(wanted.parameters()), weights)))
    for one, other in zip(*found, strict=True):
        # Sums over 150 rows, whose tanh is within 4e-7.
        assert float((one - other).abs().max()) <= 1e-4 * max(1.0, float(other.abs().max()))


def test_the_compiled_regression_is_the_graphs(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(perceptron, "_ENOUGH", 1)
    modules = [*network(nn.SiLU, (3, 24, 7), torch.float32), nn.Linear(7, 1)]
    inputs, targets = torch.randn(10, 30, 3), torch.randn(10, 30)
    error = regression(modules, inputs, targets)
    assert error is not None
    parameters = [value for module in modules for value in module.parameters()]
    for _ in range(2):
        loss = nn.functional.mse_loss(nn.Sequential(*modules)(inputs).squeeze(-1), targets)
        expected = torch.autograd.grad(loss, parameters)
        assert error() == pytest.approx(float(loss.detach()), rel=1e-5)
        for parameter, slope in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, slope, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(0.1 * parameter.grad)
    assert regression(modules[:-1], inputs, targets) is None
    assert regression([*modules[:-1], nn.Linear(7, 2)], inputs, targets) is None
    monkeypatch.setattr(perceptron, "_kernels", lambda dtype: None)
    assert regression(modules, inputs, targets) is None


def test_compiled_layers_have_second_derivatives_and_keep_what_is_not_a_number(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(perceptron, "_ENOUGH", 1)
    modules = network(nn.Tanh)
    inputs = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for outputs in (layers(modules, inputs), modules(inputs)):
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [inputs, *list(modules.parameters())[:3]]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    odd = inputs.detach().clone()
    odd[2, 1] = torch.nan
    assert torch.equal(layers(modules, odd).isnan().any(1), odd.isnan().any(1))


def test_without_numba_pytorch_runs(monkeypatch):
    monkeypatch.setattr(perceptron, "_ENOUGH", 1)
    monkeypatch.setitem(sys.modules, "robust_policies.networks.perceptron_kernels", None)
    perceptron._kernels.cache_clear()
    modules, inputs = network(nn.Tanh, dtype=torch.float32), torch.randn(9, 3)
    try:
        torch.testing.assert_close(layers(modules, inputs), modules(inputs), rtol=1e-5, atol=1e-6)
        assert perceptron._kernels(torch.float32) is None
    finally:
        perceptron._kernels.cache_clear()
