"""One task as a plain Gymnasium environment in NumPy: the N = 1 view of the vectorized one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from robust_policies import checks
from robust_policies.envs.parameters import PhysicalParameters, checked_ranges
from robust_policies.envs.plant import COMMON_RESET_OPTIONS, Params, Plant
from robust_policies.envs.vector import RENDER_MODES, TorchVectorEnv
from robust_policies.errors import InvalidValueError, ShapeError, UserError


class TaskEnv(gymnasium.Env):
    """A task in Gymnasium's contract: observations (observation_size,) float32, actions (action_size,).

    Its time limit is inside (`truncated` after `max_episode_steps` of task.yaml). Random numbers come from `np_random`.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        task: str | Path,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        randomize: bool | Mapping[str, Any] = False,
        backend: str = "auto",
    ) -> None:
        self._batch = TorchVectorEnv(
            task,
            1,
            autoreset_mode=AutoresetMode.DISABLED,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            randomize=randomize,
            backend=backend,
        )
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._batch.metadata["render_fps"]}
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    @property
    def batch(self) -> TorchVectorEnv:
        """The vectorized environment of one that this one is."""
        return self._batch

    @property
    def max_episode_steps(self) -> int:
        """The time limit [steps]."""
        return self._batch.max_episode_steps

    @property
    def plant(self) -> Plant:
        """The differentiable plant."""
        return self._batch.plant

    @property
    def params(self) -> PhysicalParameters:
        """The physical parameters; assign `params["mass"] = 2.0` to change one."""
        return self._batch.params

    @property
    def prepared(self) -> Params:
        """What the plant's functions take, computed from `params`."""
        return self._batch.prepared

    @property
    def disturbance(self) -> np.ndarray | None:
        """The disturbance (channels,) that acts in every step, in the units of `plant.disturbance_names`, or None."""
        held = self._batch.disturbance
        return None if held is None else held[0].numpy()

    @disturbance.setter
    def disturbance(self, value: Any) -> None:
        self._batch.disturbance = None if value is None else np.asarray(value, dtype=np.float64)[None]

    @property
    def state(self) -> np.ndarray:
        """The state (state_size,), float64. Assign to it to put the plant elsewhere."""
        return self._batch._state[0].numpy().copy()

    @state.setter
    def state(self, value: Any) -> None:
        state = np.asarray(value, dtype=np.float64)
        checks.shape("state", state, (self.plant.state_size,))
        if not np.isfinite(state).all():
            raise InvalidValueError(f"state is {state}; expected finite numbers.")
        given = self._batch._state.new_tensor(state)[None]
        self._batch._state[:] = self.plant.settle(given, self._batch.prepared)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first observation and an empty info.

        Options: "state" (state_size,), "parameters" by name, "randomize" as the constructor's, and the plant's own.
        """
        if seed is not None:
            seed = checks.positive_int("seed", seed, minimum=0)
        given = dict(options or {})
        if "reset_mask" in given:
            raise InvalidValueError("reset_mask was given to a single environment; leave it out.")
        if "state" in given:
            given["state"] = self._batch.start_state(np.asarray(given["state"], dtype=np.float64)[None])
        if given.get("randomize") is not None:
            checked_ranges(self.plant, given["randomize"])
        for name, value in dict(given.get("parameters") or {}).items():
            self.params.checked(name, value)
        self.plant.check_options({k: v for k, v in given.items() if k not in COMMON_RESET_OPTIONS})
        super().reset(seed=seed)
        self._take_generator()
        observation, info = self._batch.reset(options=given)
        self._batch._streams.store(0, self.np_random.bit_generator)
        self._show()
        return observation[0].numpy(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return observation, reward, terminated, truncated and an empty info."""
        try:
            given = np.asarray(action)
        except ValueError as error:
            raise ShapeError(f"action is not an array of numbers: {error}.") from error
        checks.shape("action", given, self.action_space.shape or ())
        batch = self._batch
        noisy = batch.plant.process_noise_size + batch.plant.measurement_noise_size > 0
        if noisy:
            self._take_generator()
        # A single environment may be stepped on after its end, as Gymnasium's own may.
        batch._ended = None
        try:
            observation, _, terminated, truncated, info = batch.step(given[None])
        except UserError as error:
            raise type(error)(
                str(error).replace("actions have", "action has").replace("actions hold", "action holds")
            ) from error
        if noisy:
            batch._streams.store(0, self.np_random.bit_generator)
        self._show()
        return observation[0].numpy(), float(batch._reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def _take_generator(self) -> None:
        """Let the N = 1 environment draw from `np_random`, which a user may have replaced."""
        self._batch._streams.load([0], [self.np_random.bit_generator])
        self._batch._seeds = [self._np_random_seed or 0]

    def _show(self) -> None:
        if self.render_mode == "human":
            self.render()

    def render(self) -> Any:
        """Return the picture (height, width, 3) uint8 in mode "rgb_array", show it in mode "human"."""
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render was called without a render_mode; make the environment with render_mode='rgb_array'."
            )
            return None
        return self._batch.render_one()

    def close(self) -> None:
        """Close the window; closing twice is fine."""
        self._batch.close_extras()
