"""Stability margins of a linear loop in discrete time: measured at each input, and proven for all inputs at once.

Plant y = P u and controller u = K y close the loop. It is broken at one plant input, the others closed: with what
then goes around, -L, the loop is stable while L does not meet -1. At that input, from L(exp(i w)):

    gain     the loop stays stable while the input is multiplied by a number between `low` and `high`
    phase    and while it is turned by less than this angle, either way
    delay    and while it comes late by less than so many steps (the angle over w: between steps, a continuous measure)

For all inputs at once, N = (S - T) / 2 with S from what is added at the inputs to what reaches the plant, T = 1 - S:
factors f = (1 + d/2) / (1 - d/2) at the inputs, |d| < alpha = 1 / |N|, leave the loop stable, alpha being the disk
margin; so do gains between (2 - alpha) / (2 + alpha) and its inverse, and turns by less than 2 atan(alpha / 2), at all
inputs at once and by different amounts. |N| < 1/alpha is what a proof shows. With (1 - 1/z) T in place of N it shows
that inputs may be late by up to N steps, changing from step to step, while N |(1 - 1/z) T| < 1.

Sources: P. Seiler, A. Packard and P. Gahinet, "An introduction to disk margins", IEEE Control Systems Magazine 40
(2020); C.-Y. Kao and B. Lincoln, "Simple stability criteria for systems with time-varying delays", Automatica 40
(2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import brentq

from robust_policies import checks
from robust_policies.certificates.lmi import Matrices
from robust_policies.control.bounded import assembled, block, parts
from robust_policies.control.gain_bounds import gain_bound
from robust_policies.control.norms import Array, StateSpace, hinf_norm, radius
from robust_policies.errors import InvalidValueError

_LONGEST = 100
"""Whole steps of delay that are tried."""
_POINTS = 2000


@dataclass(frozen=True)
class InputMargins:
    """What is measured where the loop is broken at one input; infinite where nothing ends the range.

    Attributes:
        gain_low, gain_high: the range of gains around 1, 0 <= gain_low < 1 < gain_high.
        phase: [degrees], at most 180.
        delay: [steps], a number and not a whole one.
        sensitivity: the largest |1 / (1 + L)|; its inverse is how near L comes to -1.
    """

    gain_low: float
    gain_high: float
    phase: float
    delay: float
    sensitivity: float


@dataclass(frozen=True)
class DiskMargin:
    """A disk margin alpha of all inputs at once, and what follows from it."""

    alpha: float

    @property
    def gain_low(self) -> float:
        """The least factor at the inputs; 0 where any is allowed down to there."""
        return max(0.0, (2.0 - self.alpha) / (2.0 + self.alpha))

    @property
    def gain_high(self) -> float:
        """The largest factor at the inputs."""
        return (2.0 + self.alpha) / (2.0 - self.alpha) if self.alpha < 2.0 else math.inf

    @property
    def phase(self) -> float:
        """The turn at the inputs [degrees]."""
        return math.degrees(2.0 * math.atan(self.alpha / 2.0))


@dataclass(frozen=True, eq=False)
class LinearLoop:
    """A plant (n states, m inputs, p outputs; D = 0) and a controller u = K y, as linear systems in discrete time.

    Raises:
        ShapeError: they do not fit one another. InvalidValueError: the plant has D != 0.
    """

    plant: StateSpace
    controller: StateSpace

    def __post_init__(self) -> None:
        checks.shape("The controller's D", self.controller.D, self.plant.D.T.shape)
        if np.any(self.plant.D):
            raise InvalidValueError("The plant has D != 0; expected D = 0: use with_input_delay first.")

    @cached_property
    def around(self) -> StateSpace:
        """What is added at the plant's inputs (m) -> what the controller answers there (m): -T."""
        (A, B, C, _), k = self.plant, self.controller
        return StateSpace(
            np.block([[A + B @ k.D @ C, B @ k.C], [k.B @ C, k.A]]),
            np.vstack((B, np.zeros((len(k.A), B.shape[1])))),
            np.hstack((k.D @ C, k.C)),
            np.zeros((B.shape[1], B.shape[1])),
        )

    @property
    def poles(self) -> Array:
        """The closed loop's eigenvalues (n + controller's,), largest modulus first."""
        values = np.linalg.eigvals(self.around.A)
        return values[np.argsort(-np.abs(values), kind="stable")]

    @property
    def stable(self) -> bool:
        """Whether all of them are inside the unit circle."""
        return radius(self.around.A) < 1.0

    def opened(self, channel: int) -> StateSpace:
        """Return L at an input: from what replaces it to minus what the controller answers, the other inputs closed."""
        loop = self.around
        B, C = loop.B[:, channel : channel + 1], loop.C[channel : channel + 1]
        return StateSpace(loop.A - B @ C, B, -C, np.zeros((1, 1)))

    def measured(self, channel: int) -> InputMargins:
        """Return the margins at an input, from the frequency response; raises InvalidValueError for an unstable loop.

        Crossings are sought on a grid that is fine near the poles, and then refined.
        """
        self._need_stable()
        opened = self.opened(channel)

        def answer(angle: float) -> complex:
            return complex(opened.response(np.array([angle]))[0, 0, 0])

        grid = self.angles(opened)
        values = opened.response(grid)[:, 0, 0]
        real = [_refined(lambda w: answer(w).imag, *grid[i : i + 2]) for i in _changes(np.imag(values))]
        # At both ends it is real, but where a pole lies there; rounding moves a double one by 1e-8.
        poles = np.linalg.eigvals(opened.A)
        real += [w for w in (0.0, math.pi) if np.abs(poles - math.cos(w)).min(initial=1.0) > 1e-6]
        gains = [-1.0 / answer(w).real for w in real if answer(w).real < 0.0]
        apart = np.abs(values) - 1.0
        unit = [_refined(lambda w: abs(answer(w)) - 1.0, *grid[i : i + 2]) for i in _changes(apart)]
        turns = [(w, float(np.angle(-answer(w)))) for w in unit]
        sensitivity = StateSpace(*self.around[:2], self.around.C[[channel]], np.zeros((1, self.around.B.shape[1])))
        alone = StateSpace(sensitivity.A, sensitivity.B[:, [channel]], sensitivity.C, np.ones((1, 1)))
        return InputMargins(
            gain_low=max((gain for gain in gains if gain < 1.0), default=0.0),
            gain_high=min((gain for gain in gains if gain > 1.0), default=math.inf),
            phase=min((math.degrees(abs(turn)) for _, turn in turns), default=180.0),
            delay=min(((turn % (2.0 * math.pi)) / w for w, turn in turns), default=math.inf),
            sensitivity=hinf_norm(alone),
        )

    def disk(self) -> DiskMargin:
        """Return the disk margin of all inputs at once; raises InvalidValueError for an unstable loop."""
        self._need_stable()
        norm = hinf_norm(self.around._replace(D=0.5 * np.eye(self.around.D.shape[0])))
        return DiskMargin(1.0 / norm)

    def whole_delay(self, longest: int = _LONGEST) -> int:
        """Return by how many steps all inputs may be late, found by the poles for each number up to `longest`."""
        self._need_stable()
        (A, B, C, _), m = self.plant, self.plant.B.shape[1]
        for steps in range(1, longest + 1):
            late, n = m * steps, len(A)
            held = np.zeros((n + late, n + late))
            held[:n, :n], held[:n, n : n + m] = A, B
            held[n : n + late - m, n + m :] = np.eye(late - m)
            enters = np.zeros((n + late, m))
            enters[n + late - m :] = np.eye(m)
            shown = np.hstack((C, np.zeros((len(C), late))))
            if not LinearLoop(StateSpace(held, enters, shown, self.plant.D), self.controller).stable:
                return steps - 1
        return longest

    def angles(self, system: StateSpace, points: int = _POINTS) -> Array:
        """Return angles (k,) in (0, pi]: evenly in the logarithm, and closely around the poles of `system`."""
        values = np.concatenate((np.linalg.eigvals(system.A), self.poles))
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(values.astype(complex))
        logs = logs[np.isfinite(logs)]
        spread = np.concatenate((-np.geomspace(30.0, 1e-3, 40), np.geomspace(1e-3, 30.0, 40)))
        width = np.maximum(np.abs(np.real(logs)), 1e-7)
        near = (np.abs(np.imag(logs))[:, None] + width[:, None] * spread).ravel()
        grid = np.concatenate((np.geomspace(1e-6, math.pi, points), near[(near > 1e-6) & (near < math.pi)]))
        return np.unique(grid)

    def _need_stable(self) -> None:
        if not self.stable:
            raise InvalidValueError(
                f"The linear loop has spectral radius {radius(self.around.A):.6g}; expected one below 1: an unstable "
                "loop has no margins."
            )


@dataclass(frozen=True)
class ProvenMargins:
    """What is proven at all inputs at once, None where nothing is.

    Attributes:
        disk: gains and turns that leave the loop stable.
        delay: steps by which the inputs may be late, changing from step to step.
    """

    disk: DiskMargin | None
    delay: int | None


def proven_disk(norm: float | None) -> DiskMargin | None:
    """Return the disk margin that follows from a proven bound of |(S - T) / 2|, None without one."""
    # Rounded down: 1 / norm must not be larger than it is.
    return None if norm is None or not math.isfinite(norm) else DiskMargin(1.0 / norm * (1.0 - 1e-15))


def proven_delay(norm: float | None) -> int | None:
    """Return the largest whole number below 1 / norm, for a proven bound of |(1 - 1/z) T|; None without one.

    A loop that answers nothing may be late by any number; so many steps are said at most.
    """
    if norm is None or not math.isfinite(norm):
        return None
    if norm * _LONGEST * (1.0 + 1e-12) < 1.0:
        return _LONGEST
    return max(0, math.ceil(1.0 / norm * (1.0 - 1e-12)) - 1)


def proven_margins(loop: Matrices) -> ProvenMargins:
    """Return what is proven of a linear loop, in exact arithmetic for its matrices within their `error`.

    Args:
        loop: without neurons, from what is added at the plant's inputs (m) to what the controller answers there (m).
    """
    bounds = [gain_bound(one) for one in (disk_loop(loop), delay_loop(loop))]
    norms = [one.gain if one.proven else None for one in bounds]
    return ProvenMargins(proven_disk(norms[0]), proven_delay(norms[1]))


def disk_loop(loop: Matrices) -> Matrices:
    """Return the loop whose gain is |(S - T) / 2|, for one from an addition at the inputs (m) to its answer (m)."""
    made = parts(loop)
    made["D22"] = made["D22"] + 0.5 * np.eye(len(loop.D22))
    return assembled(made)


def delay_loop(loop: Matrices) -> Matrices:
    """Return the loop whose gain is |(1 - 1/z) T|, for one from an addition at the inputs (m) to its answer (m)."""
    made, (n, nv, _, m) = parts(loop), loop.sizes
    zero = np.zeros
    made["A"] = block([[made["A"], zero((n, m))], [made["C2"], zero((m, m))]])
    made["B1"] = block([[made["B1"]], [made["D21"]]])
    made["B2"] = block([[made["B2"]], [made["D22"]]])
    made["C1"] = block([[made["C1"], zero((nv, m))]])
    made["C2"] = block([[made["C2"], -np.eye(m)]])
    return assembled(made)


def _changes(values: Array) -> Array:
    """Return the places (k,) after which the sign of `values` (n,) changes."""
    signs = np.sign(values)
    return np.flatnonzero((signs[1:] * signs[:-1]) < 0)


def _refined(function: Callable[[float], float], low: float, high: float) -> float:
    solve: Any = brentq
    return float(solve(function, float(low), float(high), xtol=1e-14, rtol=1e-13))
