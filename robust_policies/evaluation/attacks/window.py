"""The simulated return of a window of the closed loop, and its gradient without a graph of all its steps.

The loop runs without a graph. For the gradient the plant's Jacobians at all visited states are found side by side, and
one pass backward through time multiplies them and the cell's own gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_policies.envs.plant import Params, Plant
from robust_policies.evaluation.attacks.search import Objective
from robust_policies.networks.cell import FixedStep
from robust_policies.networks.collapsed_run import columns, rows
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
        return small and not actor.choices and (actor.compiled is not None or isinstance(actor.fixed, FixedStep))

    def harm(self) -> Objective:
        """Return minus the rewards (batch,) under perturbations (time, batch, nu) of the observations."""
        return Objective(lambda delta: self._harm(self.played(delta)), self._with_slope)

    def _harm(self, played: Played) -> Tensor:
        actions = self.actor.clip(self.actor.head(played.outputs))
        rewards = self.rewards(played.states[:-1], actions, played.states[1:])
        return -(rewards[-1] if self.only_last else rewards.sum(0))

    def _with_slope(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            played = self.played(delta)
            return self._harm(played), -_gradient(self, played)

    def played(self, delta: Tensor) -> Played:
        """Return what happens under perturbations (time, batch, nu) of the observations."""
        return self._stepped(delta) if self.actor.compiled is None else self._compiled(delta)

    def _compiled(self, delta: Tensor) -> Played:
        """Return what `played` does, the cell in compiled steps."""
        plant, params, actor = self.plant, self.params, self.actor
        assert actor.compiled is not None
        run, state, memory = actor.compiled.run, self.state, columns(self.hidden)
        states, read, outputs = [state], [], np.empty((len(delta), run.ny, len(state)), run.dtype)
        kept = run.empty(*outputs.shape[::2])
        for t, perturbation in enumerate(delta):
            read.append(plant.observe(state, params) + perturbation)
            outputs[t] = run.step(columns(actor.inward(read[-1])), memory, kept[t])
            state = plant.advance(state, actor.compiled.clipped(outputs[t]), params)
            states.append(state)
        return Played(torch.stack([one.mT for one in states]).mT, torch.stack(read), rows(outputs), kept)

    def _stepped(self, delta: Tensor) -> Played:
        plant, params, actor = self.plant, self.params, self.actor
        state, memory = self.state, self.hidden
        states, read, outputs, kept = [state], [], [], []
        assert isinstance(actor.fixed, FixedStep)
        with full_precision(state):
            for perturbation in delta:
                read.append(plant.observe(state, params) + perturbation)
                output, memory, known = actor.fixed.forward(actor.inward(read[-1]), memory)
                state = plant.advance(state, actor.clip(actor.head(output)), params)
                outputs.append(output)
                kept.append(known)
                states.append(state)
        # Column by column in memory, as the plants compute.
        return Played(torch.stack([one.mT for one in states]).mT, torch.stack(read), torch.stack(outputs), kept)

    def rewards(self, states: Tensor, actions: Tensor, following: Tensor) -> Tensor:
        """Return the rewards (time, batch) of the steps that count: none after an episode's end."""
        rewards = self.plant.reward(states, actions, following, self.params)
        if not self.plant.terminates:
            return rewards
        ended = self.plant.terminated(following[:-1], self.params).cumsum(0) > 0
        return rewards * torch.cat((torch.ones_like(rewards[:1]), (~ended).to(rewards.dtype)))


@dataclass(frozen=True)
class Played:
    """What happened: states (time + 1, batch, nx), what the policy read, the cell's outputs, what it kept."""

    states: Tensor
    read: Tensor
    outputs: Tensor
    kept: Any


def _gradient(window: Window, played: Played) -> Tensor:
    """Return the gradient (time, batch, nu) of the rewards."""
    plant, params, actor = window.plant, window.params, window.actor
    with torch.enable_grad():
        states, read, outputs, shown = (
            value.detach().requires_grad_()
            for value in (played.states[:-1], played.read, played.outputs, played.states[:-1])
        )
        actions = actor.clip(actor.head(outputs))
        following = plant.advance(states, actions, params)
        rewards = window.rewards(states, actions, following)
        # Of what follows from the state and the cell's output: the next state, and this step's reward.
        counted = rewards[-1:] if window.only_last else rewards
        gained = torch.cat(_slopes(counted, (states, outputs)), -1)
        moved = [torch.cat(_slopes(part, (states, outputs)), -1) for part in following.unbind(-1)]
        seen = [_slopes(part, (shown,))[0] for part in plant.observe(shown, params).unbind(-1)]
        inward = None if actor.compiled is None else actor.compiled.inward
        scale = _slopes(actor.inward(read), (read,))[0] if inward is None else inward.to(read.dtype).expand_as(read)
    seen = [part * slope.unsqueeze(-1) for part, slope in zip(seen, scale.unbind(-1), strict=True)]
    if actor.compiled is not None:
        slopes = (np.stack([columns(part) for part in parts], 1) for parts in (moved, seen))
        return rows(actor.compiled.run.input_gradient(np.asarray(played.kept), columns(gained), *slopes)) * scale
    return _stepped_gradient(window, played, gained, torch.stack(moved, -2), torch.stack(seen, -2)) * scale


def _stepped_gradient(window: Window, played: Played, gained: Tensor, moved: Tensor, seen: Tensor) -> Tensor:
    """Return the gradient (time, batch, nu) in what the cell reads, step by step in PyTorch.

    The slopes are gained (time, batch, nx + ny), moved (time, batch, nx, nx + ny) and seen (time, batch, nu, nx), as
    `input_kernels.input_gradient` has them.
    """
    fixed, nx = window.actor.fixed, window.plant.state_size
    assert isinstance(fixed, FixedStep)
    later, memory = torch.zeros_like(window.state).unsqueeze(1), torch.zeros_like(window.hidden)
    found: list[Tensor] = []
    steps = zip(*(value.unbind() for value in (gained.unsqueeze(-2), moved, seen)), played.kept, strict=True)
    with full_precision(memory):
        for gain, step, sensor, kept in reversed(list(steps)):
            both = torch.baddbmm(gain, later, step)
            inputs, memory = fixed.backward(kept, both[:, 0, nx:], memory)
            later = torch.baddbmm(both[..., :nx], inputs.unsqueeze(1), sensor)
            found.append(inputs)
    return torch.stack(found[::-1])


def _slopes(value: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of the sum of values, each of which depends on its own entry of the inputs."""
    if not value.requires_grad:
        return [torch.zeros_like(one) for one in inputs]
    found = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(one) if slope is None else slope for one, slope in zip(inputs, found, strict=True)]
