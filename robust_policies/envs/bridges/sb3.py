"""Our environments as Stable-Baselines3's VecEnv, without its cost per environment and step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from robust_policies import checks
from robust_policies.envs.batch import Environment, make_batch, make_one, ours, spec_of, told
from robust_policies.envs.perturb import parse, perturb
from robust_policies.envs.vector import TorchVectorEnv
from robust_policies.errors import InvalidValueError


class SB3VecEnv(VecEnv):
    """A SAME_STEP `TorchVectorEnv` for Stable-Baselines3: NumPy in and out, float32 rewards, one info dict each.

    An info is empty except where an episode has ended: there it holds what SB3 reads, "terminal_observation",
    "TimeLimit.truncated" and, as its Monitor writes it, "episode" = {"r": return, "l": length, "t": seconds}.
    """

    def __init__(self, env: VectorEnv) -> None:
        inner = env.unwrapped
        if not isinstance(inner, TorchVectorEnv):
            raise InvalidValueError(f"env is {env}; expected a TorchVectorEnv or one in vector wrappers.")
        if inner.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise InvalidValueError(f"autoreset_mode is {inner.autoreset_mode.name}; expected SAME_STEP for SB3VecEnv.")
        self.env: Any = env
        self.inner = inner
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata = {**env.metadata}
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(env.num_envs, dtype=np.float64)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._began = time.time()

    def reset(self) -> np.ndarray:
        """Return the first observations (num_envs, observation_size); seeds given by `seed` are used once."""
        options = self._options[0]
        if any(given != options for given in self._options):
            raise InvalidValueError(
                "set_options was given different options per environment; expected the same for all."
            )
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observation, _ = self.env.reset(seed=seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return observation.cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions (n, nu) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return observations, rewards, dones and infos."""
        if self._actions is None:
            raise InvalidValueError("step_wait was called without step_async; call step(actions).")
        actions, self._actions = self._actions, None
        observation, reward, terminated, truncated, info = self.env.step(actions)
        rewards = reward.to(torch.float32).cpu().numpy()
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if "final_obs" not in info:
            return observation.cpu().numpy(), rewards, np.zeros(self.num_envs, dtype=bool), infos
        dones = info["_final_obs"].cpu().numpy()
        self._describe_ended(infos, dones, info["final_obs"], truncated & ~terminated)
        return observation.cpu().numpy(), rewards, dones, infos

    def _describe_ended(
        self, infos: list[dict[str, Any]], dones: np.ndarray, final: torch.Tensor, truncated: torch.Tensor
    ) -> None:
        ended = dones.nonzero()[0]
        final_observations = final.cpu().numpy()[ended]
        seconds = round(time.time() - self._began, 6)
        rows = zip(
            ended.tolist(),
            final_observations,
            truncated.cpu().numpy()[ended].tolist(),
            self._returns[ended].tolist(),
            self._lengths[ended].tolist(),
            strict=True,
        )
        for row, observation, limit, total, length in rows:
            infos[row] = {
                "terminal_observation": observation,
                "TimeLimit.truncated": limit,
                "episode": {"r": round(total, 6), "l": length, "t": seconds},
            }
        self._returns[ended] = 0.0
        self._lengths[ended] = 0

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return the vectorized environment's attribute once for each of `indices`."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vectorized environment; only for all environments at once."""
        if indices is not None:
            raise InvalidValueError("set_attr was given indices; expected none, all environments share one object.")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Refuse: there is no object per environment whose method could be called."""
        raise InvalidValueError(
            f"env_method({method_name!r}) was called; use the vectorized environment's own, `.env`."
        )

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        """Return True for SB3's Monitor, whose episode statistics this class writes, and False for all else."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> list[np.ndarray | None]:
        """Return one picture for each environment."""
        return list(self.env.render() or [None] * self.num_envs)

    def render(self, mode: str | None = None) -> np.ndarray | None:
        """Return the tiled pictures, or show environment 0 in a window if the render mode is "human"."""
        if self.render_mode == "human":
            self.inner.render_one(0)
            return None
        return super().render(mode)


def make_sb3_vec_env(
    env_id: Environment,
    num_envs: int = 1,
    seed: int | None = None,
    device: str | torch.device = "cpu",
    env_kwargs: Mapping[str, Any] | None = None,
    perturbations: Any = (),
    wrap: Callable[[Any], Any] | None = None,
) -> VecEnv:
    """Return `num_envs` copies of an environment for Stable-Baselines3: an id, `module:id`, or a function.

    Our ids, and those that `register_task` made, give an `SB3VecEnv` on `device`; any other gives SB3's `DummyVecEnv`
    of monitored environments. `seed` seeds environment i with seed + i at the first reset. `perturbations` is a short
    list of wrappers as `robust_policies.envs.perturb.parse` takes it; `wrap` is what goes around them: around the
    vector of ours, around each environment of others.

    Raises:
        UnknownNameError: there is no such id (with the closest one), or its module cannot be imported.
        InvalidValueError: the options do not fit, or the environment's own package cannot make it.
    """
    num_envs = checks.positive_int("num_envs", num_envs)
    if seed is not None:
        seed = checks.positive_int("seed", seed, minimum=0)
    if ours(env_id):
        env = make_batch(env_id, num_envs, env_kwargs, perturbations, device=device)
        bridge = SB3VecEnv(env if wrap is None else wrap(env))
        if seed is not None:
            bridge.seed(seed)
            bridge.action_space.seed(seed)
        return bridge
    around = parse(perturbations)

    def wrapped(env: gymnasium.Env) -> gymnasium.Env:
        env = perturb(env, around)
        return env if wrap is None else wrap(env)

    options = dict(env_kwargs or {})
    with told(env_id, options):
        return make_vec_env(
            spec_of(env_id).id if isinstance(env_id, str) else lambda **given: make_one(env_id, given),
            n_envs=num_envs,
            seed=seed,
            env_kwargs=options,
            vec_env_cls=DummyVecEnv,
            # SB3 calls it with an environment; its annotation asks for a class.
            wrapper_class=wrapped if around or wrap is not None else None,  # pyright: ignore[reportArgumentType]
        )
