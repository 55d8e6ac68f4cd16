"""Our environments as skrl's environment wrapper."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from robust_policies.envs.wrappers.base import torch_env
from robust_policies.errors import InvalidValueError

try:
    from skrl.envs.wrappers.torch.base import Wrapper
except ImportError as error:
    raise InvalidValueError("SkrlWrapper needs skrl; install it with: pip install skrl.") from error


class SkrlWrapper(Wrapper):
    """A `TorchVectorEnv`, or wrappers around one, for skrl's agents and trainers; numbers stay on the device.

        env = SkrlWrapper(gymnasium.make_vec("robust_policies/Pendulum-v0", num_envs=512))

    Observations are (num_envs, observation_size) float32, rewards, terminated and truncated (num_envs, 1). Spaces are
    those of one environment. With `states` the plant's whole state (num_envs, state_size) is skrl's `state()`, for a
    critic that may know more than the actor.

    skrl takes the observation that a step returns both for what followed the action and for what the next action is
    chosen from. SAME_STEP (the default of our environments, and what skrl is mostly used with): after an end it is the
    next episode's start, which matters only where an agent bootstraps at `truncated`; the true last observation is
    infos["final_obs"], in the rows infos["_final_obs"]. NEXT_STEP: it is the last observation itself, and the next
    step, whose action is ignored and whose reward is 0, is recorded as one transition more. DISABLED is refused.
    """

    def __init__(self, env: VectorEnv, *, states: bool = False, seed: int | None = None) -> None:
        """Wrap `env`; `seed` is used by the first reset."""
        self.base = torch_env(env)
        if self.base.autoreset_mode is AutoresetMode.DISABLED:
            raise InvalidValueError("autoreset_mode is DISABLED; expected SAME_STEP or NEXT_STEP for SkrlWrapper.")
        super().__init__(env)
        self.states = states
        self._seed = seed

    @property
    def observation_space(self) -> gymnasium.Space:
        """The observation space of one environment."""
        return self._env.single_observation_space

    @property
    def action_space(self) -> gymnasium.Space:
        """The action space of one environment."""
        return self._env.single_action_space

    @property
    def state_space(self) -> gymnasium.Space | None:
        """The space of `state()`, None without `states`."""
        return Box(-np.inf, np.inf, (self.base.plant.state_size,), np.float32) if self.states else None

    def reset(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the observations (num_envs, observation_size) after a reset of all environments, and infos."""
        seed, self._seed = self._seed, None
        observation, info = self._env.reset(seed=seed)
        return observation.to(torch.float32), info

    def step(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return observations, rewards, terminated and truncated (num_envs, 1), and infos.

        Actions are (num_envs, action_size), choices (num_envs, 1).
        """
        chosen = actions.squeeze(-1) if isinstance(self.action_space, Discrete) else actions
        observation, reward, terminated, truncated, info = self._env.step(chosen)
        rewards = reward.to(torch.float32).unsqueeze(-1)
        return observation.to(torch.float32), rewards, terminated.unsqueeze(-1), truncated.unsqueeze(-1), info

    def state(self) -> torch.Tensor | None:
        """Return the plant's states (num_envs, state_size) float32, None without `states`."""
        return self.base.state.to(torch.float32) if self.states else None

    def render(self, *args: Any, **kwargs: Any) -> Any:
        """Return one picture for each environment, None if the environment was made without a render_mode."""
        return self._env.render()

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
