"""Many copies of one task on one device, in Gymnasium's vector contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from robust_policies import checks
from robust_policies.envs.plant import Plant
from robust_policies.envs.streams import Streams, normals, uniforms_for_normals
from robust_policies.envs.task import load_plant
from robust_policies.errors import InvalidValueError, NonFiniteError, ShapeError, UnknownNameError

RENDER_MODES = ["human", "rgb_array"]
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def float_dtype(name: str, value: torch.dtype | str) -> torch.dtype:
    """Return torch.float32 or torch.float64, given as such or by name."""
    dtype = _DTYPES.get(str(value).removeprefix("torch."))
    if dtype is None:
        raise InvalidValueError(f"{name} is {value!r}; expected torch.float32 or torch.float64.")
    return dtype


def autoreset(value: AutoresetMode | str) -> AutoresetMode:
    """Return the autoreset mode given as such, as 'SAME_STEP' or as Gymnasium's 'SameStep'."""
    for mode in AutoresetMode:
        if value is mode or value in {mode.name, mode.value}:
            return mode
    raise InvalidValueError(
        f"autoreset_mode is {value!r}; expected one of {', '.join(mode.name for mode in AutoresetMode)}."
    )


class TorchVectorEnv(VectorEnv):
    """`num_envs` copies of a task whose observations, rewards and flags are tensors on one device.

    Observations are (num_envs, observation_size) and rewards (num_envs,) of `dtype`; terminations and truncations are
    (num_envs,) bool. Every returned tensor is the caller's to keep. The state is kept in `state_dtype`.

    Seeding: environment i has its own PCG64 generator, seeded with seed + i or seeds[i], and draws only its own numbers
    (start state, then noise step by step); so it does what the single environment with that seed does, whatever its
    neighbours do. `reset()` without a seed continues the generators.

    Autoreset: SAME_STEP returns the start observation at once and puts the last one into info["final_obs"] (dense: the
    rows that info["_final_obs"] marks are the episodes that ended); NEXT_STEP ignores the next action of an ended
    episode and resets it then; DISABLED expects `reset(options={"reset_mask": ...})`, a NumPy or torch bool array.

    `plant` holds the differentiable functions step, observe and reward, `params` what they take: replace an entry by a
    tensor with a leading dimension of num_envs for per-environment physics.
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
    ) -> None:
        self.plant: Plant = load_plant(task)
        self.num_envs = checks.positive_int("num_envs", num_envs)
        self.device = checks.device(device)
        self.dtype = float_dtype("dtype", dtype)
        self.state_dtype = float_dtype("state_dtype", state_dtype)
        self.autoreset_mode = autoreset(autoreset_mode)
        limit = self.plant.max_episode_steps if max_episode_steps is None else max_episode_steps
        self.max_episode_steps = checks.positive_int("max_episode_steps", limit)
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise InvalidValueError(f"render_mode is {render_mode!r}; expected one of {', '.join(RENDER_MODES)}.")
        self.render_mode = render_mode
        rate = max(1, round(1.0 / self.plant.time_step))
        self.metadata = {"render_modes": RENDER_MODES, "render_fps": rate, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = _box(self.plant.observation_limit, self.dtype)
        self.single_action_space = _box(self.plant.action_limit, self.dtype)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.params: dict[str, torch.Tensor] = self.plant.nominal(self.device)
        self._batched = {name: value.ndim + 1 for name, value in self.params.items()}
        self._streams = Streams(self.num_envs, self.device)
        self._seeds: list[int] | None = None
        self._state = torch.zeros((self.num_envs, self.plant.state_size), dtype=self.state_dtype, device=self.device)
        self._observation = torch.zeros(self.observation_space.shape or (), dtype=self.dtype, device=self.device)
        self._action = torch.zeros((self.num_envs, self.plant.action_size), dtype=self.state_dtype, device=self.device)
        self._reward = torch.zeros(self.num_envs, dtype=self.state_dtype, device=self.device)
        self._elapsed = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._ended: torch.Tensor | None = None
        self._steps_surely_running = 0
        self._started = False
        self._renderers: list[Any] = []
        if seed is not None:
            self._seed(self._seed_list(seed), None)

    @property
    def state(self) -> torch.Tensor:
        """A copy of the states (num_envs, state_size)."""
        return self._state.clone()

    @property
    def elapsed(self) -> torch.Tensor:
        """A copy of the numbers of steps since each episode began, (num_envs,) int64."""
        return self._elapsed.clone()

    @property
    def np_random_seed(self) -> tuple[int, ...]:
        """The seed of each environment's generator."""
        self._ensure_seeded()
        return tuple(self._seeds or ())

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """Copies of the environments' generators; drawing from them does not change the environments."""
        self._ensure_seeded()
        generators = tuple(np.random.Generator(np.random.PCG64(0)) for _ in range(self.num_envs))
        for row, generator in enumerate(generators):
            self._streams.store(row, generator.bit_generator)
        return generators

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the observations after a reset, and an empty info.

        Args:
            seed: environment i is seeded with seed + i, or with seed[i] (None: continue its generator).
            options: "reset_mask" (num_envs,) bool, NumPy or torch: reset only these, the others' observations stay;
                "state" (num_envs, state_size): start there; a plant's own, like the pendulum's x_init and y_init.
        """
        given = dict(options or {})
        rows = self._masked_rows(given.pop("reset_mask")) if "reset_mask" in given else None
        start = self.start_state(given.pop("state")) if "state" in given else None
        self.plant.check_options(given)
        if rows is not None and not self._started:
            raise InvalidValueError("reset_mask was given before the first reset; call reset() once without it.")
        if seed is not None:
            self._seed(self._seed_list(seed), rows)
        self._ensure_seeded()
        with torch.no_grad():
            self._begin(rows, given, start)
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
            raise InvalidValueError(f"{len(self._ended)} episode(s) have ended and autoreset is DISABLED; call "
                                    "reset(options={'reset_mask': terminated | truncated}) first.")  # fmt: skip
        action = self._checked(actions)
        with torch.no_grad():
            return self._advance(action)

    def _advance(self, action: torch.Tensor) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        plant, params, ended = self.plant, self.params, self._ended
        # An ended episode of NEXT_STEP takes no step now, so its generator must not advance for one.
        kept = None if ended is None else self._streams.state[:, ended]
        process, measurement = self._noise()
        if ended is not None and kept is not None:
            self._streams.state[:, ended] = kept
        self._action.copy_(action)
        self._reward.copy_(plant.reward(self._state, action, params))
        self._state.copy_(plant.step(self._state, action, params, process))
        self._observation.copy_(plant.observe(self._state, params, measurement))
        self._elapsed += 1
        self._steps_surely_running -= 1
        if ended is not None:
            self._begin(ended, {}, None)
            self._reward[ended] = 0.0
        reward = self._reward.to(self.dtype, copy=True)
        self._ended = None
        info: dict[str, Any] = {}
        if self._steps_surely_running > 0 and not plant.terminates:
            running = torch.zeros((2, self.num_envs), dtype=torch.bool, device=self.device)
            return self._observation.clone(), reward, running[0], running[1], info
        truncated = self._elapsed >= self.max_episode_steps
        if plant.terminates:
            terminated = plant.terminated(self._state, params)
        else:
            terminated = torch.zeros_like(truncated)
        if ended is not None:
            terminated[ended] = False
        done = terminated | truncated
        rows = done.nonzero().squeeze(-1)
        if len(rows) and self.autoreset_mode is AutoresetMode.SAME_STEP:
            info = {
                "final_obs": self._observation.clone(),
                "_final_obs": done,
                "final_info": {},
                "_final_info": done.clone(),
            }
            self._begin(rows, {}, None)
        elif len(rows):
            self._ended = rows
            self._count_running()
        return self._observation.clone(), reward, terminated, truncated, info

    def _begin(self, rows: torch.Tensor | None, options: Mapping[str, Any], start: torch.Tensor | None) -> None:
        """Begin new episodes in `rows` (None: all)."""
        plant, params = self.plant, self._params_of(rows)
        size, noise = plant.reset_size, plant.measurement_noise_size
        uniform = self._streams.uniform(size + uniforms_for_normals(noise), rows)
        state = plant.initial(uniform[:, :size], params, options).to(self.state_dtype)
        if start is not None:
            state = start if rows is None else start[rows]
        measurement = normals(uniform[:, size:], noise).to(self.state_dtype) if noise else None
        observation = plant.observe(state, params, measurement).to(self.dtype)
        if rows is None:
            self._state.copy_(state)
            self._observation.copy_(observation)
            self._elapsed.zero_()
            self._action.zero_()
        else:
            self._state[rows] = state
            self._observation[rows] = observation
            self._elapsed[rows] = 0
            self._action[rows] = 0.0
        self._count_running(rows is None)

    def _count_running(self, fresh: bool = False) -> None:
        """Note for how many steps no time limit can be reached, so that those steps need not ask the device."""
        longest = 0 if fresh else int(self._elapsed.max())
        self._steps_surely_running = self.max_episode_steps - longest

    def _noise(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return this step's process and measurement noise, None where the plant has none."""
        process, measurement = self.plant.process_noise_size, self.plant.measurement_noise_size
        total = process + measurement
        if not total:
            return None, None
        drawn = normals(self._streams.uniform(uniforms_for_normals(total)), total).to(self.state_dtype)
        return (drawn[:, :process] if process else None), (drawn[:, process:] if measurement else None)

    def _params_of(self, rows: torch.Tensor | None) -> dict[str, torch.Tensor]:
        if rows is None:
            return self.params
        return {
            name: value[rows] if value.ndim == self._batched[name] else value for name, value in self.params.items()
        }

    def _checked(self, actions: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return the actions as a tensor on the device, or raise."""
        if isinstance(actions, np.ndarray):
            if not np.issubdtype(actions.dtype, np.floating):
                raise ShapeError(f"actions have dtype {actions.dtype}; expected a floating dtype such as float32.")
            checks.shape("actions", actions, (self.num_envs, self.plant.action_size))
            action = torch.as_tensor(np.ascontiguousarray(actions), device=self.device)
        elif isinstance(actions, torch.Tensor):
            if not actions.dtype.is_floating_point:
                raise ShapeError(f"actions have dtype {actions.dtype}; expected torch.float32 or torch.float64.")
            if actions.device.type != self.device.type or self.device.index not in {None, actions.device.index}:
                raise ShapeError(f"actions are on device {actions.device}; expected {self.device}.")
            checks.shape("actions", actions, (self.num_envs, self.plant.action_size))
            action = actions.detach()
        else:
            raise ShapeError(f"actions are of type {type(actions).__name__}; expected a torch tensor or a NumPy array.")
        if not bool(torch.isfinite(action).all()):
            bad = (~torch.isfinite(action)).any(-1).nonzero().squeeze(-1).tolist()
            message = f"actions hold NaN or infinite values for {len(bad)} environment(s), the first {bad[0]}"
            raise NonFiniteError(f"{message}; expected finite numbers.")
        return action

    def _masked_rows(self, mask: Any) -> torch.Tensor:
        if not isinstance(mask, (np.ndarray, torch.Tensor)):
            raise ShapeError(f"reset_mask is {type(mask).__name__}; expected a NumPy or torch array of bool.")
        if str(mask.dtype).removeprefix("torch.") != "bool":
            raise ShapeError(f"reset_mask has dtype {mask.dtype}; expected bool.")
        checks.shape("reset_mask", mask, (self.num_envs,))
        rows = torch.as_tensor(mask, device=self.device).nonzero().squeeze(-1)
        if not len(rows):
            raise InvalidValueError("reset_mask marks no environment; expected at least one True.")
        return rows

    def start_state(self, state: Any) -> torch.Tensor:
        """Return the reset option "state" as a checked tensor (num_envs, state_size)."""
        start = torch.as_tensor(state, dtype=self.state_dtype, device=self.device)
        checks.shape("options['state']", start, (self.num_envs, self.plant.state_size))
        return checks.finite_tensor("options['state']", start)

    def _seed_list(self, seed: int | Sequence[int | None]) -> list[int | None]:
        whole = isinstance(seed, Integral) and not isinstance(seed, bool)
        seeds = [int(seed) + i for i in range(self.num_envs)] if whole else seed  # type: ignore[arg-type]
        if not isinstance(seeds, (list, tuple, np.ndarray)) or len(seeds) != self.num_envs:
            raise InvalidValueError(f"seed is {seed!r}; expected a whole number or {self.num_envs} of them.")
        return [None if one is None else checks.positive_int("seed", one, minimum=0) for one in seeds]

    def _seed(self, seeds: list[int | None], rows: torch.Tensor | None) -> None:
        self._ensure_seeded(fresh=all(one is not None for one in seeds) and rows is None)
        chosen = [row for row in (range(self.num_envs) if rows is None else rows.tolist()) if seeds[row] is not None]
        values = [int(seeds[row] or 0) for row in chosen]
        self._streams.seed(chosen, values)
        self._seeds = self._seeds or [0] * self.num_envs
        for row, value in zip(chosen, values, strict=True):
            self._seeds[row] = value

    def _ensure_seeded(self, fresh: bool = False) -> None:
        """Seed the generators at random if nobody has; `fresh`: the caller is about to seed every one."""
        if self._seeds is None and not fresh:
            seeds: list[int] = np.random.default_rng().integers(0, 2**63, self.num_envs).tolist()
            self._streams.seed(range(self.num_envs), seeds)
            self._seeds = seeds

    def render(self) -> tuple[np.ndarray | None, ...] | None:
        """Return one picture (height, width, 3) uint8 for each environment; see `render_one` for many of them."""
        return None if self.render_mode is None else tuple(self.render_one(row) for row in range(self.num_envs))

    def render_one(self, row: int = 0) -> np.ndarray | None:
        """Return the picture of environment `row` (None if it is shown in a window: render_mode "human")."""
        if self.render_mode is None:
            raise InvalidValueError("render was called without a render_mode; make it with render_mode='rgb_array'.")
        if not 0 <= row < self.num_envs:
            raise UnknownNameError(f"Environment {row} does not exist; expected 0 to {self.num_envs - 1}.")
        from robust_policies.envs.rendering import Renderer

        if not self._renderers:
            self._renderers = [
                Renderer(self.plant, self.render_mode, self.metadata["render_fps"]) for _ in range(self.num_envs)
            ]
        numbers = (values[row].double().cpu().numpy() for values in (self._state, self._action, self._observation))
        return self._renderers[row].draw(*numbers, steps=int(self._elapsed[row]))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the windows."""
        for renderer in self._renderers:
            renderer.close()
        self._renderers = []


def _box(limit: np.ndarray, dtype: torch.dtype) -> gymnasium.spaces.Box:
    kind = np.float32 if dtype is torch.float32 else np.float64
    return gymnasium.spaces.Box(-limit.astype(kind), limit.astype(kind), dtype=kind)
