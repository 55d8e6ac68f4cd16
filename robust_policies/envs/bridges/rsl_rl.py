"""Our environments as rsl_rl's VecEnv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv

from robust_policies import checks
from robust_policies.envs.wrappers.base import torch_env
from robust_policies.errors import InvalidValueError

try:
    from rsl_rl.env import VecEnv
    from tensordict import TensorDict
except ImportError as error:
    raise InvalidValueError("RslRlVecEnv needs rsl_rl; install it with: pip install rsl-rl-lib.") from error


class RslRlVecEnv(VecEnv):
    """A SAME_STEP `TorchVectorEnv`, or wrappers around one, for rsl_rl's runners; numbers stay on the device.

        runner = OnPolicyRunner(RslRlVecEnv(env), train_cfg, log_dir, device="cuda:0")

    Observation groups: "policy" (num_envs, observation_size) float32, and with `states` also "state", the plant's whole
    state (num_envs, state_size), for a critic that may know more than the actor.

    The environment is reset once, here, because rsl_rl's runners never do it. An ended episode has begun anew in the
    observation that `step` returns; its last observation is extras["final_obs"], in the rows extras["_final_obs"].
    extras["time_outs"] marks the time limits that were not terminations too: there rsl_rl's PPO adds the discounted
    value of the observation before the step. With an `EpisodeStatistics` wrapper extras["log"] has the mean return and
    length of the episodes that ended.
    """

    def __init__(
        self,
        env: VectorEnv,
        *,
        states: bool = False,
        seed: int | None = None,
        cfg: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap and reset `env`; `cfg` is what rsl_rl's loggers keep about it, by default its task file."""
        self.base = torch_env(env)
        if self.base.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise InvalidValueError(
                f"autoreset_mode is {self.base.autoreset_mode.name}; expected SAME_STEP for RslRlVecEnv."
            )
        space = env.single_action_space
        if not isinstance(space, Box):
            raise InvalidValueError(
                f"The action space is {checks.space_text(space)}; expected a Box, rsl_rl's actions are continuous."
            )
        self.env = env
        self.states = states
        self.num_envs = env.num_envs
        self.num_actions = space.shape[0]
        self.max_episode_length = self.base.max_episode_steps
        self.device = self.base.device
        self.cfg = dict(cfg) if cfg is not None else self.base.plant.task.model_dump(by_alias=True)
        self._observations = self.reset(seed=seed)

    @property
    # rsl_rl declares an attribute; this one is read from the environments.
    def episode_length_buf(self) -> torch.Tensor:  # type: ignore[override]
        """The steps since each episode began, (num_envs,) int64; assign to it, as rsl_rl does, to spread the ends."""
        return self.base.elapsed

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        """Set the steps (n,) since each episode began."""
        self.base.elapsed = value

    def reset(self, seed: int | None = None) -> TensorDict:
        """Return the observations after a reset of all environments."""
        observation, _ = self.env.reset(seed=seed)
        self._observations = self._groups(observation)
        return self._observations

    def get_observations(self) -> TensorDict:
        """Return the observations of the last reset or step."""
        return self._observations

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return observations, rewards (n,) float32, dones (n,) bool and extras for actions (n, nu)."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        extras: dict[str, Any] = {"time_outs": truncated & ~terminated}
        if "final_obs" in info:
            extras |= {name: info[name] for name in ("final_obs", "_final_obs")}
        if "_episode" in info:
            ended = info["_episode"].sum()
            extras["log"] = {
                "/episode/return": info["episode"]["r"].sum() / ended,
                "/episode/length": info["episode"]["l"].sum() / ended,
            }
        self._observations = self._groups(observation)
        return self._observations, reward.to(torch.float32), terminated | truncated, extras

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _groups(self, observation: torch.Tensor) -> TensorDict:
        groups = {"policy": observation.to(torch.float32)}
        if self.states:
            groups["state"] = self.base.state.to(torch.float32)
        # tensordict declares a narrower type than it takes.
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)  # type: ignore[arg-type]
