"""An environment whose observation also holds an estimate of the state, for any policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from robust_policies.control.observers.bound import ErrorBound
from robust_policies.control.observers.injection import Observer, check_plant
from robust_policies.envs.parameters import plain_tensors
from robust_policies.envs.wrappers import Changing, TensorWrapper
from robust_policies.errors import InvalidValueError, ShapeError, UnknownNameError

FEATURES = ("observation", "estimate", "bound")


class _Estimates(Changing):
    """The estimates of `count` environments and how old their episodes are."""

    def __init__(
        self,
        observer: Observer,
        count: int,
        include: Sequence[str],
        bound: ErrorBound | None,
        observations: Box,
        actions: Box,
        device: torch.device,
    ) -> None:
        for name in include:
            if name not in FEATURES:
                raise UnknownNameError.among("feature in include", str(name), FEATURES)
        if "bound" in include and bound is None:
            raise InvalidValueError("include holds 'bound', and no bound was given; pass bound=error_bound(...).")
        if not include:
            raise InvalidValueError(f"include is empty; expected some of {', '.join(FEATURES)}.")
        for name, space in (("observation", observations), ("action", actions)):
            if not isinstance(space, Box) or len(space.shape) != 1:
                raise InvalidValueError(f"The environment has the {name} space {space}; expected a Box of vectors.")
        if actions.shape[0] != observer.input_size:
            raise ShapeError(
                f"The environment takes {actions.shape[0]} input(s); the observer has {observer.input_size}."
            )
        if observations.shape[0] < (reads := getattr(observer, "sizes", observer.output_size)):
            raise ShapeError(
                f"The environment has {observations.shape[0]} observation(s); the observer reads {reads} of its plant."
            )
        self.observer, self.count, self.include, self.bound = observer, count, tuple(include), bound
        self.low, self.high = (
            torch.as_tensor(end, dtype=torch.float64, device=device) for end in (actions.low, actions.high)
        )
        self.estimate = observer.start(count, torch.zeros(1, dtype=torch.float64, device=device))
        self.ages = torch.zeros(count, dtype=torch.int64, device=device)
        self.observation: Tensor | None = None
        n = observer.state_size
        kind: Any = observations.dtype
        parts = {
            "observation": (observations.low, observations.high),
            "estimate": (np.full(n, -np.inf), np.full(n, np.inf)),
        }
        parts["bound"] = (np.zeros(n), np.full(n, np.inf))
        ends = [np.concatenate([parts[name][side] for name in self.include]).astype(kind) for side in (0, 1)]
        self.space = Box(ends[0], ends[1], dtype=kind)
        self.numbers = getattr(torch, np.dtype(kind).name)

    def begin(self, observation: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the features where episodes begin in `rows` (count,) bool, None: all; the others keep theirs."""
        start, ages = self.observer.start(self.count, self.estimate), torch.zeros_like(self.ages)
        if rows is not None and self.observation is not None:
            start = torch.where(rows[:, None], start, self.estimate)
            ages = torch.where(rows, ages, self.ages)
            observation = torch.where(rows[:, None], observation, self.observation)
        self.estimate, self.ages, self.observation = start, ages, observation.clone()
        return self.features()

    def proceed(self, action: Tensor, observation: Tensor) -> Tensor:
        """Return the features after actions (count, m) led to observations (count, size)."""
        assert self.observation is not None
        applied = torch.minimum(torch.maximum(action.to(self.low), self.low), self.high)
        self.estimate = self.observer.advance(self.estimate, self.observation.to(self.estimate.dtype), applied)
        self.observation, self.ages = observation.clone(), self.ages + 1
        return self.features()

    def current(self) -> Tensor:
        """Return the estimates (count, n) with the present observations in them."""
        assert self.observation is not None
        return self.observer.corrected(self.estimate, self.observation.to(self.estimate.dtype))

    def features(self) -> Tensor:
        """Return what a policy reads (count, size)."""
        assert self.observation is not None
        parts = {"observation": self.observation, "estimate": self.current()}
        if self.bound is not None and "bound" in self.include:
            ages, places = self.ages.unique(return_inverse=True)
            each = np.stack([self.bound.each(age) for age in ages.tolist()])
            parts["bound"] = torch.as_tensor(each).to(self.estimate)[places]
        return torch.cat([parts[name].to(self.numbers) for name in self.include], -1)


class ObserverWrapper(gymnasium.Wrapper):
    """One environment whose observation also holds an observer's estimate of the state.

    Args:
        env: with Box spaces of vectors.
        observer: `control.observers.find_output_injection(plant, region)`, or anything with its methods.
        include: what the observation is made of, in order: "observation", "estimate" (n,) in the plant's units, and
            "bound" (n,), how far each entry of the prediction is from the state at most.
        bound: of the observer's error, see `control.observers.error_bound`: of the prediction before the present
            observation is in it.

    The estimate includes the present observation where the observer does ("current"). It is in the info too, float64.

    Raises:
        UnknownNameError, InvalidValueError, ShapeError: the features or the observer do not fit.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        observer: Observer,
        *,
        include: Sequence[str] = ("observation", "estimate"),
        bound: ErrorBound | None = None,
    ) -> None:
        super().__init__(env)
        spaces: tuple[Any, Any] = env.observation_space, env.action_space
        self._estimates = _Estimates(observer, 1, include, bound, *spaces, torch.device("cpu"))
        check_plant(observer, env)
        self.observation_space = self._estimates.space

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first features and info."""
        observation, info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        with plain_tensors():
            seen = self._estimates.begin(torch.as_tensor(np.asarray(observation))[None])
            return seen[0].numpy(), {**info, "estimate": self._estimates.current()[0].numpy()}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Return features, reward, terminated, truncated and info."""
        if self._estimates.observation is None:
            raise InvalidValueError("step was called before reset; call reset() first.")
        observation, reward, terminated, truncated, info = self.env.step(action)
        with plain_tensors():
            given = torch.as_tensor(np.asarray(action, dtype=np.float64))[None]
            seen = self._estimates.proceed(given, torch.as_tensor(np.asarray(observation))[None])
            info = {**info, "estimate": self._estimates.current()[0].numpy()}
        return seen[0].numpy(), reward, bool(terminated), bool(truncated), info


class ObserverVectorWrapper(TensorWrapper):
    """`ObserverWrapper` for a `TorchVectorEnv`: the same arguments, tensors with a leading dimension num_envs.

    An estimate begins anew with its episode in every autoreset mode; in SAME_STEP `final_obs` holds the features of the
    old episode's end.
    """

    def __init__(
        self,
        env: VectorEnv,
        observer: Observer,
        *,
        include: Sequence[str] = ("observation", "estimate"),
        bound: ErrorBound | None = None,
    ) -> None:
        super().__init__(env)
        spaces: tuple[Any, Any] = env.single_observation_space, env.single_action_space
        self._estimates = _Estimates(observer, self.num_envs, include, bound, *spaces, self.device)
        check_plant(observer, env)
        self.single_observation_space = self._estimates.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._ended: Tensor | None = None

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Return features after a reset, and info; `reset_mask` resets some."""
        rows = self.reset_mask(options)
        observation, info = self.env.reset(seed=seed, options=None if options is None else dict(options))
        with plain_tensors():
            seen = self._estimates.begin(observation, rows)
            self._ended = None if rows is None or self._ended is None else self._ended & ~rows
        return seen, {**info, "estimate": self._estimates.current()}

    def step(self, actions: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return features, rewards, terminations, truncations and info."""
        estimates = self._estimates
        if estimates.observation is None:
            raise InvalidValueError("step was called before reset; call reset() first.")
        observation, reward, terminated, truncated, info = self.env.step(actions)
        with plain_tensors():
            final = info.get("final_obs")
            given = torch.as_tensor(actions, device=self.device)
            seen = estimates.proceed(given, observation if final is None else final)
            begun = self._ended
            if final is not None:
                begun, info = info["_final_obs"], {**info, "final_obs": seen}
            if begun is not None:
                seen = estimates.begin(observation, begun)
            ended = self.autoreset_mode is AutoresetMode.NEXT_STEP and self.some_ended(info)
            self._ended = terminated | truncated if ended else None
        return seen, reward, terminated, truncated, {**info, "estimate": estimates.current()}
