"""What a loaded policy does at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robust_policies.errors import ShapeError
from robust_policies.runtime.activations import Array
from robust_policies.runtime.cells import RunningCell, running_cell
from robust_policies.runtime.spaces import Part, Space, choose, space_of

Step = Callable[[Array, Array, bool], tuple[Array, Array]]


class RuntimePolicy:
    """A policy that acts, with NumPy alone.

    Attributes:
        observation_space, action_space: as they are stored.
        state_size: nx, the width of the state of `predict`.
    """

    def __init__(
        self, observation_space: Space, action_space: Part, state_size: int, dtype: np.dtype, reads: np.dtype | None
    ) -> None:
        self.observation_space, self.action_space, self.state_size = observation_space, action_space, state_size
        self._dtype, self._reads = dtype, reads
        self._act: Step

    def initial_state(self, batch_size: int = 1) -> Array:
        """Return the state (batch_size, nx) at an episode's start."""
        return np.zeros((batch_size, self.state_size), dtype=self._dtype)

    def predict(
        self, observation: Any, state: Array | None = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Array]:
        """Return (actions, next state (batch, nx)), as Stable-Baselines3's `predict` does.

        Args:
            observation: as the environment gives it, or a batch (n, *shape), of a Dict in every entry; the action has a
                batch dimension if this has.
            state: what the last call returned; None at the start.
            episode_start: (n,) bool or one bool; where True that entry's state is reset first.
            deterministic: the mean (most likely) action, or a sample of the stored exploration.

        Raises:
            ShapeError, NonFiniteError, InvalidValueError: the observation, state or episode_start does not fit.
        """
        values, single = self.observation_space.read(observation, self._reads)
        batch = len(values)
        if state is None:
            hidden = np.zeros((batch, self.state_size), self._dtype)
        else:
            hidden = np.asarray(state, dtype=self._dtype)
            if hidden.shape != (batch, self.state_size):
                raise ShapeError(
                    f"state has shape {hidden.shape}; expected ({batch}, {self.state_size}): pass what the last "
                    "predict returned for the same number of observations, or None."
                )
            if episode_start is not None:
                hidden = self._reset(hidden, episode_start)
        actions, hidden = self._act(values, hidden, deterministic)
        return (actions[0] if single else actions), hidden

    def step(self, observations: Array, state: Array) -> tuple[Array, Array]:
        """Return (deterministic actions, next state) of flat observations (batch, nu): `predict` without its checks."""
        return self._act(observations, state, True)

    def _reset(self, hidden: Array, episode_start: Any) -> Array:
        starts = np.asarray(episode_start, dtype=bool).reshape(-1)
        if starts.size not in (1, len(hidden)):
            raise ShapeError(
                f"episode_start has {starts.size} entries; expected one for each of {len(hidden)} observations."
            )
        return np.where(starts[:, None], 0.0, hidden).astype(self._dtype) if starts.any() else hidden


class _Actor:
    """From raw observations to the numbers of an action."""

    def __init__(self, content: Mapping[str, Any], tensors: Mapping[str, Array], arrays: Any) -> None:
        self.cell: RunningCell = running_cell(content["cell"], arrays)
        self.dtype = np.dtype(content["dtype"])
        self.mean, self.std = tensors.get("normalizer.mean"), tensors.get("normalizer.std")
        self.limit = content["normalizer_clip"]
        self.offset, self.scale = tensors.get("body.scaling.offset"), tensors.get("body.scaling.scale")
        weight = tensors.get("head.linear.weight")
        self.weight, self.bias = (None if weight is None else weight.T.copy()), tensors.get("head.linear.bias")
        self.squash = bool(content.get("squash", False))
        self.size, self.centre = tensors.get("head.scale"), tensors.get("head.offset")
        self.reads = np.dtype(np.float64) if self.mean is not None else np.dtype(np.float32)

    def step(self, observations: Array, state: Array) -> tuple[Array, Array]:
        """Return (numbers (batch, n), next state) for raw observations (batch, nu)."""
        x = observations
        if self.mean is not None:
            x = np.clip((x - self.mean) / self.std, -self.limit, self.limit).astype(self.dtype)
        if self.offset is not None:
            x = x - self.offset
        if x.dtype != self.dtype:
            x = x.astype(self.dtype)
        if self.scale is not None:
            x = x / self.scale
        y, state = self.cell.step(x, state)
        if self.weight is not None:
            y = y.dot(self.weight) + self.bias
        if self.squash:
            y = np.tanh(y)
        if self.size is not None:
            y = y * self.size
        return (y if self.centre is None else y + self.centre), state


def cell_policy(content: Mapping[str, Any], tensors: Mapping[str, Array], arrays: Any, seed: int) -> RuntimePolicy:
    """Return the policy of a cell; `arrays` are its explicit ones, `seed` is of the samples of its exploration."""
    actor, log_std, draw = _Actor(content, tensors, arrays), tensors.get("log_std"), np.random.default_rng(seed)
    reads = None if actor.offset is not None and actor.mean is None else actor.reads
    policy = RuntimePolicy(
        space_of(content["observation_space"]),
        space_of(content["action_space"]).alone,
        actor.cell.state_size,
        actor.dtype,
        reads,
    )
    space = policy.action_space

    def act(observations: Array, state: Array, deterministic: bool) -> tuple[Array, Array]:
        numbers, state = actor.step(observations, state)
        return choose(space, numbers, log_std, deterministic, draw), state

    policy._act = act
    return policy


def youla_policy(
    content: Mapping[str, Any], tensors: Mapping[str, Array], arrays: Any, base: Mapping[str, Array], seed: int
) -> RuntimePolicy:
    """Return the policy of a base controller, whose arrays are `base`, around the Youla parameter of a cell."""
    inner = content["policy"]
    actor, log_std, draw = _Actor(inner, tensors, arrays), tensors.get("log_std"), np.random.default_rng(seed)
    runs = content["runtime"]["base"]
    n, p_size = len(base["A"]), base["A"].shape[0]
    m, delay, quantum = len(base["u0"]), int(runs["delay"]), float(runs["quantum"])
    own, numbers, sent_as = p_size + delay * m, np.dtype(runs["numbers"]), np.dtype(runs["inputs"])
    A, B, C, K, L, M = (base[name].T.copy() for name in ("A", "B", "C", "K", "L", "M"))
    innovation_scale, input_scale = base["innovation_scale"].T.copy(), base["input_scale"].T.copy()
    low, high, youla_high, idle = base["low"], base["high"], base["youla_high"], base["idle"]
    u0, y0, measured, exogenous, angle = (base[name] for name in ("u0", "y0", "measured", "exogenous", "angle"))
    observed = space_of(content["observation_space"])
    places = np.arange(sum(part.size for part in observed.parts.values()))
    whole = np.array_equal(places[measured], places)
    youla_space = space_of(inner["action_space"]).alone
    turning, policy = (
        bool(angle.any()),
        RuntimePolicy(
            observed,
            space_of(content["action_space"]).alone,
            own + actor.cell.state_size,
            np.dtype(np.float64),
            np.dtype(np.float64),
        ),
    )

    def act(observations: Array, state: Array, deterministic: bool) -> tuple[Array, Array]:
        estimate, hidden = state[:, :n], state[:, own:].astype(actor.dtype)
        innovation = (observations if whole else observations[:, measured]) - y0 - estimate.dot(C)
        if turning:
            turns = np.round(innovation / (2.0 * math.pi))
            innovation = np.where(angle, innovation - 2.0 * math.pi * turns, innovation)
        seen = innovation.dot(innovation_scale).astype(numbers)
        if len(exogenous):
            seen = np.concatenate((seen, observations[:, exogenous].astype(numbers)), axis=1)
        found, hidden = actor.step(seen, hidden)
        youla = choose(youla_space, found, log_std, deterministic, draw).astype(np.float64)
        youla = np.minimum(np.maximum(youla, -youla_high), youla_high)
        u = u0 - (estimate + innovation.dot(M)).dot(K) + youla.dot(input_scale)
        u = np.minimum(np.maximum(u, low), high)
        if quantum:
            u = np.minimum(np.maximum(quantum * np.round(u / quantum), low), high)
        sent = u.astype(sent_as)
        applied, waiting = sent.astype(np.float64), ()
        if delay:
            line = np.concatenate((state[:, n:own], applied - idle), axis=1)
            applied, waiting = idle + line[:, :m], (line[:, m:],)
        following = estimate.dot(A) + (applied - u0).dot(B) + innovation.dot(L)
        return sent, np.concatenate((following, *waiting, hidden), axis=1)

    policy._act = act
    return policy
