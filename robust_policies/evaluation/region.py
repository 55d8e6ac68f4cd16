"""How often a Youla policy left the region that something is said of, from what was recorded of its episodes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.youla.policy import YoulaPolicy


def left_region(
    policy: DeployedPolicy, observations: Tensor, actions: Tensor, lengths: np.ndarray
) -> dict[str, np.ndarray]:
    """Return for each episode how many steps had an estimate outside the region, and an input at its limit.

    Exits are left out where the policy states no region. The observer runs again over what it read and sent, so this is
    what the policy itself would have counted.

    Args:
        policy: {} is returned for one without an observer.
        observations: (time, batch, nu), what the policy read.
        actions: (time, batch, na), what it sent.
        lengths: (batch,) numbers of steps that count.
    """
    if not isinstance(policy, YoulaPolicy):
        return {}
    base = policy.controller
    state = base.initial_state(observations.shape[1])
    last = torch.as_tensor(lengths, device=state.device)
    exits, saturations = torch.zeros_like(last), torch.zeros_like(last)
    for t, (observation, action) in enumerate(zip(observations, actions, strict=True)):
        innovation, sent = base.innovation(observation, state), action.to(base.A.dtype)
        exits += base.outside(base.estimate(innovation, state)) & (t < last)
        saturations += base.saturated(sent) & (t < last)
        _, state = base.update(innovation, sent, state)
    counted = {"region_exits": exits} if base.options.region else {}
    return {name: count.cpu().numpy() for name, count in (counted | {"saturations": saturations}).items()}
