"""Adam in one kernel: the steps of PyTorch's, seen by what caches by version counters."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from robust_policies.networks import make_cell
from robust_policies.policies.actor import ScaledCell, Scaling
from robust_policies.policies.adam import FusedAdam, adam, forget_gradients, gradient_norm, kernels, take_step


@pytest.mark.parametrize("limit", [0.1, 1e6])
@pytest.mark.parametrize(
    ("kind", "quick"),
    [(FusedAdam, False), (FusedAdam, True), (torch.optim.Adam, False), (torch.optim.SGD, False)],
)
def test_clipped_steps_are_pytorchs(kind, quick, limit):
    if quick and kernels() is None:
        pytest.skip("numba is not installed")
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2), nn.Linear(4, 4))
    theirs = copy.deepcopy(ours)
    mine = list(ours.parameters())
    reference = torch.optim.SGD if kind is torch.optim.SGD else torch.optim.Adam
    steps = kind(mine, lr=1e-2), reference(theirs.parameters(), lr=1e-2)
    if quick:
        steps[0].quick = True
    for _ in range(5):
        inputs = torch.randn(8, 3)
        forget_gradients(mine)
        steps[1].zero_grad()
        for module in (ours, theirs):
            module[:3](inputs).square().sum().backward()
        norm = gradient_norm(mine, steps[0])
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0.0)
        take_step(steps[0], mine, norm, limit)
        steps[1].step()
    for one, other in zip(mine, theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_step_makes_cached_arrays_old_also_of_a_copied_optimizer():
    body = ScaledCell(make_cell("r2dn", 2, 1, state_size=2, features=3, hidden_sizes=(4,)), Scaling(2))
    parameters = list(body.parameters())
    optimizer = FusedAdam(parameters)
    copied, again = copy.deepcopy((body, optimizer))
    for module, steps in ((body, optimizer), (copied, again)):
        with torch.no_grad():
            before = module.explicit()
            assert module.explicit() is before
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        steps.step()
        with torch.no_grad():
            assert module.explicit() is not before


def test_only_a_plain_adam_is_replaced():
    assert adam(torch.optim.Adam, {"eps"}) is FusedAdam
    assert adam(torch.optim.Adam, {"foreach"}) is torch.optim.Adam
    assert adam(torch.optim.AdamW, ()) is torch.optim.AdamW


def test_making_and_stepping_leaves_pytorchs_compiler_alone():
    lines = (
        "import sys, torch, torch.nn as nn",
        "from robust_policies.policies.adam import FusedAdam, gradient_norm, take_step",
        "layer = nn.Linear(2, 2); optimizer = FusedAdam(layer.parameters())",
        "layer(torch.ones(1, 2)).sum().backward(); parameters = list(layer.parameters())",
        "take_step(optimizer, parameters, gradient_norm(parameters), 1.0); optimizer.step(); optimizer.zero_grad()",
        "optimizer.load_state_dict(optimizer.state_dict()); print('torch._dynamo' in sys.modules)",
    )
    found = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_states_are_the_ones_pytorch_makes():
    ours, theirs = (nn.Linear(3, 2) for _ in range(2))
    one, other = FusedAdam(ours.parameters()), torch.optim.Adam(theirs.parameters(), fused=True)
    for module, optimizer in ((ours, one), (theirs, other)):
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    found, expected = (list(optimizer.state_dict()["state"].values()) for optimizer in (one, other))
    assert [{k: (v.dtype, v.shape) for k, v in state.items()} for state in found] == [
        {k: (v.dtype, v.shape) for k, v in state.items()} for state in expected
    ]
    assert one.param_groups[0].keys() == other.param_groups[0].keys()
