"""The certified return: what no perturbation of a policy's observations can lead below, on a linear plant.

Policy and plant are one system around the policy's neurons, from the perturbation to the root of the cost; the
episodes are played once without a perturbation, and `certificates.trajectory` bounds what any perturbation can make of
them. That no action is clipped, which all of it needs, follows up to some size from how far one can move an action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from robust_policies import checks
from robust_policies.certificates.ball import NORMS
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.neurons import Neurons
from robust_policies.certificates.peak import peak_bounds
from robust_policies.certificates.trajectory import Along, CostBounds, Perturbation, contracting, gain_of
from robust_policies.envs.known import Known, known_episodes, seeds_of
from robust_policies.errors import InvalidValueError, NotCertifiableError, UnknownNameError
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.playing import Played, Playing
from robust_policies.policies.return_certificate import ReturnCertificate, ReturnRow
from robust_policies.policies.return_loop import ProvenLoop, proven_loop
from robust_policies.policies.return_task import Task, fitting_model, linear_task

_SEARCH = 6
# Of a size up to which nothing is clipped: its quotients' rounding, and that of the nominal episodes.
_DOWN = 1 - 1e-9


def certified_return(
    policy: DeployedPolicy,
    task: Task,
    sizes: Sequence[float],
    norm: str = "per_step_l2",
    episodes: int = 64,
    seed: int = 0,
) -> ReturnCertificate:
    """Return what is proven of the policy's return where its observations may be off by anything of a size.

    Args:
        policy: reads the outputs of the task's plant and gives its inputs.
        task: an environment's id, or a mapping of its `id` and `kwargs`, or a plant, or an environment.
        sizes: of the perturbations, in the observation's own unit.
        norm: what the sizes are of: each step's l2 norm, each step's largest entry, or the l2 norm of all steps.
        episodes: their number; they are those of `run_episodes` with this seed.
        seed: of the episodes.

    Where the loop has no bound, the status of the result is NOT_CERTIFIED and its `reason` says why.

    Raises:
        NotCertifiableError: the task is none of which such a bound is known (its plant is not linear, something stands
            around it, its episodes end early, its parameters vary), or the policy was made for another plant.
        InvalidValueError, UnknownNameError, ShapeError: an argument is wrong, or the policy does not fit.
    """
    asked = _checked_sizes(sizes, norm)
    checks.positive_int("episodes", episodes)
    if not isinstance(policy, DeployedPolicy):
        raise InvalidValueError(
            f"The policy is a {type(policy).__name__}; expected a deployed one, of load_policy(folder) or "
            "deploy(model). Of a policy behind a normaliser that still learns nothing can be proven."
        )
    name, plant, steps = linear_task(task)
    model, space = fitting_model(policy, plant), policy.action_space
    if not isinstance(space, spaces.Box):
        raise NotCertifiableError(f"The actions are choices ({type(space).__name__}), which do not change by a little.")
    low = np.maximum(np.asarray(space.low, dtype=np.float64).ravel(), plant.action_low)
    high = np.minimum(np.asarray(space.high, dtype=np.float64).ravel(), plant.action_high)
    running, known = policy.running(), known_episodes(plant, seeds_of(seed, episodes), steps)
    with torch.no_grad():
        playing = Playing(running, plant, known, low, high)
        free = np.flatnonzero(~playing.clipped(playing.play()).any(0))
        kept = free if len(free) else np.arange(episodes)
        playing = Playing(running, plant, Known(*(part[..., kept, :] for part in known)), low, high)
        nominal = playing.play()
    loop: ProvenLoop | str = "in every episode an action is clipped without any perturbation"
    if len(free):
        loop = proven_loop(running, model, plant)
    return _Searched(playing, nominal, loop, norm, seed).certificate(
        asked, task=name, episodes=len(kept), set_aside=episodes - len(free)
    )


@dataclass(frozen=True)
class _Searched:
    """Episodes that were played, and the loop that they are of, or why nothing is proven of it."""

    playing: Playing
    nominal: Played
    loop: ProvenLoop | str
    norm: str
    seed: int

    def certificate(self, sizes: list[float], **facts: Any) -> ReturnCertificate:
        """Return the certificate for all sizes; `facts` are its fields that are known."""
        order = np.argsort(sizes, kind="stable")
        bounds = [self._bounds(size) for size in sizes]
        least = None if isinstance(self.loop, str) else _monotone(bounds, order)
        rows, starts, most = [], [], np.zeros(0)
        for index in order:
            bound, size = bounds[index], sizes[index]
            # What was bad at a smaller size begins the search at a larger one.
            begin = [*starts[-1:], *([bound.worst] if bound is not None and bound.worst is not None else [])]
            added = self.playing.worst(self.norm, size, begin, _SEARCH, self.seed) if size else None
            with torch.no_grad():
                played = self.nominal if added is None else self.playing.play(added)
            if added is not None:
                starts.append(added.numpy())
            cost = played.cost.numpy()
            most = np.maximum(most, cost) if len(most) else cost
            rows.append(
                ReturnRow(
                    size=size,
                    nominal=-float(self.nominal.cost.mean()),
                    found=-float(most.mean()),
                    certified=None if least is None else -float(least[index].mean()),
                    clipped_share=float(self.playing.clipped(played).mean()),
                    triangle=None if bound is None else -float(bound.triangle.mean()),
                    constant=None if bound is None else -float(bound.constant.mean()),
                )
            )
        proven = None if isinstance(self.loop, str) else self.loop
        return ReturnCertificate(
            status="NOT_CERTIFIED" if proven is None else "PASS",
            norm=self.norm,
            gain=None if proven is None else proven.gain.gain,
            unclipped_up_to=None if proven is None else self._unclipped(proven.signals),
            rows=tuple(rows[int(np.flatnonzero(order == index)[0])] for index in range(len(sizes))),
            seed=self.seed,
            each=() if least is None else tuple(tuple((-bound).tolist()) for bound in least),
            reason=self.loop if isinstance(self.loop, str) else "",
            **facts,
        )

    def _bounds(self, size: float) -> CostBounds | None:
        if isinstance(self.loop, str):
            return None
        z = self.nominal.states.numpy() @ self.loop.performance.Cz.T
        z = z + self.nominal.actions.numpy() @ self.loop.performance.Dz.T
        along = Along(self.loop.costs.model, self.loop.costs.family, z)
        return along.bounds(self.loop.gain, Perturbation(self.norm, size))

    def _unclipped(self, signals: Neurons) -> float | None:
        """Return the largest size for which it is proven that nothing is clipped, None where nothing is."""
        moved = _reach(signals, self.norm, self.playing.shape[0])
        if moved is None:
            return None
        room = self.playing.room(self.nominal).min((0, 1))
        limits = [float(space / most) for space, most in zip(room, moved, strict=True) if most > 0]
        return min(limits, default=float(np.finfo(np.float64).max)) * _DOWN


def _reach(signals: Neurons, norm: str, steps: int) -> Array | None:
    """Return how far (m + k,) each signal can be moved at any step by perturbations of size 1, None without a proof."""
    inputs = signals.model.sizes[2]
    start = next(contracting(signals), None)
    if norm != "total_l2" and start is not None:
        # Of a step's l2 norm no entry is larger.
        moved = peak_bounds(signals._replace(theta=start.theta), np.ones(inputs), start.P)
        if moved is not None:
            return moved
    # No step moves a signal by more than all of them together.
    found = []
    for row in np.eye(signals.model.sizes[3]):
        gain = gain_of(signals.mapped(lambda matrices, row=row: matrices.then(row[None])))
        if gain is None:
            return None
        found.append(gain.gain * Perturbation(norm, 1.0).total(steps, inputs))
    return np.array(found)


def _monotone(bounds: list[CostBounds | None], order: Array) -> list[Array]:
    """Return the bounds (episodes,) by size where one of a larger size also holds for a smaller one."""
    least = [np.zeros(0) if bound is None else bound.least for bound in bounds]
    for smaller, larger in reversed(list(pairwise(order))):
        least[smaller] = np.minimum(least[smaller], least[larger])
    return least


def _checked_sizes(sizes: Sequence[float], norm: str) -> list[float]:
    if norm not in NORMS:
        raise UnknownNameError.among("norm", norm, NORMS)
    asked = [float(size) for size in sizes]
    if not asked or any(not math.isfinite(size) or size < 0 for size in asked):
        raise InvalidValueError(f"sizes are {asked!r}; expected at least one finite number >= 0.")
    return asked
