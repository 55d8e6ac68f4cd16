"""The simulated return of a window of the closed loop, and its gradient without a graph of all its steps.

The loop runs without a graph. For the gradient the plant's Jacobians at all visited states are found side by side, and
one pass backward through time multiplies them and the cell's own gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robust_policies.envs.plant import Params, Plant
from robust_policies.networks.cell import FixedStep
from robust_policies.networks.linalg import full_precision
from robust_policies.policies.frozen import FrozenActor

# Above this many components the plant's Jacobians cost more than a graph does.
_SMALL = 12


@dataclass(frozen=True)
class Window:
    """Where a window begins, of many episodes side by side.

    Attributes:
        plant, params: simulated without noise.
        actor: whose actions are numbers.
        state: (batch, nx) of the plant.
        hidden: (batch, n) of the policy.
        only_last: the objective is the last reward, else the sum.
    """

    plant: Plant
    params: Params
    actor: FrozenActor
    state: Tensor
    hidden: Tensor
    only_last: bool

    @property
    def suits(self) -> bool:
        """Whether this is faster than a graph of all steps."""
        plant, actor = self.plant, self.actor
        small = plant.state_size + plant.observation_size + plant.action_size <= _SMALL
        return small and not actor.choices and isinstance(actor.fixed, FixedStep)

    def harm(self, delta: Tensor) -> Tensor:
        """Return minus the rewards (batch,) under perturbations (time, batch, nu) of the observations."""
        return _Harm.apply(self, delta)

    def played(self, delta: Tensor) -> _Played:
        """Return what happens under perturbations (time, batch, nu) of the observations."""
        plant, params, actor = self.plant, self.params, self.actor
        state, memory = self.state, self.hidden
        states, read, outputs, kept = [state], [], [], []
        with full_precision(state):
            for perturbation in delta:
                read.append(plant.observe(state, params) + perturbation)
                output, memory, known = actor.fixed.forward(actor.inward(read[-1]), memory)
                state = plant.advance(state, actor.clip(actor.actor.head(output)), params)
                outputs.append(output)
                kept.append(known)
                states.append(state)
        # Column by column in memory, as the plants compute.
        return _Played(torch.stack([one.mT for one in states]).mT, torch.stack(read), torch.stack(outputs), kept)

    def rewards(self, states: Tensor, actions: Tensor, following: Tensor) -> Tensor:
        """Return the rewards (time, batch) of the steps that count: none after an episode's end."""
        rewards = self.plant.reward(states, actions, following, self.params)
        if not self.plant.terminates:
            return rewards
        ended = self.plant.terminated(following[:-1], self.params).cumsum(0) > 0
        return rewards * torch.cat((torch.ones_like(rewards[:1]), (~ended).to(rewards.dtype)))


@dataclass(frozen=True)
class _Played:
    """What happened: states (time + 1, batch, nx), what the policy read, the cell's outputs, what it kept."""

    states: Tensor
    read: Tensor
    outputs: Tensor
    kept: Sequence[Any]


class _Harm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, window: Window, delta: Tensor) -> Tensor:
        played = window.played(delta)
        ctx.window, ctx.played = window, played
        actions = window.actor.clip(window.actor.actor.head(played.outputs))
        rewards = window.rewards(played.states[:-1], actions, played.states[1:])
        return -(rewards[-1] if window.only_last else rewards.sum(0))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, _gradient(ctx.window, ctx.played) * -grads[0].unsqueeze(-1)


def _gradient(window: Window, played: _Played) -> Tensor:
    """Return the gradient (time, batch, nu) of the rewards."""
    plant, params, actor = window.plant, window.params, window.actor
    assert isinstance(actor.fixed, FixedStep)
    nx = plant.state_size
    with torch.enable_grad():
        states, read, outputs, shown = (
            value.detach().requires_grad_()
            for value in (played.states[:-1], played.read, played.outputs, played.states[:-1])
        )
        actions = actor.clip(actor.actor.head(outputs))
        following = plant.advance(states, actions, params)
        rewards = window.rewards(states, actions, following)
        # Of what follows from the state and the cell's output: the next state, and this step's reward.
        counted = rewards[-1:] if window.only_last else rewards
        gained = torch.cat(_slopes(counted, (states, outputs)), -1)
        moved = torch.stack([torch.cat(_slopes(part, (states, outputs)), -1) for part in following.unbind(-1)], -2)
        observed = plant.observe(shown, params)
        seen = torch.stack([_slopes(part, (shown,))[0] for part in observed.unbind(-1)], -2)
        scale = _slopes(actor.inward(read), (read,))[0]
    seen = scale.unsqueeze(-1) * seen
    later, memory = torch.zeros_like(window.state).unsqueeze(1), torch.zeros_like(window.hidden)
    found: list[Tensor] = []
    steps = zip(*(value.unbind() for value in (gained.unsqueeze(-2), moved, seen)), played.kept, strict=True)
    with full_precision(memory):
        for gain, step, sensor, kept in reversed(list(steps)):
            both = torch.baddbmm(gain, later, step)
            inputs, memory = actor.fixed.backward(kept, both[:, 0, nx:], memory)
            later = torch.baddbmm(both[..., :nx], inputs.unsqueeze(1), sensor)
            found.append(inputs)
    return torch.stack(found[::-1]) * scale


def _slopes(value: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of the sum of values, each of which depends on its own entry of the inputs."""
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in inputs]
    found = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if slope is None else slope for one, slope in zip(inputs, found, strict=True)]
