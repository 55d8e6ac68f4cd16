"""Demonstrations: episodes in which teacher or student acts, and the teacher says what it would have done."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies import checks
from robust_policies.envs.batch import make_batch, time_limit
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError
from robust_policies.policies.actor import Actor
from robust_policies.train.imitation.teacher import Teacher
from robust_policies.train.recipe.sections import TaskSection


class Demonstrations(NamedTuple):
    """Streams of n environments over T steps, on the device; an ended episode is followed by the next one."""

    observations: Tensor
    """(T, n, nu), float32."""
    labels: Tensor
    """(T, n, na), float32: what the teacher would do."""
    starts: Tensor
    """(T, n) bool: an episode starts here."""

    # A tuple's + has another meaning and type; nothing adds these as tuples.
    def __add__(self, other: Demonstrations) -> Demonstrations:  # type: ignore[override]
        """Return the streams of both, side by side."""
        return Demonstrations(*(torch.cat(pair, dim=1) for pair in zip(self, other, strict=True)))

    @property
    def count(self) -> int:
        """The number of streams n."""
        return self.starts.shape[1]


class Played(NamedTuple):
    """What was seen, and what came of it."""

    demonstrations: Demonstrations
    actions: Tensor
    """(T, n, na): what was applied."""
    returns: Tensor
    """(n,) of each environment's first episode, float64."""
    lengths: Tensor
    """(n,)."""


class Stage:
    """`count` environments of a task whose episodes begin from given seeds.

    Attributes:
        env: Gymnasium's vector environment; autoreset is SAME_STEP.
        limit: the time limit, None where there is none.
        observation_size, action_size: nu, na.
        low, high: (na,) the limits of an action.

    Raises:
        UserError: there is no such task, or its observations or actions are no vectors of numbers.
    """

    def __init__(self, task: TaskSection, count: int, device: str) -> None:
        self.device = checks.device(device)
        self.env = make_batch(task.id, count, task.kwargs, task.perturbations, device=self.device)
        inner = self.env.unwrapped
        self.torch = isinstance(inner, TorchVectorEnv)
        self.limit = time_limit(self.env)
        self.observation_space, self.action_space = self.env.single_observation_space, self.env.single_action_space
        for what, space in (("observations", self.observation_space), ("actions", self.action_space)):
            if not isinstance(space, spaces.Box) or len(space.shape) != 1:
                self.env.close()
                raise InvalidValueError(
                    f"{task.id} has {what} {checks.space_text(space)}; imitation needs a Box of vectors."
                )
        # A Box by the check above, which no type checker takes from a loop.
        bounds = (self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        self.low, self.high = (torch.as_tensor(bound, device=self.device) for bound in bounds)
        self.observation_size, self.action_size = spaces.flatdim(self.observation_space), len(self.low)
        self.count = count

    def play(
        self, seed: int, steps: int, teacher: Teacher, student: Actor | None = None, chance: float = 1.0
    ) -> Played:
        """Return `steps` steps from a reset of every environment.

        Args:
            seed: of the environments (seed + i), and of the choice of who acts.
            steps: T.
            teacher: labels every observation.
            student: acts where the teacher does not; needed if `chance` is below 1.
            chance: that the teacher acts, drawn for each environment and step.
        """
        chosen: Any = ()
        if student is not None:
            # Drawn at once, so that nothing is carried to a GPU within a step.
            drawn = torch.rand(steps, self.count, 1, generator=torch.Generator().manual_seed(seed))
            chosen = (drawn < chance).to(self.device)
        observation = self._flat(self.env.reset(seed=seed)[0])
        starts = torch.ones(self.count, dtype=torch.bool, device=self.device)
        first, taught = starts.clone(), None
        hidden = None if student is None else student.cell.initial_state(self.count)
        returns = torch.zeros(self.count, dtype=torch.float64, device=self.device)
        lengths = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        seen: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for t in range(steps):
                label, follow = teacher.act(observation, taught, starts)
                label = label.float().clamp(self.low, self.high)
                action = label
                if student is not None and hidden is not None:
                    hidden = hidden.masked_fill(starts.unsqueeze(-1), 0.0)
                    mean, hidden = student.step(observation, hidden)
                    action = torch.where(chosen[t], label, mean.float().clamp(self.low, self.high))
                taught = follow(action)
                seen.append((observation, label, starts, action))
                observation, reward, starts = self._step(action)
                returns += torch.where(first, reward, 0.0)
                lengths += first
                first = first & ~starts
        observations, labels, begun, actions = (torch.stack(values) for values in zip(*seen, strict=True))
        return Played(Demonstrations(observations, labels, begun), actions, returns, lengths)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return observations (n, nu) float32, rewards (n,) float64 and whether an episode has ended (n,)."""
        given: Any = action if self.torch else action.cpu().numpy()
        observation, reward, terminated, truncated, _ = self.env.step(given)
        ends = (torch.as_tensor(end, device=self.device) for end in (terminated, truncated))
        return self._flat(observation), torch.as_tensor(reward, device=self.device).double(), next(ends) | next(ends)

    def _flat(self, observation: Any) -> Tensor:
        if not isinstance(observation, Tensor):
            observation = torch.as_tensor(np.asarray(observation))
        return observation.to(self.device, torch.float32)
