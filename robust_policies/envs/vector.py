"""Many copies of one task on one device, in Gymnasium's vector contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from robust_policies import checks
from robust_policies.envs import arguments
from robust_policies.envs.clock import Clock
from robust_policies.envs.compiled import Batch, steps_of, write, write_where
from robust_policies.envs.parameters import PhysicalParameters, checked_ranges
from robust_policies.envs.plant import Params, Plant
from robust_policies.envs.rendering import Renderer
from robust_policies.envs.streams import SeededStreams
from robust_policies.envs.task import load_plant
from robust_policies.errors import InvalidValueError, UnknownNameError

RENDER_MODES = ["human", "rgb_array"]


def changes(model: str | Sequence[str] | None) -> dict[str, Any] | None:
    """Return what an environment's option `model` changes of its task file."""
    return None if model is None else {"model": model}


class TorchVectorEnv(VectorEnv):
    """`num_envs` copies of a task whose observations, rewards and flags are tensors on one device.

    Observations are (num_envs, observation_size) and rewards (num_envs,) of `dtype`; terminations and truncations are
    (num_envs,) bool. Every returned tensor is the caller's to keep. The state is kept in `state_dtype`.

    Seeding: environment i has its own PCG64 generator, seeded with seed + i or seeds[i], and draws only its own numbers
    (start state, then noise step by step); so it does what the single environment with that seed does, whatever its
    neighbours do. `reset()` without a seed continues the generators.

    Autoreset: SAME_STEP returns the start observation at once and puts the last one into info["final_obs"] (dense: the
    rows that info["_final_obs"] marks are the episodes that ended); NEXT_STEP ignores the next action of an ended
    episode and resets it then; DISABLED expects `reset(options={"reset_mask": ...})`, a NumPy or torch bool array. On a
    GPU, SAME_STEP does not wait to learn whether an episode ended: where one may have, info has these keys.

    `clock` counts the steps of episodes, `plant` holds the equations, `params` the physical parameters: assign one
    value for all or one per environment (`PhysicalParameters`), or give `randomize`, factors of the nominal values
    drawn at every reset (True: the ranges of the task file). `prepared` is what the plant's functions take.
    `disturbance` (num_envs, channels), in the units of `plant.disturbance_names`, acts in every step until it is set
    again; None: nothing.

    `backend` chooses what computes a MuJoCo task's physics: "c", "warp" or "auto" (Warp on CUDA); `compile` fuses
    the other tasks' steps and starts into C++ kernels, or into a CUDA graph on a GPU. `model` is the folder of an
    identified model, or several of an ensemble, for a task whose plant is one (robust_policies/Identified-v0).
    """

    def __init__(
        self,
        task: str | Path,
        num_envs: int = 1,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        state_dtype: torch.dtype | str = torch.float64,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        seed: int | Sequence[int | None] | None = None,
        render_mode: str | None = None,
        randomize: bool | Mapping[str, Any] = False,
        backend: str = "auto",
        model: str | Sequence[str] | None = None,
        compile: bool = False,
    ) -> None:
        self.plant: Plant = load_plant(task, changes(model))
        self.num_envs = checks.positive_int("num_envs", num_envs)
        self.device = checks.device(device)
        self.dtype = arguments.float_dtype("dtype", dtype)
        self.state_dtype = arguments.float_dtype("state_dtype", state_dtype)
        self.autoreset_mode = arguments.autoreset(autoreset_mode)
        self.plant.use(backend, self.device, self.num_envs)
        limit = self.plant.max_episode_steps if max_episode_steps is None else max_episode_steps
        self.max_episode_steps = checks.positive_int("max_episode_steps", limit)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise InvalidValueError(f"render_mode is {render_mode!r}; expected one of {', '.join(RENDER_MODES)}.")
        self.render_mode = render_mode
        # As fast as the plant, but no slide show where a step takes a second.
        rate = max(10, round(1.0 / self.plant.time_step))
        self.metadata = {"render_modes": RENDER_MODES, "render_fps": rate, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = arguments.spaces(self.plant, self.dtype)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.params = PhysicalParameters(self.plant, self.num_envs, self.device)
        self._randomize(randomize)
        self._actions = arguments.Actions(self.plant, self.num_envs, self.device)
        self._compile = compile
        self._steps = steps_of(self.plant, compile, self.device, self.state_dtype)
        self._disturbance: torch.Tensor | None = None
        self._streams = SeededStreams(self.num_envs, self.device)
        # Column by column in memory, as the plants compute.
        self._state = torch.zeros(self.plant.state_size, self.num_envs, dtype=self.state_dtype, device=self.device).T
        size = self.plant.observation_size
        self._observation = torch.zeros((self.num_envs, size), dtype=self.dtype, device=self.device)
        if self._steps.fixed_layout:
            self._observation = torch.zeros((size, self.num_envs), dtype=self.dtype, device=self.device).T
        self._action = torch.zeros((self.num_envs, self.plant.action_size), dtype=self.state_dtype, device=self.device)
        self._reward = torch.zeros(self.num_envs, dtype=self.state_dtype, device=self.device)
        self._ended: torch.Tensor | None = None
        # A MuJoCo task's starts are too much work for those that go on.
        self._unasked = (
            self.device.type != "cpu" and self.plant.differentiable and self.autoreset_mode is AutoresetMode.SAME_STEP
        )
        self.clock = Clock(self.num_envs, self.max_episode_steps, self.device, foresees=self._unasked)
        self._started = False
        self._renderers: list[Any] = []
        if seed is not None:
            self._streams.reseed(arguments.seed_list(seed, self.num_envs))

    def __getstate__(self) -> dict[str, Any]:
        """Compiled functions cannot be copied; a copy compiles its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_steps"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._steps = steps_of(self.plant, self._compile, self.device, self.state_dtype)

    @property
    def prepared(self) -> Params:
        """What the plant's functions take, computed from `params`."""
        return self.params.prepared

    @property
    def disturbance(self) -> torch.Tensor | None:
        """A copy of the disturbance (num_envs, channels) that acts in every step, None if there is none."""
        return None if self._disturbance is None else self._disturbance.clone()

    @disturbance.setter
    def disturbance(self, value: Any) -> None:
        if value is None:
            self._disturbance = None
            return
        channels = len(self.plant.disturbance_names)
        if not channels:
            raise InvalidValueError(f"disturbance was set, but a {self.plant.kind} task has no disturbance input.")
        tensor = torch.as_tensor(value, dtype=self.state_dtype, device=self.device).detach()
        checks.shape("disturbance", tensor, (self.num_envs, channels))
        self._disturbance = checks.finite_tensor("disturbance", tensor).clone()

    @property
    def varies(self) -> bool:
        """Whether physical parameters are drawn at every reset, or are not the nominal ones."""
        nominal = self.plant.nominal(self.device)
        return bool(self._ranges) or any(bool((self.params[name] != value).any()) for name, value in nominal.items())

    @property
    def trusts_actions(self) -> bool:
        """Whether steps leave out the look at the values of actions, for which they wait for the device; assignable."""
        return self._actions.trusted

    @trusts_actions.setter
    def trusts_actions(self, value: bool) -> None:
        self._actions.trusted = bool(value)

    @property
    def state(self) -> torch.Tensor:
        """A copy of the states (num_envs, state_size)."""
        return self._state.clone()

    @property
    def elapsed(self) -> torch.Tensor:
        """A copy of the numbers of steps since each episode began, (num_envs,) int64; assign to spread the ends."""
        return self.clock.elapsed.clone()

    @elapsed.setter
    def elapsed(self, value: Any) -> None:
        self.clock.set(value)

    @property
    def some_ended(self) -> bool:
        """Whether episodes ended in the last step and are not reset yet: never in SAME_STEP."""
        return self._ended is not None

    @property
    def np_random_seed(self) -> tuple[int, ...]:
        """The seed of each environment's generator."""
        self._streams.ensure_seeded()
        return tuple(self._streams.seeds or ())

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """Copies of the environments' generators; drawing from them does not change the environments."""
        return self._streams.generators()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the observations after a reset, and an empty info.

        Args:
            seed: environment i is seeded with seed + i, or with seed[i] (None: continue its generator).
            options: "reset_mask" (num_envs,) bool, NumPy or torch: reset only these, the others' observations stay;
                "state" (num_envs, state_size): start there; "parameters": physical parameters by name, for all or one
                for each environment; "randomize": as the constructor's, from now on; a plant's own, like the
                pendulum's x_init and y_init.
        """
        wanted = dict(options or {})
        mask, start = wanted.pop("reset_mask", None), wanted.pop("state", None)
        rows = None if mask is None else arguments.reset_rows(mask, self.num_envs, self.device)
        start = None if start is None else self.start_state(start)
        assigned = wanted.pop("parameters", {})
        if not isinstance(assigned, Mapping):
            raise InvalidValueError(
                f"reset option parameters is {assigned!r}; expected a mapping such as {{'mass': 2.0}}."
            )
        values = {name: self.params.checked(name, value) for name, value in assigned.items()}
        randomize = wanted.pop("randomize", None)
        if randomize is not None:
            checked_ranges(self.plant, randomize)
        self.plant.check_options(wanted)
        if rows is not None and not self._started:
            raise InvalidValueError("reset_mask was given before the first reset; call reset() once without it.")
        if seed is not None:
            self._streams.reseed(arguments.seed_list(seed, self.num_envs), rows)
        if randomize is not None:
            self._randomize(randomize)
        self._streams.ensure_seeded()
        with torch.no_grad():
            self._begin(rows, wanted, start, values)
        if rows is None or self._ended is None:
            self._ended = None
        else:
            left = self._ended[~torch.isin(self._ended, rows)]
            self._ended = left if len(left) else None
        self._started = True
        return self._observation.clone(), {}

    def step(
        self, actions: torch.Tensor | np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Return observations, rewards, terminations, truncations and info after `actions` (num_envs, action_size).

        Actions are floating tensors on the environment's device or NumPy arrays; values beyond the limits are clipped.
        A wrong shape, dtype or device raises `ShapeError`, NaN `NonFiniteError`, and nothing has changed then.
        """
        if not self._started:
            raise InvalidValueError("step was called before reset; call reset() first.")
        if self._ended is not None and self.autoreset_mode is AutoresetMode.DISABLED:
            raise InvalidValueError(
                f"{len(self._ended)} episode(s) have ended and autoreset is DISABLED; call "
                "reset(options={'reset_mask': terminated | truncated}) first."
            )
        action = self._actions(actions)
        with torch.no_grad():
            return self._advance(action)

    def _advance(self, action: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        plant, ended = self.plant, self._ended
        # An ended episode of NEXT_STEP takes no step now, so its generator must not advance for one.
        kept = None if ended is None else self._streams.state[:, ended]
        process, measurement = self._noise()
        if ended is not None and kept is not None:
            self._streams.state[:, ended] = kept
        self._action.copy_(action)
        if self._steps.fixed_layout:
            action = self._action
        following, observation, gained, terminated = self._steps.transition(
            self.params.prepared, self._state, action, process, measurement, self._disturbance
        )
        self._keep(following)
        self._observation.copy_(observation)
        self.clock.count()
        reward = gained.to(self.dtype, copy=True)
        self._reward = gained
        if ended is not None:
            self._begin(ended, {}, None)
            reward[ended] = 0.0
        self._ended = None
        info: dict[str, Any] = {}
        if self._steps.reuses_tensors or ended is not None:
            terminated = terminated.clone()
        if self.clock.surely_running and not plant.terminates:
            return self._observation.clone(), reward, terminated, torch.zeros_like(terminated), info
        truncated = self.clock.over()
        if ended is not None:
            terminated[ended] = False
        done = terminated | truncated
        if self._unasked:
            info = {"final_obs": self._observation.clone(), "_final_obs": done, "final_info": {}, "_final_info": done}
            self._begin_where(done)
            return self._observation.clone(), reward, terminated, truncated, info
        rows = arguments.marked(done)
        if rows.shape[0] and self.autoreset_mode is AutoresetMode.SAME_STEP:
            info = {"final_obs": self._observation.clone(), "_final_obs": done, "final_info": {}, "_final_info": done}
            self._begin(rows, {}, None)
        elif rows.shape[0]:
            self._ended = rows
            if not plant.terminates:
                self.clock.look()
        return self._observation.clone(), reward, terminated, truncated, info

    def _keep(self, following: torch.Tensor) -> None:
        """Make `following` the state; the state's layout in memory stays, which compiled steps rely on."""
        if self._steps.reuses_tensors or following.stride() != self._state.stride():
            self._state.copy_(following)
        else:
            self._state = following

    def _begin(
        self,
        rows: torch.Tensor | None,
        options: Mapping[str, Any],
        start: torch.Tensor | None,
        values: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Begin new episodes in `rows` (None: all)."""
        batch = Batch(self._state, self._observation, self.clock.elapsed, self._action)
        if rows is not None and not (self._ranges or options or values) and start is None:
            self._steps.restart(self.params.prepared, self._streams, rows, batch)
        else:
            drawn = self._steps.numbers
            uniform = self._streams.uniform(drawn + len(self._ranges), rows)
            if self._ranges:
                self.params.draw(self._ranges, uniform[:, drawn:], rows)
            if values and rows is None:
                self.params.update(values)
            elif values and rows is not None:
                self.params.assign_rows(values, rows)
            params = self.params.prepared if rows is None else self.plant.take(self.params.prepared, rows)
            start = start if start is None or rows is None else start[rows]
            write(batch, rows, *self._steps.start(params, uniform, options, start))
        if not self.plant.terminates:
            self.clock.begun() if rows is None else self.clock.look()

    def _begin_where(self, ended: torch.Tensor) -> None:
        """Begin new episodes where `ended` (num_envs,) bool is true, without asking the device how many."""
        drawn = self._steps.numbers
        uniform = self._streams.uniform_where(drawn + len(self._ranges), ended)
        if self._ranges:
            self.params.draw_where(self._ranges, uniform[:, drawn:], ended)
        batch = Batch(self._state, self._observation, self.clock.elapsed, self._action)
        write_where(batch, ended, *self._steps.start(self.params.prepared, uniform))
        if not self.plant.terminates:
            self.clock.passed()

    def _noise(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return this step's process and measurement noise, None where the plant has none."""
        numbers = self._steps.noise_numbers
        return self._steps.noise(self._streams.uniform(numbers)) if numbers else (None, None)

    def foreseen(self, steps: int) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Return the noise that each of the next `steps` steps will draw: of the process, and of what it shows then.

        Standard normal numbers (num_envs, n) each, None where there is none; they hold while no episode begins anew.
        """
        self._streams.ensure_seeded()
        kept = self._streams.state.clone()
        noise = [self._noise() for _ in range(steps)]
        self._streams.state.copy_(kept)
        return noise

    def _randomize(self, wanted: bool | Mapping[str, Any]) -> None:
        """Draw the parameters that `wanted` names at every reset from now on; the others become nominal again."""
        before = getattr(self, "_ranges", {})
        self._ranges = checked_ranges(self.plant, wanted)
        for name in before:
            del self.params[name]
        self.params.spread(self._ranges)

    def start_state(self, state: Any) -> torch.Tensor:
        """Return the reset option "state" as a checked tensor (num_envs, state_size)."""
        start = torch.as_tensor(state, dtype=self.state_dtype, device=self.device)
        checks.shape("options['state']", start, (self.num_envs, self.plant.state_size))
        return checks.finite_tensor("options['state']", start)

    def render(self) -> tuple[np.ndarray | None, ...] | None:
        """Return one picture (height, width, 3) uint8 for each environment; see `render_one` for many of them."""
        return None if self.render_mode is None else tuple(self.render_one(row) for row in range(self.num_envs))

    def render_one(self, row: int = 0) -> np.ndarray | None:
        """Return the picture of environment `row` (None if it is shown in a window: render_mode "human")."""
        if self.render_mode is None:
            raise InvalidValueError("render was called without a render_mode; make it with render_mode='rgb_array'.")
        if not 0 <= row < self.num_envs:
            raise UnknownNameError(f"Environment {row} does not exist; expected 0 to {self.num_envs - 1}.")
        if not self._renderers:
            self._renderers = [
                Renderer(self.plant, self.render_mode, self.metadata["render_fps"]) for _ in range(self.num_envs)
            ]
        numbers = (values[row].double().cpu().numpy() for values in (self._state, self._action, self._observation))
        return self._renderers[row].draw(*numbers, steps=int(self.clock.elapsed[row]), params=self.params.of(row))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the windows, and what the plant holds: threads, device memory."""
        for renderer in self._renderers:
            renderer.close()
        self._renderers = []
        self.plant.close()
