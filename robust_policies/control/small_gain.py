"""How large a Youla parameter's gain may be on a nonlinear plant.

The residual p = Delta(q) makes the innovation depend on the Youla input: a loop closes, from ut over the residual to
yt. If its gain is at most g, every Q of gain below 1 / g keeps it contracting, by the small-gain theorem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from robust_policies.certificates.lmi import Matrices, zeros
from robust_policies.control.gain_bounds import gain_bound, linear_loop
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import Array, StateSpace
from robust_policies.control.residual import Residual
from robust_policies.control.youla import direct_gain
from robust_policies.errors import InvalidValueError
from robust_policies.files import numbers

# Channels this much smaller than the largest are what rounding leaves of entries that are constant.
_TINY = 1e-10


@dataclass(frozen=True)
class AllowedGain:
    """The gain of Q, in the plant's units, below which the closed loop contracts in the residual's region.

    Attributes:
        triangle: (1 / delta - |Gqp|) / (|Gqu| |Gyp|) for one full block, 0 where the base loop itself may fail.
        scaled: with a scaling of each block, which is better or as good.
        proven: whether `scaled` is proven whatever rounding did.
        residual: where and how the residual's gain is known.
    """

    triangle: float
    scaled: float
    proven: bool
    residual: Residual

    def check(self, gain: float) -> None:
        """Raise InvalidValueError if a Youla parameter of gain `gain` is not covered."""
        if not gain < self.scaled:
            what = (
                "nothing, not even the base controller alone"
                if self.scaled == 0
                else f"less than {numbers.lower(self.scaled)}"
            )
            raise InvalidValueError(
                f"gamma is {gain:.6g}; the region {self.residual.region} allows {what}. Train with a smaller gamma, or "
                "state a smaller region."
            )

    def claim(self, gain: float) -> str:
        """Return the sentence that holds of a Youla parameter of incremental gain `gain`; raises as `check`."""
        self.check(gain)
        proven = "" if self.proven else ", up to rounding"
        statement = (
            "any two trajectories under the same disturbance converge, with any contracting Youla parameter of "
            f"incremental gain up to {numbers.upper(gain)} (covered are gains below "
            f"{numbers.lower(self.scaled)}{proven})"
        )
        return self.residual.claim(statement)


def residual_loop(model: LinearModel, design: LQGDesign, residual: Residual) -> Matrices:
    """Return the loop ut -> yt with the residual's channels as blocks; the states are (x, e)."""
    A, B, C, K, L = model.A, model.B, model.C, design.K, design.L
    n, k = residual.Ep.shape
    m, p = B.shape[1], len(C)
    Ke = K - direct_gain(design) @ C
    Fx, Fu = residual.Fx, residual.Fu
    return Matrices(
        A=np.block([[A - B @ K, B @ Ke], [np.zeros((n, n)), A - L @ C]]),
        B1=np.vstack((residual.Ep, residual.Ep)),
        B2=np.vstack((B, np.zeros((n, m)))),
        C1=np.hstack((Fx - Fu @ K, Fu @ Ke)),
        D11=np.zeros((k, k)),
        D12=Fu,
        C2=np.hstack((np.zeros((p, n)), C)),
        D21=np.zeros((p, k)),
        D22=np.zeros((p, m)),
    )


def allowed_gain(
    model: LinearModel, design: LQGDesign, residual: Residual, scales: tuple[Array, Array] | None = None
) -> AllowedGain:
    """Return how large the gain of Q may be; 0 where even Q = 0 is not covered, infinite without a residual.

    With `scales`, the (p, p) and the (m, m) that `youla.normalisation` returned, it is the gain between normalised
    signals.
    """
    if len(residual.gains) > 1 and (largest := max(gain.value for gain in residual.gains)) > 0:
        tiny = np.array([gain.value <= _TINY * largest for gain in residual.gains])
    else:
        tiny = np.zeros(len(residual.gains), dtype=bool)
    whole, residual = residual, _channels(residual, ~tiny) if tiny.any() else residual
    loop = residual_loop(model, design, residual)
    if tiny.any():
        loop = replace(loop, error=_absorbed(residual_loop(model, design, _channels(whole, tiny)), whole, tiny, loop))
    if scales is not None:
        error = loop.error and replace(
            loop.error, B2=loop.error.B2 @ np.abs(scales[1]), D12=loop.error.D12 @ np.abs(scales[1])
        )
        loop = replace(
            loop,
            error=error,
            B2=loop.B2 @ scales[1],
            D12=loop.D12 @ scales[1],
            C2=scales[0] @ loop.C2,
            D21=scales[0] @ loop.D21,
            D22=scales[0] @ loop.D22 @ scales[1],
        )
    deltas = [gain.value for gain in residual.gains]
    largest = max(deltas)

    def gain(B: Array, C: Array, D: Array) -> float:
        return gain_bound(linear_loop(StateSpace(loop.A, B, C, D))).gain

    inner, across = gain(loop.B1, loop.C1, loop.D11), gain(loop.B2, loop.C1, loop.D12)
    back = gain(loop.B1, loop.C2, loop.D21)
    if largest == 0.0:
        return AllowedGain(math.inf, math.inf, True, whole)
    room, path = 1.0 / largest - inner, across * back
    triangle = 0.0 if room <= 0 else (math.inf if path == 0 else room / path)
    bound = gain_bound(loop, deltas, residual.sizes)
    scaled = 0.0 if not math.isfinite(bound.gain) else (1.0 / bound.gain) * (1.0 - 1e-15)
    return AllowedGain(triangle, scaled, bound.proven, whole)


def _channels(residual: Residual, kept: Array) -> Residual:
    """Return the residual of the scalar channels that `kept` (k,) marks."""
    gains = tuple(gain for gain, keep in zip(residual.gains, kept, strict=True) if keep)
    return Residual(residual.Ep[:, kept], residual.Fx[kept], residual.Fu[kept], gains)


def _absorbed(small: Matrices, residual: Residual, tiny: Array, loop: Matrices) -> Matrices:
    """Return the loop's error by channels as small as rounding, of the loop `small` that has these alone.

    p = delta(t) q with |delta(t)| <= gain is a change of A and B2, and the proof holds for all matrices within it.
    """
    gains = np.array([gain.value for gain, is_tiny in zip(residual.gains, tiny, strict=True) if is_tiny])
    into = np.abs(small.B1) * gains * (1.0 + 1e-12)
    return replace(zeros(loop.sizes), A=into @ np.abs(small.C1), B2=into @ np.abs(small.D12))
