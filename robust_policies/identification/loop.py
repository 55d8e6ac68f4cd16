"""The loop of a policy with the identified model that it was trained on, and what is proven of it.

    model    y_t = g(x_t, u_{t-1}),   x_{t+1} = f(x_t, u_t)        policy    u_t = clip(pi(y_t + e_t))

Both are linear systems around neurons with slopes in [0, 1], and a clip of an action is one more such neuron. The loop
is again one, with the model's neurons twice: r = phi_y of the output with the input held, and w = phi_x of the next
state with the input that now acts. With the state (x, h, s), h the input held in the model's scale and s the policy's,

    y = Sy (C2 x + D21 r + D22 h),   h+ = c,   x+ = A x + B1 w + B2 c,   c = clip(a),

and a what the policy gives, in the model's scale. Everything holds for increments, hence for any two trajectories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from gymnasium import spaces

from robust_policies import checks
from robust_policies.certificates.certificate import PERCENT
from robust_policies.certificates.decay import Decay
from robust_policies.certificates.neurons import METHOD, Neurons
from robust_policies.certificates.phrases import OVER_ALL
from robust_policies.certificates.verify import running_neurons
from robust_policies.control.bounded import Bounded, assembled, block, parts
from robust_policies.errors import NotCertifiableError
from robust_policies.files import numbers
from robust_policies.identification.loop_search import proven
from robust_policies.identification.model import IdentifiedModel, Signals
from robust_policies.policies import DeployedPolicy

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
    found = proven(loop.neurons, loop.blocks)
    return _nothing(found.reason) if found.decay is None else _claimed(found.decay, found.gain)


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
