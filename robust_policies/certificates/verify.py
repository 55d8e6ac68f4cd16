"""An independent check of a cell's guarantee, from the arrays that run; how they were parametrized is not used.

What the cell says of itself (its gain, rate and metric) is a claim and a hint. Searches are ordinary floating point and
prove nothing: only `prove_positive` on what they found does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from robust_policies.certificates.arrays import verify_arrays as verify_arrays
from robust_policies.certificates.certificate import Verification
from robust_policies.certificates.decay import least_decay, steps_to_forget
from robust_policies.certificates.layers import is_r2dn, layers_bound
from robust_policies.certificates.lmi import Array, Matrices, matrices
from robust_policies.certificates.modal import is_stack, stack
from robust_policies.certificates.multipliers import (
    LipschitzMultiplier,
    Multiplier,
    SlopeMultiplier,
)
from robust_policies.certificates.neurons import (
    METHOD,
    Neurons,
    chain_of_layers,
    least_by_neurons,
    written_out,
)
from robust_policies.certificates.perceptrons import (
    LARGEST_CHAIN,
    REFLECTING,
    SLOPE_RESTRICTED,
    SORTING,
    chain_neurons,
    chain_verification,
    unknown_slope,
)
from robust_policies.certificates.positive import Rows, proven_by_rows, rows_of
from robust_policies.certificates.reflected import maxmin_layers
from robust_policies.certificates.search import ROUNDING, Search
from robust_policies.errors import InvalidValueError, NonFiniteError, NotCertifiableError, ShapeError
from robust_policies.files import numbers
from robust_policies.networks.once import once

# A designed gain stays where a search finds the same one but for its own accuracy.
ROUNDING_OF_SEARCHES = 1e-6
_OURS = ("robust_policies.", "torch.", "builtins", "abc")
_NAMES = ("A", "B1", "B2", "C1", "D12", "C2", "D21", "D22")


@dataclass(frozen=True)
class _Running:
    """A cell as the inequality sees it, with its hints: metric P and multiplier theta."""

    model: Matrices
    family: Multiplier
    P: Array | None
    theta: Array
    weights: tuple[Array, ...] = ()
    neurons: Neurons | None = None


def verify(cell_or_policy: Any, explicit: Any = None) -> Verification:
    """Return what can be proven of a cell's contraction rate, gain or dissipation from its explicit arrays.

    Args:
        cell_or_policy: a cell, or a policy with a `cell` (then its cell alone is judged).
        explicit: the arrays that run if they are not `cell.explicit()`, for instance read back from a file.

    A designed gain that rounding of the arrays has made untrue by a hair is replaced by the smallest one that is
    proven; `claimed_gamma` keeps the cell's, and `gamma` is the least of all proofs, which judge its nonlinearity as a
    whole and neuron by neuron. The rate is the smallest that a bisection proves, whatever the cell was
    designed for, with a metric of its own; `margin` and `shift` are of the proof of what it was designed for. A
    multilayer perceptron gets the smallest gain that can be found.
    Raises NotCertifiableError for a cell of which no bound is known (LSTM, GRU).
    """
    cell = getattr(cell_or_policy, "cell", cell_or_policy)
    if hasattr(cell, "prove"):
        return _by_its_own(cell, explicit)
    cell, explicit = _explicit(cell, explicit)
    claimed = getattr(cell, "gamma", None)
    try:
        if (rows := _rows(cell, explicit)) is not None:
            found = _of_rows(cell, rows)
            designed = hasattr(cell.guarantee, "unit") or np.triu(rows.model.D11).any()
            if found.status == "PASS" or designed:
                return found
        if hasattr(explicit, "scale"):
            found = _memoryless(cell.gamma, _layers_gain(cell, explicit))
            return _with_neurons(found, _neurons_of_layers(cell, explicit), None)
        running = _running(cell, explicit)
    except (NonFiniteError, ShapeError, _UnknownFormError) as error:
        return Verification("NOT_CERTIFIED", reason=str(error).rstrip("."), claimed_gamma=claimed)
    if running.weights:
        return chain_verification(running.weights, cell.activation.name)
    guarantee = cell.guarantee
    supply = None
    if hasattr(guarantee, "Q"):
        Q, S, R = (_array(getattr(guarantee, name)) for name in "QSR")
        supply = np.block([[Q, S.T], [S, R]])
    found = verify_arrays(
        running.model,
        rate=cell.rate or 1.0,
        gamma=claimed,
        supply=supply,
        family=running.family,
        theta=running.theta,
        P=running.P,
    )
    if found.status != "PASS":
        return found
    # A supply rate other than a gain is asked for where it is; a gain beside it is no part of the guarantee.
    again = supply is None and (running.neurons is not None or claimed is not None)
    found = _with_neurons(found, _neurons(running), running.P) if again else found
    return _with_decay(found, running)


def _by_its_own(cell: Any, explicit: Any) -> Verification:
    """Return what a cell's own `prove` says of the arrays that run; raises InvalidValueError of anything else."""
    with torch.no_grad():
        found = cell.prove(cell.explicit() if explicit is None else explicit)
    if not isinstance(found, Verification):
        raise InvalidValueError(
            f"{type(cell).__name__}.prove returned a {type(found).__name__}; expected a certificates.Verification."
        )
    return replace(found, method=f"the cell's own proof, not checked here: {found.method or 'without a name'}")


def _of_rows(cell: Any, rows: Rows) -> Verification:
    """Return what its rows prove of a cell, and where its neurons are evaluated one after another, they one by one."""
    found = proven_by_rows(rows, cell.guarantee, cell.rate)
    hints = rows.hints()
    if found.status != "PASS" or hints is None or np.triu(rows.model.D11).any():
        return found
    P, theta = hints
    running = _Running(rows.model, SlopeMultiplier(rows.model.sizes[1]), P, theta)
    other = verify_arrays(rows.model, rate=1.0, family=running.family, P=P, theta=theta)
    other = _with_decay(other, running) if other.status == "PASS" else other
    if other.gamma is not None and (found.gamma is None or other.gamma < found.gamma):
        found = replace(found, gamma=other.gamma, method=f"{found.method}; {other.method}")
    if other.forgets is not None and (found.forgets is None or other.forgets < found.forgets):
        found = replace(found, rate=other.rate, overshoot=other.overshoot, forgets=other.forgets)
    return found


def running_rows(cell_or_policy: Any, explicit: Any = None) -> Rows | None:
    """Return a cell as rows that bound its increments entry by entry, None of one that says no block size.

    Arguments as for `verify`.
    """
    try:
        return _rows(*_explicit(cell_or_policy, explicit))
    except (NonFiniteError, NotCertifiableError, ShapeError, _UnknownFormError):
        return None


def _rows(cell: Any, explicit: Any) -> Rows | None:
    if not (hasattr(cell, "block_size") and hasattr(explicit, "D11")):
        return None
    if cell.activation.name not in SLOPE_RESTRICTED:
        raise _UnknownFormError(unknown_slope(cell.activation.name))
    return rows_of(_matrices(explicit), cell.block_size)


def _with_neurons(found: Verification, neurons: Neurons | None, P: Array | None) -> Verification:
    """Return what was proven with the gain that judging each neuron proves, where that is smaller."""
    if found.status != "PASS" or neurons is None:
        return found
    gamma = least_by_neurons(neurons, P)
    if gamma is None or (found.gamma is not None and gamma >= found.gamma * (1 - ROUNDING_OF_SEARCHES)):
        return found
    return replace(found, gamma=gamma, method=METHOD)


def _neurons(running: _Running) -> Neurons | None:
    """Return the cell around single neurons, None where they are not known."""
    if running.neurons is not None or not isinstance(running.family, SlopeMultiplier):
        return running.neurons
    return Neurons(running.model, running.theta)


def _with_decay(found: Verification, running: _Running) -> Verification:
    """Return what was proven with the smallest contraction rate that is proven too, by a metric of its own."""
    if not running.model.sizes[0] or not np.isfinite(running.theta).all():
        return found
    metrics = [] if running.P is None else [running.P]
    decay = least_decay(Search(running.model, running.family, 1.0), running.theta, metrics)
    if decay is None:
        return found
    steps = decay.steps
    if found.rate is not None and found.overshoot is not None and found.rate < 1:
        # A design for slow decay may have the smaller overshoot, and so have forgotten sooner.
        designed = steps_to_forget(found.rate, found.overshoot)
        steps = min(count for count in (steps, designed) if count is not None)
    if found.rate is not None and found.rate <= decay.rate:
        return replace(found, forgets=steps)
    return replace(found, rate=decay.rate, overshoot=decay.overshoot, forgets=steps)


def running_model(cell_or_policy: Any, explicit: Any = None) -> tuple[Matrices, Multiplier, Array]:
    """Return the matrices of a cell that runs, what is known of its nonlinearity, and a multiplier to start from.

    Arguments as for `verify`. Raises NotCertifiableError for a cell that is no linear system around neurons.
    """
    cell, explicit = _explicit(cell_or_policy, explicit)
    if hasattr(explicit, "scale"):
        raise NotCertifiableError(
            f"{type(cell).__name__} has no linear part, only a gain; use the cell 'r2dn' or 'ren'."
        )
    try:
        running = _running(cell, explicit)
    except _UnknownFormError as error:
        raise NotCertifiableError(f"{error}.") from error
    return running.model, running.family, running.theta


def running_neurons(cell_or_policy: Any, explicit: Any = None) -> Neurons | None:
    """Return a cell that runs as a system around single neurons, None of one whose neurons are not known.

    Arguments as for `verify`. A REN's are its own, an R2DN's, an LBDN's and a perceptron's are those of their layers;
    pairs that are sorted (MaxMin) are written with one ReLU each.
    """
    try:
        cell, explicit = _explicit(cell_or_policy, explicit)
        if not hasattr(explicit, "scale"):
            return _neurons(_running(cell, explicit))
        return _neurons_of_layers(cell, explicit)
    except (NonFiniteError, NotCertifiableError, ShapeError, _UnknownFormError):
        return None


def verify_chain(
    cell_or_policy: Any,
    *,
    inputs: Array,
    outputs: Array,
    head: Array | None = None,
    explicit: Any = None,
) -> float | None:
    """Return the least proven gain of u -> cell -> head as one inequality, or None where there is no proof.

    Args:
        cell_or_policy: as for `verify`.
        inputs: (nu,) the size of one unit of each of the cell's inputs; the norm of u is that of u / inputs.
        outputs: (na,) the factor of each of the head's outputs in the norm of what comes out.
        head: (na, ny) a linear map after the cell; None for none.
        explicit: as for `verify`.
    """
    cell, explicit = _explicit(cell_or_policy, explicit)
    if hasattr(explicit, "scale"):
        return None
    try:
        running = _running(cell, explicit)
    except (NonFiniteError, ShapeError, _UnknownFormError):
        return None
    model = running.model if head is None else running.model.then(head)
    if running.weights and running.family.size > LARGEST_CHAIN:
        return None
    search = Search(model, running.family, 1.0, np.asarray(inputs, float), np.asarray(outputs, float))
    if running.P is None or not np.isfinite(running.P).all():
        return None
    found = search.least(running.P, running.theta)
    if running.neurons is not None:
        neurons = running.neurons if head is None else running.neurons.mapped(lambda model: model.then(head))
        each = least_by_neurons(neurons, running.P, search.inputs, search.outputs)
        found = min((gain for gain in (found, each) if gain is not None), default=None)
    balanced = search.balanced(running.P) if found is None and running.P.size else None
    return found if balanced is None else balanced.least(np.eye(len(running.P)), running.theta)


class _UnknownFormError(Exception):
    """There is no form known that bounds the nonlinearity."""


def _explicit(cell_or_policy: Any, explicit: Any) -> tuple[Any, Any]:
    cell = getattr(cell_or_policy, "cell", cell_or_policy)
    explicit = once(cell, "explicit") if explicit is None else explicit
    if hasattr(explicit, "weight_hh"):
        raise NotCertifiableError(
            f"{type(cell).__name__} has gates, products of two signals, of which no finite gain is known; use the cell "
            "'r2dn', 'ren' or 'lbdn' with gamma=..., or 'mlp'."
        )
    known = all(hasattr(explicit, name) for name in _NAMES) or is_stack(explicit)
    if _steps_elsewhere(cell) or not (known or hasattr(explicit, "scale") or hasattr(explicit, "weights")):
        raise NotCertifiableError(
            f"{type(cell).__name__} was registered without a certificate; give it prove(explicit), or derive it from "
            "NeuronCell and leave its step as it is: then its arrays are judged."
        )
    return cell, explicit


def _steps_elsewhere(cell: Any) -> bool:
    """Return whether a class of another package says what a step is: its arrays then mean what this one cannot know."""
    others = (kind for kind in type(cell).__mro__ if not kind.__module__.startswith(_OURS))
    return isinstance(cell, torch.nn.Module) and any(name in vars(kind) for kind in others for name in ("step", "run"))


def _running(cell: Any, explicit: Any) -> _Running:
    name = getattr(getattr(cell, "activation", None), "name", None)
    if name not in SLOPE_RESTRICTED and not (name == SORTING and hasattr(explicit, "weights")):
        raise _UnknownFormError(unknown_slope(name))
    if hasattr(explicit, "weights"):
        weights = tuple(_array(weight) for weight in explicit.weights)
        chain = chain_neurons(weights, name)
        return _Running(chain.model, chain.family, np.zeros((0, 0)), chain.theta, weights)
    if is_stack(explicit):
        whole = stack(explicit)
        return _Running(whole.model, whole.family, np.eye(whole.model.sizes[0]), whole.theta)
    model = _matrices(explicit)
    if np.triu(model.D11).any():
        raise _UnknownFormError("D11 is not strictly lower triangular")
    family = SlopeMultiplier(model.sizes[1])
    if (rows := _rows(cell, explicit)) is not None:
        return _Running(model, family, *(rows.hints() or (None, family.start())))
    P = _array(once(cell, "metric")) if cell.guarantee is not None else None
    if is_r2dn(explicit):
        family = LipschitzMultiplier(model.sizes[1], layers_bound(explicit.layers))
        return _Running(model, family, P, np.ones(1), neurons=written_out(model, explicit.layers))
    return _Running(model, family, P, _array(cell.multiplier()) if hasattr(cell, "multiplier") else family.start())


def _layers_gain(cell: Any, explicit: Any) -> float:
    name, pairs = cell.network.activation.name, _sorts(cell)
    if name not in SLOPE_RESTRICTED and not pairs:
        raise _UnknownFormError(unknown_slope(name))
    return layers_bound(explicit.layers, not pairs) * float(explicit.scale.double()) ** 2 * (1 + 1e-15)


def _sorts(cell: Any) -> bool:
    """Return whether an LBDN sorts pairs; of Householder's the turned weights are what runs, between them MaxMin."""
    return cell.network.activation.name in (SORTING, REFLECTING)


def _neurons_of_layers(cell: Any, explicit: Any) -> Neurons | None:
    """Return an LBDN as a system around single neurons, None where they are not known."""
    if not _sorts(cell) and cell.network.activation.name not in SLOPE_RESTRICTED:
        return None
    chain = maxmin_layers if _sorts(cell) else chain_of_layers
    return chain(explicit.layers, float(explicit.scale.double()))


def _memoryless(claimed: float, proven: float) -> Verification:
    """Return the verdict on a memoryless net whose layers prove the gain `proven`; rounding may cost 1e-3."""
    if not proven <= claimed * ROUNDING:
        reason = f"its layers prove a gain of {numbers.upper(proven)} only"
        return Verification("NOT_CERTIFIED", reason=reason, claimed_gamma=claimed)
    method = "product of the layers' bounds"
    return Verification("PASS", max(proven, claimed), None, ell=proven, claimed_gamma=claimed, method=method)


def _matrices(explicit: Any) -> Matrices:
    """Return the explicit arrays of a linear system around neurons."""
    return matrices(*(_array(getattr(explicit, name)) for name in _NAMES), D11=_optional(explicit, "D11"))


def _optional(explicit: Any, name: str) -> Array | None:
    return _array(getattr(explicit, name)) if hasattr(explicit, name) else None


def _array(value: Any) -> Array:
    return (
        value.detach().cpu().numpy().astype(np.float64) if isinstance(value, torch.Tensor) else np.asarray(value, float)
    )
