"""Observations and rewards divided by their own running spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from robust_policies import checks
from robust_policies.envs.wrappers.base import TensorWrapper, torch_env
from robust_policies.envs.wrappers.moments import RunningMoments
from robust_policies.errors import InvalidValueError


class _Normalizer(TensorWrapper):
    """Statistics that are updated while `training`, and can be frozen, saved and loaded."""

    def __init__(self, env: VectorEnv, size: tuple[int, ...], epsilon: float) -> None:
        super().__init__(env)
        self.epsilon = checks.finite_float("epsilon", epsilon, above=0.0)
        self.moments = RunningMoments(size, self.device)
        self.training = True

    @property
    def update_running_mean(self) -> bool:
        """Whether steps and resets change the statistics: `training` under the name that Gymnasium gives it."""
        return self.training

    @update_running_mean.setter
    def update_running_mean(self, value: bool) -> None:
        self.training = value

    def freeze(self) -> None:
        """Use the statistics as they are from now on, until `training` is set again."""
        self.training = False

    def scale(self) -> torch.Tensor:
        """Return the deviation sqrt(variance + epsilon), float64, that is divided by."""
        return (self.moments.variance + self.epsilon).sqrt()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return copies of the statistics: mean, variance and count."""
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over statistics that `state_dict` returned; raise, with nothing changed, if they do not fit."""
        self.moments.load_state_dict(state)


class NormalizeObservation(_Normalizer):
    """Observations (obs - mean) / sqrt(variance + epsilon) with the mean and variance of all observations so far.

    Every observation counts once: those of a reset (of the reset environments only), those of a step, and the last one
    of an episode that SAME_STEP puts into info["final_obs"]. All that a step returns is normalised with the statistics
    after that step. `fixed_scale` gives the frozen map to a policy that is certified together with it.
    """

    def __init__(self, env: VectorEnv, epsilon: float = 1e-8, clip: float | None = None) -> None:
        """Wrap `env`, whose observations are vectors; `clip`: the largest size of a normalised observation."""
        torch_env(env)
        space = env.single_observation_space
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise InvalidValueError(f"The observation space is {checks.space_text(space)}; expected a Box of vectors.")
        super().__init__(env, space.shape, epsilon)
        self.clip = None if clip is None else checks.finite_float("clip", clip, above=0.0)
        limit = np.inf if self.clip is None else self.clip
        # A Box has a dtype.
        self.single_observation_space = Box(-limit, limit, space.shape, space.dtype.type)  # type: ignore[union-attr]
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def normalized(self, observation: torch.Tensor) -> torch.Tensor:
        """Return observations (..., ny) with the present statistics, which it leaves alone."""
        dtype = observation.dtype
        values = (observation - self.moments.mean.to(dtype)) / self.scale().to(dtype)
        return values if self.clip is None else values.clamp(-self.clip, self.clip)

    def fixed_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (offset, scale), float64 (observation_size,), with normalised = (observation - offset) / scale.

        They are a policy's `observation_offset` and `observation_scale`: the policy then takes the raw observations,
        and its certificate includes the map. `clip` is not part of it.
        """
        return self.moments.mean.cpu().numpy().copy(), self.scale().cpu().numpy()

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return normalised observations (num_envs, observation_size) after a reset, and info."""
        mask = self.reset_mask(options)
        observation, info = self.env.reset(seed=seed, options=options)
        if self.training:
            self.moments.update(observation, mask)
        return self.normalized(observation), info

    def step(self, actions: Any) -> tuple[torch.Tensor, Any, Any, Any, dict[str, Any]]:
        """Return the step with normalised observations, those in info["final_obs"] too."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        final = info.get("final_obs")
        if self.training:
            self.moments.update(observation)
            if final is not None:
                self.moments.update(final, info["_final_obs"])
        if final is not None:
            info = {**info, "final_obs": self.normalized(final)}
        return self.normalized(observation), reward, terminated, truncated, info


class NormalizeReward(_Normalizer):
    """Rewards divided by the running deviation of the discounted return, so that returns have a spread of about one.

    The return G of each environment follows Gymnasium's recursion (gymnasium/wrappers/vector/stateful_reward.py, its
    SAME_STEP case) in every autoreset mode: G becomes discount * G + reward, only reward where the episode terminated,
    is counted, and is 0 again once the episode has ended. The ignored step of NEXT_STEP is not counted. Statistics are
    saved and loaded, the returns of running episodes are not.
    """

    def __init__(self, env: VectorEnv, discount: float = 0.99, epsilon: float = 1e-8) -> None:
        super().__init__(env, (), epsilon)
        self.discount = checks.finite_float("discount", discount, above=0.0, at_most=1.0)
        self._returns = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        self._ignored: torch.Tensor | None = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[torch.Tensor, dict[str, Any]]:
        """Reset, with the discounted returns of the reset environments at 0."""
        mask = self.reset_mask(options)
        result = self.env.reset(seed=seed, options=options)
        if mask is None:
            self._returns.zero_()
            self._ignored = None
        else:
            self._returns.masked_fill_(mask, 0.0)
            self._ignored = None if self._ignored is None else self._ignored & ~mask
        return result

    def step(self, actions: Any) -> tuple[torch.Tensor, torch.Tensor, Any, Any, dict[str, Any]]:
        """Return the step with the rewards (num_envs,) divided by `scale()` as it is after the step."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        ended = self.some_ended(info)
        self._returns *= self.discount
        if ended:
            self._returns.masked_fill_(terminated, 0.0)
        self._returns += reward
        if self.training:
            self.moments.update(self._returns, None if self._ignored is None else ~self._ignored)
        if self._ignored is not None:
            self._returns.masked_fill_(self._ignored, 0.0)
            self._ignored = None
        if ended:
            done = terminated | truncated
            self._returns.masked_fill_(done, 0.0)
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                self._ignored = done
        return observation, reward / self.scale().to(reward.dtype), terminated, truncated, info
