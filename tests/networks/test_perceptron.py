"""The hidden layers of critics as one operation: values and first and second derivatives are the modules' own."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from robust_policies.networks.perceptron import layers


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


def test_in_float32_tanh_is_within_rounding_of_one():
    modules = network(nn.Tanh, (1, 1), torch.float32)
    with torch.no_grad():
        modules[0].weight.fill_(1.0)
        modules[0].bias.zero_()
        inputs = torch.linspace(-12.0, 12.0, 4001).unsqueeze(-1)
        found = layers(modules, inputs)
    assert float((found - inputs.tanh()).abs().max()) < 3e-7
    assert float(found.abs().max()) <= 1.0


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
