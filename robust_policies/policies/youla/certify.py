"""The closed-loop certificate of a Youla policy: plant, observer and Youla parameter are one R2DN, and so verified."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np

from robust_policies.certificates import Certificate, Factor
from robust_policies.certificates.certificate import array_hashes, claim, forgotten
from robust_policies.certificates.decay import Decay, least_decay
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.multipliers import LipschitzMultiplier
from robust_policies.certificates.neurons import METHOD, least_by_neurons
from robust_policies.certificates.search import Search
from robust_policies.certificates.verify import running_neurons, verify_arrays
from robust_policies.control import youla
from robust_policies.control.augment import with_input_delay
from robust_policies.control.bounded import Bounded, between
from robust_policies.control.closed_loop import ClosedLoop
from robust_policies.control.gain_bounds import GainBound, known_gain
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.lqg import LQGDesign
from robust_policies.control.scope import Scope
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.files.versions import versions
from robust_policies.networks import R2DN
from robust_policies.policies.actor import Actor
from robust_policies.policies.certify import running_arrays
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.youla.base import BaseController


class Judged(Protocol):
    """What is read of a Youla policy."""

    policy: DeployedPolicy
    controller: BaseController
    scope: Scope

    @property
    def model(self) -> LinearModel:
        """The linear model."""
        ...

    @property
    def design(self) -> LQGDesign:
        """The base controller's gains."""
        ...


@dataclass(frozen=True)
class LoopParts:
    """The linear closed loop of a Youla policy, its actuator's known delay included.

    Attributes:
        model, design: with the inputs under way as states.
        parameter: the matrices of Q between normalised signals, None where it has none.
        ell: the Lipschitz bound of its nonlinearity.
    """

    model: LinearModel
    design: LQGDesign
    scales: tuple[Array, Array]
    parameter: Matrices | None
    ell: float


def loop_parts(policy: Judged) -> LoopParts:
    """Return what the closed loop of a policy consists of."""
    model, design, steps = policy.model, policy.design, policy.controller.options.delay
    scales = youla.normalisation(design, model)
    if steps:
        # The observer knows the inputs under way exactly, and the feedback does not use them.
        late, count = with_input_delay(model, steps), steps * model.m
        design = replace(
            design,
            K=np.pad(design.K, ((0, 0), (0, count))),
            L=np.pad(design.L, ((0, count), (0, 0))),
            M=np.pad(design.M, ((0, count), (0, 0))),
            Q=np.pad(design.Q, (0, count)),
            W=np.pad(design.W, (0, count)),
        )
        model = late
    try:
        parameter, ell = _folded(policy.policy.actor, model.p)
    except NotCertifiableError:
        parameter, ell = None, 1.0
    return LoopParts(model, design, scales, parameter, ell)


def certify_youla(policy: Judged) -> Certificate:
    """Return the certificate of the closed loop; gamma_core is the gain of the Youla parameter's cell.

    Raises:
        NotCertifiableError: no gain of the Youla parameter is known, or the base loop of the model is not stable.
    """
    parts = loop_parts(policy)
    alone = policy.policy.certificate()
    if alone.status != "PASS":
        raise NotCertifiableError(f"The Youla parameter alone: {alone.reason or 'nothing is proven of it'}.")
    gain = alone.gamma_raw
    q = parts.parameter
    try:
        bounds = youla.bounds(parts.model, parts.design, gain or 0.0, q=q, ell=parts.ell, scales=parts.scales)
    except InvalidValueError as error:
        raise NotCertifiableError(f"The base loop of the linear model: {error}") from error
    # What only the gain says.
    generic = None if gain is None else _loop(parts, known_gain(parts.model.p, parts.model.m))
    scaled = None if gain is None else bounds.scaled
    own = None if q is None else _loop(parts, q)
    candidates = [bound for bound in (scaled, bounds.closed_loop) if bound is not None and bound.proven]
    best = min(candidates, key=lambda bound: bound.gain, default=None)
    memoryless = policy.policy.cell.state_size == 0
    # A gain holds for sums over time: step by step, as a rate needs it, only without a memory.
    loop, ell = (own, parts.ell) if own is not None else (generic if memoryless else None, gain)
    decay = None if loop is None or ell is None else contraction(loop, ell)
    rate = None if decay is None else decay.rate
    stable = bounds.T0.proven and bounds.T2.proven
    converges = stable and (memoryless or (alone.rate is not None and alone.rate < 1.0))
    if best is None and rate is None and not converges:
        raise NotCertifiableError("No metric was found in which the closed loop of the linear model is proven stable.")
    each = None if own is None else _by_each_neuron(policy, parts, bounds.closed_loop)
    margin, method = None, "a cascade of stable and contracting parts"
    if best is not None and best.metric is not None and best.tau:
        shown, bound_ell = (own, parts.ell) if best is bounds.closed_loop else (generic, gain)
        assert shown is not None and bound_ell is not None
        proof = verify_arrays(
            shown,
            rate=1.0,
            gamma=best.gain,
            family=LipschitzMultiplier(shown.sizes[1], bound_ell),
            P=best.metric,
            theta=np.array([best.tau[0] * best.gain]),
        )
        margin, method = proof.margin, proof.method or "matrix inequality with rounding-error bound"
    elif rate is not None:
        method = "matrix inequality with rounding-error bound"
    gamma = None if best is None else best.gain
    if each is not None and (gamma is None or each < gamma):
        gamma, margin, method = each, None, METHOD
    content = {
        "T0": _number(bounds.T0.gain),
        "T1": _number(bounds.T1.gain),
        "T2": _number(bounds.T2.gain),
        "triangle": None if gain is None else _number(bounds.triangle.gain),
        "scaled": None if scaled is None else _number(scaled.gain),
        "closed_loop": None if bounds.closed_loop is None else _number(bounds.closed_loop.gain),
        "neurons": each,
        "parameter_gain": gain,
        "converges": bool(converges or rate is not None),
        "quantum": policy.controller.options.quantum,
        "channels": policy.model.n + policy.model.p,
        "delay": policy.controller.options.delay,
        "region": list(policy.controller.options.region),
        "plant": _plant(policy, parts, gain),
        "saturation": _saturation(policy),
    }
    note = "the Youla parameter, from normalised innovation to normalised input"
    certificate = Certificate(
        "PASS",
        "",
        gamma_core=alone.gamma_core,
        gamma_raw=gamma,
        rate=rate,
        overshoot=None if decay is None else decay.overshoot,
        factors=(Factor("Youla parameter", gain, note),),
        margin=margin,
        method=method,
        arrays_sha256=array_hashes(loop_arrays(policy)),
        versions=versions(),
        closed_loop=content,
        forgets=forgotten(None if decay is None else decay.steps),
    )
    return replace(certificate, claim=claim(certificate))


def _by_each_neuron(policy: Judged, parts: LoopParts, block: GainBound | None) -> float | None:
    """Return the loop's gain proven neuron by neuron, from the metric of its bound by the parameter's norm, or None."""
    actor = policy.policy.actor
    found = running_neurons(actor.cell)
    if found is None or block is None or block.metric is None or not block.tau:
        return None
    inward, outward = around(actor, parts.model.p)
    loop = found.mapped(lambda q: _loop(parts, between(q, inward, outward)))
    return least_by_neurons(loop._replace(theta=block.tau[0] * block.gain * loop.theta), block.metric)


def searched_loop(policy: Judged) -> ClosedLoop | None:
    """Return the closed loop as a cell whose gain can be searched, None where the parameter is no R2DN."""
    parts, actor = loop_parts(policy), policy.policy.actor
    if parts.parameter is None:
        return None
    inward, outward = around(actor, parts.model.p)
    scales = (inward.value @ parts.scales[0], parts.scales[1] @ outward.value)
    # Only an R2DN has the matrices that `parts.parameter` is.
    return ClosedLoop(parts.model, parts.design, cast(R2DN, actor.cell), scales, shift=actor.folded().shift)


def loop_arrays(policy: Judged) -> dict[str, Any]:
    """Return the arrays that run, by name: the Youla parameter's and the base controller's."""
    names = ("A", "B", "C", "K", "L", "M", "innovation_scale", "input_scale", "youla_high")
    base = {f"base.{name}": getattr(policy.controller, name) for name in names}
    return base | running_arrays(policy.policy.actor)


def contraction(loop: Matrices, ell: float) -> Decay | None:
    """Return the decay of the loop with the smallest contraction rate that is proven, None without one below 1.

    Args:
        loop: the closed loop around the neurons, or a block, of the Youla parameter.
        ell: their Lipschitz bound.
    """
    return least_decay(Search(loop, LipschitzMultiplier(loop.sizes[1], ell), 1.0), np.ones(1))


def _loop(parts: LoopParts, q: Matrices) -> Matrices:
    return youla.closed_loop_matrices(parts.model, parts.design, youla.scaled_parameter(q, *parts.scales))


def _folded(actor: Actor, outputs: int) -> tuple[Matrices, float]:
    """Return the matrices of an actor from normalised innovation to normalised input; raises NotCertifiableError."""
    if actor.normalizer is not None or actor.head.squash:
        raise NotCertifiableError("A normalizer with a clip or a squashed action stands around the cell.")
    q, ell = youla.parameter_matrices(actor.cell)
    return between(q, *around(actor, outputs)), ell


def around(actor: Actor, outputs: int) -> tuple[Bounded, Bounded]:
    """Return the maps innovation -> cell's input and cell's output -> Youla input.

    The reference is held at 0: what it is changes no difference of trajectories.
    """
    folded = actor.folded()
    return folded.inward.columns(outputs), folded.outward


def _plant(policy: Judged, parts: LoopParts, gain: float | None) -> str:
    """Return what holds of the plant itself; an actuator's delay beyond the model is part of its loop."""
    options = policy.controller.options
    if options.delay and policy.scope.kind != "linear":
        return "Of the nonlinear plant nothing is proven: its actuator's delay is not in the model."
    return policy.scope.claim(policy.model, policy.design, options.region, gain, parts.scales)


def _saturation(policy: Judged) -> str:
    try:
        return policy.controller.saturation().report()
    except InvalidValueError:
        return "The actuators have no limits."


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
