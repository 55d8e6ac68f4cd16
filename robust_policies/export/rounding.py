"""How far the program that runs can ever be from exact arithmetic: rounding as a disturbance of a contracting system.

x, w, u, y are the state, what the neurons give, the observation and the mean action of the program in exact arithmetic,
hats the same as they run. With d each operation's own rounding, pushed forward to the next neuron, state or action,

    x^+ = A x^ + B1 (w^ + d_w) + B2 u + ..,    w^ = act(C1 x^ + D11 (w^ + d_w) + D12 u + ..),    |d| <= E,

and the difference from exact arithmetic is an increment of the same system with d as its input. Three steps bound it:

1. States that are never left. |u - c| <= the limits, x* the state at rest under u = c. V = (x - x*)' P (x - x*) never
   exceeds R^2 if sqrt(rate^2 R^2 + sum r) + |f(x*, c) - x*|_P <= R and V(0) <= R^2, with r from `peak`'s first
   inequality, for the observation and the rounding together: so it holds for what runs as well.
2. Ranges of all numbers, `affine`: from some step on of what many steps lead to from there, before it of what they
   lead to from zero. They bound each rounding: E, of sums of n products by n u / (1 - n u) of the largest sum of their
   sizes in any order (N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapter 4), in a known
   order by u of each product and of each partial sum; a fused multiply-add rounds less; of activations by `UNITS` in
   the last place.
3. `lags.lag_sum` with d in [-E, E] at every step bounds |y^ - y| at every step, for ever.

Without a state ranges alone do it. The clip of the action is exact and moves no two numbers apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from robust_policies.certificates import optimum
from robust_policies.certificates.decay import least_decay
from robust_policies.certificates.lmi import Array, Matrices, assemble, prove_positive, signal_maps
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.optimum import Candidate, least_reach
from robust_policies.certificates.peak import metric_at
from robust_policies.certificates.search import Search
from robust_policies.control.norms import radius
from robust_policies.errors import NotCertifiableError
from robust_policies.export.affine import Affine
from robust_policies.export.intervals import UNITS, Walk
from robust_policies.export.lags import lag_sum
from robust_policies.export.program import Program

_SHARES = (0.4, 0.7, 0.2, 0.1)
# Of the search for states that are never left, of steps until they settle, and of the symbols of their ranges.
_NEAR, _SHORTEST, _LONGEST, _SETTLED, _SYMBOLS = 0.3, 8, 80, 0.01, 200
_TRIAL, _EPISODES = 200, 16
_RESTS, _GROWN, _UP = 20_000, 1.001, 1 + 1e-9
_SLACKS = (0.3, 0.1, 1e-2, 1e-4)


@dataclass(frozen=True)
class Rounding:
    """A bound for all time.

    Attributes:
        bound: (na,) of |action that runs - action in exact arithmetic|.
        low, high: (nu,) the observations for which it holds.
        states: (nx,) no state is larger for them.
        rate: the contraction rate in whose metric it was found, None without a state.
    """

    bound: Array
    low: Array
    high: Array
    states: Array
    rate: float | None

    def entry(self, program: Program, absolute: bool, ordered: bool) -> dict[str, Any]:
        """Return the entry of certificate.json; the last two as of `rounding_of`."""
        order = "the order in which they are written" if ordered else "any order"
        return {
            "bound": self.bound.tolist(),
            "dtype": program.dtype,
            "observations_low": self.low.tolist(),
            "observations_high": self.high.tolist(),
            "states_at_most": self.states.tolist(),
            "rate": self.rate,
            "activations": f"off by at most {UNITS} units in the last place" + (" of 1" if absolute else ""),
            "claim": (
                "from an episode's start on, for observations within these limits, each action that the exported "
                f"program computes in {program.dtype}, its sums in {order}, differs from the one of the same "
                "constants in exact arithmetic by at most this much, at every step and for ever"
            ),
        }


def rounding_of(
    program: Program, neurons: Neurons, low: Array, high: Array, absolute: bool = False, ordered: bool = False
) -> Rounding:
    """Return the bound for observations from `low` to `high` (nu,), finite.

    Args:
        program: what runs.
        neurons: the same, as `neurons_of` has it, with multipliers of a proof of contraction.
        low: (nu,) the smallest observations.
        high: (nu,) the largest ones.
        absolute: activations are off by units in the last place of 1, not of what they give.
        ordered: sums are taken from the first term to the last.

    Raises NotCertifiableError where contraction is not proven, so rounding might add up.
    """
    walk = Walk(program, absolute, ordered=ordered)
    if not program.states:
        seen = walk.through((low, high), Affine.exact(np.zeros(0)))
        return Rounding(_up(seen.action), low, high, np.zeros(0), None)
    held = None
    for rate, start in _starts(neurons):
        held = _held_states(program, neurons, Walk(program, absolute), (low, high), rate, start)
        if held is not None:
            break
    if held is None:
        raise NotCertifiableError("No contraction of the exported program is proven, so its rounding has no bound.")
    errors, action, states = _settled(program, walk, Walk(program, absolute), (low, high), held.states)
    bound = _summed(neurons._replace(theta=held.metric.theta), held, errors)
    if bound is None:
        raise NotCertifiableError("What roundings do to the action is not proven in float64.")
    return Rounding(_up(bound + action), low, high, states, held.rate)


class _Held(NamedTuple):
    """States (low, high) that are never left, and the rate and metric of a contraction that shows it."""

    states: tuple[Array, Array]
    rate: float
    metric: Candidate


def _starts(neurons: Neurons) -> list[tuple[float, Candidate]]:
    """Return rates and metrics in which the system contracts, to search better ones from."""
    search, theta = Search(neurons.model, neurons.family, 1.0), neurons.theta
    if not theta.size:
        rate: float | None = radius(neurons.model.A)
    else:
        decay = least_decay(search, theta, [])
        if decay is None and optimum.small_enough(neurons.model, neurons.family):
            hint = optimum.contraction(neurons.model, neurons.family, 1.0)
            if hint is not None:
                theta = hint.theta / hint.theta.max()
                decay = least_decay(search, theta, [hint.P / hint.theta.max()])
        rate = None if decay is None else decay.rate
    if rate is None or rate >= 1.0:
        return []
    slow, found = 1.0 - rate**2, []
    for share in _SHARES:
        rate = math.sqrt(1.0 - share * slow)
        metrics = [metric_at(neurons.model, neurons.family, theta, rate, slack) for slack in _SLACKS]
        found += [(rate, Candidate(metric, theta)) for metric in metrics if metric is not None][:1]
    return found


def _settled(
    program: Program, walk: Walk, rough: Walk, limits: tuple[Array, Array], held: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Return bounds of roundings (nv + nx,) and (na,) and of states (nx,), for all time.

    From step k on the states are among those that k steps lead to from `held`; until then they are what the first k
    steps lead to from zero. Both are followed as `Affine` ranges, which remember past observations.
    """
    state, low, high = Affine.box(*held), *held
    for count in range(1, _LONGEST + 1):
        before, state = state.reach, rough.through(limits, state).next.reduced(_SYMBOLS)
        low, high = np.maximum(low, state.low), np.minimum(high, state.high)
        if count >= _SHORTEST and (np.abs(state.reach - before) <= _SETTLED * before).all():
            break
    if np.log(high - low).sum() < np.log(state.high - state.low).sum():
        state = Affine.box(low, high)
    seen = walk.through(limits, state)
    errors, action = np.concatenate((seen.neurons, seen.following)), seen.action
    largest, state = np.maximum(np.abs(low), np.abs(high)), Affine.exact(np.zeros(program.states))
    for _ in range(count):
        seen = walk.through(limits, state)
        errors = np.maximum(errors, np.concatenate((seen.neurons, seen.following)))
        action, state = np.maximum(action, seen.action), seen.next.reduced(_SYMBOLS)
        largest = np.maximum(largest, state.size)
    return errors, action, largest


def _summed(neurons: Neurons, held: _Held, errors: Array) -> Array | None:
    """Return (na,) what roundings of these sizes do to each mean action at most, None without a proof."""
    system = _Driven(neurons, held.rate, held.metric.P)
    inputs, used = system.inputs(), errors > 0
    if inputs is None:
        return None
    if not used.any():
        return np.zeros(neurons.model.sizes[3])
    model, found = _columns(system.with_rounding(inputs), used), []
    for row in np.eye(neurons.model.sizes[3]):
        one = lag_sum(model.then(row[None]), errors[used], neurons.theta, held.rate, held.metric)
        if one is None:
            return None
        found.append(one)
    return np.array(found)


def _sizes(program: Program, low: Array, high: Array) -> Array:
    """Return (nx,) how large states were in a short trial, in which units a metric is searched; nothing rests on it."""
    draw, state = np.random.default_rng(0), np.zeros((_EPISODES, program.states))
    largest = np.full(program.states, 1e-6)
    for t in range(_TRIAL):
        held = np.where(draw.random((_EPISODES, len(low))) < 0.5, low, high)
        state = program.run(held if t % 2 else draw.uniform(low, high, held.shape), state, np.float64)[1]
        largest = np.maximum(largest, np.abs(state).max(0))
    return np.maximum(largest, 1e-3 * largest.max())


def _held_states(
    program: Program,
    neurons: Neurons,
    walk: Walk,
    limits: tuple[Array, Array],
    rate: float,
    start: Candidate,
) -> _Held | None:
    """Return states that observations within the limits never leave, of what runs and of exact arithmetic."""
    low, high = limits
    centre, reach = 0.5 * (low + high), 0.5 * (high - low)
    used, model = reach > 0, neurons.model
    driven = replace(model, B2=model.B2[:, used], D12=model.D12[:, used], D22=model.D22[:, used], error=None)
    shape = np.diag(1 / np.square(_sizes(program, low, high)))
    best = least_reach(driven, neurons.family, rate, shape, reach[used], start, _NEAR) if used.any() else start
    if best is None:
        return None
    rest, residual = _rest(program, centre, best.P)
    system = _Driven(neurons._replace(theta=best.theta), rate, best.P)
    inputs, quiet = system.inputs(), np.zeros(sum(neurons.model.sizes[:2]))
    r = None if inputs is None else system.spent(inputs, np.concatenate((reach, quiet)))
    if inputs is None or r is None:
        return None
    radius = math.sqrt(_held(r, rate, rest, residual, best.P)) * _GROWN
    root = np.sqrt(np.diagonal(np.linalg.inv(best.P))) * _UP
    for _ in range(6):
        if not np.isfinite(radius):
            return None
        states = rest - radius * root * _UP, rest + radius * root * _UP
        seen = walk.through(limits, Affine.box(*states))
        r = system.spent(inputs, np.concatenate((reach, seen.neurons, seen.following)))
        if r is None:
            return None
        needed = math.sqrt(_held(r, rate, rest, residual, best.P))
        if needed <= radius:
            return _Held(states, rate, best)
        radius = needed * _GROWN
    return None


def _held(r: Array, rate: float, rest: Array, residual: float, P: Array) -> float:
    """Return R^2 of which `sqrt(rate^2 R^2 + sum r) + residual <= R`, at least what V is at first."""
    start, left = float(rest @ P @ rest) * _UP, 1.0 - rate * rate
    square = max(start, float(r.sum()) / left * _UP)
    for _ in range(60):
        if math.sqrt(rate * rate * square + float(r.sum())) * _UP + residual <= math.sqrt(square):
            return square
        square = square * 1.05 + residual
    return math.inf


def _rest(program: Program, centre: Array, P: Array) -> tuple[Array, float]:
    """Return a state near rest under a constant observation, and how far one step moves it in the metric P.

    The step is computed in float64, whose own rounding is allowed for.
    """
    x, u = np.zeros((1, program.states)), centre[None]
    for _ in range(_RESTS):
        following = program.run(u, x, np.float64)[1]
        moved = float(np.abs(following - x).max())
        x = np.asarray(following, dtype=np.float64)
        if moved <= 1e-13 * (1.0 + float(np.abs(x).max())):
            break
    off = np.abs(program.run(u, x, np.float64)[1] - x)[0]
    walk = Walk(program, False, np.finfo(np.float64).eps / 2)
    off = off + walk.through((centre, centre), Affine.exact(x[0])).following_total
    largest = math.sqrt(float(np.linalg.eigvalsh(P)[-1])) * _UP
    return x[0], largest * float(np.linalg.norm(off)) * _UP


class _Driven:
    """The system with rounding as its input: first the observation, then d of the neurons and of the states."""

    def __init__(self, neurons: Neurons, rate: float, P: Array) -> None:
        self.neurons, self.rate, self.P = neurons, rate, P
        self.nx, self.nv, self.nu, self.ny = neurons.model.sizes
        self.theta = neurons.theta

    def inputs(self) -> tuple[Array, Array, Array] | None:
        """Return B2, D12 and D22 of all inputs, None where rate and metric do not contract."""
        model = self.neurons.model
        F, K, error = assemble(model, self.P, self.rate, self.neurons.family.matrix(self.theta), None)
        if not prove_positive(F, K, error).holds:
            return None
        return (
            np.hstack((model.B2, model.B1, np.eye(self.nx))),
            np.hstack((model.D12, model.D11, np.zeros((self.nv, self.nx)))),
            np.hstack((model.D22, model.D21, np.zeros((self.ny, self.nx)))),
        )

    def model(self, inputs: tuple[Array, Array, Array], columns: slice) -> Matrices:
        """Return the system of some of the inputs, with what is not exact of the constants."""
        model = self.neurons.model
        error = model.error
        assert error is not None
        bounds = (
            np.hstack((error.B2, error.B1, np.zeros((self.nx, self.nx)))),
            np.hstack((error.D12, error.D11, np.zeros((self.nv, self.nx)))),
            np.hstack((error.D22, error.D21, np.zeros((self.ny, self.nx)))),
        )
        names = ("B2", "D12", "D22")
        cut: dict[str, Any] = {name: array[:, columns] for name, array in zip(names, inputs, strict=True)}
        off: dict[str, Any] = {name: array[:, columns] for name, array in zip(names, bounds, strict=True)}
        same = {name: getattr(model, name) for name in ("A", "B1", "C1", "C2", "D21", "D11")}
        near = {name: getattr(error, name) for name in same}
        return Matrices(**same, **cut, error=Matrices(**near, **off))

    def with_rounding(self, inputs: tuple[Array, Array, Array]) -> Matrices:
        """Return the system whose inputs are the roundings alone."""
        return self.model(inputs, slice(self.nu, None))

    def spent(self, inputs: tuple[Array, Array, Array], units: Array) -> Array | None:
        """Return r (inputs,) with which the first inequality of `peak` is proven for inputs of these sizes."""
        used = units > 0
        model = self.model(inputs, slice(None))
        model = _columns(model, used)
        room = _diagonal(self._form(model), self.nx + self.nv, units[used])
        if room is None:
            return None
        for lift in (1 + 1e-9, 1 + 1e-6, 1 + 1e-3):
            r = lift * room
            supply = np.zeros((self.ny + len(r),) * 2)
            supply[self.ny :, self.ny :] = np.diag(r / np.square(units[used]))
            F, K, error = assemble(model, self.P, self.rate, self.neurons.family.matrix(self.theta), supply)
            if prove_positive(F, K, error).holds:
                return r
        return None

    def _form(self, model: Matrices) -> Array:
        """Return the inequality's form of (x, w, inputs), without r."""
        F_x, F_r = signal_maps(model, True)
        related = F_r[: 2 * self.nv].T @ self.neurons.family.matrix(self.theta) @ F_r[: 2 * self.nv]
        stored = F_x[: self.nx].T @ self.P @ F_x[: self.nx]
        after = F_x[self.nx :].T @ self.P @ F_x[self.nx :]
        return self.rate**2 * stored - after - related


def _columns(model: Matrices, used: Array) -> Matrices:
    error = model.error
    assert error is not None
    names, rest = ("B2", "D12", "D22"), ("A", "B1", "C1", "C2", "D21", "D11")
    same = {name: getattr(model, name) for name in rest} | {name: getattr(model, name)[:, used] for name in names}
    near = {name: getattr(error, name) for name in rest} | {name: getattr(error, name)[:, used] for name in names}
    return Matrices(**same, error=Matrices(**near))


def _diagonal(form: Array, n: int, units: Array) -> Array | None:
    """Return r (inputs,) with form + diag(r / units^2) >= 0 on the inputs, n variables before them, None for none.

    A matrix of the inputs in their units is at most the diagonal of its rows' sums of sizes.
    """
    try:
        factor = np.linalg.cholesky(form[:n, :n])
    except np.linalg.LinAlgError:
        return None
    half = np.linalg.solve(factor, form[:n, n:])
    schur = (half.T @ half - form[n:, n:]) * np.outer(units, units)
    return np.abs(schur).sum(1)


def _up(value: Array) -> Array:
    return value * (1 + 1e-6)
