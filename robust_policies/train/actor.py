"""The actor that a recipe describes, and the gradient of its limits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_policies.networks import make_cell
from robust_policies.policies.actor import Actor, MeanHead, ScaledCell, Scaling
from robust_policies.train.recipe.sections import PolicySection


class InwardClip(torch.autograd.Function):
    """clamp(action, low, high), whose gradient also passes outside the limits where descent leads back inside.

    A plain clamp has none there, so an action that was driven beyond its limit would stay there for good.
    """

    @staticmethod
    def forward(ctx: Any, action: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the action (..., na) within its limits, (na,) each."""
        ctx.save_for_backward(action, low, high)
        return action.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient (..., na) of the action, zero where it would lead further outside."""
        action, low, high = ctx.saved_tensors
        gradient = grads[0]
        outward = ((action > high) & (gradient < 0)) | ((action < low) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0), None, None


def new_actor(policy: PolicySection, inputs: int, actions: int, seed: int) -> Actor:
    """Return an untrained actor from `inputs` observations to `actions` numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs = policy.cell_output_size or actions
        cell = make_cell(policy.cell, inputs, outputs, **policy.cell_kwargs())
        head = MeanHead(outputs, actions, policy.cell_output_size is not None, policy.action_scale)
    return Actor(ScaledCell(cell, Scaling(inputs, policy.observation_scale, policy.observation_offset)), head)
