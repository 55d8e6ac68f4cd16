"""Steps that are one node each: values and gradients of the steps that PyTorch takes, summed once."""

import pytest
import torch

from robust_policies.networks import R2DN, REN, Lipschitz, LSTMCell, compiled
from robust_policies.networks.stepping import stepping

HORIZON, BATCH = 5, 20


def cell(kind):
    torch.manual_seed(0)
    if kind == "ren":
        return REN(3, 4, 2, 6, "tanh", guarantee=Lipschitz(3.0))
    return R2DN(3, 4, 2, 6, (5, 5), "relu", guarantee=Lipschitz(3.0))


def unrolled(module, step, inputs, state):
    """Return the outputs of a loop in which each input depends on the output before."""
    output, found = torch.zeros(BATCH, 2, dtype=torch.float64), []
    for given in inputs:
        output, state = step(given + output.sum(-1, keepdim=True), state)
        found.append(output)
    return torch.stack(found), state


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
def test_a_loop_has_pytorchs_values_and_gradients(kind, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(compiled, "enough", lambda dtype: 1)
    module, generator = cell(kind).double(), torch.Generator().manual_seed(1)
    inputs = torch.randn(HORIZON, BATCH, 3, generator=generator, dtype=torch.float64)
    state, found = torch.randn(BATCH, 4, generator=generator, dtype=torch.float64), []
    for fast in (True, False):
        explicit = module.explicit()
        step = stepping(module, explicit, HORIZON if fast else 1, BATCH)
        assert (type(step).__name__ == "Steps") == fast
        given, first = inputs.clone().requires_grad_(), state.clone().requires_grad_()
        outputs, final = unrolled(module, step, given, first)
        wanted = [given, first, *module.parameters()]
        objective = outputs.sin().sum() + final.square().sum()
        # A pass that does not reach the arrays must leave nothing behind for the one that does.
        torch.autograd.grad(objective, [given], retain_graph=True)
        for _ in range(2):
            slopes = torch.autograd.grad(objective, wanted, retain_graph=True, allow_unused=True)
        found.append((outputs.detach(), final.detach(), *slopes))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert float((one - other).abs().max()) <= 1e-10 * max(1.0, float(other.abs().max()))


def test_other_cells_and_few_steps_take_pytorchs():
    module = LSTMCell(3, 4, 2)
    step = stepping(module, module.explicit(), HORIZON, BATCH)
    inputs, state = torch.randn(BATCH, 3), torch.zeros(BATCH, 4)
    assert torch.equal(step(inputs, state)[0], module.step(module.explicit(), inputs, state)[0])
    assert type(stepping(cell("ren"), cell("ren").explicit(), 2, 2)).__name__ == "function"
    with torch.no_grad():
        assert type(stepping(cell("ren"), cell("ren").explicit(), HORIZON, BATCH)).__name__ == "function"
