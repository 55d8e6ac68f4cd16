"""The gradient of a simulated window without a graph is that of the graph of all its steps."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces

from robust_policies.envs.task import load_plant
from robust_policies.evaluation.attacks.window import Window
from robust_policies.networks import R2DN, Lipschitz
from robust_policies.policies import DeployedPolicy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.frozen import FrozenActor

BATCH, TIME = 6, 9


@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_of_a_window_is_that_of_its_graph(
    only_last: bool, shift: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    cell = R2DN(3, 4, 1, 6, (5,), guarantee=Lipschitz(4.0))
    body, head = ScaledCell(cell, Scaling(3, [1.0, 0.5, 4.0])), MeanHead(1, 1, linear=False, scale=2.0)
    box = spaces.Box(-8.0, 8.0, (3,)), spaces.Box(-2.0, 2.0, (1,))
    policy = DeployedPolicy(Actor(body, head), *box)
    actor, plant = FrozenActor(policy), load_plant("pendulum")
    if compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setitem(actor.__dict__, "compiled", None)
    params = {name: value.float() for name, value in plant.prepare(plant.nominal()).items()}
    # With the shift some actions are beyond their limits.
    state, hidden = torch.randn(BATCH, 2), torch.randn(BATCH, policy.cell.state_size)
    window = Window(plant, plant.constants(params), actor, state, hidden, only_last)
    assert window.suits
    delta = (shift + torch.randn(TIME, BATCH, 3)).requires_grad_()

    at, memory, rewards = state, hidden, []
    for perturbation in delta:
        action, memory = actor.step(plant.observe(at, params) + perturbation, memory)
        action = actor.clip(action)
        following = plant.advance(at, action, params)
        rewards.append(plant.reward(at, action, following, params))
        at = following
    harm = -(rewards[-1] if only_last else torch.stack(rewards).sum(0))
    weights = torch.linspace(0.5, 2.0, BATCH)
    (wanted,) = torch.autograd.grad((weights * harm).sum(), delta)

    again, slope = window.harm().with_slope(delta.detach())
    torch.testing.assert_close(again, harm, rtol=1e-5, atol=1e-5)
    found = weights.unsqueeze(-1) * slope
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
