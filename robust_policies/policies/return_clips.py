"""The loop of the certified return with what its clips leave off, and what moves the signals that are clipped."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from robust_policies.certificates.clipped import Moves
from robust_policies.certificates.impulse import impulse_gains
from robust_policies.certificates.lmi import Array, Matrices
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.reach import Reach, reach_of
from robust_policies.certificates.trajectory import Perturbation, balanced
from robust_policies.control.linear_model import LinearModel
from robust_policies.policies.return_loop import ProvenLoop


@dataclass(frozen=True)
class ClippedLoop:
    """A loop with what its clips leave off.

    Attributes:
        costs: d -> z, with what the clips leave off as its last neurons (k inside the policy, then m actions).
        moves: what moves the k + m signals that are clipped, for d in the groups of the norm.
    """

    costs: Matrices
    moves: Moves


def clipped_loop(loop: ProvenLoop, entering: Array, model: LinearModel, steps: int, norm: str) -> ClippedLoop:
    """Return a loop with its clips.

    Args:
        loop: while nothing is clipped.
        entering: (m, k), through which what is left off inside the policy enters the action.
        model: of the plant.
        steps: of an episode.
        norm: of the perturbations.
    """
    whole = loop.whole
    around = _Around(whole.model, model.B, loop.performance.Dz, entering, len(loop.performance.Cz))
    signals = Neurons(around.signals(), whole.theta)
    costs = Neurons(around.clipped(), np.concatenate((whole.theta, np.ones(around.count))))
    return ClippedLoop(balanced(costs).model, _moves(signals, steps, Perturbation(norm, 1.0, loop.noise)))


def _moves(signals: Neurons, steps: int, perturbation: Perturbation) -> Moves:
    """Return what moves the signals of a system (inputs, what is left off) -> signals."""
    count, around = signals.model.sizes[3], balanced(signals)
    inputs = signals.model.sizes[2] - count

    def reach(signal: int, begin: int, end: int, groups: Array, whole: bool) -> Reach | None:
        model = around.model.then(np.eye(count)[[signal]])
        B2, D12, D22 = (getattr(model, name)[:, begin:end] for name in ("B2", "D12", "D22"))
        return reach_of(
            signals._replace(model=replace(model, B2=B2, D12=D12, D22=D22, error=None)), steps, groups, whole
        )

    groups, whole = perturbation.groups(inputs), perturbation.norm == "total_l2"
    free = [reach(signal, 0, inputs, groups, whole) for signal in range(count)]
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
