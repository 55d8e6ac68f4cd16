"""A linear plant in feedback with a policy that reads its outputs, and what is proven of the two together.

    plant   x+ = A x + B u + Bw w,   y = C x + Dv v           performance   z = Cz x + Dz u
    policy  s+ = Aq s + B1q r + B2q y,   q = C1q s + D11q r + D12q y,   u = C2q s + D21q r + D22q y,   r = phi(q)

The plant passes nothing from u to y within a step, so plant and policy are again a linear system around the policy's
own neurons, d = (w, v) -> z, and the inequality that certifies a policy certifies the loop. Everything holds for
increments, hence for any two trajectories of the linear plant, while no input is clipped.

What uses only the policy's gain is the small-gain theorem: gain(policy) |G| < 1 with G from u to y. It needs a stable
plant, and then also holds with clipped inputs, as clipping has gain 1.

Sources: G. Zames, "On the input-output stability of time-varying nonlinear feedback systems", IEEE Trans. Automatic
Control 11 (1966); S. Boyd, L. El Ghaoui, E. Feron and V. Balakrishnan, "Linear Matrix Inequalities in System and
Control Theory" (1994), chapter 8 for systems around neurons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from robust_policies import checks
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.multipliers import LipschitzMultiplier, Multiplier
from robust_policies.certificates.neurons import Neurons, least_by_neurons
from robust_policies.certificates.search import Search
from robust_policies.certificates.verify import verify_arrays
from robust_policies.control.bounded import Bounded, assembled, block, parts
from robust_policies.control.gain_bounds import gain_bound, known_gain, linear_loop
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.norms import StateSpace, hinf_norm, radius
from robust_policies.control.weights import choose
from robust_policies.control.youla import Performance, direct_gain
from robust_policies.errors import InvalidValueError
from robust_policies.files import numbers

_STEPS = 6


def feedback_matrices(model: LinearModel, policy: Matrices, performance: Performance) -> Matrices:
    """Return plant and policy as one system d -> z around the policy's neurons; states (x, states of the policy).

    `error` of the result bounds what rounding did. Raises ShapeError where the policy does not fit the plant, and
    InvalidValueError where D is not zero.
    """
    checks.shape("The policy's D22", policy.D22, (model.m, model.p))
    _no_direct_path(model)
    q, exact = parts(policy), Bounded.exact
    A, B, C, Bw = exact(model.A), exact(model.B), exact(model.C), exact(performance.Bw)
    Cz, Dz, Dv = exact(performance.Cz), exact(performance.Dz), exact(performance.Dv)
    nx, nv, _, _ = policy.sizes
    nw, nz = performance.Bw.shape[1], len(performance.Cz)
    direct = q["D22"] @ C
    return assembled(
        {
            "A": block([[A + B @ direct, B @ q["C2"]], [q["B2"] @ C, q["A"]]]),
            "B1": block([[B @ q["D21"]], [q["B1"]]]),
            "B2": block([[Bw, B @ (q["D22"] @ Dv)], [exact(np.zeros((nx, nw))), q["B2"] @ Dv]]),
            "C1": block([[q["D12"] @ C, q["C1"]]]),
            "D11": q["D11"],
            "D12": block([[exact(np.zeros((nv, nw))), q["D12"] @ Dv]]),
            "C2": block([[Cz + Dz @ direct, Dz @ q["C2"]]]),
            "D21": Dz @ q["D21"],
            "D22": block([[exact(np.zeros((nz, nw))), Dz @ (q["D22"] @ Dv)]]),
        }
    )


def _no_direct_path(model: LinearModel) -> None:
    if np.any(model.D):
        raise InvalidValueError(
            f"D has an entry of {np.abs(model.D).max():.3g}; expected D = 0: a plant whose outputs show the input at "
            "once. Use with_input_delay(model, 1)."
        )


@dataclass(frozen=True)
class FeedbackBound:
    """What follows for a linear plant in feedback with a policy; numbers that follow from nothing are None.

    Attributes:
        plant_radius: spectral radius of A.
        plant_gain: proven bound of the gain from u to y, infinite where the plant is not stable.
        policy_gain: the certified gain of the policy, y to u, or None.
        small_gain: gain d -> z by the small-gain theorem, with clipped inputs too; None where it does not apply.
        loop_radius: spectral radius of the loop's linear part, the neurons cut out; None without matrices.
        neurons: gain around the neurons, below 1 if they keep the loop contracting; None where the neurons are
            judged one by one.
        rate: proven contraction rate of the loop, below 1, or None.
        gain: proven gain d -> z of the loop with the policy's matrices, or None.
        reason: why the matrices prove nothing, "" if they do.
    """

    plant_radius: float
    plant_gain: float
    policy_gain: float | None
    small_gain: float | None
    loop_radius: float | None = None
    neurons: float | None = None
    rate: float | None = None
    gain: float | None = None
    reason: str = ""

    @property
    def proven(self) -> bool:
        """Whether anything is proven of the loop."""
        return self.small_gain is not None or self.rate is not None

    def claim(self, model: LinearModel) -> str:
        """Return the sentences that hold, with the numbers."""
        where = "the linear plant" if model.exact else f"the linear model ({model.origin})"
        parts = []
        if self.rate is not None:
            bound = "" if self.gain is None else f", and the gain d -> z is at most {numbers.upper(self.gain)}"
            parts.append(
                f"any two trajectories of {where} in feedback with this policy under the same disturbances approach "
                f"each other like {numbers.rate(self.rate)}^t{bound}, while no action is clipped"
            )
        if self.small_gain is not None:
            assert self.policy_gain is not None
            parts.append(
                f"by the small-gain theorem the gain d -> z is at most {numbers.upper(self.small_gain)}, clipped "
                f"actions included (plant {self.plant_gain:.4g}, policy {self.policy_gain:.4g})"
            )
        nonlinear = "" if model.exact else " The nonlinear plant itself is not covered."
        if parts:
            return f"Closed loop, proven: {'; and '.join(parts)}.{nonlinear}"
        return f"Closed loop: no bound follows for {where}: {self._why()}. This does not mean that it is unstable."

    def _why(self) -> str:
        why = [self.reason] if self.reason else []
        if self.policy_gain is None:
            why.append("the policy has no certified gain for the small-gain theorem")
        elif math.isinf(self.plant_gain):
            why.append(f"the small-gain theorem needs a stable plant, whose spectral radius is {self.plant_radius:.6g}")
        else:
            product = self.policy_gain * self.plant_gain
            why.append(
                f"the small-gain theorem needs a product below 1, and {self.policy_gain:.4g} (policy) times "
                f"{self.plant_gain:.4g} (plant) is {product:.4g}"
            )
        return "; ".join(why)


def compensator(model: LinearModel, design: LQGDesign) -> StateSpace:
    """Return what an LQG design does from y to u: observer and state feedback as one system.

    u = -K (xh + M (y - C xh)), xh+ = A xh + B u + L (y - C xh), M = 0 for the predictor. It need not be stable, nor
    of a small gain, where the loop that it closes is.
    """
    KM = direct_gain(design)
    feedback = design.K - KM @ model.C
    A = model.A - design.L @ model.C - model.B @ feedback
    return StateSpace(A, design.L - model.B @ KM, -feedback, -KM)


def default_performance(model: LinearModel) -> Performance:
    """Return d and z in the weights a design of this model would have: the task's own, else its ranges'."""
    return Performance.lqg(choose(model))


def feedback_bound(
    model: LinearModel,
    policy: Matrices | None,
    family: Multiplier | None = None,
    theta: Array | None = None,
    *,
    neurons: Neurons | None = None,
    gain: float | None = None,
    performance: Performance | None = None,
    reason: str = "",
) -> FeedbackBound:
    """Return what is proven of the plant in feedback with a policy.

    Args:
        model: the plant; y is everything that the policy reads.
        policy: its explicit matrices from y to u in the plant's units; None: it has none (`reason` says why).
        family: what is known of its neurons; None: they are 1-Lipschitz together.
        theta: (size,) of the family, a multiplier to start from; None: the family's own.
        neurons: the policy around its single neurons, where `policy` is around them together; the bounds are then
            the least of both.
        gain: its certified incremental gain from y to u; None: there is none.
        performance: d and z; None: `default_performance(model)`.
        reason: why there are no matrices.

    Raises:
        ShapeError: the policy does not fit the plant. InvalidValueError: D is not zero.
    """
    _no_direct_path(model)
    performance = default_performance(model) if performance is None else performance
    bound = _by_small_gain(model, gain, performance)
    if policy is None:
        return replace(bound, reason=reason)
    loop = feedback_matrices(model, policy, performance)
    family = LipschitzMultiplier(loop.sizes[1]) if family is None else family
    theta = family.start() if theta is None else theta
    rho = radius(loop.A)
    bound = replace(bound, loop_radius=rho)
    if rho >= 1.0:
        why = f"the loop's linear part has spectral radius {rho:.6g}, not below 1"
        return replace(bound, reason=why)
    if not isinstance(family, LipschitzMultiplier):
        return _by_each_neuron(bound, loop, family, theta)
    around = family.ell * _around(loop, 1.0)
    bound = replace(bound, neurons=around)
    each = None if neurons is None else neurons.mapped(lambda matrices: feedback_matrices(model, matrices, performance))
    found = _rate(loop, family, rho) if around < 1.0 else None
    if found is None:
        alone = bound if each is None else _by_each_neuron(bound, each.model, each.family, each.theta)
        why = f"the gain around the policy's nonlinearity is {around:.4g}, not below 1"
        if around < 1.0:
            why = f"contraction (gain around the nonlinearity {around:.6g}) could not be proven"
        return alone if alone.rate is not None else replace(bound, reason=why)
    rate, metric = found
    direct = gain_bound(loop, (family.ell,) if family.nv else ())
    gains = [direct.gain if direct.proven else None, Search(loop, family, 1.0).least(metric, family.start())]
    # The metric that goes with the norm of phi goes with the neurons' own multipliers too.
    gains.append(None if each is None else least_by_neurons(each, metric))
    return replace(bound, rate=rate, gain=min((gain for gain in gains if gain is not None), default=None))


def _by_small_gain(model: LinearModel, gain: float | None, performance: Performance) -> FeedbackBound:
    rho, plant, proven = radius(model.A), math.inf, None
    if rho < 1.0:
        plant = gain_bound(linear_loop(StateSpace(model.A, model.B, model.C, np.zeros((model.p, model.m))))).gain
    if gain is not None and gain * plant < 1.0:
        any_policy = feedback_matrices(model, known_gain(model.p, model.m), performance)
        found = gain_bound(any_policy, (gain,))
        proven = found.gain if found.proven else None
    return FeedbackBound(rho, plant, gain, proven)


def _around(loop: Matrices, rate: float) -> float:
    """Return the gain from the neurons' outputs back to their inputs where all decays like rate^t."""
    return hinf_norm(StateSpace(loop.A / rate, loop.B1 / rate, loop.C1, loop.D11))


def _rate(loop: Matrices, family: LipschitzMultiplier, rho: float) -> tuple[float, Array] | None:
    """Return the least rate found that is proven, and its metric.

    The gain around the neurons decides where to look; the proof is an inequality.
    """
    low, high = rho, 1.0
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if family.ell * _around(loop, middle) < 1.0 else (middle, high)
    found = Search(loop, family, 1.0).least_rate(high, (0.0, 0.1, 0.5, 0.9))
    return None if found is None else (found.rate, found.P)


def _by_each_neuron(bound: FeedbackBound, loop: Matrices, family: Multiplier, theta: Array) -> FeedbackBound:
    """Return the bound where each neuron has a multiplier of its own."""
    assert bound.loop_radius is not None
    for share in (0.5, 0.9, 0.99):
        rate = bound.loop_radius + share * (1.0 - bound.loop_radius)
        found = verify_arrays(loop, rate=rate, family=family, theta=theta)
        if found.status == "PASS" and found.rate is not None and found.rate < 1.0:
            return replace(bound, rate=found.rate, gain=found.gamma)
    return replace(bound, reason="no metric was found that proves contraction of the loop")
