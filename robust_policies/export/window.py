"""What is proven of an exported policy that reads a window anew at every step: a static map of the window's rows.

The rows in the state were made of earlier observations by the very operations that make the newest, so the map of the
K observations of a window is one static system around the neurons of all its steps. Of two sequences from an episode's
start the same rows are missing and what is computed of missing rows alone is equal, so a choice between a row and what
stands in its place changes no difference. With

    |f(u_1, .., u_K) - f(u'_1, .., u'_K)| <= gain |(u_1 - u'_1, .., u_K - u'_K)|,

each observation read in K windows, the gain over time is at most sqrt(K) gain. Rounding cannot add up beyond a window.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from robust_policies.certificates.certificate import Certificate, Factor, claim
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.neurons import METHOD, Neurons
from robust_policies.certificates.perceptrons import chain_neurons
from robust_policies.certificates.search import Search
from robust_policies.certificates.verify import running_neurons
from robust_policies.control.bounded import Bounded, assembled, parts
from robust_policies.errors import NotCertifiableError
from robust_policies.export.affine import Affine
from robust_policies.export.intervals import Walk
from robust_policies.export.neurons import neurons_of
from robust_policies.export.program import Program
from robust_policies.export.rounding import Rounding
from robust_policies.policies.certify import UP, window_factor
from robust_policies.policies.window import WindowCell

MOST_NEURONS = 640
# Multipliers of the cell's neurons beside the perceptron's, of which the best is taken; windows walked one by one.
_RATIOS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
_SHORT = 8


def window_certificate(program: Program, cell: WindowCell, source: Certificate) -> Certificate:
    """Return the gain that is proven of the exported constants; raises NotCertifiableError where none is."""
    if source.status != "PASS":
        raise NotCertifiableError(source.reason or "nothing is proven of the run's own arrays")
    neurons = _of_rows(program, cell)
    if neurons.family.size > MOST_NEURONS:
        raise NotCertifiableError(
            f"The window has {neurons.family.size} neurons in all its steps, of at most {MOST_NEURONS} that are proven "
            "together; train with a shorter window."
        )
    search = Search(neurons.model, neurons.family, 1.0)
    empty, best = np.zeros((0, 0)), None
    for theta in _multipliers(cell, neurons.family.size):
        start = search.scaled(empty, theta, 1.0, 1.0)
        if start is not None and start.gamma is not None and (best is None or start.gamma < best[0]):
            best = start.gamma, theta
    gain = None if best is None else search.least(empty, best[1])
    if gain is None:
        raise NotCertifiableError("No multipliers were found with which the map of a window is proven.")
    window = window_factor(cell.window)
    assert window.gain is not None
    gamma = gain * window.gain * UP
    note = f"its constants, from the {cell.window} observations of a window together to the action, in one inequality"
    found = replace(
        source,
        gamma_core=None,
        gamma_raw=gamma,
        factors=(Factor("exported program", gain, note), window),
        method=METHOD,
        **dict.fromkeys(("empirical_lower", "ratio", "witness", "margin", "weights", "gamma_weighted", "peak")),
    )
    return replace(found, claim=claim(found))


def _of_rows(program: Program, cell: WindowCell) -> Neurons:
    """Return the map (K nu,) -> action, without a state, of the raw observations of a window, oldest first."""
    model = neurons_of(program, flags=True).model
    given, width, nu = parts(model), cell.input_size + 1, program.observations
    made = Bounded(given["B2"].value[-width:-1], given["B2"].error[-width:-1])
    size = (program.states, (cell.window - 1) * nu)
    rows = Bounded(np.zeros(size), np.zeros(size))
    for k in range(cell.window - 1):
        place = slice((k + 1) * width, (k + 2) * width - 1), slice(k * nu, (k + 1) * nu)
        rows.value[place], rows.error[place] = made.value, made.error
    none = Bounded.exact
    static: dict[str, Any] = {
        "A": none(np.zeros((0, 0))),
        "B1": none(np.zeros((0, model.sizes[1]))),
        "B2": none(np.zeros((0, size[1] + nu))),
        "C1": none(np.zeros((model.sizes[1], 0))),
        "D11": given["D11"],
        "C2": none(np.zeros((model.sizes[3], 0))),
        "D21": given["D21"],
    }
    for name, state, now in (("D12", "C1", "D12"), ("D22", "C2", "D22")):
        old = given[state] @ rows
        static[name] = Bounded(np.hstack((old.value, given[now].value)), np.hstack((old.error, given[now].error)))
    return Neurons(assembled(static), np.ones(model.sizes[1]))


def _multipliers(cell: WindowCell, count: int) -> list[Array]:
    """Return multipliers (count,) to start from: the cell's own in each step, then the perceptron's."""
    inner = running_neurons(cell.inner)
    layers = [
        np.asarray(layer.weight.detach().cpu().double())  # pyright: ignore[reportCallIssue]
        for layer in cell.perceptron.layers
        if hasattr(layer, "weight")
    ]
    outer = chain_neurons(tuple(layers), cell.perceptron.activation.name).theta if len(layers) > 1 else np.zeros(0)
    if inner is None or len(inner.theta) * cell.window + len(outer) != count:
        return [np.ones(count)]
    each = np.tile(inner.theta, cell.window)
    return [np.concatenate((ratio * each, outer)) for ratio in (_RATIOS if len(outer) else (1.0,))]


def window_rounding(
    program: Program, cell: WindowCell, low: Array, high: Array, absolute: bool, ordered: bool
) -> Rounding:
    """Return the bound for observations from `low` to `high` (nu,), of whole windows and of those that are not yet.

    Raises NotCertifiableError where an operation has no bound.
    """
    walk, width, length = Walk(program, absolute, ordered=ordered, static=True), cell.input_size + 1, cell.window
    empty = walk.through((low, high), Affine.exact(np.zeros(program.states)))
    row = empty.next[np.arange(program.states - width, program.states)]
    error, bound = empty.following_total[-width:], empty.action

    def through(first: int, sure: int) -> Array:
        """Return the bound where rows before `first` are missing and those before `sure` may be."""
        ends, errors = np.zeros((2, length, width)), np.zeros((length, width))
        ends[0, first:], ends[1, first:], errors[first:] = row.low, row.high, error
        ends[:, sure:, -1] = 1.0
        ends[0, first:sure], ends[1, first:sure] = np.minimum(row.low, 0.0), np.maximum(row.high, 0.0)
        ends[:, first:sure, -1] = np.array([[0.0], [1.0]])
        errors[:, -1] = 0.0
        return walk.through(
            (low, high), Affine.box(ends[0].reshape(-1), ends[1].reshape(-1)), errors.reshape(-1)
        ).action

    # The oldest row of the state is not read any more.
    starts = [(k, k) for k in range(1, length)] if length <= _SHORT else [(1, 1), (1, length)]
    for first, sure in starts:
        bound = np.maximum(bound, through(first, sure))
    states = np.tile(np.maximum(np.abs(row.low), np.abs(row.high)), length)
    return Rounding(bound * (1 + 1e-6), low, high, states, None)
