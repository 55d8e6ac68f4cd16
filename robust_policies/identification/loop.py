"""The loop of a policy with the identified model that it was trained on, and what is proven of it.

    model    y_t = g(x_t, u_{t-1}),   x_{t+1} = f(x_t, u_t)        policy    u_t = clip(pi(y_t + e_t))

Both are linear systems around neurons with slopes in [0, 1], and a clip of an action is one more such neuron. The loop
is again one, with the model's neurons twice: r = phi_y of the output with the input held, and w = phi_x of the next
state with the input that now acts. With the state (x, h, s), h the input held in the model's scale and s the policy's,

    y = Sy (C2 x + D21 r + D22 h),   h+ = c,   x+ = A x + B1 w + B2 c,   c = clip(a),

and a what the policy gives, in the model's scale. Everything holds for increments, hence for any two trajectories.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from gymnasium import spaces

from robust_policies import checks
from robust_policies.certificates import optimum
from robust_policies.certificates.certificate import PERCENT
from robust_policies.certificates.decay import Decay, least_decay
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import METHOD, Neurons
from robust_policies.certificates.optimum import Candidate
from robust_policies.certificates.phrases import OVER_ALL
from robust_policies.certificates.riccati import recover_metric
from robust_policies.certificates.search import Search
from robust_policies.certificates.verify import running_neurons
from robust_policies.control.bounded import Bounded, assembled, block, parts
from robust_policies.control.norms import radius
from robust_policies.errors import NotCertifiableError
from robust_policies.files import numbers
from robust_policies.identification.model import IdentifiedModel, Signals
from robust_policies.policies import DeployedPolicy

# Entries of the metric and multipliers with which the interior-point method takes seconds; above it only the parts' own
# multipliers are tried.
MOST_VARIABLES = 800
# Of the blocks' multipliers, powers of ten; the rates that they are tried for, and a Riccati equation's slack.
_WEIGHTS = (0.0, 1.0, -1.0, 2.0, -2.0)
_RATES = (1.0, 1.5, 4.0)
_SLACK = 1e-6
# The search for a smaller rate ends after so many tries that failed, of a large loop (a try takes ten seconds) and of
# another one, or this close, as a difference of logarithms.
_FAILURES, _CLOSE = (2, 5), 0.01
# Relative distance from the least gain's square: nearer to it the path of a large loop loses its digits.
_GAP = 1e-4
_CELLS = ("r2dn", "ren")


@dataclass(frozen=True)
class ModelLoop:
    """What is proven of a policy in the loop with an identified model.

    Attributes:
        status: PASS proves the rate; NOT_PROVEN says nothing about the loop.
        claim: what holds, in words.
        rate: contraction rate of the loop's state in a metric, below 1; None without a proof.
        overshoot: by how much a difference may grow before it decays like rate^t.
        steps: after which 99% of a difference is forgotten.
        gain: incremental l2 gain from errors of the sensors to the actions applied, both in raw units, or None.
        reason: why nothing is proven, "" if something is.
    """

    status: Literal["PASS", "NOT_PROVEN"]
    claim: str
    rate: float | None = None
    overshoot: float | None = None
    steps: int | None = None
    gain: float | None = None
    reason: str = ""


def prove_model_loop(policy: DeployedPolicy, model: IdentifiedModel) -> ModelLoop:
    """Return what is proven of a policy in the loop with the model, as `Identified-v0` steps it; it takes seconds.

    Args:
        policy: an R2DN, a REN, an LBDN or a perceptron without a normalizer, a tanh or a window around it.
        model: with an R2DN or a REN, one; its arrays are judged in float64, in which that task steps it.

    Raises:
        NotCertifiableError: policy or model is no linear system around neurons; the message names the reason.
        ShapeError: the policy does not fit the model.
    """
    loop = model_loop(policy, model)
    return _proven(loop.neurons, loop.blocks)


class Closed(NamedTuple):
    """A loop around single neurons, with multipliers to start from, and how many neurons each block of it has.

    The blocks are: of the output (none where it has no neurons), of the policy, the clips, of the next state.
    """

    neurons: Neurons
    blocks: tuple[int, int, int, int]


def model_loop(policy: DeployedPolicy, model: IdentifiedModel) -> Closed:
    """Return the loop e -> u, both in raw units, with the states (x, h, s); all as of `prove_model_loop`."""
    if not isinstance(model, IdentifiedModel):
        raise NotCertifiableError(f"The loop is proven with one identified model; got a {type(model).__name__}.")
    cell = model.cell.double_copy()
    plant = running_neurons(cell) if cell.name in _CELLS else None
    if plant is None:
        raise NotCertifiableError(
            f"The model's cell is {cell.name!r}, or its activation has no known slopes; the loop is proven with a "
            "model of the cell 'r2dn' or 'ren'."
        )
    if type(policy) is not DeployedPolicy or not isinstance(policy.action_space, spaces.Box):
        raise NotCertifiableError(
            "The loop with a model is proven of a policy that is a cell between scaled observations and actions that "
            "are numbers."
        )
    if policy.state_dependent_noise:
        raise NotCertifiableError("The policy explores with gSDE; train with use_sde=False.")
    found = policy.neurons()
    if found is None:
        # What has no matrices either says why.
        policy.matrices()
        raise NotCertifiableError(f"The neurons of the policy's cell {policy.cell.name!r} are not known one by one.")
    inputs, outputs = len(model.signals.inputs), len(model.signals.outputs)
    checks.shape("The policy's D22", found.model.D22, (inputs, outputs))
    return _closed(plant, found, model.signals)


def _closed(plant: Neurons, policy: Neurons, signals: Signals) -> Closed:
    """Return the loop of a model between scaled signals and a policy between raw ones."""
    m, q, zeros = parts(plant.model), parts(policy.model), np.zeros
    nx, nv, nu, ny = plant.model.sizes
    ns, nr = policy.model.sizes[:2]
    clips = np.eye(nu)
    to_raw, to_scaled = np.diag(signals.output_scale), Bounded.inverse(np.array(signals.input_scale)).diagonal()
    C, R, H = (to_raw @ m[name] for name in ("C2", "D21", "D22"))
    # Where the output has no neurons (it is the state), those of the step before are none.
    seen = nv if R.value.any() or R.error.any() else 0
    R, first = R.columns(seen), {name: _top(m[name], seen) for name in ("C1", "D11", "D12")}
    inner = first["D11"].columns(seen)
    out = {name: to_scaled @ q[name] for name in ("C2", "D21", "D22")}

    def fed(read: Bounded) -> tuple[Bounded, Bounded, Bounded]:
        return read @ C, read @ H, read @ R

    states, reads, gives = fed(q["B2"]), fed(q["D12"]), fed(out["D22"])
    loop = assembled(
        {
            "A": block(
                [
                    [m["A"], zeros((nx, nu)), zeros((nx, ns))],
                    [zeros((nu, nx + nu + ns))],
                    [states[0], states[1], q["A"]],
                ]
            ),
            "B1": block(
                [
                    [zeros((nx, seen + nr)), m["B2"], m["B1"]],
                    [zeros((nu, seen + nr)), clips, zeros((nu, nv))],
                    [states[2], q["B1"], zeros((ns, nu + nv))],
                ]
            ),
            "B2": block([[zeros((nx + nu, ny))], [q["B2"]]]),
            "C1": block(
                [
                    [first["C1"], first["D12"], zeros((seen, ns))],
                    [reads[0], reads[1], q["C1"]],
                    [gives[0], gives[1], out["C2"]],
                    [m["C1"], zeros((nv, nu + ns))],
                ]
            ),
            "D11": block(
                [
                    [inner, zeros((seen, nr + nu + nv))],
                    [reads[2], q["D11"], zeros((nr, nu + nv))],
                    [gives[2], out["D21"], zeros((nu, nu + nv))],
                    [zeros((nv, seen + nr)), m["D12"], m["D11"]],
                ]
            ),
            "D12": block([[zeros((seen, ny))], [q["D12"]], [out["D22"]], [zeros((nv, ny))]]),
            "C2": Bounded.exact(zeros((nu, nx + nu + ns))),
            "D21": block([[zeros((nu, seen + nr)), np.diag(signals.input_scale), zeros((nu, nv))]]),
            "D22": Bounded.exact(zeros((nu, ny))),
        }
    )
    theta = np.concatenate((plant.theta[:seen], policy.theta, np.ones(nu), plant.theta))
    return Closed(Neurons(loop, theta), (seen, nr, nu, nv))


def _top(matrix: Bounded, count: int) -> Bounded:
    """Return the first `count` rows."""
    return Bounded(matrix.value[:count], matrix.error[:count])


def _proven(loop: Neurons, blocks: Sequence[int]) -> ModelLoop:
    if not (rho := radius(loop.model.A)) < 1.0:
        return _nothing(f"the loop without its neurons has spectral radius {rho:.6g}, not below 1")
    found = _contracting(loop, blocks, rho)
    search = Search(loop.model, loop.family, 1.0)
    tried = (least_decay(search, one.theta, [one.P]) for one in reversed(found))
    decay = next((one for one in tried if one is not None), None)
    if decay is None:
        why = "contraction was found in floating point and could not be proven"
        return _nothing(why if found else "no metric and multipliers were found with which the loop contracts")
    return _claimed(decay, _least_gain(loop, found))


def _contracting(loop: Neurons, blocks: Sequence[int], rho: float) -> list[Candidate]:
    """Return metrics and multipliers with which the loop seems to contract, the least rate last, [] if none are found.

    The parts' own multipliers, weighted against each other, give a metric in which the loop may even expand; from it
    the interior-point method goes to smaller rates.
    """
    best, reached = _weighted(loop, blocks)
    kept = [best] if best is not None and reached <= 1.0 else []
    if not _searched(loop):
        return kept
    if best is None:
        best, reached = optimum.contraction(loop.model, loop.family, 1.0), 1.0
        kept = [] if best is None else [best]
    low, high, failed = math.log(max(rho, 1e-3)), math.log(reached), 0
    most = _FAILURES[optimum.small_enough(loop.model, loop.family)]
    while best is not None and failed < most and high - low > _CLOSE:
        # Down to 1 by halves, which the method can follow; then towards the least there may be.
        target = 0.5 * (high + low) if high <= 0.0 else 0.0 if high < 0.1 else 0.5 * high
        scaled = _Scaled.by(loop, best)
        found = None if scaled is None else optimum.contraction(scaled.model, loop.family, math.exp(target))
        if scaled is not None and found is not None:
            best, high = scaled.back(found), target
            kept += [best] if target <= 0.0 else []
        elif target >= 0.0:
            return kept
        else:
            low, failed = target, failed + 1
    return kept


def _weighted(loop: Neurons, blocks: Sequence[int]) -> tuple[Candidate | None, float]:
    """Return the first of the multipliers with weights for each block that proves the least of some rates, and it."""
    exponents = sorted(itertools.product(_WEIGHTS, repeat=len(blocks) - 1), key=np.linalg.norm)
    weighted = [loop.theta * np.repeat(np.power(10.0, [*one, 0.0]), blocks) for one in exponents]
    for rate, theta in itertools.product(_RATES, weighted):
        if (P := _metric(loop, theta, rate)) is not None:
            return Candidate(P, theta), rate
    return None, math.inf


def _metric(loop: Neurons, theta: Array, rate: float) -> Array | None:
    """Return a metric that proves the rate with these multipliers, None where none is found."""
    inner = np.diag(theta) - theta[:, None] * loop.model.D11
    try:
        np.linalg.cholesky(inner + inner.T)
    except np.linalg.LinAlgError:
        return None
    P = recover_metric(loop.model, rate, loop.family.matrix(theta), None, _SLACK)
    shown = P is not None and Search(loop.model, loop.family, 1.0).prove(P, theta, rate, None).holds
    return P if shown else None


def _searched(loop: Neurons) -> bool:
    nx = loop.model.sizes[0]
    return nx * (nx + 1) // 2 + loop.family.size + 1 <= MOST_VARIABLES


class _Scaled(NamedTuple):
    """A loop in the state S x around neurons of d v and d w, d powers of two: those have slopes in [0, 1] too."""

    model: Matrices
    S: Array
    d: Array

    @classmethod
    def by(cls, loop: Neurons, candidate: Candidate) -> _Scaled | None:
        """Return the loop where a candidate's metric is the identity and its multipliers are near 1."""
        try:
            S = np.linalg.cholesky(candidate.P).T
        except np.linalg.LinAlgError:
            return None
        made = loop.model.in_coordinates(S)
        if made is None or made.error is None:
            return None
        theta = np.maximum(candidate.theta, 1e-12 * candidate.theta.max())
        d = np.exp2(np.round(0.5 * np.log2(theta)))

        def scaled(one: Matrices) -> Matrices:
            # Without rounding.
            rows = {name: d[:, None] * getattr(one, name) for name in ("C1", "D12")}
            return replace(one, **rows, D11=d[:, None] * one.D11 / d, B1=one.B1 / d, D21=one.D21 / d)

        return cls(replace(scaled(made), error=scaled(made.error)), S, d)

    def back(self, found: Candidate) -> Candidate:
        """Return what a candidate for this is for the loop."""
        P = self.S.T @ found.P @ self.S
        # A proof is one at every size.
        size = np.exp2(-np.round(np.log2(np.abs(P).max())))
        return Candidate(size * 0.5 * (P + P.T), size * found.theta * self.d**2)


def _least_gain(loop: Neurons, proofs: Sequence[Candidate]) -> float | None:
    """Return the least gain that is proven, from what proves contraction; None where none is."""
    starts: list[tuple[float, Search, Candidate]] = []
    for one in proofs:
        if (scaled := _Scaled.by(loop, one)) is not None:
            search = Search(scaled.model, loop.family, 1.0)
            first = search.scaled(np.eye(len(one.P)), one.theta / scaled.d**2, 1.0, 1.0)
            if first is not None and first.gamma is not None:
                starts.append((first.gamma, search, first))
    if not starts:
        return None
    gamma, search, first = min(starts, key=lambda start: start[0])
    slack = Candidate(first.P * (1 + 1e-6), first.theta * (1 + 1e-6), 1.1 * gamma)
    best = None
    if _searched(loop):
        args = search.model, loop.family, 1.0, slack, search.inputs, search.outputs
        best = optimum.least_gain(*args, gap=_GAP)
    for candidate, proven in _tried([best, first]):
        if search.at(candidate, proven, 1.0) is not None:
            return proven
    return None


def _tried(candidates: Sequence[Candidate | None]) -> Iterator[tuple[Candidate, float]]:
    """Yield candidates with the gains to prove of them, a little above their own."""
    for candidate, delta in itertools.product(candidates, (1e-7, 1e-5, 1e-3, 1e-1)):
        if candidate is not None and candidate.gamma is not None and 0 < candidate.gamma < 1e9:
            yield candidate, candidate.gamma * (1 + delta)


def _nothing(reason: str) -> ModelLoop:
    claim = (
        f"Nothing is proven of the loop with the identified model: {reason}. This does not mean that it is unstable."
    )
    return ModelLoop("NOT_PROVEN", claim, reason=reason)


def _claimed(decay: Decay, gain: float | None) -> ModelLoop:
    forgotten = "" if decay.steps is None else f", {PERCENT:g}% of a difference forgotten within {decay.steps} steps"
    bound = (
        ", and no gain from errors of the sensors was proven"
        if gain is None
        else ", and for any two sequences of errors added to the measurements and the same initial state, the l2 norm "
        f"of the difference of the actions applied, in raw units, {OVER_ALL}, is at most {numbers.upper(gain)} times "
        "that of the errors, likewise"
    )
    claim = (
        "Proven for the policy's mean action in the loop with the identified model, its clips to the limits of the "
        f"actions included, for the arrays that run, in exact arithmetic ({METHOD}): from any two states of model, "
        "held input and policy, under the same errors of the sensors, the l2 norm of the difference of these states, "
        f"of the signals as the model scales them, is after t steps at most {numbers.upper(decay.overshoot)} * "
        f"{numbers.rate(decay.rate)}^t times what it was{forgotten}{bound}; this is about the model and not about the "
        "plant, whose distance from the model is measured, not proven."
    )
    return ModelLoop("PASS", claim, decay.rate, decay.overshoot, decay.steps, gain)
