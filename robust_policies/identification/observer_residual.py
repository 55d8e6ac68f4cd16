"""How far a contracting observer is from being correct: the largest |o(x, h(x), u) - f(x, u)|_P of a region.

By interval arithmetic it is proven: on a box about a centre c the residual is r(c) + J (z - c) with J in the interval
of its Jacobian there (mean value theorem), and boxes are split until the bound is near what was seen at their centres.
By runs it is statistical: if none of N runs, drawn alike, has more than rho, another one has more at some step with a
probability of at most 1 - beta^(1/N), with confidence 1 - beta; of runs drawn otherwise nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from robust_policies import checks
from robust_policies.certificates.boxes import through
from robust_policies.certificates.chains import chain_of_step
from robust_policies.certificates.lmi import UP, growth
from robust_policies.certificates.local import Layer, merged
from robust_policies.certificates.search import ProvenRate, Search
from robust_policies.certificates.verify import running_model
from robust_policies.control.enclosure import UnknownOperationError, enclosed
from robust_policies.control.interval import Interval
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.files import numbers
from robust_policies.identification.observer import LearnedObserver, observed
from robust_policies.identification.records import Array

_SLACKS = (0.0, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3)
_CHUNK = 2048


@dataclass(frozen=True)
class ObserverResidual:
    """A bound rho of |r|_P, P the observer's metric between scaled states.

    Attributes:
        value: rho.
        kind: "interval": proven for all states and inputs of `region`; "statistical": see `claim`.
        region: in words.
        seen: the largest that was found at a point.
        share: of runs like those that were drawn which may exceed it, with `confidence`; 0 where it is proven.
        confidence: 1 where it is proven.
    """

    value: float
    kind: Literal["interval", "statistical"]
    region: str
    seen: float
    share: float = 0.0
    confidence: float = 1.0

    @property
    def claim(self) -> str:
        """What holds, in words."""
        if self.kind == "interval":
            return f"proven by interval arithmetic for all states and inputs with {self.region}"
        return (
            f"statistical, not proven: with confidence {numbers.lower(100 * self.confidence)}% at most "
            f"{numbers.upper(100 * self.share)}% of runs drawn like {self.region} exceed it at some step; of other "
            "runs, such as those of another policy, nothing is said"
        )


def proven_contraction(observer: LearnedObserver) -> ProvenRate:
    """Return the rate and the metric P between scaled states with which the arrays that run are proven to contract.

    Raises:
        NotCertifiableError: they are not, with the cell's own metric.
    """
    model, family, theta = running_model(observer.cell, observer.explicit)
    P = np.asarray(observer.cell.metric())
    for slack in _SLACKS:
        rate = observer.rate * (1.0 + slack)
        if any(Search(model, family, rate).prove(P, tau * theta, rate, None).holds for tau in (1.0, 1 + slack)):
            return ProvenRate(rate, P)
    raise NotCertifiableError(f"Contraction with rate {observer.rate:g} could not be proven in the cell's own metric.")


def interval_residual(
    observer: LearnedObserver,
    region: Sequence[float],
    inputs: Sequence[float] | None = None,
    *,
    tolerance: float = 0.1,
    boxes: int = 100_000,
) -> ObserverResidual:
    """Return a proven bound of the residual for all states and inputs in a box about the plant's equilibrium.

    Args:
        observer: of a plant that is known.
        region: half widths (n,) of the states.
        inputs: half widths (m,) of the inputs; None: all that the actuators allow.
        tolerance: boxes are split until the bound is at most so much above the largest that was seen.
        boxes: so many are judged at most.

    Raises:
        InvalidValueError: nothing is known of the plant in interval arithmetic there (something is clipped, say).
        ShapeError: region or inputs do not fit. NotCertifiableError: as `proven_contraction`.
    """
    low, high, words = observed(observer.plant, region, inputs)
    problem = _Residual(observer, proven_contraction(observer).P)
    lows, highs = low[None], high[None]
    left, seen, settled, judged = math.inf, 0.0, 0.0, 0
    while True:
        upper, found, sizes = problem.judge(lows, highs)
        judged += len(lows)
        seen = max(seen, found)
        goal = (1.0 + tolerance) * seen
        open_ = upper > goal
        settled = max(settled, float(upper[~open_].max(initial=0.0)))
        left = float(upper[open_].max(initial=0.0))
        if not open_.any() or judged + 2 * int(open_.sum()) > boxes:
            break
        lows, highs = _halved(lows[open_], highs[open_], sizes[open_])
    return ObserverResidual(max(settled, left), "interval", words, seen)


def statistical_residual(
    observer: LearnedObserver, inputs: Any, outputs: Any, states: Any, confidence: float = 0.99
) -> ObserverResidual:
    """Return the largest residual of runs that were drawn alike and that the observer was not fitted to.

    Args:
        observer: whose residual it is.
        inputs: (time, runs, m) applied in a simulation.
        outputs: (time, runs, p) measured, without noise.
        states: (time + 1, runs, n).
        confidence: 1 - beta.

    Raises:
        ShapeError: they do not fit. InvalidValueError: the confidence is not in (0, 1).
    """
    x, y, u = (torch.as_tensor(np.asarray(part), dtype=torch.float64) for part in (states, outputs, inputs))
    time, runs = y.shape[0], y.shape[1]
    checks.shape("states", x, (time + 1, runs, observer.state_size))
    checks.shape("outputs", y, (time, runs, observer.output_size))
    checks.shape("inputs", u, (time, runs, observer.input_size))
    beta = 1.0 - checks.finite_float("confidence", confidence, above=0.0)
    if not beta > 0 or not runs:
        raise InvalidValueError(f"confidence is {confidence} with {runs} run(s); expected one in (0, 1) and a run.")
    scale = np.asarray(observer.model.signals.output_scale)
    P = proven_contraction(observer).P
    with torch.no_grad():
        r = (observer.advance(x[:-1], y, u) - x[1:]).numpy() / scale
    value = float(np.sqrt(np.einsum("tbi,ij,tbj->tb", r, P, r).max())) * (1.0 + 1e-9)
    words = f"the {runs} given of {time} steps"
    return ObserverResidual(value, "statistical", words, value, -math.expm1(math.log(beta) / runs), confidence)


class _Residual:
    """The residual of an observer on boxes of its plant's states and inputs, as |W r| with W'W = P."""

    def __init__(self, observer: LearnedObserver, P: Array) -> None:
        self.observer, self.plant = observer, observer.plant
        chain = chain_of_step(observer.cell, observer.explicit)
        if chain is None:
            raise NotCertifiableError("This cell has no form in interval arithmetic; expected an R2DN or a REN.")
        self.chain: list[Layer] = merged(chain)
        self.params = self.plant.prepare(self.plant.nominal())
        s = observer.model.signals
        self.n, self.p = observer.state_size, observer.output_size
        self.x_scale, self.x_offset = np.asarray(s.output_scale), np.asarray(s.output_offset)
        # P = W'W up to rounding, which the last factor of `judge` allows for.
        self.W = np.linalg.cholesky(P).T

    def judge(self, low: Array, high: Array) -> tuple[Array, float, Array]:
        """Return bounds (k,) on k boxes (k, n + m), the largest at a centre, and by what each side adds (k, n + m)."""
        parts = [self._judge(low[i : i + _CHUNK], high[i : i + _CHUNK]) for i in range(0, len(low), _CHUNK)]
        bounds, seen, sizes = zip(*parts, strict=True)
        return np.concatenate(bounds), max(seen), np.concatenate(sizes)

    def _judge(self, low: Array, high: Array) -> tuple[Array, float, Array]:
        centre = low + 0.5 * (high - low)
        radius = np.nextafter(np.maximum(high - centre, centre - low), np.inf)
        at, _ = self._plant(centre, centre)
        inside, slopes = self._plant(low, high)
        values, jacobian = through(
            self.chain,
            self._given(centre, centre, at[1]),
            self._given(low, high, inside[1]),
            self._given_slopes(slopes[1]),
            radius.T,
        )
        scale, offset = self.x_scale[None, :], self.x_offset[None, :]
        # In the units of the cell: o - (f - offset) / scale.
        r = Interval(values[0].T, values[1].T) + -_divided(at[0] + Interval(-offset, -offset), scale)
        own = Interval(jacobian[0].transpose(2, 0, 1), jacobian[1].transpose(2, 0, 1))
        J = own + -_divided(slopes[0], scale[:, :, None])
        point, edge = self._weighted(r), self._weighted(J)
        sides = edge * radius[:, None, :]
        total = (point + sides.sum(2)) * (1.0 + growth(radius.shape[1] + 4))
        seen = float(np.linalg.norm(0.5 * (r.low + r.high) @ self.W.T, axis=1).max())
        return np.linalg.norm(total, axis=1) * (1.0 + 1e-9), seen, np.linalg.norm(sides, axis=1)

    def _plant(self, low: Array, high: Array) -> tuple[tuple[Interval, Interval], tuple[Interval, Interval]]:
        """Return the values of step and output (k, .) on boxes, and their slopes (k, ., n + m)."""
        try:
            steps = enclosed(lambda x, u: self.plant.advance(x, u, self.params), self.n, low, high)
            outputs = enclosed(lambda x, u: self.plant.observe(x, self.params), self.n, low, high)
        except UnknownOperationError as error:
            raise InvalidValueError(
                f"Nothing is known of a {self.plant.kind} plant in this region by interval arithmetic ({error}); give "
                "a smaller region, or use statistical_residual."
            ) from error
        return (steps[0], outputs[0]), (steps[1], outputs[1])

    def _given(self, low: Array, high: Array, outputs: Interval) -> tuple[Array, Array]:
        """Return what the cell reads (n + p + m, k): state, output and input between scaled signals."""
        s, n = self.observer.model.signals, self.n
        raw = Interval(
            np.hstack((low[:, :n], outputs.low, low[:, n:])), np.hstack((high[:, :n], outputs.high, high[:, n:]))
        )
        offset = np.concatenate((self.x_offset, s.input_offset))[None, :]
        found = _divided(raw + Interval(-offset, -offset), np.concatenate((self.x_scale, s.input_scale))[None, :])
        return found.low.T, found.high.T

    def _given_slopes(self, outputs: Interval) -> tuple[Array, Array]:
        """Return the Jacobian (n + p + m, n + m, k) of what the cell reads, outputs (k, p, n + m)."""
        s, n, boxes = self.observer.model.signals, self.n, len(outputs.low)
        d = outputs.low.shape[2]
        one = np.broadcast_to(np.eye(d), (boxes, d, d))
        raw = Interval(*(np.concatenate((one[:, :n], end, one[:, n:]), 1) for end in (outputs.low, outputs.high)))
        scale = np.concatenate((self.x_scale, s.input_scale))
        found = _divided(raw, scale[None, :, None])
        return found.low.transpose(1, 2, 0), found.high.transpose(1, 2, 0)

    def _weighted(self, value: Interval) -> Array:
        """Return bounds of |W value| entry by entry, value (k, n, ...)."""
        middle, spread = 0.5 * (value.low + value.high), 0.5 * (value.high - value.low)
        rounding = growth(len(self.W) + 8) * np.maximum(np.abs(value.low), np.abs(value.high))
        wide = np.tensordot(np.abs(self.W), (spread + rounding) * UP, (1, 1))
        return np.moveaxis(np.abs(np.tensordot(self.W, middle, (1, 1))) + wide, 0, 1)


def _divided(value: Interval, scale: Array) -> Interval:
    """Return an interval divided by numbers > 0 that broadcast to it."""
    return Interval.hull(value.low / scale, value.high / scale)


def _halved(low: Array, high: Array, sizes: Array) -> tuple[Array, Array]:
    """Return boxes (2 k, d) that cover k boxes, each split across the side that adds most."""
    rows, axis = np.arange(len(low)), sizes.argmax(1)
    middle = low + 0.5 * (high - low)
    first, second = high.copy(), low.copy()
    first[rows, axis] = second[rows, axis] = middle[rows, axis]
    return np.concatenate((low, second)), np.concatenate((first, high))
