"""How perturbations move a policy's actions: by compiled loops the same as by PyTorch's graph."""

import pytest
import torch
from gymnasium import spaces

from robust_policies.evaluation.attacks.pushed import ABSOLUTE, SQUARED, directed, pushed
from robust_policies.networks import REN, Lipschitz
from robust_policies.policies import DeployedPolicy
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.policies.frozen import FrozenActor

BATCH = 6


@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.parametrize("name", ["squared", "absolute", "directed"])
def test_values_and_gradients_are_those_of_the_graph(time, name, monkeypatch):
    pytest.importorskip("numba")
    torch.manual_seed(0)
    body = ScaledCell(REN(3, 4, 2, 6, guarantee=Lipschitz(4.0)), Scaling(3, [1.0, 0.5, 4.0], [0.1, 0.0, -0.2]))
    head = MeanHead(2, 2, linear=False, scale=[2.0, 0.5], offset=[0.0, 0.3])
    actor = FrozenActor(DeployedPolicy(Actor(body, head), spaces.Box(-8.0, 8.0, (3,)), spaces.Box(-0.6, 0.6, (2,))))
    assert actor.compiled is not None
    observations, hidden, side = torch.randn(time, BATCH, 3), torch.randn(BATCH, 4), torch.randn(BATCH, 2).sign()
    delta = torch.randn(time, BATCH, 3)
    with torch.no_grad():
        clean = actor.clip(actor.run(observations, hidden))
        # Beyond their limits, too.
        assert bool((actor.run(observations + delta, hidden).abs() > 0.6).any())
    measure = {"squared": SQUARED, "absolute": ABSOLUTE, "directed": directed(side)}[name]
    fast = pushed(actor, observations, hidden, clean, measure)
    value, slope = fast.with_slope(delta)
    torch.testing.assert_close(fast(delta), value)
    monkeypatch.setitem(actor.__dict__, "compiled", None)
    wanted = pushed(actor, observations, hidden, clean, measure).with_slope(delta)
    assert float(wanted[1].abs().max()) > 0
    torch.testing.assert_close((value, slope), wanted, rtol=1e-5, atol=1e-5)


def test_heads_and_normalisers_that_are_no_scaling_are_left_to_the_graph():
    body = ScaledCell(REN(3, 4, 2, 6, guarantee=Lipschitz(4.0)), Scaling(3))
    box = spaces.Box(-8.0, 8.0, (3,)), spaces.Box(-1.0, 1.0, (2,))
    for head in (MeanHead(2, 2, linear=True), MeanHead(2, 2, linear=False, squash=True)):
        assert FrozenActor(DeployedPolicy(Actor(body, head), *box)).compiled is None
