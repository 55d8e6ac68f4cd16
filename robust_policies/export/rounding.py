"""How far the program that runs can ever be from exact arithmetic: rounding as a disturbance of a contracting system.

x, w, u, y are the state, what the neurons give, the observation and the mean action of the program in exact arithmetic,
hats the same as they run. With d each operation's own rounding, pushed forward to the next neuron, state or action,

    x^+ = A x^ + B1 (w^ + d_w) + B2 u + ..,    w^ = act(C1 x^ + D11 (w^ + d_w) + D12 u + ..),    |d| <= E,

and the difference from exact arithmetic is an increment of the same system with d as its input. Two steps bound it:

1. Intervals. |u - c| <= the limits, x* the state at rest under u = c. V = (x - x*)' P (x - x*) never exceeds
   R^2 if sqrt(rate^2 R^2 + sum r) + |f(x*, c) - x*|_P <= R and V(0) <= R^2, with r from `peak`'s first inequality. So
   every number of the program lies in an interval, which bounds each rounding: E, of sums of n terms in any order by
   g_n = n u / (1 - n u) of the sum of sizes (N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2002,
   chapter 4), a fused multiply-add rounds less; of activations by `UNITS` in the last place.
2. `peak.proven_peak` with d in [-E, E] as the input bounds |y^ - y| at every step, for ever.

R is taken for the observation and the rounding together, so the intervals hold for what runs as well. Without a state
intervals alone do it. The clip of the action is exact and moves no two numbers apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robust_policies.certificates.decay import least_decay
from robust_policies.certificates.lmi import Array, Matrices, assemble, prove_positive, signal_maps
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.optimum import Candidate, PeakCandidate, least_reach
from robust_policies.certificates.peak import metric_at, proven_peak
from robust_policies.certificates.search import Search
from robust_policies.errors import NotCertifiableError
from robust_policies.export.intervals import UNITS, Walk
from robust_policies.export.program import Program

_SHARES = (0.7, 0.4, 0.2, 0.1)
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

    def entry(self, program: Program, absolute: bool) -> dict[str, Any]:
        """Return the entry of certificate.json."""
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
                f"program computes in {program.dtype}, its sums in any order, differs from the one of the same "
                "constants in exact arithmetic by at most this much, at every step and for ever"
            ),
        }


def rounding_of(program: Program, neurons: Neurons, low: Array, high: Array, absolute: bool = False) -> Rounding:
    """Return the bound for observations from `low` to `high` (nu,), finite.

    Args:
        program: what runs.
        neurons: the same, as `neurons_of` has it, with multipliers of a proof of contraction.
        low: (nu,) the smallest observations.
        high: (nu,) the largest ones.
        absolute: activations are off by units in the last place of 1, not of what they give.

    Raises NotCertifiableError where contraction is not proven, so rounding might add up.
    """
    walk = Walk(program, absolute)
    centre, reach = 0.5 * (low + high), 0.5 * (high - low)
    if not program.states:
        none = np.zeros(0)
        seen = walk.through((low, high), (none, none))
        return Rounding(_up(seen.action), low, high, none, None)
    limits, sizes = (low, high, centre, reach), _sizes(program, low, high)
    found = None
    for rate, start in _starts(neurons):
        one = _bounded(program, neurons, walk, limits, np.diag(1 / np.square(sizes)), rate, start)
        if one is not None and (found is None or one.bound.max() < found.bound.max()):
            found = one
    if found is None:
        raise NotCertifiableError("No contraction of the exported program is proven, so its rounding has no bound.")
    return found


def _starts(neurons: Neurons) -> list[tuple[float, Candidate]]:
    """Return rates and metrics in which the system contracts, to search better ones from."""
    decay = least_decay(Search(neurons.model, neurons.family, 1.0), neurons.theta, [])
    if decay is None:
        return []
    slow, found = 1.0 - decay.rate**2, []
    for share in _SHARES:
        rate = math.sqrt(1.0 - share * slow)
        metrics = [metric_at(neurons.model, neurons.family, neurons.theta, rate, slack) for slack in _SLACKS]
        found += [(rate, Candidate(metric, neurons.theta)) for metric in metrics if metric is not None][:1]
    return found


def _sizes(program: Program, low: Array, high: Array) -> Array:
    """Return (nx,) how large states were in a short trial, in which units a metric is searched; nothing rests on it."""
    draw, state = np.random.default_rng(0), np.zeros((_EPISODES, program.states))
    largest = np.full(program.states, 1e-6)
    for t in range(_TRIAL):
        held = np.where(draw.random((_EPISODES, len(low))) < 0.5, low, high)
        state = program.run(held if t % 2 else draw.uniform(low, high, held.shape), state, np.float64)[1]
        largest = np.maximum(largest, np.abs(state).max(0))
    return np.maximum(largest, 1e-3 * largest.max())


def _bounded(
    program: Program,
    neurons: Neurons,
    walk: Walk,
    limits: tuple[Array, ...],
    shape: Array,
    rate: float,
    start: Candidate,
) -> Rounding | None:
    low, high, centre, reach = limits
    used = reach > 0
    model = neurons.model
    driven = replace(model, B2=model.B2[:, used], D12=model.D12[:, used], D22=model.D22[:, used], error=None)
    best = least_reach(driven, neurons.family, rate, shape, reach[used], start) if used.any() else start
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
        seen = walk.through((low, high), states)
        r = system.spent(inputs, np.concatenate((reach, seen.neurons, seen.following)))
        if r is None:
            return None
        needed = math.sqrt(_held(r, rate, rest, residual, best.P))
        if needed <= radius:
            break
        radius = needed * _GROWN
    else:
        return None
    errors = np.concatenate((seen.neurons, seen.following))
    bounds = _peaks(neurons, system, shape, errors, best)
    if bounds is None:
        return None
    return Rounding(_up(bounds + seen.action), low, high, np.maximum(np.abs(states[0]), np.abs(states[1])), rate)


def _peaks(neurons: Neurons, system: _Driven, shape: Array, errors: Array, start: Candidate) -> Array | None:
    """Return (na,) what roundings of these sizes do to each mean action at most, None without a proof."""
    inputs = system.inputs()
    if inputs is None:
        return None
    used = errors > 0
    model = system.with_rounding(inputs)
    tuned = least_reach(
        replace(_columns(model, used), error=None), neurons.family, system.rate, shape, errors[used], start
    )
    best = None
    for candidate in (start, tuned):
        if candidate is None:
            continue
        driven = _Driven(neurons._replace(theta=candidate.theta), system.rate, candidate.P)
        found = [driven.peak(model, output, errors) for output in range(model.sizes[3])]
        if all(bound is not None for bound in found):
            bounds = np.array(found, dtype=np.float64)
            best = bounds if best is None else np.minimum(best, bounds)
    return best


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
    off = off + walk.through((centre, centre), (x[0], x[0])).following_total
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
        first, _ = self._forms(model, 0)
        room = _diagonal(first, self.nx + self.nv, units[used])
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

    def peak(self, model: Matrices, output: int, units: Array) -> float | None:
        """Return the bound of one mean action for roundings of these sizes."""
        used = units > 0
        if not used.any():
            return 0.0
        model, units = _columns(model, used), units[used]
        n = self.nx + self.nv
        first, second = self._forms(model, output)
        y = _output(model, output)
        try:
            reach = np.linalg.solve(np.linalg.cholesky(second[:n, :n]), y[:n])
        except np.linalg.LinAlgError:
            return None
        least, best = max(float(reach @ reach), 1e-300), None
        r = _diagonal(first, n, units)
        for scale in (1.0001, 1.01, 1.1, 1.5, 2.0):
            size = scale * least
            s = _diagonal(size * second - np.outer(y, y), n, units)
            if r is None or s is None:
                continue
            # An input that an inequality does not see needs some room too.
            room = 1e-7 * (float(s.sum()) + size * float(r.sum())) / len(s)
            candidate = PeakCandidate(
                self.rate, size * self.P, size * self.theta, size * r + room, size * self.theta, s + room
            )
            bound = proven_peak(model, self.neurons.family, output, units, candidate)
            best = bound if best is None or (bound is not None and bound < best) else best
        return best

    def _forms(self, model: Matrices, output: int) -> tuple[Array, Array]:
        """Return both inequalities' forms of (x, w, inputs), without r, s and the output."""
        F_x, F_r = signal_maps(model, True)
        related = F_r[: 2 * self.nv].T @ self.neurons.family.matrix(self.theta) @ F_r[: 2 * self.nv]
        stored = F_x[: self.nx].T @ self.P @ F_x[: self.nx]
        after = F_x[self.nx :].T @ self.P @ F_x[self.nx :]
        return self.rate**2 * stored - after - related, stored - related


def _output(model: Matrices, output: int) -> Array:
    return np.concatenate((model.C2[output], model.D21[output], model.D22[output]))


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
