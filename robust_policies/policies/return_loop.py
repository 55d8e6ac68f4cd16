"""The loop of a policy and a linear plant, from a perturbation of what the policy reads to the root of the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy

from robust_policies.certificates.lmi import Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.trajectory import Gain, Noise, balanced, gain_of
from robust_policies.control.gain_bounds import known_gain
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.youla import Performance
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.errors import NotCertifiableError
from robust_policies.policies.running import RunningPolicy


@dataclass(frozen=True)
class ProvenLoop:
    """A loop whose gain is proven: from the perturbation to z, and to what may be clipped.

    `whole` is both, z first, in the states that plant and policy have. `noise` says which inputs are the plant's noise,
    if any are.
    """

    costs: Neurons
    signals: Neurons
    gain: Gain
    performance: Performance
    whole: Neurons
    noise: Noise | None = None


def proven_loop(
    running: RunningPolicy, model: LinearModel, plant: LinearPlant, noise: float = 0.0, size: float = 1.0
) -> ProvenLoop | str:
    """Return the loop, or why nothing is proven of it.

    Args:
        running: the policy.
        model: of the plant, or of the plant behind a delay.
        plant: its cost and its noises.
        noise: bounds each number of the plant's noise, which then enters too; 0: it does not.
        size: of the perturbation; the inputs of the noise are scaled so that a search weighs both alike.
    """
    weights, both = _judged(model, plant)
    rows, inputs = len(weights.Cz), None
    try:
        whole = running.loop(model, both)
        if noise:
            inputs = _noise(running.loop(model, _noisy(both, plant, noise)).model, plant, rows, size)
            whole = running.loop(model, _noisy(both, plant, noise / inputs.bound))
    except NotCertifiableError as error:
        return str(error).rstrip(".")
    loop = balanced(whole)
    select = np.eye(loop.model.sizes[3])
    costs = loop.mapped(lambda matrices: matrices.then(select[:rows]))
    gain = gain_of(costs)
    if gain is None:
        radius = float(np.abs(np.linalg.eigvals(loop.model.A)).max()) if loop.model.A.size else 0.0
        return f"the loop has no proven gain (its linear part has spectral radius {radius:.6g})"
    signals = loop.mapped(lambda matrices: matrices.then(select[rows:]))
    return ProvenLoop(costs, signals, gain, weights, whole, inputs)


def _noise(loop: Matrices, plant: LinearPlant, rows: int, size: float) -> Noise:
    """Return which inputs of a loop are noise, of the states before the perturbation and of the outputs after it.

    Its bound is that in whose unit perturbation and noise take like multipliers: where one moves the cost (its linear
    part, in the H2 norm) as much as the other, relative to their sizes.
    """
    before, after = plant.E.shape[1], plant.F.shape[1]
    if not np.abs(np.linalg.eigvals(loop.A)).max(initial=0.0) < 1.0:
        return Noise(before, after, 1.0)
    weight = scipy.linalg.solve_discrete_lyapunov(loop.A.T, loop.C2[:rows].T @ loop.C2[:rows])
    each = np.einsum("ij,ik,kj->j", loop.B2, weight, loop.B2) + np.square(loop.D22[:rows]).sum(0)
    own = slice(before, len(each) - after)
    other, self_ = math.sqrt(max(each.sum() - each[own].sum(), 0.0)), math.sqrt(max(float(each[own].sum()), 0.0))
    bound = math.sqrt(other * size / self_) if self_ > 0 else 1.0
    return Noise(before, after, bound if math.isfinite(bound) and bound > 0 else 1.0)


def _noisy(judged: Performance, plant: LinearPlant, noise: float) -> Performance:
    """Return the performance where the plant's noise enters too."""
    Bw = np.zeros((len(judged.Bw), plant.E.shape[1]))
    Bw[: plant.state_size] = noise * plant.E
    return replace(judged, Bw=Bw, Dv=np.hstack((judged.Dv, noise * plant.F)))


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
