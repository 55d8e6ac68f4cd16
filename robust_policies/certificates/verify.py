"""An independent check of a cell's guarantee, from the arrays that run; how they were parametrized is not used.

The search below (over the scale of P, the multiplier and gamma) is ordinary floating point and proves nothing: only
`prove_positive` on its result does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg
import torch
from scipy.optimize import minimize

from robust_policies.certificates.certificate import Verification
from robust_policies.certificates.lmi import (
    Array,
    Matrices,
    Proof,
    assemble,
    gain_supply,
    layer_bound,
    lipschitz_multiplier,
    matrices,
    prove_positive,
    recover_metric,
    signal_maps,
    slope_multiplier,
    spectral_bound,
)
from robust_policies.errors import InvalidValueError, NonFiniteError, NotCertifiableError

SLOPE_RESTRICTED = frozenset(
    {"relu", "tanh", "sigmoid", "identity", "leaky_relu", "elu", "softplus", "hardtanh", "softsign"}
)
_DELTAS = (0.0, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
_TAUS = (1.0, 0.5, 2.0, 0.1, 10.0, 0.01, 100.0)


def verify(cell_or_policy: Any, explicit: Any = None) -> Verification:
    """Return what can be proven of a cell's contraction rate, gain or dissipation from its explicit arrays.

    Args:
        cell_or_policy: a cell, or a policy with a `cell` (then its cell alone is judged).
        explicit: the arrays that run if they are not `cell.explicit()`, for instance read back from a file.

    A gain that rounding of the arrays has made untrue by a hair is replaced by the smallest one that is proven;
    `claimed_gamma` keeps the cell's. Raises NotCertifiableError for a cell without explicit matrices (LSTM, GRU, MLP).
    """
    cell = getattr(cell_or_policy, "cell", cell_or_policy)
    if getattr(cell, "guarantee", None) is None:
        raise NotCertifiableError(
            f"{type(cell).__name__} has no gain by construction; use the cell 'r2dn', 'ren' or 'lbdn' with gamma=..."
        )
    with torch.no_grad():
        explicit = cell.explicit() if explicit is None else explicit
    activation = getattr(getattr(cell, "activation", None) or cell.network.activation, "name", None)
    if activation not in SLOPE_RESTRICTED:
        return Verification(
            "NOT_CERTIFIED", reason=f"the slope of the activation {activation!r} is not known to be in [0, 1]"
        )
    try:
        ell = layers_bound(explicit.layers) if hasattr(explicit, "layers") else 1.0
        if hasattr(explicit, "scale"):
            return _memoryless(cell.gamma, ell * float(explicit.scale.double()) ** 2 * (1 + 1e-15))
        names = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")
        model = matrices(*(_array(getattr(explicit, name)) for name in names), D11=_optional(explicit, "D11"))
    except NonFiniteError as error:
        return Verification("NOT_CERTIFIED", reason=str(error).rstrip("."), claimed_gamma=cell.gamma)
    Lam = _array(cell.multiplier()) if hasattr(cell, "multiplier") else None
    guarantee = cell.guarantee
    supply = None
    if hasattr(guarantee, "Q"):
        Q, S, R = (_array(getattr(guarantee, name)) for name in "QSR")
        supply = np.block([[Q, S.T], [S, R]])
    return verify_arrays(
        model, rate=cell.rate, gamma=cell.gamma, supply=supply, ell=ell, Lam=Lam, P=_array(cell.metric())
    )


def verify_arrays(
    model: Matrices,
    *,
    rate: float,
    gamma: float | None = None,
    supply: Array | None = None,
    ell: float = 1.0,
    Lam: Array | None = None,
    P: Array | None = None,
) -> Verification:
    """Return what is proven of the cell with these matrices.

    Args:
        model: the explicit matrices.
        rate: the contraction rate to prove, in (0, 1].
        gamma: the incremental l2 gain to prove; None asks for contraction, and for whatever gain follows from it.
        supply: the form of (y, u) to prove dissipation with, in place of gamma.
        ell: Lipschitz bound of phi where D11 = 0 and `Lam` is None.
        Lam: (nv,) the diagonal multiplier of slope-restricted neurons, a hint.
        P: (nx, nx) the metric, a hint; recovered by a Riccati equation if None or if it does not do.
    """
    if not 0 < rate <= 1:
        raise InvalidValueError(f"rate is {rate!r}; expected a number in (0, 1].")
    if gamma is not None and not 0 < gamma < math.inf:
        raise InvalidValueError(f"gamma is {gamma!r}; expected a finite number > 0.")
    D11 = model.D11
    if np.triu(D11).any():
        return Verification("NOT_CERTIFIED", reason="D11 is not strictly lower triangular", claimed_gamma=gamma)
    if Lam is None and D11.any():
        return Verification("NOT_CERTIFIED", reason="D11 is not zero and no multiplier was given", claimed_gamma=gamma)
    if Lam is not None and not (np.isfinite(Lam).all() and (Lam > 0).all()):
        return Verification(
            "NOT_CERTIFIED", reason="the multiplier of the neurons is not positive", claimed_gamma=gamma
        )
    search = _Search(model, rate, ell, Lam)
    found = search.from_hint(P, gamma, supply) if P is not None and np.isfinite(P).all() else None
    if found is None:
        found = search.by_riccati(gamma, supply)
    if found is None:
        return Verification("NOT_CERTIFIED", reason="no metric P was found with which the inequality is proven",
                            ell=None if Lam is not None else ell, claimed_gamma=gamma)  # fmt: skip
    return found


class _Search:
    """The search for P, tau and gamma, and the proof of each candidate."""

    def __init__(self, model: Matrices, rate: float, ell: float, Lam: Array | None) -> None:
        self.model, self.rate, self.ell, self.Lam = model, rate, ell, Lam

    def multiplier(self, tau: float) -> Array:
        nv = self.model.sizes[1]
        return lipschitz_multiplier(nv, tau, self.ell) if self.Lam is None else slope_multiplier(tau * self.Lam)

    def prove(self, P: Array, tau: float, rate: float, supply: Array | None) -> Proof:
        P = 0.5 * (P + P.T)
        positive = prove_positive(np.eye(P.shape[0]), P)
        proof = prove_positive(*assemble(self.model, P, rate, self.multiplier(tau), supply))
        return proof if positive.holds else Proof(False, positive.margin, positive.shift)

    def supply(self, gamma: float) -> Array:
        return gain_supply(gamma, self.model.sizes[3], self.model.sizes[2])

    def rates(self, delta: float) -> list[float]:
        return [self.rate] if self.rate == 1 or delta == 0 else [self.rate, min(1.0, self.rate * (1 + delta))]

    def from_hint(self, P: Array, gamma: float | None, supply: Array | None) -> Verification | None:
        """Return what the metric P proves, relaxing tau, gamma and the rate by as little as does."""
        if supply is not None:
            return self.dissipation(P, supply)
        if gamma is None:
            return self.contraction(P)
        for tau in (1.0, 1 + 1e-7, 1 + 1e-5, 1 - 1e-5):
            if self.prove(P, tau, self.rate, self.supply(gamma)).holds:
                return self.result(P, tau, self.rate, gamma, gamma)
        for delta in _DELTAS[1:]:
            for rate in self.rates(delta):
                scale, ratio, smallest = self.smallest_gain(P, rate, gamma)
                if smallest <= gamma * (1 + 1e-2):
                    proven = max(smallest, gamma) * (1 + delta)
                    factor = scale / proven
                    if self.prove(factor * P, factor * ratio, rate, self.supply(proven)).holds:
                        return self.result(factor * P, factor * ratio, rate, proven, gamma)
        return None

    def dissipation(self, P: Array, supply: Array) -> Verification | None:
        for tau in (1.0, 1 + 1e-7, 1 + 1e-5, 1 - 1e-5, 1 + 1e-3):
            for rate in self.rates(1e-6):
                proof = self.prove(P, tau, rate, supply)
                if proof.holds:
                    return self.result(P, tau, rate, None, None, proof)
        return None

    def contraction(self, P: Array) -> Verification | None:
        """Return the proof of contraction, with the gain that follows from P where one does."""
        for delta in _DELTAS:
            for rate in self.rates(delta):
                for tau in (1.0, 1 + delta, 1 - delta):
                    proof = self.prove(P, tau, rate, None)
                    if proof.holds:
                        return self.with_gain(tau, P, rate) or self.result(P, tau, rate, None, None, proof)
        return None

    def with_gain(self, tau: float, P: Array, rate: float) -> Verification | None:
        scale, ratio, smallest = self.smallest_gain(P, rate, 1.0, tau)
        for delta in (1e-9, 1e-6, 1e-3):
            gamma = smallest * (1 + delta)
            if math.isfinite(gamma) and gamma < 1e9:
                factor = scale / gamma
                if self.prove(factor * P, factor * ratio, rate, self.supply(gamma)).holds:
                    return self.result(factor * P, factor * ratio, rate, gamma, None)
        return None

    def smallest_gain(self, P: Array, rate: float, start: float, tau: float = 1.0) -> tuple[float, float, float]:
        """Return (s, t, gamma): the least gamma with storage s P / gamma and multiplier s t / gamma.

        Times gamma, the inequality is s M_c - [y]'[y] + gamma^2 [u]'[u] >= 0, so for given s and t the least gamma^2 is
        the largest eigenvalue of a Schur complement: only two numbers are searched.
        """
        nx, nv, _, ny = self.model.sizes
        n = nx + nv
        F_x, F_r = signal_maps(self.model, True)
        out = F_r[2 * nv : 2 * nv + ny]
        stored = F_x.T @ scipy.linalg.block_diag(rate * rate * P, -P) @ F_x
        related = F_r[: 2 * nv].T @ self.multiplier(1.0) @ F_r[: 2 * nv]
        cost = out.T @ out

        def squared(point: Array) -> float:
            s, t = np.exp(np.clip(point, -40, 40))
            M = s * (stored - t * related) - cost
            try:
                factor = scipy.linalg.cho_factor(M[:n, :n])
            except np.linalg.LinAlgError:
                return math.inf
            schur = M[:n, n:].T @ scipy.linalg.cho_solve(factor, M[:n, n:]) - M[n:, n:]
            return max(float(np.linalg.eigvalsh(schur)[-1]), 1e-24)

        best, point = math.inf, np.array([math.log(start), math.log(tau)])
        for s in np.log(start) + np.arange(0.0, 24.0, 1.0):
            value = squared(np.array([s, math.log(tau)]))
            if value < best:
                best, point = value, np.array([s, math.log(tau)])
        if math.isfinite(best):
            simplex = point + np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 1e-4]])
            options = {"initial_simplex": simplex, "xatol": 1e-9, "fatol": 1e-12, "maxiter": 150}
            point = minimize(lambda x: min(squared(x), 1e300), point, method="Nelder-Mead", options=options).x
            best = squared(point)
        s, t = np.exp(point)
        return float(s), float(t), math.sqrt(best)

    def by_riccati(self, gamma: float | None, supply: Array | None) -> Verification | None:
        """Return what a P recovered from the Riccati equation proves, over tau and slack."""
        for delta in (0.0, 1e-6, 1e-4):
            asked = supply if gamma is None else self.supply(gamma * (1 + delta))
            for rate in self.rates(delta):
                for tau in _TAUS:
                    for slack in (1e-3, 1e-6, 1e-9):
                        P = recover_metric(self.model, rate, self.multiplier(tau), asked, slack)
                        proof = None if P is None else self.prove(P, tau, rate, asked)
                        if P is not None and proof is not None and proof.holds:
                            if asked is None:
                                return self.with_gain(tau, P, rate) or self.result(P, tau, rate, None, None, proof)
                            proven = None if gamma is None else gamma * (1 + delta)
                            return self.result(P, tau, rate, proven, gamma, proof)
        return None

    def result(
        self, P: Array, tau: float, rate: float, gamma: float | None, claimed: float | None, proof: Proof | None = None
    ) -> Verification:
        if proof is None:
            proof = self.prove(P, tau, rate, None if gamma is None else self.supply(gamma))
        eigenvalues = np.linalg.eigvalsh(0.5 * (P + P.T))
        overshoot = math.sqrt(eigenvalues[-1] / eigenvalues[0]) * (1 + 1e-6)
        ell = None if self.Lam is not None else self.ell
        return Verification("PASS", gamma, rate, proof.margin, proof.shift, tau, ell, overshoot, "", claimed)


def layers_bound(layers: Any) -> float:
    """Return a Lipschitz bound of the chain of layers from the maps that run, never less than 1."""
    bound = 1.0
    for layer in layers:
        inner = _array(layer.in_map())
        if layer.psi is None:
            bound *= max(1.0, spectral_bound(inner))
        else:
            bound *= layer_bound(inner, _array(layer.out_map()), _array(layer.psi))
    return bound * (1 + 1e-15 * (len(layers) + 1))


def _memoryless(claimed: float, proven: float) -> Verification:
    """Return the verdict on a memoryless net whose layers prove the gain `proven`; rounding may cost 1e-3."""
    if proven > claimed * (1 + 1e-3):
        reason = f"its layers prove a gain of {proven:.6g} only"
        return Verification("NOT_CERTIFIED", reason=reason, claimed_gamma=claimed)
    return Verification("PASS", max(proven, claimed), None, ell=proven, claimed_gamma=claimed)


def _optional(explicit: Any, name: str) -> Array | None:
    return _array(getattr(explicit, name)) if hasattr(explicit, name) else None


def _array(value: Any) -> Array:
    return (
        value.detach().cpu().numpy().astype(np.float64) if isinstance(value, torch.Tensor) else np.asarray(value, float)
    )
