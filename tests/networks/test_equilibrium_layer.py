"""The implicit layer against its equation, neuron after neuron, on both sides of where its derivative changes path."""

import pytest
import torch

from robust_policies.networks import ACTIVATIONS
from robust_policies.networks.equilibrium import solve_equilibrium


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(("batch", "neurons"), [(2, 1), (3, 64), (4, 65), (30, 130)])
def test_value_and_gradients_equal_neuron_after_neuron(batch, neurons, activation):
    generator = torch.Generator().manual_seed(3)
    b = torch.randn(batch, neurons, dtype=torch.float64, generator=generator, requires_grad=True)
    D11 = torch.randn(neurons, neurons, dtype=torch.float64, generator=generator) / neurons**0.5
    D11.requires_grad_()
    act = ACTIVATIONS[activation]
    rows = []
    for i in range(neurons):
        rows.append(act.function(b[:, i] + sum((D11[i, j] * rows[j] for j in range(i)), torch.zeros(()))))
    expected, found = torch.stack(rows, 1), solve_equilibrium(b, D11, act)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(batch, neurons, dtype=torch.float64, generator=generator)
    wanted = torch.autograd.grad((expected * weights).sum(), [b, D11], allow_unused=True)
    for a, e in zip(torch.autograd.grad((found * weights).sum(), [b, D11]), wanted, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if e is None else e, rtol=1e-10, atol=1e-11)
        assert torch.isfinite(a).all()
