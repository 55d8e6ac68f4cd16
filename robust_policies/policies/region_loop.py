"""A nonlinear plant and a policy in a box of states and actions, and how far a perturbation moves each signal there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np

from robust_policies.certificates.channels import channels_of, closed
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.optimum import Candidate
from robust_policies.certificates.reach import reach_of
from robust_policies.certificates.trajectory import MARGIN, Gain, Perturbation, balanced, gain_of, rated
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.scope import enclosed_plant
from robust_policies.control.youla import Performance
from robust_policies.envs.plant import Plant
from robust_policies.envs.plants.cartpole import CartPolePlant
from robust_policies.envs.plants.pendulum import PendulumPlant
from robust_policies.errors import NotCertifiableError

# How many metrics proofs start from.
_METRICS = 6

Close = Callable[[LinearModel, Performance], Neurons]


class Squares(NamedTuple):
    """A reward `most` - x'Q x - u'R u of the state before the step or, if `following`, after it.

    Q (n,) and R (m,) are diagonals; |x| <= limits (n,), within which the reward is this and no episode ends.
    """

    Q: Array
    R: Array
    most: float
    following: bool
    limits: Array


def squares_of(plant: Plant) -> Squares:
    """Return the reward of a plant as squares; raises NotCertifiableError where it is none or is not known."""
    # A subclass may have another reward, or end its episodes elsewhere.
    if type(plant) is PendulumPlant:
        cost, wide = plant.cost, np.array([np.pi, plant.limits.speed])
        return Squares(np.array([cost.angle, cost.speed]), np.array([cost.torque]), 0.0, False, wide)
    if type(plant) is CartPolePlant and plant.reward_kind == "balance":
        cost, limits = plant.cost, plant.limits
        Q = np.array([cost.position, cost.speed, cost.angle, cost.angular_speed])
        wide = np.array([limits.position, np.inf, limits.angle or np.pi, np.inf])
        return Squares(Q, np.array([cost.force]), 1.0, True, wide)
    if type(plant) is CartPolePlant:
        raise NotCertifiableError(
            f"The reward {plant.reward_kind!r} is no sum of squares; of the cart-pole a return is certified with "
            "reward: balance alone."
        )
    raise NotCertifiableError(
        f"The plant is {plant.kind!r}; a return is certified for linear plants (plant: linear in task.yaml), and in a "
        "region for the pendulum and the cart-pole."
    )


@dataclass(frozen=True, eq=False)
class Box:
    """A box of states and actions, the loop there, and how far a perturbation of size 1 moves its signals by each step.

    Attributes:
        low, high: (n + m,) its corners.
        costs: d -> z around the policy's neurons and the channels.
        metrics: in which it is thought to contract, with their rates.
        reach: (steps, n + m + signals) of states, actions and the other signals.
        channels: how many entries of the Jacobian vary.
    """

    low: Array
    high: Array
    costs: Neurons
    metrics: tuple[tuple[float, Candidate], ...]
    reach: Array
    channels: int

    @cached_property
    def gain(self) -> Gain | None:
        """The gain of `costs`, proven for its arrays; None where none is."""
        return gain_of(self.costs, self.metrics)


def box_loop(
    close: Close, model: LinearModel, plant: Plant, angles: Array, corners: tuple[Array, Array], steps: int, norm: str
) -> Box | str:
    """Return the loop in a box, or why there is none.

    Args:
        close: of a `RunningPolicy`, the loop d -> (z, signals inside).
        model: the linear model that the policy is closed with; what the plant is beside it becomes channels.
        plant: at its nominal parameters.
        angles: (p,) the outputs whose difference from what an observer expects is wrapped.
        corners: (n + m,) each, of the box.
        steps: of an episode.
        norm: of the perturbations.
    """
    low, high = corners
    bounds = enclosed_plant(plant, low, high)
    if bounds is None:
        return "something is clipped in the region, or its slopes there have no known bounds"
    n, m, p = model.n, model.m, model.p
    linear = np.block([[model.A, model.B], [model.C, np.zeros((p, m))]])
    channels, squares = channels_of(*bounds, linear), squares_of(plant)
    # Channels of the next state enter as process noise does, those of the observation as its noise.
    order = np.argsort(channels.rows >= n, kind="stable")
    rows, columns, lower, width = (part[order] for part in channels)
    states, k = int((rows < n).sum()), len(rows)
    Bw, Dv = np.eye(n)[:, rows[:states]], np.hstack((np.eye(p)[:, rows[states:] - n], np.eye(p)))
    pick, weight = np.eye(n + m)[columns], np.sqrt(squares.Q)[:, None]
    before = weight * (linear[:n] if squares.following else np.eye(n, n + m))
    effort = np.hstack((np.zeros((m, n)), np.diag(np.sqrt(squares.R))))
    outputs = np.vstack((before, effort, np.eye(n + m), pick))
    try:
        loop = close(model, Performance(outputs[:, :n], outputs[:, n:], Bw, Dv))
    except NotCertifiableError as error:
        return str(error).rstrip(".")
    made, rows_z = loop.model, n + m
    D22 = made.D22.copy()
    if squares.following:
        D22[:n, :states] += weight * Bw
    inside = len(made.C2) - len(outputs)
    seen = np.flatnonzero(angles)
    innovation = np.zeros((len(seen), made.A.shape[0]))
    if len(seen):
        # The states of a Youla loop are those of the plant, the observer's error and the parameter's.
        innovation[:, n : 2 * n] = model.C[seen]
    passed = np.hstack((np.zeros((len(seen), states)), Dv[seen]))
    main, last = slice(0, 2 * rows_z), slice(2 * rows_z, 2 * rows_z + k)
    rest = slice(2 * rows_z + k, None)
    whole = made.__class__(
        A=made.A,
        B1=made.B1,
        B2=made.B2,
        C1=made.C1,
        D11=made.D11,
        D12=made.D12,
        C2=np.vstack((made.C2[main], made.C2[rest], innovation, made.C2[last])),
        D21=np.vstack((made.D21[main], made.D21[rest], np.zeros((len(seen), made.B1.shape[1])), made.D21[last])),
        D22=np.vstack((D22[main], D22[rest], passed, D22[last])),
    )
    late = (np.arange(k) < states) & (columns >= n)
    around = balanced(closed(Neurons(whole, loop.theta), lower, width, late))
    select = np.eye(2 * rows_z + inside + len(seen))
    costs = around.mapped(lambda matrices: matrices.then(select[:rows_z]))
    metrics = tuple(islice(rated(around), _METRICS))
    if not metrics:
        return "in the region of these episodes no metric was found in which the loop contracts"
    groups, whole_l2 = Perturbation(norm, 1.0).groups(p), norm == "total_l2"
    reach = np.zeros((steps, len(select) - rows_z))
    for signal in range(reach.shape[1]):
        row = select[[rows_z + signal]]
        one = around.mapped(lambda matrices, row=row: matrices.then(row))
        found = reach_of(one, steps, groups, whole_l2, metrics)
        if found is None:
            return "in the region of these episodes nothing bounds how far a perturbation moves the loop"
        reach[:, signal] = found.bound(np.ones(len(groups)), whole_l2) * (1 + MARGIN)
    return Box(low, high, costs, metrics, reach, k)
