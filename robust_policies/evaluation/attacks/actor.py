"""A policy's mean action as attacks see it: differentiable in the observation, explicit arrays computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_policies.policies.deployed import DeployedPolicy


class FrozenActor:
    """A policy's mean action, differentiable in the observation; its weights stay as they are."""

    def __init__(self, policy: DeployedPolicy) -> None:
        self.policy = policy
        self.actor = policy.actor
        self.precise = policy.actor.body.scaling.offset is not None
        with torch.no_grad():
            self.explicit = policy.actor.body.explicit()
        # `Task.check_fit` refuses other spaces than Boxes.
        self.low, self.high = (
            torch.as_tensor(bound, dtype=torch.float32, device=policy.device).flatten()
            for bound in (policy.action_space.low, policy.action_space.high)  # type: ignore[attr-defined]
        )

    def initial_state(self, batch: int) -> Tensor:
        """Return the state (batch, nx) at an episode's start."""
        return self.actor.cell.initial_state(batch)

    def step(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean actions (batch, na) before clipping, next state (batch, nx)) for observations (batch, nu)."""
        inputs = self.actor.body.scaling(self.actor.normalized(observations))
        output, state = self.actor.cell.step(self.explicit, inputs, state)
        return self.actor.head(output), state

    def run(self, observations: Tensor, state: Tensor) -> Tensor:
        """Return the mean actions (time, batch, na) before clipping for observations (time, batch, nu)."""
        inputs = self.actor.body.scaling(self.actor.normalized(observations))
        return self.actor.head(self.actor.cell.run(self.explicit, inputs, state, None)[0])

    def clip(self, action: Tensor) -> Tensor:
        """Return the action (..., na) within the action space.

        Beyond the limits a small gradient is left, else a search could not leave saturation again.
        """
        clipped = torch.minimum(torch.maximum(action, self.low), self.high).detach()
        if not torch.is_grad_enabled():
            return clipped
        within = (action >= self.low) & (action <= self.high)
        slope = torch.where(within, 1.0, self.leak)
        return clipped + slope * (action - action.detach())

    leak = 0.1
