"""Projected-gradient attacks on the observations, through the recurrent state; l2 budget at each step, batched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_policies.policies.deployed import DeployedPolicy

ATTACKS = {
    "deviation": "any environment: the present and next mean actions are driven away from the clean ones",
    "closed_loop": "our plants: the return over a window is minimised through plant and policy",
}


class FrozenActor:
    """A policy's mean action step by step, differentiable in the observation, explicit arrays computed once."""

    def __init__(self, policy: DeployedPolicy) -> None:
        self.actor = policy.actor
        with torch.no_grad():
            self.explicit = policy.actor.body.explicit()
        self.low, self.high = (
            torch.as_tensor(bound, dtype=torch.float32, device=policy.device).flatten()
            for bound in (policy.action_space.low, policy.action_space.high)  # type: ignore[attr-defined]
        )

    def initial_state(self, batch: int) -> Tensor:
        """Return the state (batch, nx) at an episode's start."""
        return self.actor.cell.initial_state(batch)

    def step(self, state: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Return (next state, mean action before clipping)."""
        inputs = self.actor.body.scaling(self.actor.normalized(observation))
        state, output = self.actor.cell.step(self.explicit, state, inputs)
        return state, self.actor.head(output)

    def clip(self, action: Tensor) -> Tensor:
        """Return the action within the action space."""
        return torch.minimum(torch.maximum(action, self.low), self.high)


def project(delta: Tensor, size: Tensor) -> Tensor:
    """Return `delta` (..., batch, n) shrunk to l2 norm at most `size` (batch,) along the last axis."""
    norm = delta.norm(dim=-1, keepdim=True)
    return delta * (size.unsqueeze(-1) / norm.clamp(min=1e-12)).clamp(max=1.0)


def _ascend(delta: Tensor, gradient: Tensor, size: Tensor, rate: float) -> Tensor:
    gradient = torch.nan_to_num(gradient)
    direction = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return project(delta + rate * size.unsqueeze(-1) * direction, size)


def deviation_attack(
    actor: FrozenActor, state: Tensor, observation: Tensor, size: Tensor, start: Tensor, *, horizon: int, steps: int
) -> Tensor:
    """Return the perturbation (batch, nu) of one observation that most changes the present and next mean actions.

    The next `horizon` observations are taken to stay as the present clean one, so what counts is the effect of this
    step's perturbation through the recurrent state. The best iterate of each episode is kept, zero included.

    Args:
        actor: the policy.
        state: (batch, nx), of the policy.
        observation: (batch, nu), clean.
        size: (batch,) budgets.
        start: (batch, nu), l2 norm at most 1: where the search begins, times the size.
        horizon: number of following actions.
        steps: number of gradient steps.
    """

    def actions(delta: Tensor) -> Tensor:
        hidden, action = actor.step(state, observation + delta)
        found = [actor.clip(action)]
        for _ in range(horizon):
            hidden, action = actor.step(hidden, observation)
            found.append(actor.clip(action))
        return torch.stack(found)

    with torch.no_grad():
        clean = actions(torch.zeros_like(observation))
    delta = start * size.unsqueeze(-1)
    best, kept = torch.zeros_like(size), torch.zeros_like(delta)
    for k in range(steps + 1):
        delta.requires_grad_(True)
        value = (actions(delta) - clean).square().sum(dim=(0, 2))
        better = value.detach() > best
        best = torch.where(better, value.detach(), best)
        kept = torch.where(better.unsqueeze(-1), delta.detach(), kept)
        if k < steps:
            (gradient,) = torch.autograd.grad(value.sum(), delta)
            delta = _ascend(delta.detach(), gradient, size, 0.6)
    return kept


def closed_loop_attack(
    actor: FrozenActor,
    plant: Any,
    params: Any,
    state: Tensor,
    hidden: Tensor,
    size: Tensor,
    start: Tensor,
    *,
    steps: int,
) -> Tensor:
    """Return the perturbations (window, batch, nu) that minimise the return of a window of the closed loop.

    Plant and recurrent state are carried through the window; the plant is simulated without its noise. The best
    iterate of each episode is kept, zero included.

    Args:
        actor: the policy.
        plant: the differentiable plant of the environment.
        params: its physical parameters.
        state: (batch, plant states).
        hidden: (batch, nx), the policy's state.
        size: (batch,) budgets.
        start: (window, batch, nu), l2 norm at most 1: where the search begins, times the size.
        steps: number of gradient steps.
    """
    dtype = start.dtype
    state = state.to(dtype)
    params = {name: value.to(dtype) for name, value in params.items()}

    def returns(delta: Tensor) -> Tensor:
        x, h, total = state, hidden, torch.zeros_like(size)
        for perturbation in delta:
            h, action = actor.step(h, plant.observe(x, params).to(dtype) + perturbation)
            action = actor.clip(action)
            following = plant.step(x, action, params)
            total = total + plant.reward(x, action, following, params)
            x = following
        return total

    with torch.no_grad():
        best = returns(torch.zeros_like(start))
    kept = torch.zeros_like(start)
    delta = start * size.unsqueeze(-1)
    for k in range(steps + 1):
        delta.requires_grad_(True)
        value = returns(delta)
        better = value.detach() < best
        best = torch.where(better, value.detach(), best)
        kept = torch.where(better.unsqueeze(-1), delta.detach(), kept)
        if k < steps:
            (gradient,) = torch.autograd.grad(value.sum(), delta)
            delta = _ascend(delta.detach(), -gradient, size, 0.5 * (1 - k / (steps + 1)))
    return kept
