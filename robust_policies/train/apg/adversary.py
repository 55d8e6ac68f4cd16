"""Training against the worst: an adversary that perturbs what the policy observes, through plant and policy.

Before each update it looks for perturbations of the observations of the coming horizon, of l2 norm at most its budget
at every step, that make the horizon's discounted return (and the value that stands for what follows) small: projected
gradient descent through the plant's equations and the policy's memory. The update then minimises the loss on what the
perturbed policies do. Environments without a budget see what is there, so that the nominal return is not forgotten.

Source: A. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), the inner
maximisation by projected gradient, here over a horizon of a closed loop.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from robust_policies.envs.gradient import transition
from robust_policies.envs.plant import Plant
from robust_policies.policies.actor import Actor
from robust_policies.train.apg.world import World
from robust_policies.train.recipe.apg import AdversarySection, ApgSection


class Training(Protocol):
    """What the adversary reads of the training it disturbs."""

    plant: Plant
    actor: Actor
    settings: ApgSection
    params: Any
    num_envs: int
    device: torch.device
    generator: torch.Generator
    low: Tensor
    high: Tensor

    def inputs(self, observation: Tensor) -> Tensor:
        """Return what the cell reads (n, nu) of observations (n, observation_size)."""
        ...

    def value_of(self, state: Tensor) -> Tensor | float:
        """Return the value (n,) of plant states (n, state_size), 0 without one."""
        ...


def worst_observations(training: Training, world: World, settings: AdversarySection, remaining: float) -> Tensor | None:
    """Return perturbations (horizon, n, observation_size) of the observations to come; None before it begins.

    Of the n environments the first `share` are attacked, each with a budget drawn from half the present size to the
    whole of it. Noise and the ends of episodes within the horizon are not foreseen.
    """
    largest = settings.size_at(remaining)
    if not largest:
        return None
    plant, horizon, count = training.plant, training.settings.horizon, training.num_envs
    like = {"dtype": torch.float64, "device": training.device}
    attacked = torch.arange(count, device=training.device) < round(settings.share * count)
    drawn = 0.5 + 0.5 * torch.rand(count, generator=training.generator, **like)
    budget = (largest * torch.where(attacked, drawn, 0.0)).unsqueeze(-1)
    start = torch.randn(horizon, count, plant.observation_size, generator=training.generator, **like)
    found = _unit(start) * budget
    with torch.no_grad():
        explicit = training.actor.cell.explicit()
    for _ in range(settings.steps):
        found.requires_grad_(True)
        state, memory, observation = world.state, world.memory, world.observation
        total, weight = torch.zeros(count, **like), 1.0
        for shift in found:
            output, memory = training.actor.cell.step(explicit, training.inputs(observation + shift), memory)
            action = training.actor.head(output).double().clamp(training.low, training.high)
            after = transition(plant, state, action, training.params)
            state, observation = after.state, after.observation
            total = total + weight * after.reward.double()
            weight *= training.settings.discount
        total = total + weight * training.value_of(state)
        (gradient,) = torch.autograd.grad(total.sum(), found)
        found = found.detach() - budget * _unit(torch.nan_to_num(gradient))
        found = found * (budget / found.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
    return found


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
