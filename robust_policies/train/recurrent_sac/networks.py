"""A stochastic actor around a cell, and two critics on a cell of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robust_policies.networks import LBDN, make_cell
from robust_policies.policies.actor import Actor, ScaledCell, Scaling

# Logarithms of the smallest and the largest deviation, before the tanh.
_NARROW, _WIDE = -5.0, 2.0


class StochasticActor(nn.Module):
    """A squashed actor with Gaussian noise before its tanh; actions are in units of the actuators' range, -1 to 1.

    Where a linear head follows the cell another one gives the noise's deviation; where the cell's output is the mean,
    the deviation is one trained number for each action, and the cell's gain alone bounds the policy's.
    """

    def __init__(self, actor: Actor, log_std: float) -> None:
        super().__init__()
        self.actor = actor
        linear = actor.head.linear
        self.spread = None if linear is None else nn.Linear(linear.in_features, linear.out_features)
        self.log_std = nn.Parameter(torch.full((actor.head.output_size,), float(log_std)))

    def sample(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (actions (..., na), log-densities (...)) for the cell's outputs and standard normal numbers (..., na).

        The density is of the actions in -1 to 1: log N(u) - sum log(1 - tanh(u)^2).
        """
        head = self.actor.head
        mean = outputs if head.linear is None else head.linear(outputs)
        log_std = self.log_std if self.spread is None else self.log_std + self.spread(outputs)
        log_std = log_std.clamp(_NARROW, _WIDE)
        before = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        stretch = 2.0 * (math.log(2.0) - before - functional.softplus(-2.0 * before))
        return before.tanh(), (normal - stretch).sum(-1)


class Twins(nn.Module):
    """Two perceptrons of the same widths with a number each, ReLU between their layers, as one batched product a layer.

    They begin as PyTorch's `nn.Linear` does.
    """

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise([inputs, *widths, 1]):
            self.weights.append((torch.rand(2, before, after) * 2.0 - 1.0) / math.sqrt(before))
            self.biases.append((torch.rand(2, 1, after) * 2.0 - 1.0) / math.sqrt(before))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the numbers (2, ...) of inputs (..., n)."""
        values = inputs.reshape(-1, inputs.shape[-1]).expand(2, -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = torch.baddbmm(bias, values if i == 0 else values.relu(), weight)
        return values.reshape(2, *inputs.shape[:-1])


class BoundedTwins(nn.Module):
    """Two LBDNs with a number each: each differs by at most gamma times the Euclidean distance of its inputs.

    Args:
        inputs: how many numbers each reads.
        options: an LBDN's gamma, hidden_sizes, activation.
    """

    def __init__(self, inputs: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.both = nn.ModuleList(LBDN(inputs, output_size=1, **options) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the numbers (2, ...) of inputs (..., n)."""
        return torch.stack([one(inputs).squeeze(-1) for one in self.both])


class SequenceCritic(nn.Module):
    """Two estimates of Q of everything observed and done so far, and of the next action.

    One cell reads the scaled observation and the action before it; two perceptrons, or LBDNs if `bounded`, read the
    cell's output, the scaled observation and the next action.

    Of LBDNs, Q_t differs by at most gamma times the Euclidean distance of what they read at t. If the cell has the
    incremental l2 gain g, then over any time from equal states, a_-1 being the action before the first,

        sum |dQ_t|^2 <= gamma^2 (1 + g^2) (sum |do_t|^2 + sum |da_t|^2 + |da_-1|^2),   o scaled, a in -1 to 1,

    for the squares of what the cell gives sum to at most g^2 times those of what it reads, o_t and a_(t-1).

    Args:
        observations, actions: nu, na.
        scaling: of observations, as the actor's.
        cell: name of the cell.
        cell_kwargs: its options.
        output_size: of the cell.
        net_arch: widths of the perceptrons' hidden layers.
        bounded: options of LBDNs in place of the perceptrons: gamma, hidden_sizes, activation.

    Source for one cell under both: T. Ni et al., "Recurrent Model-Free RL Can Be a Strong Baseline for Many POMDPs"
    (ICML 2022).
    """

    def __init__(
        self,
        observations: int,
        actions: int,
        scaling: Scaling,
        cell: str,
        cell_kwargs: Mapping[str, Any],
        output_size: int,
        net_arch: Sequence[int],
        bounded: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.scaling = scaling
        # Scaled before it is joined with the action.
        self.body = ScaledCell(
            make_cell(cell, observations + actions, output_size, **cell_kwargs), Scaling(observations + actions)
        )
        read = output_size + observations + actions
        self.twins = Twins(read, net_arch) if bounded is None else BoundedTwins(read, bounded)

    def features(
        self, observations: Tensor, previous: Tensor, state: Tensor, starts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return (features (time, batch, n), final state) of observations (time, batch, nu) and actions before them."""
        scaled = self.scaling(observations)
        outputs, state = self.body.run(torch.cat((scaled, previous), -1), state, starts)
        return torch.cat((outputs, scaled), -1), state

    def follow(self, observations: Tensor, previous: Tensor, state: Tensor) -> Tensor:
        """Return the next state (batch, n) after one step."""
        return self.body.step(torch.cat((self.scaling(observations), previous), -1), state)[1]

    def value(self, features: Tensor, actions: Tensor) -> Tensor:
        """Return both estimates (2, ...) of Q of features (..., n) and actions (..., na)."""
        return self.twins(torch.cat((features, actions), -1))
