"""A policy that runs without a training library: predict, and the differentiable actor behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from robust_policies import checks
from robust_policies.certificates import Certificate
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError
from robust_policies.networks import Cell
from robust_policies.policies.actor import Actor, MeanHead
from robust_policies.policies.certify import certify_actor
from robust_policies.policies.spaces import choose, parameter_count


class DeployedPolicy:
    """The actor of a trained policy with its spaces.

    Attributes:
        actor: module; actor(observations (time, batch, nu), state, starts) -> (mean actions (time, batch, na), state).
        observation_space, action_space: of the environment it was trained for; observations are a Box.
        log_std: (na,) of the Gaussian exploration, None if there is none to sample from.
        state_dependent_noise: it was trained with gSDE, so only its deterministic actions are stored.
    """

    def __init__(
        self,
        actor: Actor,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        log_std: Tensor | None = None,
        *,
        state_dependent_noise: bool = False,
    ) -> None:
        if not isinstance(observation_space, spaces.Box):
            raise InvalidValueError(f"The observation space is {observation_space}; a deployed policy needs a Box.")
        size = int(np.prod(observation_space.shape))
        if size != actor.cell.input_size:
            raise ShapeError(f"The cell reads {actor.cell.input_size} numbers and an observation has {size}.")
        numbers = parameter_count(action_space)
        given = actor.cell.output_size if actor.head.linear is None else actor.head.linear.out_features
        if given != numbers:
            raise ShapeError(f"The actor gives {given} numbers and the action space {action_space} needs {numbers}.")
        if log_std is not None:
            checks.shape("log_std", log_std, (numbers,))
        self.actor = actor.eval().requires_grad_(False)
        self.observation_space = observation_space
        self.action_space = action_space
        self.log_std = None if log_std is None else log_std.detach().clone()
        self.state_dependent_noise = state_dependent_noise

    @property
    def cell(self) -> Cell:
        """The recurrent cell."""
        return self.actor.cell

    @property
    def head(self) -> MeanHead:
        """What follows the cell."""
        return self.actor.head

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.actor.parameters()).device

    def to(self, device: str | torch.device) -> DeployedPolicy:
        """Return this policy after moving it; raises DeviceError."""
        target = checks.device(device)
        self.actor.to(target)
        self.log_std = None if self.log_std is None else self.log_std.to(target)
        return self

    def initial_state(self, batch_size: int = 1) -> np.ndarray:
        """Return the state (batch_size, nx) at an episode's start."""
        return self.cell.initial_state(batch_size).cpu().numpy()

    def certificate(self, weights: Sequence[float] | None = None) -> Certificate:
        """Return the certificate of the gain from raw observation to raw mean action.

        Args:
            weights: (nu,) the size of one unit of each observation, for a second gain in these units.

        Raises:
            NotCertifiableError: there is no such gain; the message names the reason.
        """
        return certify_actor(self.actor, self.action_space, weights, state_dependent_noise=self.state_dependent_noise)

    def running_arrays(self) -> dict[str, Any]:
        """Return the arrays that decide what it does, by name."""
        return self.actor.state_dict()

    def searched(self) -> Any:
        """Return the map whose largest gain `certify` searches, None for none."""
        return self.actor

    def predict(
        self,
        observation: Any,
        state: np.ndarray | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (actions, next state (batch, nx)), as Stable-Baselines3's `predict` does.

        Args:
            observation: one observation, or a batch (n, *shape); the action has a batch dimension if this has.
            state: what the last call returned; None at the start.
            episode_start: (n,) bool or one bool; where True that entry's state is reset first.
            deterministic: the mean (most likely) action, or a sample of the stored exploration.

        Raises:
            ShapeError, NonFiniteError: the observation, state or episode_start does not fit.
        """
        values, single = self._checked(observation)
        hidden = self._hidden(state, episode_start, values.shape[0])
        with torch.no_grad():
            actions, hidden = self._act(torch.as_tensor(values, device=self.device), hidden, deterministic)
        return (actions.squeeze(0) if single else actions), hidden.cpu().numpy()

    @property
    def _double(self) -> bool:
        """Whether observations are read in float64, in which a normaliser computes."""
        return self.actor.normalizer is not None

    def _act(self, observations: Tensor, state: Tensor, deterministic: bool) -> tuple[np.ndarray, Tensor]:
        """Return (actions (batch, *shape), next state) for a batch of flat observations."""
        numbers, state = self.actor.step(observations, state)
        return choose(self.action_space, numbers, self.log_std, deterministic), state

    def _hidden(self, state: Any, episode_start: Any, batch: int) -> Tensor:
        """Return the state (batch, nx) as the cell takes it, zero where an episode starts."""
        hidden = self.cell.initial_state(batch)
        if state is not None:
            array = np.asarray(state)
            if array.shape != (batch, self.cell.state_size):
                raise ShapeError(
                    f"state has shape {array.shape}; expected ({batch}, {self.cell.state_size}): pass what the last "
                    "predict returned for the same number of observations, or None."
                )
            hidden = torch.as_tensor(array, dtype=hidden.dtype, device=self.device)
        if episode_start is not None:
            starts = np.asarray(episode_start).astype(bool).reshape(-1)
            if starts.size not in (1, batch):
                raise ShapeError(
                    f"episode_start has {starts.size} entries; expected one for each of {batch} observations."
                )
            if starts.any():
                mask = torch.as_tensor(np.broadcast_to(starts, batch).copy(), device=self.device)
                hidden = hidden.masked_fill(mask.unsqueeze(-1), 0.0)
        return hidden

    def _checked(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Return the observations as float32 (batch, nu), and whether there was only one, without a batch dimension."""
        shape = self.observation_space.shape or ()
        try:
            array = np.asarray(observation, dtype=np.float64 if self._double else np.float32)
        except (TypeError, ValueError) as error:
            raise ShapeError(f"The observation is not an array of numbers of shape {shape} ({error}).") from error
        if array.shape != shape and (array.shape[1:] != shape or array.ndim != len(shape) + 1 or array.shape[0] == 0):
            raise ShapeError(
                f"The observation has shape {array.shape}; expected {shape}, or (n, ...) of it for a batch."
            )
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"The observation holds NaN or infinite values: {array.tolist()}; expected finite numbers."
            )
        single = array.shape == shape
        return array.reshape(1 if single else array.shape[0], -1), single
