"""The gain of an implicit layer z = act(W z + U u + b) in the l-infinity norm, from its arrays alone.

With weights eta > 0 and mu = max_i (W_ii + sum over j of |W_ij| eta_j / eta_i) < 1 the increments of z obey
|z_i| <= eta_i max_k (|U_k| |u|) / eta_k / (1 - max(mu, 0)); any eta proves a bound. Rounding is upwards.

Source: S. Jafarpour, A. Davydov, A. V. Proskurnikov and F. Bullo, "Robust implicit networks via non-Euclidean
contractions", NeurIPS 2021 (arXiv 2106.03194).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robust_policies.certificates.layers import exactly
from robust_policies.certificates.lmi import UNIT, Array
from robust_policies.errors import InvalidValueError, NonFiniteError, NotCertifiableError, ShapeError


def implicit_gain(explicit: Any, head: Any = None, unit: Any = None) -> Array:
    """Return (ny,) how far each output may differ where every input differs by at most its unit.

    Args:
        explicit: W (n, n), U (n, nu) and eta (n,), as `NemonLayer.explicit` gives them.
        head: (ny, n) a linear map after the layer; None: the outputs are z.
        unit: (nu,) > 0; None: 1 each.

    Raises:
        NotCertifiableError: the matrix measure of W is not proven to be below 1.
        ShapeError, InvalidValueError, NonFiniteError: the arrays or the unit do not fit.
    """
    W, U, eta = (exactly(getattr(explicit, name)) for name in ("W", "U", "eta"))
    n, nu = U.shape
    H = np.eye(n) if head is None else np.abs(_array(head))
    units = np.ones(nu) if unit is None else _array(unit)
    if W.shape != (n, n) or eta.shape != (n,) or units.shape != (nu,) or H.ndim != 2 or H.shape[1] != n:
        raise ShapeError(
            f"W {W.shape}, U {U.shape}, eta {eta.shape}, head {H.shape}, unit {units.shape} do not fit one another."
        )
    if not all(np.isfinite(array).all() for array in (W, U, eta, H, units)):
        raise NonFiniteError("An implicit layer's arrays hold NaN or infinite values; expected finite numbers.")
    if not ((eta > 0).all() and (units > 0).all()):
        raise InvalidValueError("eta and unit hold numbers that are not above 0; expected positive ones.")
    up = 1 + 2.02 * (n + nu + 8) * UNIT
    others = np.abs(W) * eta
    np.fill_diagonal(others, 0.0)
    others = others.sum(1) / eta * up
    diagonal = np.diag(W)
    measure = float((diagonal + others + 4 * UNIT * (np.abs(diagonal) + others)).max())
    room = (1 - max(measure, 0.0)) * (1 - 4 * UNIT)
    if room <= 0:
        raise NotCertifiableError(
            f"The matrix measure of W is {measure:.6g}; below 1 the layer has a gain: train it as a NemonLayer."
        )
    entering = float((np.abs(U) @ units / eta).max()) * up
    return H @ eta * (entering / room) * up


def _array(value: Any) -> Array:
    return exactly(value) if hasattr(value, "detach") else np.asarray(value, dtype=np.float64)
