"""A policy as attacks see it: differentiable in the observation, its explicit arrays computed once."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies.networks.collapsed_run import CollapsedRun, collapsed_run, rows
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.observations import choices_of, measured
from robust_policies.policies.spaces import likeliest, limits


class CompiledActor(NamedTuple):
    """A policy around whose cell there is scaling alone, as its compiled run and the slopes of what is around it.

    inward: (nu,), of what the cell reads in the observations. outward: (na,), of the actions in the cell's outputs.
    shift, low, high: (na, 1), what is added to the actions then, and their limits.
    """

    run: CollapsedRun
    inward: Tensor
    outward: Tensor
    shift: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def clipped(self, outputs: np.ndarray) -> Tensor:
        """Return the actions (batch, na) within their limits, of the cell's outputs (na, batch)."""
        actions = outputs * self.outward.numpy()[:, None] + self.shift
        return rows(np.minimum(np.maximum(actions, self.low), self.high))


class FrozenActor:
    """A policy's mean action, of choices the logits; its weights stay as they are.

    Attributes:
        low, high: (na,) the limits of its numbers; logits have none.
        choices: its actions are choices.
        fixed: the cell's step with its arrays.
        head: from the cell's outputs (..., ny) to the mean actions (..., na).
        measured: (nu,) bool, which observations can be off by a little; None: all of them.
    """

    def __init__(self, policy: DeployedPolicy) -> None:
        self.policy = policy
        self.actor = policy.actor
        self.precise = policy.actor.body.scaling.offset is not None
        self.space = policy.action_space
        self.choices = not isinstance(self.space, spaces.Box)
        with torch.no_grad():
            self.explicit = policy.actor.body.explicit()
            self.fixed = policy.cell.fixed_step(self.explicit)
        # Without the calls of modules around them, which cost more than they do.
        scaling = policy.actor.body.scaling
        self._as_read = policy.actor.normalizer is None and scaling.scale is None and scaling.offset is None
        self._kind = scaling.kind.dtype
        self._scaled, self.head = policy.actor.body.scaling.forward, policy.actor.head.forward
        self.low, self.high = (
            torch.as_tensor(bound, dtype=torch.float32, device=policy.device) for bound in limits(self.space)
        )
        mask = measured(policy.observation_space)
        self.measured = None if mask.all() else torch.as_tensor(mask, device=policy.device)

    @cached_property
    def compiled(self) -> CompiledActor | None:
        """The policy as a compiled run, None where its kind of cell, its maps or the machine have no such."""
        actor, head = self.actor, self.actor.head
        plain = actor.normalizer is None and head.linear is None and not head.squash and not self.choices
        if not plain or self.low.device.type != "cpu":
            return None
        with torch.no_grad():
            step = actor.cell.collapsed(self.explicit)
        run = None if step is None else collapsed_run(actor.cell.options()["activation"], step)
        if run is None:
            return None
        scaling = actor.body.scaling
        ones = scaling.kind.new_ones
        return CompiledActor(
            run,
            ones(run.nu) if scaling.scale is None else 1.0 / scaling.scale,
            ones(run.ny) if head.scale is None else head.scale,
            np.zeros((run.ny, 1), run.dtype) if head.offset is None else head.offset.numpy()[:, None],
            *(bound.reshape(-1, 1).numpy() for bound in (self.low, self.high)),
        )

    def initial_state(self, batch: int) -> Tensor:
        """Return the state (batch, nx) at an episode's start."""
        return self.actor.cell.initial_state(batch)

    def step(self, observations: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean actions (batch, na) before clipping, or logits, next state (batch, nx)) of inputs."""
        output, state = self.fixed(self.inward(observations), state)
        return self.head(output), state

    def inward(self, observations: Tensor) -> Tensor:
        """Return what the cell reads of observations (..., nu), entry by entry."""
        if self._as_read and observations.dtype is self._kind:
            return observations
        return self._scaled(self.actor.normalized(observations))

    def run(self, observations: Tensor, state: Tensor) -> Tensor:
        """Return the mean actions (time, batch, na) before clipping for observations (time, batch, nu)."""
        return self.head(self.actor.cell.run(self.explicit, self.inward(observations), state, None)[0])

    def clip(self, action: Tensor) -> Tensor:
        """Return what attacks take for the action: within the action space; of a choice the logits about their mean.

        Beyond the limits a small gradient is left, else a search could not leave saturation again.
        """
        if self.choices:
            return self._centred(action)
        if torch.is_grad_enabled() and action.requires_grad:
            return _Clip.apply(action, self.low, self.high)
        return torch.clamp(action.detach(), self.low, self.high)

    def clip_slope(self, action: Tensor) -> Tensor:
        """Return the slope of `clip` at actions (..., na) that are numbers: 1 within the limits, a tenth beyond."""
        return torch.where((action >= self.low) & (action <= self.high), 1.0, 0.1)

    def applied(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions (batch, k) float32 that the environment is sent, and which of them are finite (batch,)."""
        if not self.choices:
            action = self.clip(numbers).float()
            return torch.nan_to_num(action), torch.isfinite(action).all(dim=-1)
        return likeliest(self.space, torch.nan_to_num(numbers)).float(), torch.isfinite(numbers).all(dim=-1)

    def seen(self, recorded: dict[str, Tensor]) -> Tensor:
        """Return the actions (time, batch, na) of recorded episodes, (time, batch, n) each, as `clip` has them."""
        if not self.choices:
            return recorded["actions"]
        perturbed = recorded["perturbed"]
        with torch.no_grad():
            return self.clip(self.run(perturbed, self.initial_state(perturbed.shape[1])))

    def _centred(self, logits: Tensor) -> Tensor:
        """Return the logits, of each choice without what they have in common, which decides nothing."""
        if isinstance(self.space, spaces.MultiBinary):
            return logits
        pieces = logits.split(choices_of(self.space)[1], dim=-1)
        return torch.cat([piece - piece.mean(dim=-1, keepdim=True) for piece in pieces], dim=-1)


class _Clip(torch.autograd.Function):
    """Clipped to the limits, with a slope of 1 within and a tenth beyond."""

    @staticmethod
    def forward(ctx: Any, action: Tensor, low: Tensor, high: Tensor) -> Tensor:
        clipped = torch.minimum(torch.maximum(action, low), high)
        ctx.save_for_backward(clipped == action)
        return clipped

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (within,) = ctx.saved_tensors
        return grads[0] * torch.where(within, 1.0, 0.1), None, None
