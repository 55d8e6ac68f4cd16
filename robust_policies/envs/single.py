"""One task as a plain Gymnasium environment in NumPy: the N = 1 view of the vectorized one.

After a few steps by torch a program of Python's floats takes them (`StraightLine`), and the starts: bit for bit the
same, in the buffers of the vectorized environment. Torch still takes what a program cannot.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from robust_policies import checks
from robust_policies.envs.parameters import PhysicalParameters, checked_ranges
from robust_policies.envs.plant import COMMON_RESET_OPTIONS, Params, Plant
from robust_policies.envs.straight_line import StraightLine
from robust_policies.envs.traces import UntraceableError
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
        model: str | Sequence[str] | None = None,
    ) -> None:
        self._batch = TorchVectorEnv(
            task,
            1,
            autoreset_mode=AutoresetMode.DISABLED,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
            randomize=randomize,
            backend=backend,
            model=model,
        )
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._batch.metadata["render_fps"]}
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space
        self._batch_is_behind = False
        self._write_programs()

    def _write_programs(self) -> None:
        """Prepare the programs that take the steps and starts once torch has taken a few, and what they look at."""
        plant = self._batch.plant
        self._step_program = StraightLine(plant, self._transition, self._step_arguments, patience=16)
        self._start_program = StraightLine(plant, self._begin, self._start_arguments, patience=4)
        choices = plant.discrete_actions
        self._choices = None if choices is None else np.asarray(choices, dtype=np.float64).tolist()
        self._action_shape = self.action_space.shape
        self._only = torch.zeros(1, dtype=torch.int64)
        self._viewed: tuple[torch.Tensor | None, ...] = (None,) * 5
        self._views: tuple[np.ndarray, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Programs cannot be copied; a copy writes its own."""
        own = {"_step_program", "_start_program", "_viewed", "_views"}
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._write_programs()

    @property
    def batch(self) -> TorchVectorEnv:
        """The vectorized environment of one that this one is, its generator where `np_random` is now."""
        if self._batch_is_behind and self._draws_alike():
            self._take_generator()
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
        found = None if options else self._plain_reset(seed)
        if found is not None:
            return found
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
        found = self._plain_step(given)
        if found is not None:
            return found
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

    def _plain_step(self, given: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]] | None:
        """Return what `step` does by its program; None, and nothing has changed: torch has to do it."""
        batch, program, kind = self._batch, self._step_program, given.dtype.char
        if program.given_up or not batch._started:
            return None
        action: Any = given.tolist()
        if self._choices is None:
            if kind not in "fd" or given.shape != self._action_shape:
                return None
        elif given.shape or kind not in "bBhHiIlLqQ" or not 0 <= action < len(self._choices):
            return None
        else:
            kind, action = "d", self._choices[action]
        count = batch._steps.noise_numbers
        if count and not self._draws_alike():
            return None
        uniform = self._draw(count) if count else None
        held = batch._disturbance
        held = None if held is None else held[0].tolist()
        state, seen, acted, elapsed, gained = self._look()
        found = program((kind, held is None), batch.params.prepared, state.tolist(), action, uniform, held)
        if found is None:
            if count:
                self._draw(-count)
            return None
        state[:], observed, (reward,), (terminated,) = found
        observation = np.array(observed, np.float32)
        seen[:], acted[:], gained[0] = observation, action, reward
        elapsed[0] = steps = elapsed.item() + 1
        batch.clock.pass_one()
        truncated = steps >= batch.max_episode_steps
        batch._ended = self._only if terminated or truncated else None
        if self.render_mode == "human":
            self.render()
        return observation, reward, terminated, truncated, {}

    def _plain_reset(self, seed: int | None) -> tuple[np.ndarray, dict[str, Any]] | None:
        """Return what `reset` does by its program; None, and at most the seed is set: torch has to do it."""
        batch = self._batch
        if self._start_program.given_up or batch._ranges or not batch._started:
            return None
        super().reset(seed=seed)
        if not self._draws_alike():
            return None
        count = batch._steps.numbers
        found = self._start_program(None, batch.params.prepared, self._draw(count))
        if found is None:
            self._draw(-count)
            return None
        state, seen, acted, elapsed, _ = self._look()
        state[:], observed = found
        observation = np.array(observed, dtype=np.float32)
        seen[:], acted[:], elapsed[0] = observation, 0.0, 0
        batch.clock.begun()
        batch._ended = None
        self._show()
        return observation, {}

    def _draw(self, count: int) -> list[float] | None:
        """Return the next `count` numbers in [0, 1); take them back where it is negative."""
        self._batch_is_behind = True
        if count < 0:
            self.np_random.bit_generator.advance(count)  # type: ignore[attr-defined]  # PCG64's
            return None
        return self.np_random.random(count).tolist()

    def _draws_alike(self) -> bool:
        """Return whether `np_random` is of the kind that the batch draws from."""
        return isinstance(self.np_random.bit_generator, np.random.PCG64)

    def _look(self) -> tuple[np.ndarray, ...]:
        """Return the batch's row of states, observations and actions, its step count and its reward, sharing memory."""
        batch, viewed = self._batch, self._viewed
        held = batch._state, batch._observation, batch._action, batch.clock.elapsed, batch._reward
        if not all(map(operator.is_, held, viewed)):
            self._viewed = held
            self._views = tuple([tensor.numpy() if tensor.ndim == 1 else tensor[0].numpy() for tensor in held])
        return self._views

    def _transition(
        self, params: Params, state: torch.Tensor, action: torch.Tensor, *more: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Return the batch's step, from tensors (1, n)."""
        uniform, held = more
        steps = self._batch._steps
        noise = (None, None) if uniform is None else steps.noise(uniform)
        return self._whole(steps.transition(params, state, action, *noise, held))

    def _begin(self, params: Params, uniform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the batch's start of an episode."""
        return self._whole(self._batch._steps.start(params, uniform))

    def _whole(self, found: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Return the tensors of a plant if they are what the batch keeps."""
        sizes = (self.plant.state_size,), (self.plant.observation_size,), (), ()
        kept = [(1, *size) for size in sizes[: len(found)]]
        if found[0].dtype is not torch.float64 or [tuple(tensor.shape) for tensor in found] != kept:
            raise UntraceableError("the plant's tensors have other shapes or number types than those of the batch")
        return found

    @staticmethod
    def _step_arguments(kind: tuple[str, bool], *numbers: list[float] | None) -> list[torch.Tensor | None]:
        """Return the tensors of a step's numbers, as they lie in memory in the batch."""
        state, action, uniform, held = numbers
        return [
            _column(state),
            torch.tensor([action], dtype=torch.float32 if kind[0] == "f" else torch.float64),
            _column(uniform),
            None if held is None else torch.tensor([held], dtype=torch.float64),
        ]

    @staticmethod
    def _start_arguments(kind: None, uniform: list[float]) -> list[torch.Tensor | None]:
        """Return the tensor of a start's numbers."""
        return [_column(uniform)]

    def _take_generator(self) -> None:
        """Let the N = 1 environment draw from `np_random`, which a user may have replaced."""
        self._batch_is_behind = False
        self._batch._streams.load([0], [self.np_random.bit_generator])
        self._batch._streams.seeds = [self._np_random_seed or 0]

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


def _column(numbers: list[float] | None) -> torch.Tensor | None:
    """Return a tensor (1, n) that lies column by column."""
    return None if numbers is None else torch.tensor([[number] for number in numbers], dtype=torch.float64).T
