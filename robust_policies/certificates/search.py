"""The search for a metric, a multiplier and a gain, each candidate followed by its proof."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

from robust_policies.certificates import kept, optimum
from robust_policies.certificates.certificate import Verification
from robust_policies.certificates.lmi import Array, Matrices, Proof, assemble, gain_supply, prove_positive, signal_maps
from robust_policies.certificates.multipliers import LipschitzMultiplier, Multiplier, admissible
from robust_policies.certificates.optimum import Candidate
from robust_policies.certificates.riccati import recover_metric

# A designed gain may have become untrue by this much when its arrays were rounded to float32.
ROUNDING = 1 + 1e-3
_DELTAS = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 9e-4)
_SLACKS = (1e-3, 1e-6, 1e-9)
# Of a metric's axes, squared.
_ILL = 1e-9
_TAUS = (1.0, 0.5, 2.0, 0.1, 10.0, 0.01, 100.0)


class ProvenRate(NamedTuple):
    """A contraction rate, and the metric P (nx, nx) of its proof."""

    rate: float
    P: Array

    @property
    def overshoot(self) -> float:
        """The factor sqrt(cond P) >= 1 by which a difference may grow before it decays like rate^t."""
        return overshoot(self.P)


def overshoot(P: Array, coordinates: Array | None = None) -> float:
    """Return sqrt(cond P) of a metric P (nx, nx), symmetric; the rounding of its eigenvalues is allowed for.

    With `coordinates` S (nx, nx), P is a metric of S x and the number is that of S'P S, the metric of x.
    """
    if coordinates is not None:
        # Of the factor, which keeps the digits that its square, the metric, loses.
        axes = np.linalg.svd(np.linalg.cholesky(P).T @ coordinates, compute_uv=False)
        return float(axes[0] / axes[-1]) * (1 + 1e-6)
    values = np.linalg.eigvalsh(P)
    return math.sqrt(values[-1] / values[0]) * (1 + 1e-6)


def _ill(P: Array) -> bool:
    """Return whether a metric leaves few digits to a proof in these coordinates."""
    values = np.linalg.eigvalsh(P) if P.size and np.isfinite(P).all() else np.ones(1)
    return bool(values[0] <= _ILL * values[-1])


class Search:
    """What can be proven of one model.

    Args:
        model: the matrices.
        family: what is known of phi.
        rate: the contraction rate of the inequality.
        inputs, outputs: units of `gain_supply`, (nu,) and (ny,).
        coordinates: S (nx, nx) where the model's state is S times that of the cell.
    """

    def __init__(
        self,
        model: Matrices,
        family: Multiplier,
        rate: float,
        inputs: Array | None = None,
        outputs: Array | None = None,
        coordinates: Array | None = None,
    ) -> None:
        _, _, nu, ny = model.sizes
        self.coordinates = coordinates
        self.model, self.family, self.rate = model, family, rate
        self.inputs = np.ones(nu) if inputs is None else inputs
        self.outputs = np.ones(ny) if outputs is None else outputs

    def balanced(self, P: Array) -> Search | None:
        """Return the search in coordinates of the state in which the metric P is the identity, None if there are none.

        A metric whose axes differ by 1e5 and more leaves no digits for the proof in the cell's own coordinates: that of
        a REN with a gain bound far below 1, whose Gram matrix grows with 1 / gamma.
        """
        try:
            S = np.linalg.cholesky(0.5 * (P + P.T)).T
        except np.linalg.LinAlgError:
            return None
        model = self.model.in_coordinates(S)
        return None if model is None else Search(model, self.family, self.rate, self.inputs, self.outputs, S)

    def prove(self, P: Array, theta: Array, rate: float, supply: Array | None) -> Proof:
        """Return the proof of the inequality with P > 0, whichever of the two fails."""
        P = 0.5 * (P + P.T)
        if not admissible(self.family, theta):
            return Proof(False, -math.inf, math.inf)
        if P.size:
            positive = prove_positive(np.eye(P.shape[0]), P)
            if not positive.holds:
                return Proof(False, positive.margin, positive.shift)
        return prove_positive(*assemble(self.model, P, rate, self.family.matrix(theta), supply))

    def supply(self, gamma: float) -> Array:
        """Return the supply form of a gain."""
        return gain_supply(gamma, self.outputs, self.inputs)

    def gain(self, P: Array, theta: Array, gamma: float) -> Verification | None:
        """Return what (P, theta) proves near the gain gamma, relaxing scale, gamma and rate by as little as does."""
        for tau in (1.0, 1 + 1e-7, 1 + 1e-5, 1 - 1e-5):
            proof = self.prove(P, tau * theta, self.rate, self.supply(gamma))
            if proof.holds:
                return self.result(P, tau * theta, self.rate, gamma, proof)
        for delta in _DELTAS:
            for rate in self._rates(delta):
                scaled = self.scaled(P, theta, rate, gamma)
                proven = max(scaled.gamma or 0.0, gamma) * (1 + delta) if scaled is not None else math.inf
                found = self.at(scaled, proven, rate) if scaled is not None and proven <= gamma * ROUNDING else None
                if found is not None:
                    return found
        return None

    def dissipation(self, P: Array, theta: Array, supply: Array) -> Verification | None:
        """Return what (P, theta) proves with this supply."""
        for tau in (1.0, 1 + 1e-7, 1 + 1e-5, 1 - 1e-5, 1 + 1e-3):
            for rate in self._rates(1e-6):
                proof = self.prove(P, tau * theta, rate, supply)
                if proof.holds:
                    return self.result(P, tau * theta, rate, None, proof)
        return None

    def contraction(self, P: Array, theta: Array) -> Verification | None:
        """Return the proof of contraction by (P, theta), with a gain where one follows."""
        for delta in (0.0, *_DELTAS):
            for rate in self._rates(delta):
                for tau in (1.0, 1 + delta, 1 - delta):
                    proof = self.prove(P, tau * theta, rate, None)
                    if proof.holds:
                        return self.result(P, tau * theta, rate, self.least(P, tau * theta), proof)
        return None

    def by_riccati(self, theta: Array, gamma: float | None, supply: Array | None) -> Verification | None:
        """Return what a P recovered from the Riccati equation proves, over the multiplier's size and the slack."""
        for delta in (0.0, 1e-6, 1e-4):
            asked = supply if gamma is None else self.supply(gamma * (1 + delta))
            for rate in self._rates(delta):
                for tau in _TAUS:
                    for slack in _SLACKS:
                        P = recover_metric(self.model, rate, self.family.matrix(tau * theta), asked, slack)
                        proof = None if P is None else self.prove(P, tau * theta, rate, asked)
                        if P is None or proof is None or not proof.holds:
                            continue
                        proven = None if gamma is None else gamma * (1 + delta)
                        if asked is None:
                            proven = self.least(P, tau * theta)
                        return self.result(P, tau * theta, rate, proven, proof)
        return None

    def least_rate(self, least: float, shares: Sequence[float]) -> ProvenRate | None:
        """Return the first contraction rate below 1 that is proven with a Lipschitz bound of phi, None without one.

        Args:
            least: no rate below it is tried, in [0, 1).
            shares: in [0, 1), ascending: what part of the way from `least` to 1 each rate tried lies.
        """
        theta = np.ones(1)
        for share in shares:
            rate = least + share * (1.0 - least)
            for slack in _SLACKS if rate < 1.0 else ():
                P = recover_metric(self.model, rate, self.family.matrix(theta), None, slack)
                if P is not None and self.prove(P, theta, rate, None).holds:
                    return ProvenRate(rate, P)
        return None

    def by_optimum(self, gamma: float | None) -> Verification | None:
        """Return what an interior-point search from nothing proves: contraction first, then the gain."""
        if not optimum.small_enough(self.model, self.family):
            return None
        found = optimum.contraction(self.model, self.family, self.rate)
        if found is None:
            return None
        if gamma is None:
            return self.contraction(found.P, found.theta)
        best = self.improved(found.P, found.theta, self.rate)
        return None if best is None or best.gamma is None or best.gamma > gamma else self.at(best, gamma, self.rate)

    def least(self, P: Array, theta: Array) -> float | None:
        """Return the least gain proven (at rate 1, which a gain alone needs), starting from (P, theta), or None."""
        found = self.least_proven(P, theta)
        return None if found is None else found.gamma

    def least_proven(self, P: Array, theta: Array, turn: bool = True) -> Candidate | None:
        """Return the metric and the multiplier (of the inequality times gamma) of the least gain proven, or None.

        Where the best metric's axes differ by a lot, it is proven in the coordinates in which it is the identity, and
        looked for again from there (`turn`); the metric is then of those coordinates. What is kept of an earlier
        search (`kept`) is proven in place of it.
        """
        key = kept.asked("least gain", self.model, P, theta, self.inputs, self.outputs, np.array([turn]))
        found = self._again(key, P, theta)
        if found is None:
            found, coordinates = self._least_proven(P, theta, turn)
            if found is not None:
                turned_to = {} if coordinates is None else {"coordinates": coordinates}
                kept.keep(key, {"P": found.P, "theta": found.theta, "gamma": found.gamma, **turned_to})
        return found

    def _again(self, key: str, P: Array, theta: Array) -> Candidate | None:
        """Return what is kept of an earlier search, if it proves its gain."""
        part = kept.known(key, {"P": P.shape, "theta": theta.shape, "gamma": ()})
        if part is None:
            return None
        found = Candidate(part["P"], part["theta"], float(part["gamma"]))
        turned = part.get("coordinates")
        search = self if turned is None else self.balanced(turned) if turned.shape == P.shape else None
        if search is None or not 0 < float(part["gamma"]) < 1e9 or search.at(found, float(part["gamma"]), 1.0) is None:
            return None
        kept.keep(key, part)
        return found

    def _least_proven(self, P: Array, theta: Array, turn: bool) -> tuple[Candidate | None, Array | None]:
        """Return what `least_proven` searches for, and the metric whose coordinates it is in, None for these."""
        best = self.improved(P, theta, 1.0)
        turned = self.balanced(best.P) if turn and best is not None and _ill(best.P) else None
        if best is not None and turned is not None:
            found, _ = turned._least_proven(np.eye(len(best.P)), best.theta, False)
            if found is not None:
                return found, best.P
        for candidate in (best, self.scaled(P, theta, 1.0, 1.0)):
            for delta in (0.0, *_DELTAS):
                if candidate is not None and candidate.gamma is not None and 0 < candidate.gamma < 1e9:
                    gamma = candidate.gamma * (1 + delta)
                    if self.at(candidate, gamma, 1.0) is not None:
                        return Candidate(candidate.P, candidate.theta, gamma), None
        return None, None

    def improved(self, P: Array, theta: Array, rate: float) -> Candidate | None:
        """Return the candidate of the least gain that an interior-point search reaches from (P, theta)."""
        start = self.scaled(P, theta, rate, 1.0)
        if start is None or start.gamma is None or not optimum.small_enough(self.model, self.family):
            return start
        # Slack for the interior: a larger gain, and more of the contraction that (P, theta) has.
        slack = Candidate(start.P * (1 + 1e-6), start.theta * (1 + 1e-6), 1.1 * start.gamma)
        best = optimum.least_gain(self.model, self.family, rate, slack, self.inputs, self.outputs)
        return start if best is None or best.gamma is None or best.gamma > start.gamma else best

    def at(self, candidate: Candidate, gamma: float, rate: float) -> Verification | None:
        """Return the proof that the candidate (of the inequality times gamma) shows the gain gamma."""
        P, theta = candidate.P / gamma, candidate.theta / gamma
        proof = self.prove(P, theta, rate, self.supply(gamma))
        return self.result(P, theta, rate, gamma, proof) if proof.holds else None

    def scaled(self, P: Array, theta: Array, rate: float, start: float) -> Candidate | None:
        """Return (s P, s t theta, gamma) with the least gamma over the numbers s and t.

        Times gamma, the inequality is s M_c - [y]'[y] + gamma^2 [u]'[u] >= 0, so for given s and t the least gamma^2 is
        the largest eigenvalue of a Schur complement.
        """
        nx, nv, _, ny = self.model.sizes
        n = nx + nv
        F_x, F_r = signal_maps(self.model, True)
        out = self.outputs[:, None] * F_r[2 * nv : 2 * nv + ny]
        related = F_r[: 2 * nv].T @ self.family.matrix(theta) @ F_r[: 2 * nv]
        stored = F_x.T @ scipy.linalg.block_diag(rate * rate * P, -P) @ F_x if nx else np.zeros_like(related)
        cost = out.T @ out

        def squared(point: Array) -> float:
            s, t = np.exp(np.clip(point, -60, 60))
            M = s * (stored - t * related) - cost
            try:
                factor = scipy.linalg.cho_factor(M[:n, :n])
            except (np.linalg.LinAlgError, ValueError):
                return math.inf
            schur = M[:n, n:].T @ scipy.linalg.cho_solve(factor, M[:n, n:]) - M[n:, n:]
            return max(float(np.linalg.eigvalsh(schur * np.outer(self.inputs, self.inputs))[-1]), 1e-24)

        grid = [np.array([s, 0.0]) for s in np.log(start) + np.arange(-4.0, 30.0, 1.0)]
        values = [squared(point) for point in grid]
        best = int(np.argmin(values))
        if not math.isfinite(values[best]):
            return None
        simplex = grid[best] + np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 1e-4]])
        options = {"initial_simplex": simplex, "xatol": 1e-9, "fatol": 1e-12, "maxiter": 150}
        point = scipy.optimize.minimize(
            lambda x: min(squared(x), 1e300), grid[best], method="Nelder-Mead", options=options
        ).x
        s, t = np.exp(point)
        return Candidate(s * P, s * t * theta, math.sqrt(squared(point)))

    def result(self, P: Array, theta: Array, rate: float, gamma: float | None, proof: Proof) -> Verification:
        """Return the verdict of a proof that holds."""
        nx = self.model.sizes[0]
        lipschitz = isinstance(self.family, LipschitzMultiplier)
        return Verification(
            "PASS",
            gamma,
            rate if nx else None,
            proof.margin,
            proof.shift,
            float(theta[0]) if lipschitz else None,
            self.family.ell if isinstance(self.family, LipschitzMultiplier) else None,
            overshoot(0.5 * (P + P.T), self.coordinates) if nx else None,
        )

    def _rates(self, delta: float) -> list[float]:
        return [self.rate] if self.rate == 1 or delta == 0 else [self.rate, min(1.0, self.rate * (1 + delta))]
