"""What is proven of a cell with given matrices, by a matrix inequality."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from robust_policies.certificates.certificate import Verification
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.multipliers import LipschitzMultiplier, Multiplier
from robust_policies.certificates.search import Search
from robust_policies.errors import InvalidValueError


def verify_arrays(
    model: Matrices,
    *,
    rate: float,
    gamma: float | None = None,
    supply: Array | None = None,
    family: Multiplier | None = None,
    P: Array | None = None,
    theta: Array | None = None,
) -> Verification:
    """Return what is proven of the cell with these matrices.

    Args:
        model: the explicit matrices.
        rate: the contraction rate to prove, in (0, 1].
        gamma: the incremental l2 gain to prove; None asks for contraction, and for the least gain that follows.
        supply: the form of (y, u) to prove dissipation with, in place of gamma.
        family: what is known of phi; None: it is 1-Lipschitz, which needs D11 = 0.
        P: (nx, nx) the metric, a hint; recovered by a Riccati equation or an interior-point search if it does not do.
        theta: the multiplier, a hint.

    Raises:
        InvalidValueError: rate or gamma is not allowed.
    """
    if not 0 < rate <= 1:
        raise InvalidValueError(f"rate is {rate!r}; expected a number in (0, 1].")
    if gamma is not None and not 0 < gamma < math.inf:
        raise InvalidValueError(f"gamma is {gamma!r}; expected a finite number > 0.")
    family = LipschitzMultiplier(model.sizes[1]) if family is None else family
    refused = Verification("NOT_CERTIFIED", claimed_gamma=gamma)
    if np.triu(model.D11).any():
        return replace(refused, reason="D11 is not strictly lower triangular")
    if isinstance(family, LipschitzMultiplier) and model.D11.any():
        return replace(refused, reason="D11 is not zero, which a Lipschitz bound of phi alone does not allow")
    hint = family.start() if theta is None else np.asarray(theta, dtype=np.float64)
    if hint.shape != (family.size,) or not np.isfinite(hint).all():
        return replace(refused, reason="the multiplier of the neurons is not finite or of another size")
    search = Search(model, family, rate)
    metric = P if P is not None and np.isfinite(P).all() else None
    found = None if metric is None else _by_hint(search, metric, hint, gamma, supply)
    found = found or search.by_riccati(hint, gamma, supply)
    balanced = search.balanced(metric) if found is None and metric is not None else None
    if balanced is not None:
        found = _by_hint(balanced, np.eye(model.sizes[0]), hint, gamma, supply)
    if found is None and supply is None:
        found = search.by_optimum(gamma)
    if found is None:
        return replace(
            refused,
            reason="no metric P was found with which the inequality is proven",
            ell=family.ell if isinstance(family, LipschitzMultiplier) else None,
        )
    return replace(found, claimed_gamma=gamma, method="matrix inequality with rounding-error bound")


def _by_hint(search: Search, P: Array, theta: Array, gamma: float | None, supply: Array | None) -> Verification | None:
    """Return what a metric and a multiplier that are given prove, or come near to."""
    if supply is not None:
        return search.dissipation(P, theta, supply)
    return search.contraction(P, theta) if gamma is None else search.gain(P, theta, gamma)
