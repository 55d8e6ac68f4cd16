"""The certified return: what no perturbation of a policy's observations can lead below.

Policy and plant are one system around the policy's neurons, from the perturbation to the root of the cost; the
episodes are played once without a perturbation, and `certificates.trajectory` bounds what any perturbation can make of
them. That no action is clipped, which all of it needs, follows up to some size from how far one can move an action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from robust_policies import checks
from robust_policies.certificates.ball import NORMS
from robust_policies.certificates.clipped import ClippedAlong, Clips
from robust_policies.certificates.lmi import Array
from robust_policies.certificates.trajectory import MARGIN, Along, Gain, Perturbation
from robust_policies.envs.known import Known, known_episodes, seeds_of
from robust_policies.envs.plants.linear import LinearPlant
from robust_policies.errors import InvalidValueError, NotCertifiableError, UnknownNameError
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.playing import Played, Playing
from robust_policies.policies.return_certificate import ReturnCertificate, ReturnRow
from robust_policies.policies.return_clips import ClippedLoop, clipped_loop
from robust_policies.policies.return_loop import ProvenLoop, proven_loop
from robust_policies.policies.return_region import certified_in_region
from robust_policies.policies.return_task import Task, bare_task, fitting_model, lasting

_SEARCH = 6
# Steps of the two descents; where there is noise the multipliers that stay have further to go.
_FEW, _MANY = (12, 40), (40, 40)


def certified_return(
    policy: DeployedPolicy,
    task: Task,
    sizes: Sequence[float],
    norm: str = "per_step_l2",
    episodes: int = 64,
    seed: int = 0,
    delay: int = 0,
    noise: float | None = None,
) -> ReturnCertificate:
    """Return what is proven of the policy's return where its observations may be off by anything of a size.

    Args:
        policy: reads the outputs of the task's plant and gives its inputs.
        task: an environment's id, or a mapping of its `id` and `kwargs`, or a plant, or an environment.
        sizes: of the perturbations, in the observation's own unit.
        norm: what the sizes are of: each step's l2 norm, each step's largest entry, or the l2 norm of all steps.
        episodes: their number; they are those of `run_episodes` with this seed.
        seed: of the episodes.
        delay: steps from an action to the plant, of a linear one; that of `ActionDelay` around the task is known.
        noise: what is proven holds of every noise whose standard normal numbers are at most this in size, of a linear
            plant; None: of the noise of these episodes alone.

    Where the loop has no bound, the status of the result is NOT_CERTIFIED and its `reason` says why.

    Raises:
        NotCertifiableError: the task is none of which such a bound is known (its plant is neither linear nor one of
            `return_region`, something stands around it, its episodes end early, its parameters vary), or the policy was
            made for another plant or delay.
        InvalidValueError, UnknownNameError, ShapeError: an argument is wrong, or the policy does not fit.
    """
    asked = _checked_sizes(sizes, norm)
    if noise is not None and not (math.isfinite(noise) and noise >= 0):
        raise InvalidValueError(f"noise is {noise!r}; expected a finite number >= 0 of deviations, or None.")
    checks.positive_int("episodes", episodes)
    if not isinstance(policy, DeployedPolicy):
        raise InvalidValueError(
            f"The policy is a {type(policy).__name__}; expected a deployed one, of load_policy(folder) or "
            "deploy(model). Of a policy behind a normaliser that still learns nothing can be proven."
        )
    name, plant, steps, late = bare_task(task, delay)
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        raise NotCertifiableError(f"The actions are choices ({type(space).__name__}), which do not change by a little.")
    low = np.maximum(np.asarray(space.low, dtype=np.float64).ravel(), plant.action_low)
    high = np.minimum(np.asarray(space.high, dtype=np.float64).ravel(), plant.action_high)
    if not isinstance(plant, LinearPlant):
        if late:
            raise NotCertifiableError(f"The actions are {late} step(s) late; a region is known without a delay alone.")
        if noise is not None:
            raise NotCertifiableError(f"The plant of {name} is not linear and draws no noise; leave noise out.")
        return certified_in_region(policy, name, plant, steps, (low, high), asked, norm, episodes, seed)
    plant = lasting(name, plant)
    model, running = fitting_model(policy, plant, late), policy.running()
    known = known_episodes(plant, seeds_of(seed, episodes), steps)
    noise = noise if plant.E.size or plant.F.size else None
    if noise is not None:
        known = Known(known.start, torch.zeros_like(known.process), torch.zeros_like(known.measurement))
    positive = [math.log(size) for size in asked if size]
    typical = math.exp(sum(positive) / len(positive)) if positive else 1.0
    loop = proven_loop(running, model, plant, noise or 0.0, typical)
    within = noise or 0.0 if isinstance(loop, str) or loop.noise is None else loop.noise.bound
    playing = Playing(running, plant, known, low, high, late, noise / within if noise else 0.0)
    with torch.no_grad():
        nominal = playing.play()
    clipped = None if isinstance(loop, str) else clipped_loop(loop, running.entering, model, steps, norm)
    return _Searched(playing, nominal, loop, clipped, norm, seed, within, noise).certificate(asked, name)


@dataclass(frozen=True)
class _Searched:
    """Episodes that were played, and the loop that they are of, or why nothing is proven of it."""

    playing: Playing
    nominal: Played
    loop: ProvenLoop | str
    clipped: ClippedLoop | None
    norm: str
    seed: int
    within: float
    noise: float | None

    def certificate(self, sizes: list[float], task: str) -> ReturnCertificate:
        """Return the certificate for all sizes."""
        order = np.argsort(sizes, kind="stable")
        bounds = [self._bounds(size) for size in sizes]
        least = _monotone([bound.least for bound in bounds], order)
        # Episodes of which nothing is proven at any size are no part of the means, unless that is all of them.
        kept: Array = np.asarray(np.isfinite(least).any(0))
        proven = bool(kept.any())
        kept = kept if proven else np.ones_like(kept)
        rows, starts, most = [], [], np.zeros(0)
        for index in order:
            bound, size = bounds[index], sizes[index]
            # What was bad at a smaller size begins the search at a larger one.
            begin = [*starts[-1:], *bound.worst]
            searched = size or self.within
            added = self.playing.worst(self.norm, size, begin, _SEARCH, self.seed, self.within) if searched else None
            with torch.no_grad():
                played = self.nominal if added is None else self.playing.play(added)
            if added is not None:
                starts.append(added.numpy())
            cost = played.cost.numpy()
            most = np.maximum(most, cost) if len(most) else cost
            rows.append(
                ReturnRow(
                    size=size,
                    nominal=-float(self.nominal.cost.numpy()[kept].mean()),
                    found=-float(most[kept].mean()),
                    certified=_mean(least[index], kept),
                    clipped_share=float(self.playing.clipped(played)[:, kept].mean()),
                    triangle=_mean(bound.triangle, kept),
                    constant=_mean(bound.constant, kept),
                    unclipped=_mean(bound.unclipped, kept & (self._clips.room() > 0).all((0, 2))),
                )
            )
        reason = "no bound along the episodes was found" if not isinstance(self.loop, str) else self.loop
        return ReturnCertificate(
            status="PASS" if proven else "NOT_CERTIFIED",
            norm=self.norm,
            gain=None if isinstance(self.loop, str) else self.loop.gain.gain,
            unclipped_up_to=self._unclipped(kept),
            episodes=int(kept.sum()),
            rows=tuple(rows[int(np.flatnonzero(order == index)[0])] for index in range(len(sizes))),
            task=task,
            seed=self.seed,
            set_aside=int((~kept).sum()),
            each=tuple(tuple((-bound[kept]).tolist()) for bound in least) if proven else (),
            reason="" if proven else reason,
            delay=self.playing.delay,
            noise=self.noise,
        )

    @cached_property
    def _clips(self) -> Clips:
        return Clips(self.nominal.signals.numpy(), *self.playing.limits())

    def _bounds(self, size: float) -> _Bounds:
        """Return the bounds of each episode, infinite where there is none."""
        nothing = np.full(self.playing.shape[1], np.inf)
        if isinstance(self.loop, str) or self.clipped is None:
            return _Bounds(nothing, nothing, nothing, nothing, [])
        perturbation, weights, loop = self._of(size), self.loop.performance, self.loop
        z = self.nominal.states.numpy() @ weights.Cz.T + self.nominal.applied.numpy() @ weights.Dz.T
        along = Along(loop.costs.model, loop.costs.family, z)
        found = along.bounds(loop.gain, perturbation, _FEW if loop.noise is None else _MANY)
        if perturbation.nothing:
            # Where nothing is perturbed the episode, clipped or not, is the one that was played.
            exact = found.triangle
            return _Bounds(exact, exact, exact, exact, [])
        reach = self.clipped.moves.reached(self._clips, self._moved(perturbation))
        free = (reach <= self._clips.room()).all((0, 2))
        triangle, constant, least = (np.where(free, bound, np.inf) for bound in found[:3])
        worst = [] if found.worst is None else [found.worst]
        if not free.all():
            clips = Clips(self._clips.nominal[:, ~free], self._clips.low, self._clips.high)
            lower, upper = clips.slopes(reach[:, ~free])
            clipped_along = ClippedAlong(
                self.clipped.costs, z[:, ~free], lower, upper, np.any(clips.room() < 0, axis=2)
            )
            groups = perturbation.groups(self.playing.shape[2])
            mu, theta = found.multipliers or _simple(loop.gain, len(groups))
            clipped = clipped_along.bounds(mu, theta, perturbation)
            if clipped is not None:
                least[~free] = clipped[0]
                start = np.zeros(self.playing.shape) if not worst else worst[0].copy()
                start[:, ~free] = clipped[1]
                worst.append(start)
        return _Bounds(triangle, constant, found.least, least, worst)

    def _of(self, size: float) -> Perturbation:
        return Perturbation(self.norm, size, None if isinstance(self.loop, str) else self.loop.noise)

    def _moved(self, perturbation: Perturbation) -> Array:
        """Return how far (time, k + m) a perturbation moves what is clipped, while nothing is left off."""
        assert self.clipped is not None
        return self.clipped.moves.unclipped(perturbation, self.playing.shape[0], self.playing.shape[2])

    def _unclipped(self, kept: Array) -> float | None:
        """Return the largest size at which nothing can be clipped in these episodes, None where none is known."""
        room = self._clips.room()[:, kept]
        if self.clipped is None or not (room > 0).all():
            return None
        room = room.min(1)
        one, noise = self._of(1.0), self._of(0.0)
        if one.noise is not None:
            # The squares of what both do add up.
            one, always = one._replace(noise=one.noise._replace(bound=0.0)), self._moved(noise)
            if not (always < room).all():
                return None
            room = np.sqrt(np.square(room) - np.square(always))
        once = self._moved(one)
        sizes = np.divide(room, once, out=np.full_like(once, np.finfo(np.float64).max), where=once > 0)
        return float(sizes.min()) * (1 - MARGIN) or None


class _Bounds(NamedTuple):
    """Bounds of the cost (episodes,) of perturbations of a size, and perturbations at which one is attained.

    `unclipped` holds while nothing is clipped, whether that is excluded or not; the others always.
    """

    triangle: Array
    constant: Array
    unclipped: Array
    least: Array
    worst: list[Array]


def _simple(gain: Gain, groups: int) -> tuple[Array, Array]:
    """Return multipliers of a loop that is not clipped."""
    theta = np.maximum(2.0 * gain.theta, 1e-12 * max(float(gain.theta.max(initial=0.0)), 1e-300))
    return np.full((1, groups), 2.0 * gain.gain**2), theta[None]


def _mean(bound: Array, kept: Array) -> float | None:
    """Return minus the mean of the kept episodes' bounds, None where one of them has none."""
    mean = float(bound[kept].mean()) if kept.any() else math.inf
    return -mean if math.isfinite(mean) else None


def _monotone(bounds: list[Array], order: Array) -> Array:
    """Return the bounds (sizes, episodes) where one of a larger size also holds for a smaller one."""
    least = np.array(bounds)
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
