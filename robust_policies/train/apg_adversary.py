"""Training against the worst: an adversary that perturbs what the policy observes, through plant and policy.

Before each update it looks for perturbations of the observations of the coming horizon, of l2 norm at most its budget
at every step, that make the horizon's discounted return (and the value that stands for what follows) small: projected
gradient descent through the plant's equations and the policy's memory. The update then minimises the loss on what the
perturbed policies do. Environments without a budget see what is there, so that the nominal return is not forgotten.

Source: A. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), the inner
maximisation by projected gradient, here over a horizon of a closed loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from robust_policies.envs.gradient import transition
from robust_policies.train.recipe import _Section

if TYPE_CHECKING:
    from robust_policies.train.apg import AnalyticPolicyGradient, World


class AdversarySection(_Section):
    """Settings of the adversary: `algorithm: {name: apg, adversary: {size: 0.3}}`."""

    size: float = Field(gt=0, allow_inf_nan=False, description="largest l2 norm of a step's perturbation, raw units")
    steps: int = Field(default=2, ge=1, description="gradient steps of the adversary an update")
    share: float = Field(default=0.7, gt=0, le=1, description="share of the environments that are attacked")
    begin: float = Field(default=0.35, ge=0, lt=1, description="share of the training that passes before it begins")
    ramp: float = Field(default=0.35, ge=0, le=1, description="share of the training over which its size grows")

    def size_at(self, remaining: float) -> float:
        """Return the largest size when the share `remaining` (1 to 0) of the training is left."""
        passed = 1.0 - remaining - self.begin
        return self.size * min(1.0, max(0.0, passed / self.ramp if self.ramp else float(passed >= 0)))


def worst_observations(
    training: AnalyticPolicyGradient, world: World, settings: AdversarySection, remaining: float
) -> Tensor | None:
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
            memory, output = training.actor.cell.step(explicit, memory, training.inputs(observation + shift))
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
