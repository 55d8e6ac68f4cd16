"""The linear model in feedback with an exported Youla policy, proven of the exported constants.

The exported program is one system from observation to input, observer and feedback inside, so the loop holds the
plant's state and its estimate. Both, and the inputs under way in both, nearly agree: in the coordinates (x - xh, xh)
the numbers that cancel are subtracted once, before anything is searched. There the metric of a gain comes from the
Riccati equation of the inequality, over the size of the multipliers; a search from a metric of contraction alone is
lost in a loop whose states differ by orders of magnitude.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from robust_policies.certificates.certificate import Certificate, Factor, claim, forgotten
from robust_policies.certificates.decay import steps_to_forget
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.neurons import METHOD, Neurons
from robust_policies.certificates.riccati import recover_metric
from robust_policies.certificates.search import Search, overshoot
from robust_policies.certificates.verify import running_neurons
from robust_policies.control.bounded import between
from robust_policies.control.feedback import feedback_matrices
from robust_policies.control.norms import radius
from robust_policies.control.youla import Performance
from robust_policies.errors import NotCertifiableError
from robust_policies.export.neurons import neurons_of
from robust_policies.export.program import Program
from robust_policies.policies.youla.certify import LoopParts, loop_parts
from robust_policies.policies.youla.policy import YoulaPolicy

# Of the multipliers, over which the first gain is sought; then the neighbours of the best, closer each time.
_SIZES = np.logspace(-4, 4, 33)
_SLACKS = (1e-2, 1e-4, 1e-6)
_DOUBLINGS, _HALVINGS, _RATES = 12, 8, 9
_UNPROVEN = ("empirical_lower", "ratio", "witness", "margin", "weights", "gamma_weighted", "peak")


class _Decay(NamedTuple):
    rate: float
    overshoot: float


def loop_certificate(program: Program, policy: YoulaPolicy, source: Certificate) -> Certificate:
    """Return what is proven of the linear model in feedback with an exported program, as `certify` says of the run's.

    Args:
        program: what is exported.
        policy: that it was made of.
        source: the certificate of that, which has a proof of its loop.

    Raises NotCertifiableError, InvalidValueError where nothing is proven of the exported constants.
    """
    parts = loop_parts(policy)
    loop, turn = _loop(program, policy, parts)
    rho = radius(loop.model.A)
    if rho >= 1.0:
        raise NotCertifiableError(f"The loop's linear part has spectral radius {rho:.6g}, not below 1.")
    gamma, theta = _least_gain(loop, source.gamma_raw or 1.0)
    decay = _least_rate(loop._replace(theta=theta), turn, rho)
    exact = policy.scope.kind == "linear"
    plant = (
        (source.closed_loop or {})["plant"]
        if exact
        else "Of the nonlinear plant nothing is proven with these constants."
    )
    numbers = dict.fromkeys(("T0", "T1", "T2", "triangle", "scaled", "closed_loop"))
    content = {**(source.closed_loop or {}), **numbers, "neurons": gamma, "converges": True, "plant": plant}
    found = replace(
        source,
        gamma_core=None,
        gamma_raw=gamma,
        rate=decay.rate,
        overshoot=decay.overshoot,
        forgets=forgotten(steps_to_forget(decay.rate, decay.overshoot)),
        factors=(Factor("exported program", gamma, "its constants in feedback with the model"),),
        method=METHOD,
        closed_loop=content,
        **dict.fromkeys(_UNPROVEN),
    )
    return replace(found, claim=claim(found))


def _loop(program: Program, policy: YoulaPolicy, parts: LoopParts) -> tuple[Neurons, Array]:
    """Return the loop d -> z and the coordinates (nx, nx) of its states it is in."""
    base = policy.controller
    turns = bool(base.angle.any())
    if turns and base.options.quantum:
        raise NotCertifiableError("Angles are wrapped and inputs rounded, which are not told apart here.")
    neurons = neurons_of(program, clips=False, turns=turns)
    known = running_neurons(policy.policy.actor.cell)
    if known is not None and known.theta.shape == neurons.theta.shape:
        neurons = neurons._replace(theta=known.theta)
    # The reference is held at 0: what it is changes no difference of trajectories.
    seen = np.eye(program.observations)[:, base.measured.cpu().numpy()]
    neurons = neurons.mapped(lambda model: between(model, seen, np.eye(program.actions)))
    performance, n = Performance.lqg(parts.design), parts.model.n
    loop = neurons.mapped(lambda model: feedback_matrices(parts.model, model, performance))
    turn = np.eye(loop.model.sizes[0])
    turn[:n, n : 2 * n] = -np.eye(n)
    turned = loop.model.in_coordinates(turn)
    if turned is None:
        raise NotCertifiableError("The loop's states cannot be told from their estimates in float64.")
    return loop._replace(model=turned), turn


def _least_gain(loop: Neurons, near: float) -> tuple[float, Array]:
    """Return nearly the least gain that is proven and its multipliers (nv,); `near` is where to look first."""
    search, sizes = Search(loop.model, loop.family, 1.0), _SIZES

    def metric(gamma: float, size: float, slack: float = 1e-6) -> Array | None:
        return recover_metric(loop.model, 1.0, loop.family.matrix(size * loop.theta), search.supply(gamma), slack)

    def fitting(gamma: float, sizes: Array) -> Array:
        return np.array([size for size in sizes if metric(gamma, size) is not None])

    high = near
    for _ in range(_DOUBLINGS):
        found = fitting(high, sizes)
        if found.size:
            break
        high *= 2.0
    else:
        raise NotCertifiableError("No metric was found that proves a gain of the loop of the exported constants.")
    low = 0.5 * high
    for _ in range(_HALVINGS):
        # Fewer multipliers fit a smaller gain, all between those that fit a larger one.
        sizes = np.geomspace(found[0] / 1.3, found[-1] * 1.3, 9)
        middle = math.sqrt(low * high)
        fits = fitting(middle, sizes)
        low, high, found = (low, middle, fits) if fits.size else (middle, high, found)
    for lift in (1.003, 1.01, 1.03, 1.1, 1.3, 2.0, 5.0):
        gamma = lift * high
        for size in _middle_first(fitting(gamma, np.geomspace(found[0] / lift, found[-1] * lift, 9))):
            for slack in _SLACKS:
                P = metric(gamma, size, slack)
                balanced = None if P is None else search.balanced(P)
                theta = size * loop.theta
                if (
                    balanced is not None
                    and balanced.prove(np.eye(len(loop.model.A)), theta, 1.0, search.supply(gamma)).holds
                ):
                    return gamma, theta
    raise NotCertifiableError("The gain of the loop of the exported constants is not proven in float64.")


def _middle_first(sizes: Array) -> list[float]:
    return sorted(sizes, key=lambda size: abs(math.log(size / math.sqrt(sizes[0] * sizes[-1]))))


def _least_rate(loop: Neurons, turn: Array, rho: float) -> _Decay:
    """Return the least contraction rate that a bisection proves, between the radius of the loop's linear part and 1."""
    search, found = Search(loop.model, loop.family, 1.0), None
    low, high = math.log(1e-9), math.log(1.0 - rho)
    for _ in range(_RATES):
        middle = 0.5 * (low + high)
        rate = 1.0 - math.exp(middle)
        proven = None
        for slack in _SLACKS:
            P = recover_metric(loop.model, rate, loop.family.matrix(loop.theta), None, slack)
            balanced = None if P is None else search.balanced(P)
            if balanced is None or not balanced.prove(np.eye(len(loop.model.A)), loop.theta, rate, None).holds:
                continue
            proven = _Decay(rate, overshoot(np.eye(len(turn)), balanced.coordinates @ turn))
            break
        low, high, found = (low, middle, found) if proven is None else (middle, high, proven)
    if found is None:
        raise NotCertifiableError("No metric was found that proves contraction of the loop.")
    return found
