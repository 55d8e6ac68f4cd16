"""What is known of a learned observer's error, for every trajectory that stays where its residual's bound holds.

With plant x+ = f(x, u) + w, y = h(x) + v, observer xh+ = o(xh, y, u) of contraction rate al < 1 in the metric P,
residual |r|_P <= rho and Ly the Lipschitz constant of o in y into |.|_P, the error e = x - xh obeys exactly

    e+ = [o(x, y, u) - o(xh, y, u)] - [o(x, h + v, u) - o(x, h, u)] - r + w,   so that

    |e_t|_P  <=  al^t |e_0|_P + (rho + Ly |v| + |w|_P) (1 - al^t) / (1 - al),

whatever the inputs are, those of a Youla parameter that reads the innovation y - h(xh) included: |y - h(xh)| is bounded
uniformly in u. It is not free of u, and no gain of a loop follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robust_policies.certificates.layers import exactly, is_r2dn, layers_bound, spectral_bound
from robust_policies.certificates.lmi import UP
from robust_policies.control.observers import ErrorBound
from robust_policies.control.observers.bound import box_size, largest_size
from robust_policies.errors import InvalidValueError, NotCertifiableError, ShapeError
from robust_policies.files import numbers
from robust_policies.identification.observer import LearnedObserver
from robust_policies.identification.observer_residual import ObserverResidual, proven_contraction


def observer_bound(
    observer: LearnedObserver,
    residual: ObserverResidual,
    start: Sequence[float],
    *,
    noise: float = 0.0,
    disturbance: float = 0.0,
) -> ErrorBound:
    """Return the bound of a learned observer's error, in the plant's units.

    Args:
        observer: whose cell was built for a rate below 1.
        residual: `interval_residual` or `statistical_residual` of it; the bound is proven or statistical as that is.
        start: (n,) how far each entry of the estimate is from the state at most at the beginning.
        noise: largest |v| of the measured signals, Euclidean.
        disturbance: largest |w| of the state, Euclidean.

    Raises:
        InvalidValueError: the rate is not below 1, of which no bound follows. ShapeError: `start` does not fit.
        NotCertifiableError: contraction is not proven, or noise was given for a cell that is no R2DN.
    """
    half = np.asarray(start, float)
    if half.shape != (observer.state_size,) or not (half >= 0).all():
        raise ShapeError(f"start is {list(start)}; expected {observer.state_size} half widths >= 0.")
    found = proven_contraction(observer)
    if not found.rate < 1:
        raise InvalidValueError(f"The observer's rate is {found.rate:g}; of none but one below 1 a bound follows.")
    scale = np.asarray(observer.model.signals.output_scale)
    P = found.P / np.outer(scale, scale)
    P = 0.5 * (P + P.T)
    added = residual.value
    if noise:
        added += measurement_gain(observer) * noise
    added += largest_size(P) * disturbance
    claim = (
        f"for every trajectory in the region of the residual, whatever the inputs, the error is at most "
        f"{numbers.rate(found.rate)}^t times its first size and {numbers.upper(added / (1.0 - found.rate))} in the "
        f"observer's metric; its residual, at most {numbers.upper(residual.value)}, is {residual.claim}"
    )
    kind = "proven" if residual.kind == "interval" else "statistical"
    return ErrorBound(P, found.rate, box_size(P, half), added / (1.0 - found.rate) * UP, kind, claim)


def measurement_gain(observer: LearnedObserver) -> float:
    """Return Ly, a bound of how far (in |.|_P) an R2DN's next state moves for a measured signal moved by 1 (raw units).

    |P^(1/2) B2| + ell |P^(1/2) B1| |D12|, each for the measured inputs alone, ell the Lipschitz bound of phi.

    Raises:
        NotCertifiableError: the cell is no R2DN.
    """
    e = observer.explicit
    if not is_r2dn(e):
        raise NotCertifiableError("How noise moves a REN's state has no closed form here; use the cell 'r2dn'.")
    W = np.linalg.cholesky(proven_contraction(observer).P).T
    scale = np.asarray(observer.model.signals.input_scale)[: observer.output_size]
    B2, D12 = (exactly(part)[:, : observer.output_size] / scale for part in (e.B2, e.D12))
    through = layers_bound(e.layers) * spectral_bound(W @ exactly(e.B1)) * spectral_bound(D12)
    return (spectral_bound(W @ B2) + through) * UP
