"""The loop of a policy and a linear plant, from a perturbation of what the policy reads to the root of the cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from robust_policies.certificates.lmi import Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.trajectory import Gain, balanced, gain_of
from robust_policies.control.gain_bounds import known_gain
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.youla import Performance
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.errors import NotCertifiableError
from robust_policies.policies.running import RunningPolicy


@dataclass(frozen=True)
class ProvenLoop:
    """A loop whose gain is proven: from the perturbation to z, and to what may be clipped.

    `whole` is both, z first, in the states that plant and policy have.
    """

    costs: Neurons
    signals: Neurons
    gain: Gain
    performance: Performance
    whole: Neurons


def proven_loop(running: RunningPolicy, model: LinearModel, plant: LinearPlant) -> ProvenLoop | str:
    """Return the loop, or why nothing is proven of it; `model` is of the plant, or of the plant behind a delay."""
    weights, both = _judged(model, plant)
    rows = len(weights.Cz)
    try:
        whole = running.loop(model, both)
    except NotCertifiableError as error:
        return str(error).rstrip(".")
    loop = balanced(whole)
    select = np.eye(loop.model.sizes[3])
    costs = loop.mapped(lambda matrices: matrices.then(select[:rows]))
    gain = gain_of(costs)
    if gain is None:
        radius = float(np.abs(np.linalg.eigvals(loop.model.A)).max()) if loop.model.A.size else 0.0
        return f"the loop has no proven gain (its linear part has spectral radius {radius:.6g})"
    return ProvenLoop(costs, loop.mapped(lambda matrices: matrices.then(select[rows:])), gain, weights, whole)


def around_cell(running: RunningPolicy, model: LinearModel, plant: LinearPlant) -> Matrices:
    """Return all of that loop but the cell, which stands where a system has its neurons: v is what it reads, w gives.

    The loop is affine in the cell's matrices, so this and they are all of it.
    """
    weights, both = _judged(model, plant)
    open_ = running.close(model, both, known_gain(*running.sizes))
    return open_.then(np.eye(open_.sizes[3])[: len(weights.Cz)])


def _judged(model: LinearModel, plant: LinearPlant) -> tuple[Performance, Performance]:
    """Return z of the cost, and z of the cost and then the actions where a perturbation of the outputs enters."""
    weights = Performance.weighted(plant.Q, plant.R)
    n, m = model.n, model.m
    if under_way := n - plant.state_size:
        # What the plant receives is the last of the model's states, the oldest action on its way.
        nothing = np.zeros((len(weights.Cz), under_way - m))
        weights = replace(weights, Cz=np.hstack((weights.Cz, nothing, weights.Dz)), Dz=np.zeros_like(weights.Dz))
    return weights, Performance(
        np.vstack((weights.Cz, np.zeros((m, n)))),
        np.vstack((weights.Dz, np.eye(m))),
        np.zeros((n, 0)),
        np.eye(model.p),
    )
