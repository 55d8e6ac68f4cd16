"""An FMU as a Gymnasium environment: its inputs are the action, its outputs the observation."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle

from robust_policies import checks
from robust_policies.envs.fmu.unit import Unit, Variable
from robust_policies.errors import FmuError, InvalidValueError, NonFiniteError, ShapeError, UnknownNameError

Reward = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
_COST = ("outputs", "actions", "setpoint")
_RESET = ("parameters",)


@dataclass(frozen=True, eq=False)
class FmuState:
    """Where an environment stands in its episode; of one environment, and gone with its FMU's instance."""

    unit: Any
    instance: Any
    steps: int
    outputs: np.ndarray
    numbers: dict[str, Any]


class FmuEnv(gymnasium.Env, EzPickle):
    """An FMU for co-simulation (FMI 2 or 3), one step an action: `gymnasium.make("robust_policies/Fmu-v0", fmu=PATH)`.

    An action holds from the step's beginning to its end, and the observation after it is of that end, with the action
    still held: what an output that depends on the input directly shows is the action just taken. After a reset it is of
    the start, with the inputs' start values. Copies and pickles hold the arguments, not where an episode stands.

    Args:
        fmu: path of the file. It is compiled code that runs in this process: use only those you trust.
        inputs: variables that are the action; None: all real inputs.
        outputs: variables that are the observation; None: all real outputs.
        time_step: seconds of a step; None: what the FMU suggests.
        action_low, action_high: limits, one an input, to which actions are clipped; None: the FMU's own.
        parameters: start values of variables, by name, set before the simulation begins.
        randomize: (low, high) of start values that each reset draws uniformly, by name.
        cost: {"outputs": [q], "actions": [r], "setpoint": [s]}: a step costs sum q (y - s)^2 + sum r u^2 of the
            outputs y that it leads to; None: q = 1, r = 0, s = 0.
        reward: (outputs, action, following outputs) -> number, in place of `cost`.
        max_episode_steps: after which the episode is truncated; None: none.
        dtype: of observations and actions, "float32" or "float64"; the FMU computes in its own.

    Observations are (p,), actions (m,). The info holds "time", seconds. Reset's options: {"parameters": {NAME: VALUE}}.

    Raises:
        MissingFileError, CorruptFileError, UnknownNameError, ShapeError, InvalidValueError: an argument does not fit.
        FmuError: the FMU refuses to go on.
    """

    def __init__(
        self,
        fmu: str | Path,
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        time_step: float | None = None,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        parameters: Mapping[str, float] | None = None,
        randomize: Mapping[str, tuple[float, float]] | None = None,
        cost: Mapping[str, Sequence[float]] | None = None,
        reward: Reward | None = None,
        max_episode_steps: int | None = 200,
        dtype: str = "float32",
    ) -> None:
        EzPickle.__init__(
            self,
            fmu,
            inputs=inputs,
            outputs=outputs,
            time_step=time_step,
            action_low=action_low,
            action_high=action_high,
            parameters=parameters,
            randomize=randomize,
            cost=cost,
            reward=reward,
            max_episode_steps=max_episode_steps,
            dtype=dtype,
        )
        self.unit = Unit(fmu)
        self.inputs, self.outputs = self.unit.named(inputs, "input"), self.unit.named(outputs, "output")
        size = self.unit.step if time_step is None else time_step
        if size is None:
            raise InvalidValueError(f"{self.unit.path.name} suggests no step size; give time_step in seconds.")
        self.time_step = checks.finite_float("time_step", size, above=0.0)
        limit = max_episode_steps
        self.max_episode_steps = None if limit is None else checks.positive_int("max_episode_steps", limit)
        if dtype not in ("float32", "float64"):
            raise InvalidValueError(f"dtype is {dtype!r}; expected 'float32' or 'float64'.")
        self._parameters = self._values("parameters", parameters or {})
        self._randomize = {name: _range(name, ends) for name, ends in (randomize or {}).items()}
        self._values("randomize", {name: low for name, (low, _) in self._randomize.items()})
        low, high = (
            _limits(name, given, self.inputs, side)
            for name, given, side in (("action_low", action_low, "low"), ("action_high", action_high, "high"))
        )
        if not (low < high).all():
            raise InvalidValueError(f"Actions lie between {low.tolist()} and {high.tolist()}; expected low below high.")
        self.low, self.high = low, high
        kind: Any = np.dtype(dtype).type
        self.action_space = Box(low.astype(kind), high.astype(kind), dtype=kind)
        self.observation_space = Box(-np.inf, np.inf, (len(self.outputs),), dtype=kind)
        self._cost = None if reward is not None else _weights(cost, len(self.outputs), len(self.inputs))
        self._reward = reward
        self._steps, self._now = 0, None
        self._first: np.ndarray | None = None
        self._anew, self._sure = False, False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the outputs at the start, and info. Raises UnknownNameError of an option, FmuError if it refuses."""
        super().reset(seed=seed)
        for name in options or {}:
            if name not in _RESET:
                raise UnknownNameError.among("reset option", str(name), _RESET)
        values = dict(self._parameters)
        drawn = {name: float(self.np_random.uniform(*ends)) for name, ends in self._randomize.items()}
        values |= drawn | self._values("parameters", (options or {}).get("parameters") or {})
        self.unit.begin(values, self._anew)
        self._steps, self._now = 0, self._read()
        self._check_reset(values)
        return self._observation(), {"time": self._time()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return outputs, reward, terminated (the FMU asked to end), truncated and info.

        Raises:
            ShapeError, NonFiniteError: the action does not fit; nothing has changed. FmuError: the FMU cannot go on.
        """
        if self._now is None:
            raise InvalidValueError("step was called before reset; call reset() first.")
        given = np.asarray(action, dtype=np.float64)
        checks.shape("action", given, (len(self.inputs),))
        if not np.isfinite(given).all():
            raise NonFiniteError(f"action is {given.tolist()}; expected finite numbers.")
        u, before = np.clip(given, self.low, self.high), self._now
        self.unit.set({one.name: value for one, value in zip(self.inputs, u, strict=True)})
        ended = self.unit.advance(self._time(), self.time_step)
        self._steps += 1
        self._now = self._read()
        reward = self._rewarded(before, u, self._now)
        truncated = self.max_episode_steps is not None and self._steps >= self.max_episode_steps
        return self._observation(), reward, ended, truncated, {"time": self._time()}

    def save_state(self) -> FmuState:
        """Return where the episode stands, for `restore_state` of this very environment until its FMU is made anew.

        The FMU is asked for the same step twice first: some that give their state do not take all of it back.

        Raises:
            InvalidValueError: the FMU does not say that it keeps states, or they do not bring the same step back.
        """
        if self._now is None:
            raise InvalidValueError("save_state was called before reset; call reset() first.")
        if not self.unit.keeps_states:
            raise InvalidValueError(f"{self.unit.path.name} does not let its state be taken (canGetAndSetFMUState).")
        if not self._sure:
            self._check_states()
        held, instance = self.unit.take_state(), self.unit.instance
        generator = dict(self.np_random.bit_generator.state)
        state = FmuState(held, instance, self._steps, self._now.copy(), generator)
        weakref.finalize(state, self.unit.free_state, held, instance)
        return state

    def restore_state(self, state: FmuState) -> np.ndarray:
        """Return the observation of a state after going back to it; the draws to come are as they were then.

        Raises:
            InvalidValueError: the state is of another environment, or of before its FMU was made anew.
        """
        if state.instance is None or state.instance is not self.unit.instance:
            raise InvalidValueError("The state is of another instance of the FMU; expected one that this one saved.")
        self.unit.set_state(state.unit)
        self._steps, self._now = state.steps, state.outputs.copy()
        self.np_random.bit_generator.state = state.numbers
        return self._observation()

    def close(self) -> None:
        """End the FMU."""
        self.unit.close()
        self._now = None

    def __del__(self) -> None:
        if (unit := self.__dict__.get("unit")) is not None:
            unit.close()

    def _time(self) -> float:
        return self.unit.start_time + self._steps * self.time_step

    def _read(self) -> np.ndarray:
        found = np.array(self.unit.get(self.outputs))
        if not np.isfinite(found).all():
            raise FmuError(
                f"{self.unit.path.name} gives {found.tolist()} at {self._time():g} s; expected finite numbers."
            )
        return found

    def _observation(self) -> np.ndarray:
        assert self._now is not None
        return self._now.astype(self.observation_space.dtype)

    def _rewarded(self, before: np.ndarray, u: np.ndarray, following: np.ndarray) -> float:
        if self._cost is None:
            assert self._reward is not None
            return float(self._reward(before.copy(), u.copy(), following.copy()))
        q, r, setpoint = self._cost
        return -float(q @ (following - setpoint) ** 2 + r @ u**2)

    def _check_reset(self, values: Mapping[str, float]) -> None:
        """Begin with a new instance from now on where the FMU's own reset does not bring its start back."""
        assert self._now is not None
        if self._anew or self._first is not None:
            return
        self._first = self._now
        self._probe()
        self.unit.begin(values, False)
        again = np.array(self.unit.get(self.outputs))
        if not np.array_equal(again, self._first):
            self._anew = True
            self.unit.begin(values, True)

    def _probe(self) -> None:
        """Take one step with the highest action that is finite, to be taken back."""
        ends = np.where(np.isfinite(self.high), self.high, np.where(np.isfinite(self.low), self.low, 1.0))
        self.unit.set({one.name: value for one, value in zip(self.inputs, ends, strict=True)})
        self.unit.advance(self._time(), self.time_step)

    def _check_states(self) -> None:
        """Raise InvalidValueError where a step taken again from the same state ends elsewhere."""
        held = self.unit.take_state()
        ends = []
        for _ in range(2):
            self._probe()
            ends.append(np.array(self.unit.get(self.outputs)))
            self.unit.set_state(held)
        back = np.array(self.unit.get(self.outputs))
        self.unit.free_state(held, self.unit.instance)
        if not (np.array_equal(*ends) and self._now is not None and np.array_equal(back, self._now)):
            raise InvalidValueError(
                f"{self.unit.path.name} does not come back to a state that it gave: the same step ends elsewhere."
            )
        self._sure = True

    def _values(self, name: str, given: Mapping[str, Any]) -> dict[str, float]:
        self.unit.named(list(given), name) if given else None
        return {key: checks.finite_float(f"{name}.{key}", value) for key, value in given.items()}


def _range(name: str, ends: Any) -> tuple[float, float]:
    if not isinstance(ends, Sequence) or len(ends) != 2 or not ends[0] <= ends[1]:
        raise InvalidValueError(f"randomize.{name} is {ends!r}; expected (low, high).")
    return float(ends[0]), float(ends[1])


def _limits(name: str, given: Sequence[float] | None, inputs: Sequence[Variable], side: str) -> np.ndarray:
    if given is not None:
        if len(given) != len(inputs):
            raise ShapeError(f"{name} has {len(given)} number(s); expected {len(inputs)}, one an input.")
        return np.asarray(given, dtype=np.float64)
    unknown = -np.inf if side == "low" else np.inf
    return np.array([unknown if getattr(one, side) is None else getattr(one, side) for one in inputs])


def _weights(
    cost: Mapping[str, Sequence[float]] | None, outputs: int, inputs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    given = dict(cost or {})
    for name in given:
        if name not in _COST:
            raise UnknownNameError.among("key of cost", str(name), _COST)
    found = []
    for name, size, default in (("outputs", outputs, 1.0), ("actions", inputs, 0.0), ("setpoint", outputs, 0.0)):
        values = np.asarray(given.get(name, [default] * size), dtype=np.float64)
        if values.shape != (size,) or not np.isfinite(values).all():
            raise ShapeError(f"cost.{name} is {given.get(name)}; expected {size} finite number(s).")
        found.append(values)
    return found[0], found[1], found[2]
