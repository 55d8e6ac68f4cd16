"""The run with the linear part exact and phi lagged: equal to the scan, as near after each round as is proven."""

import pytest
import torch

from robust_policies.control.norms import StateSpace, hinf_norm
from robust_policies.errors import InvalidValueError
from robust_policies.networks import make_cell, picard


def made(**options):
    torch.manual_seed(0)
    options = {"rate": 0.9, "gamma": 3.0, "activation": "tanh", **options}
    return make_cell("r2dn", 3, 2, state_size=4, features=5, hidden_sizes=(6, 5), **options).double()


def data(time=70, batch=3):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(time, batch, 3, generator=generator, dtype=torch.float64)
    state = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    return inputs, state, torch.rand(time, batch, generator=generator) < 0.05


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("gamma", [3.0, None])
def test_it_is_the_scan_with_gradients(resets, gamma):
    cell, (inputs, state, starts) = made(gamma=gamma), data()
    found = []
    for mode in ("scan", "picard"):
        u, x = inputs.clone().requires_grad_(), state.clone().requires_grad_()
        outputs, final = cell(u, x, starts if resets else None, parallel=mode, tolerance=1e-13)
        wanted = [one for one in cell.parameters() if one.requires_grad]
        slopes = torch.autograd.grad(outputs.sin().sum() + final.square().sum(), [u, x, *wanted], allow_unused=True)
        found.append([outputs, final, *slopes])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-9)


def test_each_round_comes_nearer_by_the_norm_of_the_loop():
    cell, (inputs, state, starts) = made(rate=0.95), data(time=200)
    with torch.no_grad():
        cell.B1.mul_(3.0)
        cell.C1.mul_(3.0)
        e = cell.explicit()
        lagged = picard.Lagged("tanh", cell.collapsed(e), inputs, state, starts)
        A, B, C = (one.numpy() for one in (e.A, e.B1, e.C1))
        h1 = hinf_norm(StateSpace(A, B, C, torch.zeros(len(C), B.shape[1]).numpy()))

        def phi(states):
            """Return what phi gives, not its collapsed last layer."""
            w = lagged.before(states) @ e.C1.mT + inputs @ e.D12.mT + e.bv
            for layer in e.layers:
                w = layer.apply(w, cell.activation)
            return w

        states = torch.zeros(200, 3, 4, dtype=torch.float64)
        exact = cell.trajectory(inputs, state, starts)[1]
        true, distance, shares = phi(exact), None, []
        for _ in range(12):
            now = (phi(states) - true).norm().item()
            if distance is not None and distance > 1e-9:
                assert now <= h1 * distance * (1 + 1e-9) + 1e-11
                shares.append(now / distance)
            distance, states = now, lagged.round(states)
    assert 0.05 < h1 < 1 and len(shares) >= 3


def test_what_is_not_in_layers_is_refused():
    inputs = torch.randn(30, 2, 3)
    for name, options in (("ren", {"state_size": 4, "features": 5}), ("lstm", {"state_size": 4})):
        with pytest.raises(InvalidValueError, match="parallel='picard' needs an R2DN"):
            make_cell(name, 3, 2, **options)(inputs, parallel="picard")
