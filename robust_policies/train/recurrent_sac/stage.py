"""The environments of recurrent SAC: this package's on tensors, others one after the other in NumPy."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies import checks
from robust_policies.envs.batch import make_batch, time_limit
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError
from robust_policies.policies.actor import Actor
from robust_policies.policies.observations import encode, flat_size
from robust_policies.policies.sb3.perceptron import squashed_range
from robust_policies.train.recipe.sections import TaskSection


class Stage:
    """`count` environments of a task, whose actions are given in units of the actuators' range, -1 to 1.

    Attributes:
        env: Gymnasium's vector environment; autoreset is SAME_STEP.
        observation_space, action_space: of one environment.
        observation_size, action_size: nu, na.
        scale, offset: (na,) half of the actuators' range, and its middle or None where that is 0.

    Raises:
        UserError: there is no such task, or its actions are no Box with finite limits.
    """

    def __init__(self, task: TaskSection, count: int, device: str, seed: int) -> None:
        self.device, self.count, self.seed = checks.device(device), count, seed
        self.env: Any = make_batch(task.id, count, task.kwargs, task.perturbations, device=self.device)
        self.torch = isinstance(self.env.unwrapped, TorchVectorEnv)
        if self.torch:
            # Whoever steps looks at the actions of many steps at once.
            self.env.unwrapped.trusts_actions = True
        self.observation_space, self.action_space = self.env.single_observation_space, self.env.single_action_space
        try:
            if not isinstance(self.action_space, spaces.Box):
                raise InvalidValueError(
                    f"algorithm.name is 'recurrent_sac' and {task.id} has the actions {self.action_space}; expected a "
                    "Box, or recurrent_ppo or tensor_ppo."
                )
            self.scale, self.offset = squashed_range(self.action_space)
            self.observation_size, self.action_size = flat_size(self.observation_space), len(self.scale)
        except InvalidValueError:
            self.env.close()
            raise
        like = {"dtype": torch.float32, "device": self.device}
        self._scale = torch.as_tensor(self.scale, **like)
        self._offset = torch.zeros_like(self._scale) if self.offset is None else torch.as_tensor(self.offset, **like)

    def reset(self) -> Tensor:
        """Return the first observations (n, nu); the episodes begin the same every time."""
        return self._flat(self.env.reset(seed=self.seed)[0])

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return observations (n, nu), rewards (n,), and which episodes failed and which ended (n,), after actions.

        Args:
            action: (n, na) in -1 to 1.
        """
        sent = (action * self._scale + self._offset).reshape(self.count, *self.action_space.shape)
        sent = sent if self.torch else sent.cpu().numpy().astype(self.action_space.dtype)
        observation, reward, terminated, truncated, _ = self.env.step(sent)
        reward, terminated, truncated = (
            torch.as_tensor(value, device=self.device) for value in (reward, terminated, truncated)
        )
        return self._flat(observation), reward.to(torch.float32), terminated, terminated | truncated

    @torch.no_grad()
    def play(self, actor: Actor) -> tuple[Tensor, Tensor]:
        """Return (returns, lengths), (n,) each, of an actor's first episodes, which begin the same every time."""
        observation, hidden = self.reset(), actor.cell.initial_state(self.count)
        running = torch.ones(self.count, dtype=torch.bool, device=self.device)
        returns, lengths = torch.zeros(2, self.count, dtype=torch.float64, device=self.device)
        limit = time_limit(self.env)
        while bool(running.any()) and (limit is None or int(lengths.max()) < limit):
            mean, hidden = actor.step(observation, hidden)
            observation, reward, _, ended = self.step((mean - self._offset) / self._scale)
            returns += torch.where(running, reward, 0.0)
            lengths += running
            running = running & ~ended
            hidden = hidden.masked_fill(ended.unsqueeze(-1), 0.0)
        return returns, lengths

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _flat(self, observation: Any) -> Tensor:
        return encode(self.observation_space, observation).to(self.device)
