"""Episodes of a plant in feedback with a policy, start and noise known or searched too, and the worst that is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_policies.certificates.ball import Ball, Balls, climb
from robust_policies.envs.known import Known
from robust_policies.envs.plant import Plant
from robust_policies.policies.running import RunningPolicy


class Played(NamedTuple):
    """What happened: `cost` (episodes,) is minus the return.

    `states` (time, episodes, n + d m) are the plant's before each step, then the d actions on their way, the latest
    first; `applied` (time, episodes, m) the actions within their limits, as they are sent, and before they are clipped
    the signals (time, episodes, k + m): those inside the policy, then the actions.
    """

    cost: Tensor
    states: Tensor
    applied: Tensor
    signals: Tensor

    @property
    def actions(self) -> Tensor:
        """Return the actions (time, episodes, m) before they are clipped."""
        return self.signals[..., self.signals.shape[-1] - self.applied.shape[-1] :]


class Playing:
    """A policy and its plant in float64, differentiable in what is added to the observations and to the noise.

    Args:
        policy: as it runs.
        plant: at its nominal parameters.
        known: start and noise of the episodes.
        low, high: (m,) the limits of the actions.
        delay: d, steps from an action to the plant; until the first arrives it gets the idle action, as behind
            `ActionDelay`.
        noise: what is added to the plant's noise for each unit of an input; 0: there are no such inputs.
    """

    def __init__(
        self,
        policy: RunningPolicy,
        plant: Plant,
        known: Known,
        low: np.ndarray,
        high: np.ndarray,
        delay: int = 0,
        noise: float = 0.0,
    ) -> None:
        self.policy, self.plant, self.known, self.delay, self.noise = policy, plant, known, delay, noise
        self.parts = [known.process.shape[2] if noise else 0, plant.observation_size]
        self.parts.append(known.measurement.shape[2] if noise else 0)
        self.params = plant.prepare(plant.nominal())
        self.low, self.high = torch.as_tensor(low).double(), torch.as_tensor(high).double()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape (time, episodes, q) of what may be added.

        Its inputs are those of the process's noise, of the observations, and of the measurement's noise.
        """
        steps, episodes, _ = self.known.process.shape
        return steps, episodes, sum(self.parts)

    def play(self, added: Tensor | None = None) -> Played:
        """Return the episodes in which `added` (time, episodes, q) is added, of `shape`; None: nothing."""
        plant, state = self.plant, self.known.start
        hidden = self.policy.begin(len(state))
        cost = torch.zeros(len(state), dtype=torch.float64)
        idle = torch.as_tensor(np.clip(np.zeros(len(self.low)), plant.action_low, plant.action_high)).double()
        waiting = [idle.expand(len(state), -1)] * self.delay
        history: list[tuple[Tensor, ...]] = []
        for t, (process, measurement) in enumerate(zip(self.known.process, self.known.measurement, strict=True)):
            extra = None
            if added is not None:
                to_process, extra, to_measurement = added[t].split(self.parts, -1)
                if self.noise:
                    process = process + self.noise * to_process
                    measurement = measurement + self.noise * to_measurement
            observation = plant.observe(state, self.params, measurement if measurement.shape[1] else None)
            observation = observation if extra is None else observation + extra
            action, inside, follow = self.policy.step(observation, hidden)
            sent = torch.minimum(torch.maximum(action, self.low), self.high)
            hidden = follow(sent)
            *arriving, applied = sent, *waiting
            following = plant.advance(state, applied, self.params, process if process.shape[1] else None)
            cost = cost - plant.reward(state, applied, following, self.params)
            history.append((torch.cat((state, *waiting), -1), sent, torch.cat((inside, action), -1)))
            state, waiting = following, arriving
        return Played(cost, *(torch.stack(parts) for parts in zip(*history, strict=True)))

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits (k + m,) of the signals, below and above."""
        inside = self.policy.limits
        return np.concatenate((-inside, self.low.numpy())), np.concatenate((inside, self.high.numpy()))

    def clipped(self, played: Played) -> np.ndarray:
        """Return where (time, episodes) a signal is at its limit or beyond."""
        low, high = self.limits()
        signals = played.signals.detach().numpy()
        return np.asarray(((signals <= low) | (signals >= high)).any(-1))

    def worst(
        self, norm: str, size: float, starts: Sequence[np.ndarray], steps: int, seed: int, bound: float = 0.0
    ) -> Tensor:
        """Return what of a size may be added (time, episodes, q) that costs most of all that was met.

        The whole episode is climbed at once, its noise known; the inputs of the noise are at most `bound` each. It
        begins at `starts`, else at noise.
        """
        episodes = self.shape[1]
        ball: Ball | Balls = Ball(norm, torch.full((episodes,), size, dtype=torch.float64))
        if self.noise:
            box = Ball("per_step_linf", torch.full((episodes,), bound, dtype=torch.float64))
            ball = Balls((box, ball, box), self.parts)
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        best = torch.zeros(self.shape, dtype=torch.float64)
        with torch.no_grad():
            most = self.play().cost
        for start in [ball.steepest(torch.as_tensor(start)) for start in starts] or [ball.steepest(noise)]:
            found, cost = climb(lambda added: self.play(added).cost, start, ball, steps)
            best = torch.where((cost > most)[None, :, None], found, best)
            most = torch.maximum(most, cost)
        return best
