"""A linear plant in feedback with a policy as the systems around single neurons that bounds of the return are about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from robust_policies.certificates.clipped import Moves
from robust_policies.certificates.impulse import impulse_gains
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.reach import Reach, reach_of
from robust_policies.certificates.trajectory import Gain, Perturbation, balanced, gain_of
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.youla import Performance
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.errors import NotCertifiableError

Close = Callable[[LinearModel, Performance], Neurons]


@dataclass(frozen=True)
class Loop:
    """A loop whose gain is proven.

    Attributes:
        costs: d -> z, while nothing is clipped.
        gain: proven, of that.
        clipped: d -> z, with what the clips leave off as its last neurons (k inside the policy, then m actions).
        moves: what moves the k + m signals that are clipped, for d in the groups of the norm.
        performance: z = Cz x + Dz u.
    """

    costs: Neurons
    gain: Gain
    clipped: Matrices
    moves: Moves
    performance: Performance


def return_loop(
    close: Close, entering: Array, model: LinearModel, plant: LinearPlant, steps: int, norm: str
) -> Loop | str:
    """Return the loop, or why nothing is proven of it.

    Args:
        close: of a `RunningPolicy`, the loop d -> (z, signals inside).
        entering: (m, k), through which what is left off inside enters the action.
        model: of the plant.
        plant: with the weights of the cost.
        steps: of an episode.
        norm: of the perturbations.
    """
    weights = Performance.weighted(plant.Q, plant.R)
    n, m, rows = model.n, model.m, len(weights.Cz)
    both = Performance(
        np.vstack((weights.Cz, np.zeros((m, n)))),
        np.vstack((weights.Dz, np.eye(m))),
        np.zeros((n, 0)),
        np.eye(model.p),
    )
    try:
        loop = close(model, both)
    except NotCertifiableError as error:
        return str(error).rstrip(".")
    select = np.eye(loop.model.sizes[3])
    costs = balanced(loop).mapped(lambda matrices: matrices.then(select[:rows]))
    gain = gain_of(costs)
    if gain is None:
        radius = float(np.abs(np.linalg.eigvals(loop.model.A)).max()) if loop.model.A.size else 0.0
        return f"the loop has no proven gain (its linear part has spectral radius {radius:.6g})"
    around = _Around(loop.model, model.B, weights.Dz, entering, rows)
    signals = Neurons(around.signals(), loop.theta)
    whole = Neurons(around.clipped(), np.concatenate((loop.theta, np.ones(around.count))))
    return Loop(costs, gain, balanced(whole).model, _moves(signals, steps, model.p, norm), weights)


def _moves(signals: Neurons, steps: int, inputs: int, norm: str) -> Moves:
    """Return what moves the signals of a system (d, what is left off) -> signals."""
    count, around = signals.model.sizes[3], balanced(signals)

    def reach(signal: int, begin: int, end: int, groups: Array, whole: bool) -> Reach | None:
        model = around.model.then(np.eye(count)[[signal]])
        B2, D12, D22 = (getattr(model, name)[:, begin:end] for name in ("B2", "D12", "D22"))
        return reach_of(
            signals._replace(model=replace(model, B2=B2, D12=D12, D22=D22, error=None)), steps, groups, whole
        )

    groups = Perturbation(norm, 1.0).groups(inputs)
    free = [reach(signal, 0, inputs, groups, norm == "total_l2") for signal in range(count)]
    own = _inputs(signals.model, inputs)
    if not _seen(own):
        none: list[list[Reach | None]] = [[None] * count for _ in range(count)]
        return Moves(free, _response(own, steps), none)
    left = [[reach(i, inputs + j, inputs + j + 1, np.ones((1, 1)), False) for j in range(count)] for i in range(count)]
    return Moves(free, impulse_gains(around._replace(model=_inputs(around.model, inputs)), steps), left)


def _inputs(model: Matrices, first: int) -> Matrices:
    return replace(model, B2=model.B2[:, first:], D12=model.D12[:, first:], D22=model.D22[:, first:], error=None)


def _seen(model: Matrices) -> bool:
    """Return whether any neuron sees the inputs of a system, by way of its linear part: exact zeros are none."""
    reached = (model.B2 != 0).any(1)
    for _ in range(len(model.A)):
        reached = reached | ((model.A[:, reached] != 0).any(1))
    return bool((model.C1[:, reached] != 0).any() or model.D12.any())


def _response(model: Matrices, steps: int) -> Array:
    """Return the absolute impulse response (steps, outputs, inputs) of a system's linear part."""
    found, drive = [model.D22], model.B2
    for _ in range(steps - 1):
        found.append(model.C2 @ drive)
        drive = model.A @ drive
    return np.abs(np.array(found))


class _Around:
    """A loop d -> (z, u, signals inside) whose first states are the plant's, and what clips leave off of the last two.

    An action is u - q; what is left off of the signals inside enters u through `entering` (m, k).
    """

    def __init__(self, loop: Matrices, B: Array, Dz: Array, entering: Array, rows: int) -> None:
        nx, _, _, ny = loop.sizes
        inside, m = entering.shape[1], B.shape[1]
        self.loop, self.rows, self.count = loop, rows, inside + m
        self.order = np.r_[rows + m : ny, rows : rows + m]
        moved = np.hstack((entering, np.eye(m)))
        self.state = np.zeros((nx, self.count))
        self.state[: len(B)] = -B @ moved
        self.cost = -Dz @ moved
        self.signal = np.zeros((self.count, self.count))
        self.signal[inside:, :inside] = -entering

    def signals(self) -> Matrices:
        """Return (d, what is left off) -> what is clipped, the signals inside first."""
        loop, nv = self.loop, self.loop.sizes[1]
        return Matrices(
            A=loop.A,
            B1=loop.B1,
            B2=np.hstack((loop.B2, self.state)),
            C1=loop.C1,
            D11=loop.D11,
            D12=np.hstack((loop.D12, np.zeros((nv, self.count)))),
            C2=loop.C2[self.order],
            D21=loop.D21[self.order],
            D22=np.hstack((loop.D22[self.order], self.signal)),
        )

    def clipped(self) -> Matrices:
        """Return d -> z, with what is left off as neurons."""
        loop, nv = self.loop, self.loop.sizes[1]
        return Matrices(
            A=loop.A,
            B1=np.hstack((loop.B1, self.state)),
            B2=loop.B2,
            C1=np.vstack((loop.C1, loop.C2[self.order])),
            D11=np.block([[loop.D11, np.zeros((nv, self.count))], [loop.D21[self.order], self.signal]]),
            D12=np.vstack((loop.D12, loop.D22[self.order])),
            C2=loop.C2[: self.rows],
            D21=np.hstack((loop.D21[: self.rows], self.cost)),
            D22=loop.D22[: self.rows],
        )
