"""The compiled gradient of inputs alone is PyTorch's, with and without a plant in the loop."""

import numpy as np
import pytest
import torch

from robust_policies.networks import R2DN, REN, Lipschitz

pytest.importorskip("numba")
from robust_policies.networks import compiled
from robust_policies.networks.collapsed_run import collapsed_run, columns, rows

NU, NX, NY, TIME, BATCH = 3, 5, 2, 7, 6


def cell(kind, activation):
    torch.manual_seed(0)
    given = {"guarantee": Lipschitz(3.0), "activation": activation}
    found = REN(NU, NX, NY, 6, **given) if kind == "ren" else R2DN(NU, NX, NY, 6, (5, 4), **given)
    return found.double().requires_grad_(False)


@pytest.mark.parametrize("kind", ["r2dn", "ren"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("states", [0, 2])
def test_the_gradient_is_that_of_the_graph(kind, activation, states):
    module = cell(kind, activation)
    explicit = module.explicit()
    run = collapsed_run(activation, module.collapsed(explicit))
    assert run is not None
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # A plant z+ = F z + G y with the output S z, and rewards linear in z and y.
    F, G, S = 0.5 * normal(states, states), normal(states, NY), normal(NU, states)
    inputs, first, gained = (
        normal(TIME, BATCH, NU).requires_grad_(),
        normal(BATCH, NX),
        normal(TIME, BATCH, states + NY),
    )
    z, x, total = torch.zeros(BATCH, states, dtype=torch.float64), first, 0.0
    kept, memory, found = run.empty(TIME, BATCH), columns(first), []
    for t in range(TIME):
        read = inputs[t] + z @ S.mT
        output = run.step(columns(read), memory, kept[t])
        y, x = module.step(explicit, read, x)
        np.testing.assert_allclose(output, columns(y), rtol=1e-10, atol=1e-12)
        total = total + (gained[t] * torch.cat((z, y), 1)).sum()
        z = z @ F.mT + y @ G.mT
    np.testing.assert_allclose(memory, columns(x), rtol=1e-10, atol=1e-12)
    (wanted,) = torch.autograd.grad(total, inputs)
    every = np.ones((TIME, 1, 1, BATCH))
    moved = np.ascontiguousarray(torch.cat((F, G), 1).numpy()[None, ..., None] * every)
    found = rows(
        run.input_gradient(kept, columns(gained), moved, np.ascontiguousarray(S.numpy()[None, ..., None] * every))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    if not states:
        outputs, hidden = run.forward(columns(inputs), columns(first))
        torch.testing.assert_close(rows(outputs), module.run(explicit, inputs, first, None)[0].detach())
        torch.testing.assert_close(rows(run.input_gradient(hidden, columns(gained))), wanted, rtol=1e-9, atol=1e-11)


def test_what_is_too_wide_or_has_no_loop_is_left_to_pytorch(monkeypatch):
    module = cell("r2dn", "relu")
    step = module.collapsed(module.explicit())
    assert collapsed_run("no such activation", step) is None
    monkeypatch.setattr(compiled, "_WIDEST", 4)
    assert collapsed_run("relu", step) is None
