"""The certified return on a nonlinear plant, in a region that no perturbation of a size can lead out of.

The episodes are played without a perturbation; around each of them stands a tube, as wide at each step as a
perturbation of the size can move each state and action by then. In a box that holds all tubes the Jacobian is bounded
(`certificates.channels`), from which the tube's width follows: while both trajectories are in the box their difference
obeys the bounds, so the next one is in the tube, hence in the box, and so on for every step. No action is clipped in
the tube and no episode ends in it, so the bounds of `certificates.trajectory` hold. All of it is float64 arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from robust_policies.certificates.lmi import Array
from robust_policies.certificates.trajectory import MARGIN, Along, CostBounds, Gain, Perturbation
from robust_policies.control.linear_model import LinearModel
from robust_policies.control.linearize import linearize_plant
from robust_policies.envs.known import known_episodes, seeds_of
from robust_policies.envs.plant import Plant
from robust_policies.errors import InvalidValueError, NotCertifiableError
from robust_policies.policies.deployed import DeployedPolicy
from robust_policies.policies.playing import Played, Playing
from robust_policies.policies.region_loop import Box, box_loop, squares_of
from robust_policies.policies.return_certificate import ReturnCertificate, ReturnRow
from robust_policies.policies.return_task import check_fits
from robust_policies.policies.youla.policy import YoulaPolicy

_SEARCH = 6
# Boxes for a size hold what the loop in the smallest box does to this many times the size.
_ROOMS = (1.2, 1.7, 2.5)
# How often the largest size is bisected.
_BISECTIONS = 3


def certified_in_region(
    policy: DeployedPolicy,
    name: str,
    plant: Plant,
    steps: int,
    limits: tuple[Array, Array],
    sizes: list[float],
    norm: str,
    episodes: int,
    seed: int,
) -> ReturnCertificate:
    """Return what is proven of the return on a nonlinear plant; the sizes were checked, else as `certified_return`.

    `name` is the task's, `steps` the length of its episodes, `limits` those of the actions (m,), below and above.
    """
    squares_of(plant)
    model = _model(policy, plant)
    check_fits(policy, model)
    playing = Playing(policy.running(), plant, known_episodes(plant, seeds_of(seed, episodes), steps), *limits)
    with torch.no_grad():
        nominal = playing.play()
    return _InRegion(playing, nominal, model, policy, norm, seed).certificate(sizes, name)


def _model(policy: DeployedPolicy, plant: Plant) -> LinearModel:
    """Return the linear model that the policy is closed with: a Youla policy's own, else that about zero."""
    if isinstance(policy, YoulaPolicy):
        if policy.controller.options.delay:
            raise NotCertifiableError("The Youla policy was made for actions that are late; a region is known without.")
        model = policy.model
    else:
        model = linearize_plant(plant, np.zeros(plant.state_size), np.zeros(len(plant.action_high)))
    if model.n != plant.state_size or model.m != len(plant.action_high) or np.any(model.D):
        raise NotCertifiableError(
            f"The policy's model has {model.n} state(s) and {model.m} input(s), the plant {plant.state_size} and "
            f"{len(plant.action_high)}; a region is known of models of the whole state, without a delay."
        )
    return model


@dataclass
class _InRegion:
    """Episodes that were played, and the boxes around them that were looked at."""

    playing: Playing
    nominal: Played
    model: LinearModel
    policy: DeployedPolicy
    norm: str
    seed: int
    boxes: dict[float, Box | str] = field(default_factory=dict)

    def certificate(self, sizes: list[float], task: str) -> ReturnCertificate:
        """Return the certificate for all sizes."""
        rows: dict[float, ReturnRow] = {}
        each: list[tuple[float, ...]] = []
        reason = self._outside() or self._failed(self._box(0.0))
        limit, largest = 0.0, 0.0
        if not reason:
            limit, largest = self._largest(sizes)
        starts: list[Array] = []
        most, gains = self.nominal.cost.numpy().copy(), []
        least = {size: np.full(self.playing.shape[1], np.inf) for size in sizes}
        for size in sorted(set(sizes)):
            box = None if reason else self._smallest(size)
            bounds = None
            if box is not None and box.gain is not None:
                bounds = self._bounds(box, box.gain, size)
                least[size] = np.minimum(least[size], bounds.least + self._least_cost)
                gains.append(box.gain.gain)
            played = self._attacked(size, box is not None, starts, bounds)
            most = np.maximum(most, played.cost.numpy())
            rows[size] = ReturnRow(
                size=size,
                nominal=-float(self.nominal.cost.mean()),
                found=-float(most.mean()),
                certified=None if bounds is None else -float(least[size].mean()),
                clipped_share=float(self.playing.clipped(played).mean()),
                triangle=None if bounds is None else -float((bounds.triangle + self._least_cost).mean()),
                constant=None if bounds is None else -float((bounds.constant + self._least_cost).mean()),
                unclipped=None if bounds is None else -float(least[size].mean()),
            )
        proven = any(row.certified is not None for row in rows.values())
        if not proven and not reason:
            reason = (
                f"a region is known for sizes up to {limit:.3g}, a gain in it is not" if limit else "no region is known"
            )
            if limit and limit < min(sizes):
                reason = f"a region is known for sizes up to {limit:.3g} only"
        each = [tuple((-least[size]).tolist()) for size in sizes] if proven else []
        return ReturnCertificate(
            status="PASS" if proven else "NOT_CERTIFIED",
            norm=self.norm,
            gain=max(gains, default=None),
            unclipped_up_to=limit or None,
            episodes=self.playing.shape[1],
            rows=tuple(rows[size] for size in sizes),
            task=task,
            seed=self.seed,
            each=tuple(each),
            reason="" if proven else reason,
            region=self._region(largest, limit) if limit else None,
        )

    @property
    def _least_cost(self) -> float:
        """The cost of an episode of nothing but zeros."""
        return -squares_of(self.playing.plant).most * self.playing.shape[0]

    @cached_property
    def _path(self) -> Array:
        """States, actions and other signals (time, episodes, n + m + signals) without a perturbation."""
        m, signals = self.model.m, self.nominal.signals.numpy()
        parts = [self.nominal.states.numpy(), signals[..., signals.shape[2] - m :], signals[..., : -m or None]]
        return np.concatenate((*parts, self._innovations()), axis=2)

    @cached_property
    def _allowed(self) -> tuple[Array, Array]:
        """Limits (n + m + signals,) of what `_path` holds."""
        limits, wide = self.playing.limits(), squares_of(self.playing.plant).limits
        wrapped = np.full(int(self._angles.sum()), np.pi)
        below, above = (np.concatenate((part[-self.model.m :], part[: -self.model.m or None])) for part in limits)
        return np.concatenate((-wide, below, -wrapped)), np.concatenate((wide, above, wrapped))

    @property
    def _angles(self) -> Array:
        """Outputs (p,) whose difference from what an observer expects is wrapped."""
        found = np.zeros(self.model.p, dtype=bool)
        if isinstance(self.policy, YoulaPolicy):
            found[list(self.model.angles)] = True
        return found

    def _innovations(self) -> Array:
        """Return (time, episodes, angles) of how far each angle is from what the observer expects, not wrapped."""
        steps, episodes, _ = self.playing.shape
        found = np.zeros((steps, episodes, int(self._angles.sum())))
        if not isinstance(self.policy, YoulaPolicy) or not found.shape[2]:
            return found
        model, gain = self.model, self.policy.design.L
        expected = np.zeros((episodes, model.n))
        for t in range(steps):
            seen = self.playing.plant.observe(self.nominal.states[t], self.playing.params).numpy()
            far = seen - model.y0 - expected @ model.C.T
            found[t] = far[:, self._angles]
            applied = self.nominal.applied[t].numpy() - model.u0
            expected = expected @ model.A.T + applied @ model.B.T + far @ gain.T
        return found

    def _outside(self) -> str:
        """Return where the episodes leave what a region may hold without a perturbation, "" if they do not."""
        low, high = self._allowed
        room = np.minimum(self._path - low, high - self._path).min((0, 1))
        names = [*self.model.state_names, *self.model.input_names]
        worst = int(np.argmin(np.where(np.isfinite(room), room, np.inf)))
        if room[worst] > 0:
            return ""
        what = names[worst] if worst < len(names) else "a signal inside the policy"
        reached = float(np.abs(self._path[..., worst]).max())
        return (
            f"without a perturbation {what} reaches {reached:.4g} in these episodes, at or beyond {high[worst]:.4g}, "
            "where it is clipped or the reward or the episode is another; start nearer to the equilibrium"
        )

    def _box(self, scale: float) -> Box | str:
        """Return the box that holds what the loop of the smallest box does to a perturbation of size `scale`."""
        if scale in self.boxes:
            return self.boxes[scale]
        count = self.model.n + self.model.m
        low, high = self._path[..., :count].min((0, 1)), self._path[..., :count].max((0, 1))
        if scale:
            first = self._box(0.0)
            assert isinstance(first, Box)
            reach = scale * first.reach[:, :count].max(0)
            low, high = (
                np.maximum(low - reach, self._allowed[0][:count]),
                np.minimum(high + reach, self._allowed[1][:count]),
            )
        playing = self.playing
        close, steps = playing.policy.loop, playing.shape[0]
        self.boxes[scale] = box_loop(close, self.model, playing.plant, self._angles, (low, high), steps, self.norm)
        return self.boxes[scale]

    @staticmethod
    def _failed(box: Box | str) -> str:
        return box if isinstance(box, str) else ""

    def _reach(self, scale: float) -> Array:
        """Return the reach in a box that was looked at: at most that in every larger one, which holds it."""
        larger = [box.reach for other, box in self.boxes.items() if other >= scale and isinstance(box, Box)]
        return np.minimum.reduce(larger)

    def _up_to(self, scale: float) -> float:
        """Return the largest size whose tubes are in a box and clip nothing, 0 where there is none."""
        box = self._box(scale)
        if isinstance(box, str):
            return 0.0
        low, high = (part.copy() for part in self._allowed)
        count, reach = len(box.low), self._reach(scale)
        low[:count], high[:count] = np.maximum(low[:count], box.low), np.minimum(high[:count], box.high)
        room = np.minimum(self._path - low, high - self._path).min(1)
        sizes = np.divide(room, reach, out=np.full_like(room, np.inf), where=reach > 0)
        return max(float(sizes.min()), 0.0) * (1 - MARGIN)

    def _smallest(self, size: float) -> Box | None:
        """Return the smallest box looked at whose tubes of this size it holds."""
        if not size:
            box = self._box(0.0)
            return box if isinstance(box, Box) else None
        held = [scale for scale in self.boxes if self._up_to(scale) >= size]
        box = self.boxes[min(held)] if held else None
        return box if isinstance(box, Box) else None

    def _largest(self, sizes: list[float]) -> tuple[float, float]:
        """Return the largest size found that has a region, and the scale of its box; looks at boxes for each size."""
        for size in sorted({size for size in sizes if size}):
            for room in _ROOMS:
                if self._up_to(room * size) >= size or isinstance(self._box(room * size), str):
                    break
            else:
                break
            if self._smallest(size) is None:
                break
        low, first = self._allowed, self._box(0.0)
        assert isinstance(first, Box)
        # In the smallest box a perturbation moves everything least, so about here the sizes with a region end.
        room = np.minimum(self._path - low[0], low[1] - self._path).min(1)
        most = float(np.divide(room, first.reach, out=np.full_like(room, np.inf), where=first.reach > 0).min())
        held = [scale for scale in self.boxes if self._up_to(scale) > 0]
        good, bad = max(held, default=0.0), 2.0 * most
        for _ in range(_BISECTIONS):
            middle = 0.5 * (good + bad)
            before = max(map(self._up_to, self.boxes))
            if self._up_to(middle) > before * 0.999:
                good = middle
            else:
                bad = middle
        best = max(self.boxes, key=self._up_to)
        return self._up_to(best), best

    def _bounds(self, box: Box, gain: Gain, size: float) -> CostBounds:
        """Return the bounds of the squares' sum of each episode."""
        squares = squares_of(self.playing.plant)
        states, applied = self.nominal.states, self.nominal.applied
        if squares.following:
            last = self.playing.plant.advance(states[-1], applied[-1], self.playing.params)
            states = torch.cat((states[1:], last[None]))
        z = np.concatenate((states.numpy() * np.sqrt(squares.Q), applied.numpy() * np.sqrt(squares.R)), axis=2)
        cost = self.nominal.cost.numpy() - self._least_cost
        if not np.allclose(np.square(z).sum((0, 2)), cost, rtol=1e-9, atol=1e-9):
            raise InvalidValueError("The plant's reward is not the sum of squares that the bound is of.")
        return Along(box.costs.model, box.costs.family, z).bounds(gain, Perturbation(self.norm, size))

    def _attacked(self, size: float, held: bool, starts: list[Array], bounds: CostBounds | None) -> Played:
        """Return the episodes under the worst perturbation found; a worse one of a smaller size counts as well."""
        # Beyond the region an episode may end early, which playing on would not show.
        if not size or (self.playing.plant.terminates and not held):
            return self.nominal
        begin = [*starts[-1:], *([] if bounds is None or bounds.worst is None else [bounds.worst])]
        added = self.playing.worst(self.norm, size, begin, _SEARCH, self.seed)
        starts.append(added.numpy())
        with torch.no_grad():
            return self.playing.play(added)

    def _region(self, scale: float, limit: float) -> dict[str, Any]:
        box = self._box(scale)
        assert isinstance(box, Box)
        names, count = [*self.model.state_names, *self.model.input_names], len(box.low)
        return {
            "size_up_to": limit,
            "names": names,
            "low": box.low.tolist(),
            "high": box.high.tolist(),
            "moved_per_size": self._reach(scale)[:, :count].max(0).tolist(),
            "channels": box.channels,
        }
